"""Settings of gunicorn for the service `preloaded`: each worker has a session of its own."""

import preloaded

import openai_cancel


def post_fork(_server, _worker):
    preloaded.session = openai_cancel.Session().open()

"""A WSGI service that opens a session in each worker, when it is first needed."""

import functools

from openai_cancel import Session


@functools.cache
def session() -> Session:
    return Session().open()


def app(environ, start_response):
    verdict = session().stop(environ["PATH_INFO"].strip("/")).verdict
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [verdict.encode()]

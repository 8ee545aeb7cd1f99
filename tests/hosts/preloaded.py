"""A WSGI service whose session is open before its workers are forked, and which hides its exceptions."""

import openai_cancel

session = openai_cancel.Session().open()


def app(environ, start_response):
    try:
        status, body = "200 OK", session.stop(environ["PATH_INFO"].strip("/")).verdict
    except Exception:  # noqa: BLE001 - a framework shows a page without details
        status, body = "500 Internal Server Error", "Sorry."
    start_response(status, [("Content-Type", "text/plain")])
    return [body.encode()]

"""A WSGI application with two blocking sessions, for gunicorn's workers of greenlets; see test_green_threads.py."""

import asyncio
import os
import threading
import time
from typing import Any

from openai_cancel import Session, SessionStateError

URL = os.environ["EMULATOR_URL"]
_sessions: list[Session] = []
_lock = threading.Lock()


def _open() -> list[Session]:
    """Open the sessions in the worker, not before a fork."""
    with _lock:
        while len(_sessions) < 2:
            _sessions.append(Session(api_key=_key, base_url=URL).open())
    return _sessions


def _key() -> str:
    assert not _a_loop_runs()
    return "sk-of-the-application"


def _a_loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Stop the response that the path names with both sessions, under a guard, while other requests go on."""
    name = environ["PATH_INFO"].strip("/")
    try:
        first, second = _open()
        answers = [str(second.retrieve(name).status), str(_a_loop_runs())]
        try:
            with first.guard(name) as guard:
                time.sleep(0.01)
                raise ZeroDivisionError
        except ZeroDivisionError:
            answers.append(str(guard.outcome.verdict))
        answers += [str(outcome.verdict) for outcome in second.stop_many(iter([name, "resp_none"]))]
    except SessionStateError as error:
        answers = [str(error)]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join(answers).encode()]

"""Responses, outcomes and errors from few arguments, for tests of code that uses this package.

```python
from openai_cancel.testing import make_error, make_outcome, make_response

assert make_response("completed", text="Because.").output_text == "Because."  # pass them to your own code
assert make_outcome("not_found").error.status == 404
assert make_error(503, retry_after=2).retry_after == 2
```

They equal what a session returns and raises for the answers of a server. To test code together with a session, run a
server with `openai_cancel.emulator`, or the fixture `openai_emulator` of pytest. Errors without an answer need no
factory: `APIConnectionError("refused")`, `APITimeoutError("late")`, `WaitTimeoutError("late", limit="timeout")`.
"""

import json
import time
from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import Any, Literal, TypeAlias

import orjson
from multidict import CIMultiDict

from openai_cancel.converter import response_hook
from openai_cancel.emulator import Script, Work
from openai_cancel.errors import APIConnectionError, APIError, APIStatusError, OpenAICancelError
from openai_cancel.models import Response
from openai_cancel.models.response import Status
from openai_cancel.models.serialization import Serializable
from openai_cancel.outcome import Outcome, Verdict
from openai_cancel.wire import Answer, Request, decode, reason_of

__all__ = ["VerdictName", "make_error", "make_outcome", "make_response"]

VerdictName: TypeAlias = Literal[
    "cancelled", "already_finished", "not_background", "not_found", "forbidden", "still_running", "unknown"
]
"""The value of a `Verdict`."""

_REQUEST: Mapping[str, Any] = {"model": "gpt-5", "input": "Why?", "background": True}


def _no_reason() -> None:
    return None


def make_response(
    status: Status = "completed",
    *,
    response_id: str = "resp_123",
    text: str = "Forty-two.",
    **fields: Any,
) -> Response:
    """Make a background response, as OpenAI would return it.

    Args:
        status: its status.
        response_id: its id.
        text: the text of its output, if it is `completed` or `incomplete`.
        fields: other fields of the document, such as `model`, `metadata`, `usage` or `output`, as in JSON or as objects
            of `openai_cancel.models`. They replace the defaults.

    Raises:
        TypeError: a field is neither.
    """
    work = Work(request=_REQUEST, script=Script(says=text), started=time.time(), id=response_id)
    document = {**work.document(time.time(), status), **fields}
    return response_hook()(json.loads(json.dumps(document, default=_to_json)))


def _to_json(value: object) -> Any:
    """Return the document of an object."""
    if isinstance(value, Serializable):
        return value.to_dict()
    raise TypeError(f"pass fields as in JSON, or as objects of openai_cancel.models; got {value!r}")


def make_error(
    status: int,
    message: str | None = None,
    *,
    code: str | int | None = None,
    request_id: str | None = None,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> APIStatusError:
    """Make the error that a session raises for an answer of a server. Its class depends on the status.

    Args:
        status: the HTTP status, such as 404.
        message: the server's message. Defaults to the name of the status.
        code: the server's error code, such as `insufficient_quota`.
        request_id: the server's id of the request.
        retry_after: seconds that the server asks the client to wait.
        headers: other headers of the answer.

    Raises:
        ValueError: the status is not an int; or it is that of a success, and neither a message nor a code was passed.
    """
    if not isinstance(status, int):
        raise ValueError(f"status must be a number, such as 404; got {status!r}")  # noqa: TRY004 - as for other numbers
    all_headers = CIMultiDict(headers or {})
    if request_id is not None:
        all_headers["x-request-id"] = request_id
    if retry_after is not None:
        all_headers["retry-after-ms"] = f"{retry_after * 1000:.15g}"
    if message is None and code is not None:
        message = reason_of(status)
    body = b"" if message is None else orjson.dumps({"error": {"message": message, "code": code}})
    try:
        decode(Answer(status, all_headers, body), Request("POST", "", {}))
    except APIError as error:
        if isinstance(error, APIStatusError):
            error.attempts = 1
            return error.with_traceback(None)
    raise ValueError(f"status must be that of an error, such as 404, or there must be a message; got {status!r}")


def make_outcome(
    verdict: Verdict | VerdictName = "cancelled",
    *,
    response_id: str = "resp_123",
    response: Response | EllipsisType | None = ...,
    error: OpenAICancelError | EllipsisType | None = ...,
    attempts: int = 1,
    elapsed: float = 0.1,
    request_id: str | None = "req_123",
) -> Outcome:
    """Make the outcome of a `stop`, with a response and an error that fit the verdict.

    Args:
        verdict: the verdict.
        response_id: its id.
        response: the response as it was last seen. By default, one that fits the verdict.
        error: the reason. By default, one that fits the verdict.
        attempts: the number of requests.
        elapsed: seconds.
        request_id: the server's id of the last request.

    Raises:
        ValueError: there is no such verdict.
    """
    verdict = Verdict(verdict)
    status, reason = _REASONS[verdict]
    background = verdict is not Verdict.NOT_BACKGROUND
    fitting = None if status is None else make_response(status, response_id=response_id, background=background)
    return Outcome(
        response_id=response_id,
        verdict=verdict,
        response=fitting if isinstance(response, EllipsisType) else response,
        error=reason() if isinstance(error, EllipsisType) else error,
        attempts=attempts,
        elapsed=elapsed,
        request_id=request_id,
    )


_REASONS: Mapping[Verdict, tuple[Status | None, Callable[[], OpenAICancelError | None]]] = {
    Verdict.CANCELLED: ("cancelled", _no_reason),
    Verdict.ALREADY_FINISHED: ("completed", _no_reason),
    Verdict.NOT_BACKGROUND: ("in_progress", lambda: make_error(400, "Cannot cancel a synchronous response.")),
    Verdict.NOT_FOUND: (None, lambda: make_error(404, "Response not found.")),
    Verdict.FORBIDDEN: (None, lambda: make_error(401, "Incorrect API key provided.")),
    Verdict.STILL_RUNNING: ("in_progress", _no_reason),
    Verdict.UNKNOWN: (None, lambda: APIConnectionError("Connection refused")),
}
"""The status of the response and the reason that fit each verdict."""

"""`Outcome` and `Verdict`, and how a verdict follows from what a server has said. Pure: no I/O.

Neither a server's words nor its status codes are trusted: after a 200, the response may still be running;
after a 400 or a 404, it may be over. The state that the server reports decides.
"""

import re
from collections.abc import Awaitable, Callable
from enum import StrEnum
from http import HTTPStatus
from typing import Any, TypeAlias, TypeGuard

import attrs

from openai_cancel.errors import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    OpenAICancelError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    UnprocessableEntityError,
    UnsupportedError,
)
from openai_cancel.models import Response
from openai_cancel.models.response import CANCELLED_STATUSES
from openai_cancel.models.serialization import Serializable
from openai_cancel.retry import is_transient

_ENDED = "(completed|failed|incomplete|cancelled|canceled|finished)"
_NO_SUCH_ID = re.compile(
    r"\b(response|id)\b.*(not found|not exist)|malformed identifier|no such response|expected an id"
    r"|model=None.*no healthy deployments",  # LiteLLM, for an id that it cannot decode
    re.IGNORECASE,
)
_NO_SUCH_ROUTE = re.compile(
    r"(error\W+|http status )?(404\W+)?((endpoint|file|page|resource|route) )?not found\W*"
    r"|cannot (post|get) /.*|invalid url .*|the requested url .*not found.*|unexpected endpoint .*"
    r"|no (endpoint|handler|route|static resource) .*|route (post|get)\b.* not found"
    r"|unknown (request )?(route|path|url)\b.*",
    re.IGNORECASE,
)
"""The words of Azure, Express, FastAPI, Fastify, Flask, Go, Groq, Kong, llama.cpp, LM Studio, OpenAI, Spring."""
_IS_OVER = re.compile(
    rf"cannot cancel (an? )?{_ENDED} response|already (been |is )?{_ENDED}|status is {_ENDED}|in (a )?terminal state",
    re.IGNORECASE,
)
_NOT_BACKGROUND = re.compile(r"\bsynchronous\b|only background|not .*background|background=true", re.IGNORECASE)


class Verdict(StrEnum):
    """The fate of a response."""

    CANCELLED = "cancelled"
    """It was queued or running, and is cancelled now."""

    ALREADY_FINISHED = "already_finished"
    """It had completed, failed, ended incomplete, or been cancelled before."""

    NOT_BACKGROUND = "not_background"
    """The server refuses, because the response was not created with `background=true`."""

    NOT_FOUND = "not_found"
    """The server does not know the id, or no longer keeps the response."""

    FORBIDDEN = "forbidden"
    """The server does not accept the key (401), or the key lacks the permission (403)."""

    STILL_RUNNING = "still_running"
    """The response was running when the server last reported its state."""

    UNKNOWN = "unknown"
    """The server never reported a state: no connection, a failing server, or a used-up quota."""


STOPPED_VERDICTS = frozenset({Verdict.CANCELLED, Verdict.ALREADY_FINISHED})
CANNOT_CANCEL = "This server cannot cancel responses."
HINTS = {
    Verdict.STILL_RUNNING: "Try again later.",
    Verdict.UNKNOWN: "Check the base URL, the query parameters and the id.",
}

NOT_FOUND_STATUSES = frozenset({"not_found"})
"""Statuses with which some servers answer a cancel of an unknown id, although the HTTP status is 200."""


_STATES_WITHOUT_ID = CANCELLED_STATUSES | NOT_FOUND_STATUSES | {"already_completed"}
"""Statuses that are about the response even if the document of a cancel has no id. agent-framework-devui sends them."""


@attrs.frozen(kw_only=True)
class Outcome(Serializable):
    """The result of `stop`.

    Attributes:
        response_id: the id that was passed in. Some servers answer with another one.
        verdict: the fate of the response.
        response: the response as the server last reported it, or None.
        error: the reason why the response is not stopped, or why `confirm` could not check it again; otherwise None.
        attempts: the number of requests.
        elapsed: the seconds that it took.
        request_id: the server's id of the last request, or None.
    """

    response_id: str
    verdict: Verdict
    response: Response | None
    error: OpenAICancelError | None
    attempts: int
    elapsed: float
    request_id: str | None

    @property
    def stopped(self) -> bool:
        """Whether the server has reported that the work is over."""
        return self.verdict in STOPPED_VERDICTS or (self.response is not None and self.response.is_terminal)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a JSON document, with the document of the response, and `stopped`.

        `pandas.json_normalize([outcome.to_dict() for outcome in outcomes])` is a table with a column for each field,
        such as `verdict` and `response.usage.total_tokens`.
        """
        return {
            "response_id": self.response_id,
            "verdict": str(self.verdict),
            "stopped": self.stopped,
            "response": None if self.response is None else self.response.to_dict(),
            "error": None if self.error is None else self.error.to_dict(),
            "attempts": self.attempts,
            "elapsed": self.elapsed,
            "request_id": self.request_id,
        }


OnOutcome: TypeAlias = Callable[[Outcome], object | Awaitable[object]]
"""A function, sync or async, that is called with each outcome."""


def ended(response_id: str) -> Outcome:
    """Return the outcome of a response that somebody else has seen to end."""
    return Outcome(
        response_id=response_id,
        verdict=Verdict.ALREADY_FINISHED,
        response=None,
        error=None,
        attempts=0,
        elapsed=0.0,
        request_id=None,
    )


def reports_state(response: Response) -> bool:
    """Return whether a document with a status tells the state of the response.

    Without an id, `{"status": "failed"}` or `{"status": "success"}` may be about the request itself.
    """
    return response.id is not None or response.status in _STATES_WITHOUT_ID


def judge(
    response: Response | None, *, refusal: OpenAICancelError | None, error: OpenAICancelError | None, reached: bool
) -> Verdict | None:
    """Return the verdict, or None if the response may still be running.

    Args:
        response: the response as the server last reported it, or None.
        refusal: the error of the last cancel, or None if it was accepted.
        error: the error of the last look, or None if it returned `response`.
        reached: whether one of the cancels may have had an effect.
    """
    if error is None and response is not None:
        if response.status in NOT_FOUND_STATUSES:
            return None if _proves_nothing(refusal) else Verdict.NOT_FOUND
        return _judge_state(response, refusal, reached=reached)
    return None if error is None or refusal is None else _judge_failures(response, refusal, error)


def _judge_failures(response: Response | None, refusal: OpenAICancelError, error: OpenAICancelError) -> Verdict | None:
    if _proves_the_end(refusal):
        return Verdict.ALREADY_FINISHED  # the look fails or is forbidden, or is answered from another store
    if any(isinstance(failure, AuthenticationError | PermissionDeniedError) for failure in (refusal, error)):
        return Verdict.FORBIDDEN
    if _is_missing(error):
        return _judge_unknown_id(response, refusal, error)
    if _refuses(refusal) and _refuses(error) and _NO_SUCH_ID.search(f"{refusal.message} {error.message}"):
        return Verdict.NOT_FOUND
    if any(is_transient(failure) or isinstance(failure, ResponseDecodeError) for failure in (refusal, error)):
        return None
    return Verdict.UNKNOWN if response is None else Verdict.STILL_RUNNING


def _judge_unknown_id(
    response: Response | None, refusal: OpenAICancelError, error: OpenAICancelError
) -> Verdict | None:
    """Return the verdict where the last look did not find the response. The refusal of the cancel may know more."""
    if _refuses(refusal) and not isinstance(refusal, NotFoundError) and _NOT_BACKGROUND.search(refusal.message):
        return Verdict.NOT_BACKGROUND
    if _proves_nothing(refusal):
        return None
    if isinstance(refusal, UnsupportedError) and lacks_route(error):
        return Verdict.UNKNOWN if response is None else Verdict.STILL_RUNNING
    return Verdict.NOT_FOUND


def _proves_the_end(refusal: OpenAICancelError) -> bool:
    """Return whether the words of a refusal say that the response has ended.

    A server that says "not found or already completed" does not know which. Another replica may know that it runs.
    """
    return (
        _refuses(refusal)
        and not _is_missing(refusal)
        and _NO_SUCH_ID.search(refusal.message) is None
        and _IS_OVER.search(refusal.message) is not None
    )


def _is_missing(error: OpenAICancelError) -> bool:
    return isinstance(error, NotFoundError) or getattr(error, "status", None) == HTTPStatus.GONE


def _proves_nothing(refusal: OpenAICancelError | None) -> bool:
    """Return whether the cancel has no usable answer. The look may then be answered from another store."""
    unusable = InternalServerError | APIConnectionError | ResponseDecodeError
    return refusal is not None and (isinstance(refusal, unusable) or is_transient(refusal))


def _judge_state(response: Response, refusal: OpenAICancelError | None, *, reached: bool) -> Verdict | None:
    cancelled = response.status in CANCELLED_STATUSES
    refused = refusal if isinstance(refusal, BadRequestError | ConflictError | UnprocessableEntityError) else None
    if refused and response.background is False and not cancelled and (response.is_terminal or not reached):
        return Verdict.NOT_BACKGROUND
    if response.is_terminal:
        return Verdict.CANCELLED if reached and cancelled else Verdict.ALREADY_FINISHED
    if isinstance(refusal, PermissionDeniedError):
        return Verdict.FORBIDDEN
    if lacks_cancel(refusal, known=True):
        return Verdict.STILL_RUNNING
    # The words come last: some servers call everything that is over "synchronous", others do not report `background`.
    if refused and not reached and response.background is None and _NOT_BACKGROUND.search(refused.message):
        return Verdict.NOT_BACKGROUND
    return None


def lacks_cancel(refusal: OpenAICancelError | None, *, known: bool) -> bool:
    """Return whether the server does not implement the cancel, so that another one cannot help.

    Args:
        refusal: the error of the cancel, or None.
        known: whether a look has found the response.
    """
    return isinstance(refusal, UnsupportedError) or lacks_route(refusal, known=known)


def lacks_route(error: OpenAICancelError | None, *, known: bool = False) -> bool:
    """Return whether a 404 is about the path, and not about the id.

    Args:
        error: the error, or None.
        known: whether the server knows the id. Otherwise a 404 without a body may be about either.
    """
    return (
        isinstance(error, APIStatusError)
        and (isinstance(error, NotFoundError) or error.status == HTTPStatus.OK)  # LM Studio answers with 200
        and (known or bool(error.body.strip()))
        and _NO_SUCH_ROUTE.fullmatch(error.message.strip()) is not None
    )


def rests_on_404(verdict: Verdict, refusal: OpenAICancelError | None) -> bool:
    """Return whether a verdict follows from a 404, which another replica, or the same one later, may not repeat.

    A 405 and a 501 are about the server, and need no repetition.
    """
    return verdict is Verdict.NOT_FOUND or (verdict is Verdict.STILL_RUNNING and lacks_route(refusal, known=True))


def _refuses(error: OpenAICancelError | None) -> TypeGuard[APIStatusError]:
    """Return whether the error is about this request, and not about the key, the load, or the server itself."""
    others = AuthenticationError | PermissionDeniedError | RateLimitError | InternalServerError
    return (
        isinstance(error, APIStatusError)
        and not isinstance(error, others)
        and error.status != HTTPStatus.REQUEST_TIMEOUT
    )


def may_have_acted(refusal: OpenAICancelError | None) -> bool:
    """Return whether a cancel with this result may have had an effect, for example in an attempt without an answer."""
    if refusal is None or refusal.attempts > 1:
        return True
    # With no attempt at all, the rate limit left no time to send it.
    answered = isinstance(refusal, APIStatusError) and not isinstance(refusal, InternalServerError)
    return refusal.attempts > 0 and not answered


def explain(
    verdict: Verdict, refusal: OpenAICancelError | None, error: OpenAICancelError | None
) -> OpenAICancelError | None:
    """Return the error that is the reason for a verdict, with a hint that fits it; None if there is no reason to give.

    Args:
        verdict: the verdict.
        refusal: the error of the last cancel, or None.
        error: the error of the last request, or None.
    """
    if verdict in STOPPED_VERDICTS:
        return None
    found = [failure for failure in (error, refusal) if failure is not None]
    if verdict is Verdict.NOT_FOUND:
        reason = next((failure for failure in found if isinstance(failure, NotFoundError)), error or refusal)
        return _with_hint(reason, NotFoundError.hint)
    if lacks_cancel(refusal, known=verdict is Verdict.STILL_RUNNING):
        return _with_hint(refusal, CANNOT_CANCEL)
    # That a replica did not find it is no reason why it is still running.
    reasons = [failure for failure in found if not isinstance(failure, NotFoundError)]
    reason = next(iter(reasons or found), None)
    hint = HINTS.get(verdict)
    return _with_hint(reason, hint) if hint and isinstance(reason, _POINTLESS_HINTS) else reason


_POINTLESS_HINTS = BadRequestError | ConflictError | NotFoundError
"""Errors whose own hint is to retrieve the response, or to check its id."""


def _with_hint(reason: OpenAICancelError | None, hint: str) -> OpenAICancelError | None:
    if isinstance(reason, APIStatusError):
        reason.hint = hint
    return reason

"""`Outcome` and `Verdict`, and how a verdict follows from what a server has said. Pure: no I/O.

Neither a server's words nor its status codes are trusted: a 200 may still be running, and a 400 or a 404 may be over.
The state that the server reports decides.
"""

import re
from enum import StrEnum
from http import HTTPStatus
from typing import TypeGuard

import attrs

from openai_cancel.errors import (
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
)
from openai_cancel.models import Response
from openai_cancel.models.response import CANCELLED_STATUSES
from openai_cancel.retry import is_transient

_NO_SUCH_ID = re.compile(
    r"\b(response|id)\b.*(not found|not exist)|malformed identifier|no such response|expected an id", re.IGNORECASE
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


@attrs.frozen(kw_only=True)
class Outcome:
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
        return self.response is not None and self.response.is_terminal


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
    if error is None:
        return _judge_state(response, refusal, reached=reached) if response else None
    if refusal is None:
        return None
    failures = (refusal, error)
    if any(isinstance(failure, AuthenticationError | PermissionDeniedError) for failure in failures):
        return Verdict.FORBIDDEN
    denied = _refuses(refusal) and _refuses(error) and _NO_SUCH_ID.search(f"{refusal.message} {error.message}")
    if denied or isinstance(error, NotFoundError) or getattr(error, "status", None) == HTTPStatus.GONE:
        return Verdict.NOT_FOUND
    if any(is_transient(failure) or isinstance(failure, ResponseDecodeError) for failure in failures):
        return None
    return Verdict.UNKNOWN if response is None else Verdict.STILL_RUNNING


def _judge_state(response: Response, refusal: OpenAICancelError | None, *, reached: bool) -> Verdict | None:
    cancelled = response.status in CANCELLED_STATUSES
    refused = refusal if isinstance(refusal, BadRequestError | ConflictError | UnprocessableEntityError) else None
    if refused and response.background is False and not cancelled and (response.is_terminal or not reached):
        return Verdict.NOT_BACKGROUND
    if response.is_terminal:
        return Verdict.CANCELLED if reached and cancelled else Verdict.ALREADY_FINISHED
    if isinstance(refusal, PermissionDeniedError):
        return Verdict.FORBIDDEN
    # The words come last: some servers call everything that is over "synchronous", others do not report `background`.
    if refused and not reached and response.background is None and _NOT_BACKGROUND.search(refused.message):
        return Verdict.NOT_BACKGROUND
    return None


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
    # With no attempt at all, the pace left no time to send it.
    answered = isinstance(refusal, APIStatusError) and not isinstance(refusal, InternalServerError)
    return refusal.attempts > 0 and not answered

"""`stop`: cancel a response, and find out whether it still runs, whichever server holds it.

A server's words are not trusted, nor is its status code: a 200 may still be running, a 400 or a 404 may be over. What
decides is the state that it reports.
"""

import logging
import re
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeGuard

import attrs

from openai_cancel.errors import (
    APIError,
    APIStatusError,
    APITimeoutError,
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
    detached,
)
from openai_cancel.models import Response
from openai_cancel.models.response import CANCELLED_STATUSES
from openai_cancel.retry import REQUEST_TIMEOUT, is_transient, poll_delay

CANCEL_SHARE = 0.75
"""Of the time that is left, what a cancel may take: the rest is for a look, should no answer come."""

CANCEL_EVERY = 4
"""One look in so many cancels again: some servers forget a cancel, and none minds another."""

LEAST_TIME = 0.5
"""Seconds that are too few for another request."""

GONE = 410

_NO_SUCH_ID = re.compile(
    r"\b(response|id)\b.*(not found|not exist)|malformed identifier|no such response|expected an id", re.IGNORECASE
)
_NOT_BACKGROUND = re.compile(r"\bsynchronous\b|only background|not .*background|background=true", re.IGNORECASE)

_log = logging.getLogger("openai_cancel")


class Verdict(StrEnum):
    """What became of a response."""

    CANCELLED = "cancelled"
    """It was running or queued, and is cancelled now."""

    ALREADY_FINISHED = "already_finished"
    """It is completed, failed or incomplete, or had been cancelled before."""

    NOT_BACKGROUND = "not_background"
    """The server refuses, since it was not created with `background=true`."""

    NOT_FOUND = "not_found"
    """The server does not know the id, or has forgotten it."""

    FORBIDDEN = "forbidden"
    """The server does not take the key (401), or the key may not do this (403)."""

    STILL_RUNNING = "still_running"
    """When the server last spoke of it, it was not over."""

    UNKNOWN = "unknown"
    """The server said nothing of it: no connection, a failing server, a quota that is used up."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What `stop` found out.

    Attributes:
        response_id: the id that was asked for. Some servers answer with another one.
        verdict: what became of the response.
        response: the response as the server last described it; None where it never did.
        error: why it is not stopped, or why `confirm` could not look again; None where nothing is left to say.
        attempts: how many there were in all.
        elapsed: seconds that it took.
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
        """Whether the server has said that the work is over."""
        return self.response is not None and self.response.is_terminal


@attrs.define(kw_only=True)
class Stop:
    """One `stop` under way.

    Attributes:
        response_id: as the caller gave it.
        cancel, retrieve: the calls of a session, for this response.
        monotonic, sleep, random: the session's clock, its sleep, and its numbers from 0 up to 1.
        deadline: seconds that all of it may take.
        confirm: seconds after which a cancelled response is looked at again, or None.
        dry_run: look, and cancel nothing.
    """

    response_id: str
    cancel: Callable[..., Awaitable[Response]]
    retrieve: Callable[..., Awaitable[Response]]
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    random: Callable[[], float]
    deadline: float
    confirm: float | None
    dry_run: bool = False

    _began: float = attrs.field(init=False)
    _attempts: int = 0
    _response: Response | None = None
    _request_id: str | None = None
    _reached: bool = False
    """Whether a cancel may have had an effect: one was accepted, or went unanswered."""

    async def run(self) -> Outcome:
        """Stop the response, as far as that can be done before the deadline."""
        self._began = self.monotonic()
        verdict, error = await (self._look() if self.dry_run else self._settle())
        if self.confirm is not None and verdict is Verdict.CANCELLED:
            verdict, error = await self._look_again(self.confirm)
            if verdict is Verdict.STILL_RUNNING:
                verdict, error = await self._settle()
                if verdict is Verdict.CANCELLED:
                    verdict, error = await self._look_again(self.confirm)
        outcome = Outcome(
            response_id=self.response_id,
            verdict=verdict,
            response=self._response,
            error=error,
            attempts=self._attempts,
            elapsed=self.monotonic() - self._began,
            request_id=self._request_id,
        )
        _log.info(
            "%s: %s (attempts: %d, %.3f s, request id: %s)",
            outcome.response_id, outcome.verdict, outcome.attempts, outcome.elapsed, outcome.request_id,
        )  # fmt: skip
        return outcome

    async def _settle(self) -> tuple[Verdict, OpenAICancelError | None]:
        """Cancel, and look until the state decides or the time is over."""
        refusal: OpenAICancelError | None = None
        error: OpenAICancelError | None = None
        looks = 0
        while True:
            # A look that fails is no answer as long as a cancel is accepted: that one tells the state, too.
            if error is not None or refusal is not None or looks % CANCEL_EVERY == 0:
                error = refusal = await self._ask(self.cancel, share=CANCEL_SHARE)
                self._reached = self._reached or _may_have_acted(refusal)
                if refusal is not None and not isinstance(refusal, AuthenticationError):
                    # Where the cancel was repeated already, one look will do.
                    error = await self._ask(self.retrieve, **({"max_retries": 0} if is_transient(refusal) else {}))
            else:
                error = await self._ask(self.retrieve)
            verdict = judge(self._response, refusal=refusal, error=error, reached=self._reached)
            if verdict is not None:
                return verdict, None if verdict in _STOPPED else error or refusal
            left = self._left()
            if left < LEAST_TIME:
                return Verdict.UNKNOWN if self._response is None else Verdict.STILL_RUNNING, error or refusal
            asked: float | None = getattr(error or refusal or self._response, "retry_after", None)
            # The looks come closer together towards the deadline, so that the last one is close to it.
            await self.sleep(min(poll_delay(looks, asked=asked, random=self.random()), left / 2))
            looks += 1

    async def _look(self) -> tuple[Verdict, OpenAICancelError | None]:
        error = await self._ask(self.retrieve)
        verdict = judge(self._response, refusal=error, error=error, reached=False)
        return verdict or (Verdict.STILL_RUNNING if error is None else Verdict.UNKNOWN), error

    async def _look_again(self, seconds: float) -> tuple[Verdict, OpenAICancelError | None]:
        """Look whether a cancelled response stayed so. Where that cannot be seen, the server's word stands."""
        await self.sleep(min(seconds, self._left() / 2))
        error = await self._ask(self.retrieve)
        if error is not None:
            return Verdict.CANCELLED, error
        return judge(self._response, refusal=None, error=None, reached=True) or Verdict.STILL_RUNNING, None

    async def _ask(
        self, call: Callable[..., Awaitable[Response]], *, share: float = 1.0, **options: int
    ) -> OpenAICancelError | None:
        """Make one call in the time that is left. What it brings is noted; how it failed is returned."""
        left = self._left() * share
        if left <= 0:
            return APITimeoutError(f"The deadline of {self.deadline:g} s is over.")
        answer: Response | APIError
        try:
            answer = self._response = await call(deadline=left, **options)
        except APIError as error:
            answer = detached(error)
        self._attempts += answer.attempts
        self._request_id = getattr(answer, "request_id", None)
        return None if isinstance(answer, Response) else answer

    def _left(self) -> float:
        return self.deadline - (self.monotonic() - self._began)


_STOPPED = {Verdict.CANCELLED, Verdict.ALREADY_FINISHED}


def judge(
    response: Response | None, *, refusal: OpenAICancelError | None, error: OpenAICancelError | None, reached: bool
) -> Verdict | None:
    """The verdict, or None as long as the response runs.

    Args:
        response: as the server last described it; None where it never did.
        refusal: what the last cancel failed with; None where it was accepted.
        error: what the last look failed with; None where `response` is what it saw.
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
    if denied or isinstance(error, NotFoundError) or getattr(error, "status", None) == GONE:
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
    # Some servers say so of everything that is over, others do not tell what is in the background: the state is first.
    if refused and not reached and response.background is None and _NOT_BACKGROUND.search(refused.message):
        return Verdict.NOT_BACKGROUND
    return None


def _refuses(error: OpenAICancelError | None) -> TypeGuard[APIStatusError]:
    """Whether the server means this request, and not the key, the load or its own failure."""
    others = AuthenticationError | PermissionDeniedError | RateLimitError | InternalServerError
    return isinstance(error, APIStatusError) and not isinstance(error, others) and error.status != REQUEST_TIMEOUT


def _may_have_acted(refusal: OpenAICancelError | None) -> bool:
    """Whether a cancel that ended so may have had an effect, be it by an attempt whose answer was lost."""
    if refusal is None or refusal.attempts > 1:
        return True
    # One that got no turn was not sent at all.
    answered = isinstance(refusal, APIStatusError) and not isinstance(refusal, InternalServerError)
    return refusal.attempts > 0 and not answered

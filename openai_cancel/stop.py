"""`stop`: cancel a response, and make sure that it is over, whichever server holds it."""

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from openai_cancel import tracing
from openai_cancel.caller import Caller
from openai_cancel.errors import (
    APIError,
    APITimeoutError,
    AuthenticationError,
    NotFoundError,
    OpenAICancelError,
    RateLimitError,
    UnsupportedError,
    detached,
)
from openai_cancel.log_events import log_fields
from openai_cancel.models import Response
from openai_cancel.outcome import (
    NOT_FOUND_STATUSES,
    Outcome,
    Verdict,
    explain,
    judge,
    lacks_route,
    may_have_acted,
    reports_state,
    rests_on_404,
)
from openai_cancel.retry import FINAL_POLL_TIME, MAX_POLL, is_transient, poll_delay
from openai_cancel.update_hook import OnUpdate, call_on_update

if TYPE_CHECKING:
    import asyncio

CANCEL_SHARE = 0.75
"""The share of the remaining time that a cancel may take. The rest is for a look, in case no answer comes."""

CANCEL_EVERY = 4
"""Every so many rounds, the cancel is sent again: some servers forget one, and none objects to another one."""

FROZEN = 1.0
"""If the clock is so many seconds past the deadline, the process was suspended."""

MIN_REQUEST_TIME = 0.5
"""Seconds that must remain for another request."""

DOUBTFUL_ROUNDS = 3
"""The number of further rounds until a 404 is believed about a response that is young, or was seen before.

A store may be eventual, and replicas may not share one. Some replicas answer an unknown id like an unknown path.
"""

_log = logging.getLogger("openai_cancel")
_outcome_log = logging.getLogger("openai_cancel.outcomes")
_outcome_log.addHandler(logging.NullHandler())  # without any handler, Python would print outcomes that the caller gets


async def stop(
    caller: Caller,
    response_id: str,
    *,
    deadline: float,
    confirm: float | None = None,
    dry_run: bool = False,
    poll: float = MAX_POLL,
    max_retries: int | None = None,
    on_update: OnUpdate | None = None,
    recently_created: bool = False,
    log_outcome: bool = False,
    on_verdict: Callable[[Outcome], object] | None = None,
) -> Outcome:
    """Stop a response, and report its fate.

    Args:
        caller: makes the requests.
        response_id: the id.
        deadline: seconds that everything may take together.
        confirm: seconds after which a cancelled response is checked again.
        dry_run: only look, and cancel nothing.
        poll: the maximum time between two polls, in seconds.
        max_retries: the number of failures in a row after the first one that do not end it; None for no limit.
        on_update: a function that is called with each response that was received.
        recently_created: whether the response was created a moment ago, so that a server may not know it yet.
        log_outcome: whether to log the outcome because no caller gets it.
        on_verdict: a function that is called with the outcome before anything else. A cancellation may come afterwards,
            while a caller's function is waited for, and the response must be neither stopped nor reported again.
    """
    work = _Stop(
        caller=caller.repeated(),
        response_id=response_id,
        deadline=deadline,
        confirm=confirm,
        dry_run=dry_run,
        poll=poll,
        max_retries=math.inf if max_retries is None else max_retries,
        on_update=on_update,
        recently_created=recently_created,
    )
    if tracing.is_active():
        with tracing.stop_span(response_id, caller.settings.base_url, dry_run=dry_run) as span:
            outcome = span.end(await work.run())
    else:
        outcome = await work.run()
    if on_verdict is not None:
        on_verdict(outcome)
    call = publish(caller, outcome, dry_run=dry_run, log_outcome=log_outcome)
    if call is not None and caller.hook is not None:
        await caller.hook.settle(call)
    return outcome


def publish(
    caller: Caller, outcome: Outcome, *, dry_run: bool, log_outcome: bool = False
) -> "asyncio.Task[None] | None":
    """Log an outcome, count it, and tell the caller's function of it. Every outcome passes through here, once.

    Args:
        caller: the caller whose requests were made.
        outcome: the outcome.
        dry_run: whether it is only logged.
        log_outcome: as for `stop`.

    Returns:
        The task that runs an async function; or None.
    """
    _log_outcome(_log if log_outcome else _outcome_log, outcome, is_good=outcome.stopped or dry_run)
    if dry_run:
        return None
    if tracing.has_metrics():
        from openai_cancel import metrics  # not imported unless metrics are used

        metrics.count(outcome, caller.settings.base_url)
    return None if caller.hook is None else caller.hook.tell(outcome)


def _log_outcome(log: logging.Logger, outcome: Outcome, *, is_good: bool) -> None:
    if not log.isEnabledFor(logging.INFO if is_good else logging.WARNING):
        return
    extra = log_fields(
        "stopped" if is_good else "not_stopped",
        response_id=outcome.response_id,
        verdict=outcome.verdict,
        attempts=outcome.attempts,
        elapsed=outcome.elapsed,
        request_id=outcome.request_id,
        error=outcome.error,
    )
    if is_good:
        log.info(
            "%s: %s (attempts: %d, %.3f s, request id: %s)",
            outcome.response_id, outcome.verdict, outcome.attempts, outcome.elapsed, outcome.request_id,
            extra=extra,
        )  # fmt: skip
    else:
        error = outcome.error  # only its class: its text comes from the server
        words = outcome.verdict if error is None else f"{outcome.verdict}, {type(error).__name__}"
        log.warning("%s was not stopped (%s)", outcome.response_id, words, extra=extra)


@attrs.define(kw_only=True)
class _Stop:
    """A `stop` that is under way."""

    caller: Caller
    response_id: str
    deadline: float
    confirm: float | None
    dry_run: bool
    poll: float
    max_retries: float
    on_update: OnUpdate | None
    recently_created: bool

    _began: float = attrs.field(init=False)
    _attempts: int = 0
    _response: Response | None = None
    _request_id: str | None = None
    _reached: bool = False
    """Whether a cancel may have had an effect: one was accepted, or had no answer."""
    _is_reported: bool = False
    """Whether the last cancel that was accepted has reported the state of the response."""
    _doubted: Verdict | None = None
    """The verdict of the last round. One that rests on a 404 has to be repeated."""
    _repetitions: int = 0
    """The number of rounds in a row with that verdict."""
    _replicas_differ: bool = False
    """Whether a look has not found the response although it was seen before."""
    _looked_late: bool = False

    async def run(self) -> Outcome:
        """Stop the response, if that is possible before the deadline."""
        self._began = self.caller.clock.monotonic()
        verdict, error = await (self._look_only() if self.dry_run else self._settle())
        if self.confirm is not None and verdict is Verdict.CANCELLED:
            verdict, error = await self._confirm(self.confirm)
            if verdict is Verdict.STILL_RUNNING:
                verdict, error = await self._settle()
                if verdict is Verdict.CANCELLED:
                    verdict, error = await self._confirm(self.confirm)
        return Outcome(
            response_id=self.response_id,
            verdict=verdict,
            response=self._response,
            error=error,
            attempts=self._attempts,
            elapsed=self.caller.clock.monotonic() - self._began,
            request_id=self._request_id,
        )

    async def _settle(self) -> tuple[Verdict, OpenAICancelError | None]:
        """Cancel, and look until the state decides or the time is over."""
        clock = self.caller.clock
        refusal: OpenAICancelError | None = None
        error: OpenAICancelError | None = None
        rounds = failures = 0
        while True:
            # After a failure, cancel again: an accepted cancel reports the state, too.
            if failures or rounds % CANCEL_EVERY == 0:
                refusal, error = await self._cancel_and_look(rounds, failures)
            else:
                error = await self._retrieve(max_retries=0)
            verdict = self._judge(refusal, error)
            if verdict is not None:
                return verdict, explain(verdict, refusal, error)
            failures = failures + 1 if refusal or error else 0
            left = self._left()
            if left < MIN_REQUEST_TIME or failures > self.max_retries:
                verdict = Verdict.STILL_RUNNING if self._is_seen else Verdict.UNKNOWN
                return verdict, explain(verdict, refusal, error)
            asked: float | None = getattr(error or refusal or self._response, "retry_after", None)
            # The looks come closer together towards the deadline, so that the last one is close to it.
            delay = poll_delay(
                rounds, asked=asked, random=clock.random(), age=clock.monotonic() - self._began, longest=self.poll
            )
            await clock.sleep(min(delay, left / 2))
            rounds += 1

    async def _cancel_and_look(
        self, rounds: int, failures: int
    ) -> tuple[OpenAICancelError | None, OpenAICancelError | None]:
        """Cancel, and look if it is refused: a gateway may report an error for a cancel that has worked.

        Look also if it is accepted without a word about the response.

        Returns:
            The error of the cancel, and the error of the last request.
        """
        refusal = await self._cancel()
        self._reached = self._reached or may_have_acted(refusal)
        if refusal is None:
            return None, None if self._is_reported else await self._retrieve(max_retries=0)
        if isinstance(refusal, AuthenticationError):
            return refusal, refusal
        if isinstance(refusal, RateLimitError) and is_transient(refusal) and not failures:
            return refusal, refusal  # a look would add to the load
        error = await self._retrieve(max_retries=0)
        runs = error is None and self._response is not None and not self._response.is_terminal
        is_about_id = self.recently_created or not lacks_route(refusal)
        if runs and isinstance(refusal, NotFoundError) and is_about_id and rounds % (DOUBTFUL_ROUNDS + 1) == 0:
            # Replicas that do not share a store answer in turn: one more look changes whose turn the next cancel is,
            # and shows whether they differ. Of two or three replicas, so many rounds reach each one.
            await self._retrieve(max_retries=0)
        return refusal, error

    def _judge(self, refusal: OpenAICancelError | None, error: OpenAICancelError | None) -> Verdict | None:
        """Return the verdict, or None if the response may still be running, or a 404 is not to be believed yet."""
        verdict = judge(self._response, refusal=refusal, error=error, reached=self._reached)
        if verdict is not self._doubted:
            self._doubted, self._repetitions = verdict, 0
        if verdict is None or not rests_on_404(verdict, refusal):
            return verdict
        self._repetitions += 1
        return None if self._repetitions <= self._rounds_of_doubt(verdict, refusal) else verdict

    def _rounds_of_doubt(self, verdict: Verdict, refusal: OpenAICancelError | None) -> int:
        """Return the number of rounds in which a verdict that rests on a 404 is not believed."""
        if verdict is Verdict.NOT_FOUND:
            return DOUBTFUL_ROUNDS if self.recently_created or self._is_seen else 0
        # The server knows the id, but not the path of the cancel; or a replica answers so for an id that it lacks.
        if self.recently_created or self._reached or self._replicas_differ:
            return DOUBTFUL_ROUNDS
        return 0 if lacks_route(refusal) else 1  # a 404 without a body says nothing about the path

    async def _look_only(self) -> tuple[Verdict, OpenAICancelError | None]:
        """Report the state without a cancel, for a dry run."""
        error = await self._retrieve(max_retries=self._retries)
        verdict = judge(self._response, refusal=error, error=error, reached=False)
        verdict = verdict or (Verdict.STILL_RUNNING if error is None else Verdict.UNKNOWN)
        return verdict, explain(verdict, None, error)

    async def _confirm(self, seconds: float) -> tuple[Verdict, OpenAICancelError | None]:
        """Look again whether a cancelled response has stayed cancelled. If that cannot be seen, the verdict stands.

        Some servers cannot be asked: then another cancel shows it.
        """
        await self.caller.clock.sleep(min(seconds, self._left() / 2))
        error = await self._retrieve(max_retries=self._retries)
        if isinstance(error, NotFoundError | UnsupportedError):
            refusal = await self._cancel()
            error = None if refusal is None and self._is_reported else error
        if error is not None:
            return Verdict.CANCELLED, error
        return judge(self._response, refusal=None, error=None, reached=True) or Verdict.STILL_RUNNING, None

    async def _cancel(self) -> OpenAICancelError | None:
        """Cancel in a share of the remaining time, and return the error, if there is one."""
        left = self._left() * CANCEL_SHARE
        if left <= 0:
            return self._too_late()
        try:
            response = await self.caller.cancel(self.response_id, deadline=left, max_retries=0)
        except APIError as error:
            self._count(error)
            return detached(error)
        self._count(response)
        self._is_reported = reports_state(response)
        if self._is_reported:
            await self._take(response)
        return None

    async def _retrieve(self, *, max_retries: int | None = None) -> OpenAICancelError | None:
        """Look in the remaining time, and return the error, if there is one."""
        left = self._left()
        if left <= -FROZEN and not self._looked_late:
            self._looked_late, left = True, FINAL_POLL_TIME
        elif left <= 0:
            return self._too_late()
        try:
            response = await self.caller.retrieve(self.response_id, deadline=left, max_retries=max_retries)
        except APIError as error:
            self._count(error)
            self._replicas_differ = self._replicas_differ or (self._is_seen and isinstance(error, NotFoundError))
            return detached(error)
        self._count(response)
        await self._take(response)
        return None

    @property
    def _is_seen(self) -> bool:
        """Whether the server has reported a state of the response."""
        return self._response is not None and self._response.status not in NOT_FOUND_STATUSES

    async def _take(self, response: Response) -> None:
        """Keep a response that the server has reported, and call the caller's function."""
        self._response = response
        if self.on_update is not None:
            await call_on_update(self.on_update, self.response_id, response, seconds=max(self._left(), FINAL_POLL_TIME))

    def _count(self, answer: Response | APIError) -> None:
        """Count the attempts of an answer, and keep its request id."""
        self._attempts += answer.attempts
        self._request_id = getattr(answer, "request_id", None)

    @property
    def _retries(self) -> int | None:
        """The retries of a request that is made once; None for those of the session."""
        return None if self.max_retries == math.inf else int(self.max_retries)

    def _too_late(self) -> APITimeoutError:
        return APITimeoutError(f"The deadline of {self.deadline:g} s has passed.")

    def _left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - (self.caller.clock.monotonic() - self._began)

"""`wait`: poll a response until it ends."""

import asyncio
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from openai_cancel.caller import Caller
from openai_cancel.checks import check_limit, check_seconds
from openai_cancel.errors import (
    APIConnectionError,
    APIError,
    ConfigurationError,
    NotFoundError,
    OpenAICancelError,
    ResponseDecodeError,
)
from openai_cancel.guard import Guard
from openai_cancel.guarded_responses import MAX_STORE_DELAY
from openai_cancel.ledger_protocols import History
from openai_cancel.log_events import log_fields
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome
from openai_cancel.progress import Progress
from openai_cancel.retry import FINAL_POLL_TIME, MAX_POLL, MIN_POLL, POLL_SHARE, is_transient, poll_delay
from openai_cancel.update_hook import OnUpdate, call_on_update

if TYPE_CHECKING:
    from openai_cancel.stream_follower import StreamFollower

MAX_REFUSALS = 3
"""The number of refused looks in a row after which `wait` gives up: one 403 or 404 may be temporary."""

NEW_ID_STORE_DELAY = 10.0
"""Seconds in which a 404 about a new response may be temporary: stores are eventual, and replicas may not share one."""

SOON = 1.0
"""The longest time between two looks after a 404, in seconds: one will reach the replica that has the response."""

_LATE = 10
"""The number of looks after which they are no longer frequent."""

Limit: TypeAlias = Literal["timeout", "queued_timeout", "stalled_timeout"]

_log = logging.getLogger("openai_cancel")


class WaitTimeoutError(OpenAICancelError, TimeoutError):
    """The response did not end in time.

    Attributes:
        response: the response as it was last seen, or None.
        outcome: the outcome of stopping it, or None if it was left running.
        limit: the name of the limit: `timeout`, `queued_timeout` or `stalled_timeout`.
    """

    def __init__(
        self,
        message: str,
        *,
        response: Response | None = None,
        outcome: Outcome | None = None,
        limit: Limit = "timeout",
    ) -> None:
        super().__init__(message)
        self.response = response
        self.outcome = outcome
        self.limit = limit

    def __str__(self) -> str:
        """Return which limit it was, and what became of the response."""
        if self.outcome is None:
            return f"{super().__str__()} It was left running."
        stopped = "stopped" if self.outcome.stopped else "not stopped"
        reason = f": {self.outcome.error}" if self.outcome.error and not self.outcome.stopped else ""
        return f"{super().__str__()} It was {stopped} ({self.outcome.verdict}{reason})."


class WaitLimits(NamedTuple):
    """The limits of a wait in seconds, `math.inf` for none.

    Attributes:
        timeout: the time until the response must have ended.
        queued_timeout: the time until it must have left the queue.
        stalled_timeout: the maximum time without progress.
        poll: the maximum time between two polls.
    """

    timeout: float = math.inf
    queued_timeout: float = math.inf
    stalled_timeout: float = math.inf
    poll: float = MAX_POLL

    @classmethod
    def checked(
        cls, *, timeout: float | None, queued_timeout: float | None, stalled_timeout: float | None, poll: float
    ) -> "WaitLimits":
        """Return the limits that a caller asks for; None is no limit.

        Raises:
            ConfigurationError: one cannot work.
        """
        whole = math.inf if timeout is None else check_seconds("timeout", timeout)
        for name, value in (("queued_timeout", queued_timeout), ("stalled_timeout", stalled_timeout)):
            if (check_limit(name, value) or 0.0) > whole:
                raise ConfigurationError(f"{name} ({value:g} s) must not be longer than timeout ({whole:g} s).")
        return cls(
            timeout=whole,
            queued_timeout=queued_timeout or math.inf,
            stalled_timeout=stalled_timeout or math.inf,
            poll=check_poll(poll),
        )


def check_poll(poll: float) -> float:
    """Refuse a time between two looks that is not a finite number of seconds, or is too short.

    Raises:
        ConfigurationError: it cannot work.
    """
    check_limit("poll", check_seconds("poll", poll), minimum=MIN_POLL)
    return poll


async def wait(
    caller: Caller,
    guard: Guard,
    response_id: str,
    *,
    limits: WaitLimits,
    stream: bool = False,
    on_update: OnUpdate | None = None,
) -> Response:
    """Wait until a response ends. The guard stops it if the wait ends before. See `AsyncSession.wait`.

    Raises:
        WaitTimeoutError: it did not end in time. Its `outcome` says whether it was stopped.
        APIError: the server refuses to report it. Its `outcome` says whether it was stopped.
    """
    try:
        async with guard:
            has_limits = min(limits.queued_timeout, limits.stalled_timeout) < math.inf
            progress = Progress(
                guard.responses,
                response_id,
                now=caller.clock.monotonic(),
                history=await guard.responses.history(response_id) if has_limits else History(),
                limit=limits.stalled_timeout if guard.responses.is_tracked else math.inf,
            )
            wait = _Wait(caller, response_id, limits=limits, on_update=on_update, progress=progress)
            return await (wait.listen() if stream else wait.run())
    except WaitTimeoutError as error:
        error.outcome = guard.outcome
        raise
    except APIError as error:
        error.outcome = guard.outcome
        fate = "the response was not stopped" if guard.outcome is None else f"the response: {guard.outcome.verdict}"
        verdict = None if guard.outcome is None else guard.outcome.verdict
        _log.warning(
            "%s: the wait ended with %s; %s", response_id, type(error).__name__, fate,
            extra=log_fields("wait_failed", response_id=response_id, verdict=verdict, error=error),
        )  # fmt: skip
        _note(guard, response_id, error)
        raise
    except asyncio.CancelledError as error:
        _note(guard, response_id, error)
        raise


def _note(guard: Guard, response_id: str, error: BaseException) -> None:
    """Add a note that the response was stopped. The guard adds one if it was not."""
    if guard.outcome is not None and guard.outcome.stopped:
        error.add_note(f"openai-cancel: {response_id} was stopped ({guard.outcome.verdict}) when the wait ended")


class _Wait:
    """A `wait` that is under way.

    Args:
        caller: makes the requests.
        response_id: the id.
        limits: the limits.
        on_update: as for `AsyncSession.wait`.
        progress: the progress of the response.
    """

    def __init__(
        self, caller: Caller, response_id: str, *, limits: WaitLimits, on_update: OnUpdate | None, progress: Progress
    ) -> None:
        self._caller = caller
        self._response_id = response_id
        self._limits = limits
        self._on_update = on_update
        self._progress = progress
        self._began = caller.clock.monotonic()
        self._looked = self._began  # the time of the last answer; `on_update` may take long after it
        self._response: Response | None = None
        self._refusals = _Refusals()
        self._follower: StreamFollower | None = None
        self._answer: Response | None = None  # if the server has sent the response instead of its events

    async def listen(self) -> Response:
        """Follow the events of the response as far as the server streams them. Look at it when they call for it."""
        from openai_cancel.stream_follower import StreamFollower  # keeps the import of the package fast

        follower = StreamFollower(self._caller, self._response_id, self._limits.poll, after=self._progress.last_event)
        self._follower = follower
        try:
            await self._hear(follower, 0, None)
            return await self.run()
        finally:
            await follower.close()

    async def run(self) -> Response:
        """Look at the response until it ends, or a limit is reached."""
        clock = self._caller.clock
        looks = 0
        while True:
            answer = await self._look(self._left())
            if isinstance(answer, Response) and answer.is_terminal:
                return answer
            is_known = isinstance(answer, Response)
            asked: float | None = getattr(answer, "retry_after", None)
            del answer  # an error's traceback refers to this frame
            now = clock.monotonic()
            ahead: list[float] = []
            for limit, at in self._limit_times():
                if at > self._looked:
                    ahead.append(max(at - now, 0.0))
                elif is_known or limit == "timeout":  # without an answer, nobody knows whether it is stuck
                    raise self._too_late(limit)
            if self._follower is None:
                await clock.sleep(min([self._delay(looks, asked), *ahead]))
            else:
                await self._hear(self._follower, looks, asked)
            looks += 1

    def _delay(self, looks: int, asked: float | None) -> float:
        clock = self._caller.clock
        age = clock.monotonic() - self._began
        is_doubtful = self._refusals.not_found and asked is None
        longest = min(self._limits.poll, SOON) if is_doubtful else self._limits.poll
        return poll_delay(looks, asked=asked, random=clock.random(), age=age, longest=longest)

    async def _hear(self, follower: "StreamFollower", looks: int, asked: float | None) -> None:
        """Wait until the next look is due: the stream calls for it, has been silent for some time, or a limit comes."""
        clock = self._caller.clock
        since = clock.monotonic()
        delay, later = self._delay(looks, asked), self._delay(_LATE, asked)
        # Some servers and gateways send events also after the end, or again.
        latest = since + max(MAX_POLL, POLL_SHARE * (since - self._began), later)
        while not follower.take_need():
            # A stream that has begun may be silent for as long as a late look may be late.
            times = [latest, max(since, follower.progressed) + (later if follower.has_begun else delay)]
            times += (at for _, at in self._limit_times() if at > self._looked)
            left = min(times) - clock.monotonic()
            if left <= 0:
                break
            await follower.news_within(left)
            await self._take_news(follower)
        if follower.is_over:
            await follower.end()
            self._follower, self._answer = None, follower.answer

    async def _take_news(self, follower: "StreamFollower") -> None:
        response, now = follower.take_response(), self._caller.clock.monotonic()
        if response is not None:
            self._response = response
            self._progress.see(response, now)
        self._progress.hear(follower.progressed, follower.last_event, is_running=follower.is_running)
        await self._progress.write(now)
        if response is not None:
            await self._update(response)

    async def _look(self, seconds: float) -> Response | APIError:
        """Retrieve the response, or return an error that may be temporary."""
        answer, self._answer = self._answer, None
        try:
            if answer is None:
                answer = await self._caller.retrieve(self._response_id, deadline=seconds)
        except APIError as error:
            self._looked = self._caller.clock.monotonic()
            if _may_be_temporary(error):
                self._refusals.clear()
            elif self._refusals.add(error, self._looked, was_seen=self._progress.was_seen):
                raise
            return error
        self._refusals.clear()
        self._response, self._looked = answer, self._caller.clock.monotonic()
        self._progress.see(answer, self._looked)
        if not answer.is_terminal:
            await self._progress.write(self._looked)
        await self._update(answer)
        return answer

    async def _update(self, response: Response) -> None:
        """Call the caller's function. Its failure does not end the wait, which would stop the response."""
        if self._on_update is not None:
            # A response that has ended has kept the limits, however near they are.
            seconds = max(self._left(), FINAL_POLL_TIME) if response.is_terminal else self._left()
            await call_on_update(self._on_update, self._response_id, response, seconds=seconds)

    def _left(self) -> float:
        """Return the seconds until the next limit. After it, there is time for one more look."""
        left = min(at for _, at in self._limit_times()) - self._caller.clock.monotonic()
        return left if left > 0 else FINAL_POLL_TIME

    def _limit_times(self) -> Iterator[tuple[Limit, float]]:
        """Yield each limit with the time of the clock at which it is reached."""
        yield "timeout", self._began + self._limits.timeout
        if self._progress.queued_since is not None:
            yield "queued_timeout", self._progress.queued_since + self._limits.queued_timeout
        yield "stalled_timeout", self._progress.changed + self._limits.stalled_timeout

    def _too_late(self, limit: Limit) -> WaitTimeoutError:
        response, seconds = self._response, getattr(self._limits, limit)
        unseen = "it was not found" if self._refusals.not_found else "no answer"
        status = unseen if response is None else f"its status was {response.status!r}"
        words = {
            "timeout": f"did not end within {seconds:g} s: {status}.",
            "queued_timeout": f"was still queued after {seconds:g} s (queued_timeout).",
            "stalled_timeout": f"made no progress for {seconds:g} s (stalled_timeout): {status}.",
        }
        return WaitTimeoutError(f"{self._response_id} {words[limit]}", response=response, limit=limit)


class _Refusals:
    """The looks in a row that the server has refused.

    Attributes:
        not_found: the number of those with a 404, which are counted apart, because they can pass without a fault.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget them, after a look that the server has not refused."""
        self.not_found: int = 0
        self._others = 0
        self._since = math.inf  # the time of the first 404

    def add(self, error: APIError, now: float, *, was_seen: bool) -> bool:
        """Count a refusal, and return whether there is no sense in another look.

        Args:
            error: the refusal.
            now: the time.
            was_seen: whether the server has known the response before, which makes a 404 less credible.
        """
        if isinstance(error, NotFoundError):
            self.not_found += 1
            self._since = min(self._since, now)
            delay = MAX_STORE_DELAY if was_seen else NEW_ID_STORE_DELAY
            return self.not_found >= MAX_REFUSALS and now - self._since >= delay
        self._others += 1
        return self._others == MAX_REFUSALS or isinstance(error, APIConnectionError)


def _may_be_temporary(error: APIError) -> bool:
    """Return whether an error says nothing final about the response."""
    return is_transient(error) or isinstance(error, ResponseDecodeError)

"""`GuardedResponses`: the responses of a guard, and how they are stopped at the end of its block."""

import asyncio
import logging
import math
import sys
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, cast

from openai_cancel.caller import Caller
from openai_cancel.cancellation import shielded_from_anyio, wait_through_cancellation
from openai_cancel.errors import OpenAICancelError, detached
from openai_cancel.ledger_protocols import History, Tracker
from openai_cancel.log_events import log_fields
from openai_cancel.outcome import Outcome, ended
from openai_cancel.rate_limiter import RateLimiter
from openai_cancel.session_loop import PendingCreations
from openai_cancel.stop import stop

RATE_LIMIT_THRESHOLD = 20
"""The number of responses above which they are stopped at a limited rate: a server may allow few requests a second."""

FIRST_RATE = 100.0
"""Requests a second at which many responses begin to be stopped. The rate doubles each second."""

TRUSTED_FOR = 1.0
"""Seconds for which an idle connection is trusted by a guard, which has little time: a dead one gives no sign."""

MAX_STORE_DELAY = 60.0
"""Seconds in which a server may not know a new response yet."""

_log = logging.getLogger("openai_cancel")


class GuardedResponses:
    """Stops the responses of a guard, at the end of its block or when its session closes, whichever is first.

    Attributes:
        ids: the time at which each id was added, in the order in which they were added.
        outcomes: the outcomes of the responses by id, once they were stopped.
        taken: the last outcomes of responses that another process stops, and has not stopped yet, by id.
        closed: whether the session was closed while the block ran.
        pending: the creations that are under way.
        orphans: the creations and responses whose callers are gone: they are stopped whatever becomes of the block.
    """

    def __init__(
        self, caller: Caller, *, grace: float, poll: float, max_retries: int | None, tracker: Tracker | None
    ) -> None:
        self._caller = caller
        self._grace = grace
        self._poll = poll
        self._max_retries = max_retries
        self._tracker = tracker
        self._run: asyncio.Future[None] | None = None  # done when the stops that are under way have ended
        self._failures: dict[str, BaseException | None] = {}  # None if there was no answer within the grace
        self._alone: dict[str, asyncio.Future[None]] = {}  # done when a `stop_one` has stopped the response
        self._settled: set[str] = set()  # the ids whose outcome the ledger has
        self._reported: set[str] = set()
        self.ids: dict[str, float] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.taken: dict[str, Outcome] = {}
        self.closed: bool = False
        self.pending: PendingCreations = PendingCreations(caller.clock)
        self.orphans: PendingCreations = PendingCreations(caller.clock)
        if tracker:
            tracker.listen(self._take)

    @property
    def under_way(self) -> bool:
        """Whether the responses are being stopped."""
        return self._run is not None

    @property
    def is_tracked(self) -> bool:
        """Whether a ledger records the responses."""
        return self._tracker is not None

    async def history(self, response_id: str) -> History:
        """Return the progress of a response in earlier waits, also of processes that have died."""
        return History() if self._tracker is None else await self._tracker.history(response_id)

    async def note_progress(self, response_id: str, mark: str, ago: float) -> bool:
        """Write the progress of a response to the ledger, and return whether that was possible. See `Tracker`."""
        return self._tracker is None or await self._tracker.note_progress(response_id, mark, ago)

    def share_rate(self, limiter: RateLimiter) -> None:
        """Stop the responses at a rate that others share. Their grace then begins with the turn of each."""
        self._caller = self._caller.with_limiter(limiter, is_urgent=True)

    def begin(self) -> None:
        """Forget what an earlier block has left."""
        self.closed = False
        self._failures.clear()
        self._settled.clear()
        self._reported.clear()
        self.taken.clear()
        self.outcomes = {name: outcome for name, outcome in self.outcomes.items() if outcome.stopped}

    def _take(self, outcome: Outcome) -> None:
        """Note that another process stops a response, or has stopped it, so that it is not stopped twice."""
        if outcome.stopped:
            self.outcomes.setdefault(outcome.response_id, outcome)
        else:
            self.taken[outcome.response_id] = outcome

    def holds(self, response_id: str) -> bool:
        """Return whether a response is guarded."""
        return response_id in self.ids

    def admit(self, response_id: str) -> bool:
        """Guard a response that a client has created, and return whether to `record` it. Works in any thread."""
        self.ids[response_id] = self._caller.clock.monotonic()
        return self._tracker is not None

    async def record(self, response_id: str) -> None:
        """Write a response to the ledger, if there is one."""
        if self._tracker is not None:
            await self._tracker.begin([response_id])

    def discard(self, response_id: str) -> None:
        """Let go of a response that was seen to end. Can be called from any thread."""
        if not self.under_way and self.ids.pop(response_id, None) is not None and self._tracker:
            self._tracker.settle_soon(ended(response_id))

    async def stop_one(self, response_id: str) -> None:
        """Stop a response that nobody else stops: its creator is gone, or it has come after the end of the block."""
        while (other := self._run or self._alone.get(response_id)) is not None:
            await wait_through_cancellation(other)
        if response_id in self.outcomes:
            return
        ended = self._alone[response_id] = asyncio.get_running_loop().create_future()
        try:
            await self._stop_one(response_id, self._caller, self._caller.clock.monotonic() + self._grace)
        finally:
            del self._alone[response_id]
            ended.set_result(None)
        if self._tracker and response_id not in self._settled:
            self._settled.add(response_id)
            await self._tracker.settle([response_id], self.outcomes)
        self.report(None)

    def unsettled(self) -> list[str]:
        """Return the ids whose outcome the ledger does not have."""
        return [name for name in [*self.ids] if name not in self._settled]

    def left_running(self) -> list[str]:
        """Return the ids of these that are not being stopped."""
        return [name for name in self.unsettled() if name not in self._alone]

    async def close(self) -> None:
        """Stop all responses, because the session is about to close."""
        try:
            await self.run()
        finally:
            self.closed = True
        self.report(None)

    async def run(self) -> asyncio.CancelledError | None:
        """Stop all responses, or wait for that if it is under way.

        Cancellations of this task do not end the wait; the last one is returned, for the caller to raise.
        """
        with shielded_from_anyio():
            if self._run is not None:
                return await wait_through_cancellation(self._run)
            self._run = asyncio.get_running_loop().create_future()
            try:
                return await self._stop_all()
            finally:
                self._run.set_result(None)
                self._run = None

    async def _stop_all(self) -> asyncio.CancelledError | None:
        clock = self._caller.clock
        self._caller.transport.drop_idle(TRUSTED_FOR)
        cancellation: asyncio.CancelledError | None = None
        until = math.inf if self._caller.limiter else clock.monotonic() + self._grace
        caller = self._caller
        while True:
            # A loop that shuts down cancels all tasks, also these, which are then started again.
            while (left := until - clock.monotonic()) > 0 and ((names := self._open()) or self.pending):
                if not names:
                    cancellation = await self.pending.wait(left) or cancellation
                    continue
                if caller.limiter is None and len(names) > RATE_LIMIT_THRESHOLD:
                    caller = caller.with_limiter(self._limiter(len(names) / left), is_urgent=True)
                stops = [
                    self._alone.get(name) or asyncio.create_task(self._stop_one(name, caller, until)) for name in names
                ]
                cancellation = await wait_through_cancellation(*stops) or cancellation
            self._failures.update(dict.fromkeys(self._open()))
            names = self.unsettled()
            if not (self._tracker and names):
                return cancellation
            self._settled.update(names)
            settling = asyncio.create_task(self._tracker.settle(names, self.outcomes))
            cancellation = await wait_through_cancellation(settling) or cancellation
            # Others may have arrived meanwhile.

    async def finish(self) -> asyncio.CancelledError | None:
        """Wait until the orphans are stopped.

        Cancellations of this task do not end the wait; the last one is returned, for the caller to raise.
        """
        clock = self._caller.clock
        cancellation: asyncio.CancelledError | None = None
        until = clock.monotonic() + self._grace
        with shielded_from_anyio():
            while self.orphans and (left := until - clock.monotonic()) > 0:
                cancellation = await self.orphans.wait(left) or cancellation
        return cancellation

    def _open(self) -> list[str]:
        """Return the ids that have neither an outcome nor a failure."""
        return [name for name in [*self.ids] if name not in self.outcomes and name not in self._failures]

    def _limiter(self, needed: float) -> RateLimiter:
        """Return a limiter for the stops of many responses.

        Args:
            needed: the requests a second that are at least needed to stop all in time.
        """
        return RateLimiter(sys.maxsize, self._caller.clock, rate=max(FIRST_RATE, 2 * needed))

    async def _stop_one(self, name: str, caller: Caller, until: float) -> None:
        """Stop a response until a time of the clock, and in the grace."""
        try:
            recently_created = caller.clock.monotonic() - self.ids[name] < MAX_STORE_DELAY
            async with caller.limiter.slots.take(self._grace) if caller.limiter else nullcontext():
                left = min(self._grace, until - caller.clock.monotonic())
                if left <= 0:  # it was not its turn in time
                    return
                await stop(
                    caller,
                    name,
                    deadline=left,
                    poll=self._poll,
                    max_retries=self._max_retries,
                    recently_created=recently_created,
                    log_outcome=True,
                    on_verdict=partial(self.outcomes.__setitem__, name),
                )
        except BaseException as error:
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            if isinstance(error, asyncio.CancelledError) and task.cancelling():
                raise
            self._failures[name] = detached(error)

    def give_up(self, failure: BaseException) -> None:
        """Record why responses cannot be stopped that were added after the session was closed."""
        self._failures.update(dict.fromkeys(self._open(), failure))

    def report(self, error: BaseException | None) -> None:
        """Name the responses that were not stopped, in notes of an exception, and once in the log."""
        for name in [*self.ids]:
            if note := self._note(name):
                with suppress(Exception):  # some exceptions cannot take a note
                    if error is not None:
                        error.add_note(f"openai-cancel: {note}")
                if name not in self._reported:
                    self._reported.add(name)
                    self._log_failure(name)

    def raise_exit(self, error: BaseException | None) -> None:
        """Raise the KeyboardInterrupt or SystemExit of a stop, which takes precedence over an error of the block."""
        for failure in self._failures.values():
            if failure and not isinstance(failure, Exception | asyncio.CancelledError) and isinstance(error, Exception):
                raise failure

    def _log_failure(self, name: str) -> None:
        """Log that a response was not stopped. The stop has logged its outcome, if there is one."""
        error = self._failures.get(name)
        if name not in self.outcomes:
            _log.warning(
                "%s was not stopped (%s)", name, "no answer in time" if error is None else type(error).__name__,
                extra=log_fields("stop_failed", response_id=name, error=error),
            )  # fmt: skip

    def _note(self, name: str) -> str:
        """Return a note about a response that was not stopped. Of a foreign exception it has only the class."""
        outcome, failure = self.outcomes.get(name), self._failures.get(name)
        if outcome is not None:
            reason = f": {outcome.error}" if outcome.error else ""
            return "" if outcome.stopped else f"{name} was not stopped ({outcome.verdict}{reason})"
        words = str(failure) if isinstance(failure, OpenAICancelError) else type(failure).__name__
        return f"{name} was not stopped ({words if failure else f'no answer within {self._grace:g} s'})"

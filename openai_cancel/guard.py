"""`guard`: responses that run no longer than the block that needs them."""

import asyncio
import logging
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, cast

from openai_cancel import tracing
from openai_cancel.caller import Caller
from openai_cancel.cancellation import shielded_from_anyio, wait_through_cancellation
from openai_cancel.clients import Account, Client, http_client, is_client
from openai_cancel.errors import OpenAICancelError, SessionStateError, detached
from openai_cancel.home import Arrivals, Home, Work, in_asyncio
from openai_cancel.outcome import Outcome, ended
from openai_cancel.pace import Pace
from openai_cancel.records import fields
from openai_cancel.retry import MAX_POLL
from openai_cancel.scope import Scope
from openai_cancel.stop import stop
from openai_cancel.tracking import History, Tracker
from openai_cancel.watcher import Watcher
from openai_cancel.wire import ResponseId

MANY = 20
"""The number of responses above which a guard stops them at a pace: a server may allow few requests a second."""

FIRST_RATE = 100.0
"""Requests a second at which a guard begins to stop many responses. The rate doubles each second."""

TRUSTED_FOR = 1.0
"""Seconds for which an idle connection is trusted by a guard, which has little time: a dead one gives no sign."""

OnExit: TypeAlias = Literal["leave", "stop"]
"""The fate of responses if the block of a guard ends normally."""

YOUNG = 60.0
"""Seconds in which a server may not know a new response yet."""

_log = logging.getLogger("openai_cancel")


class Guard:
    """Stops responses if its block is left by an exception: an error, a timeout, a cancelled task, Ctrl-C.

    The responses are stopped first. Then the same exception is raised. While the responses are being stopped, further
    cancellations of the task are held back; they take effect afterwards. A response that could not be stopped is
    mentioned in a note of the exception. A block that ends normally leaves the responses alone, unless the guard was
    told to stop them then, too.

    If the session is closed while the block runs, the responses are stopped then, and the block goes on.

    A client that is guarded adds the responses that it creates in the background, as `AsyncSession.guard` explains.

    Guards are created by `AsyncSession.guard` and `Session.guard`.
    """

    def __init__(
        self,
        caller: Caller,
        *,
        grace: float,
        poll: float = MAX_POLL,
        on_exit: OnExit = "leave",
        max_retries: int | None = None,
        tracker: Tracker | None = None,
        watcher: Watcher | None = None,
        open_guards: "OpenGuards | None" = None,
        run: Callable[[Work], object] | None = None,
    ) -> None:
        self._caller = caller
        self._on_exit = on_exit
        self._run = run  # in the loop, for other threads
        self._tracker = tracker
        self._watcher = watcher
        self._stops = Stops(caller, grace=grace, poll=poll, max_retries=max_retries, tracker=tracker)
        self._open_guards = OpenGuards(caller.settings.base_url) if open_guards is None else open_guards
        self._clients: list[Any] = []
        self._entered = False
        self._cancelling = 0  # the number of cancellations of the task when the block began

    def __repr__(self) -> str:
        """Return the guarded ids."""
        nothing = "without a response" if self._clients else "disarmed"
        return f"<{type(self).__name__} {', '.join(self._stops.ids) or nothing}>"

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """The outcomes of the responses by id, once they were stopped, by this guard or by another process."""
        return {**self._stops.taken, **self._stops.outcomes}

    @property
    def outcome(self) -> Outcome | None:
        """The outcome of the response, or of the first one of several; None if none was stopped."""
        outcomes = self.outcomes
        return next((outcomes[name] for name in self._stops.ids if name in outcomes), None)

    @property
    def armed(self) -> bool:
        """Whether any response is guarded, or may still arrive."""
        return bool(self._stops.ids) or bool(self._stops.arrivals)

    @property
    def tracked(self) -> bool:
        """Whether a ledger records the responses."""
        return self._tracker is not None

    @property
    def stops_on_exit(self) -> bool:
        """Whether the responses are stopped also if the block ends normally."""
        return self._on_exit == "stop"

    @property
    def stops(self) -> "Stops":
        """The stops of the responses, for `BlockingGuard`."""
        return self._stops

    @property
    def scope(self) -> Scope:
        """The run of the block, for `BlockingGuard`."""
        return self._scope

    def add(self, guarded: ResponseId | Client) -> None:
        """Guard another response, for example one that was just created, or what a client creates from now on.

        Args:
            guarded: an id, an object that has it as `.id`, or a client.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: the client cannot be guarded, or its responses cannot be stopped by the session.
        """
        if is_client(guarded):
            self._add_client(guarded)
            return
        name = self._caller.identify(cast("ResponseId", guarded))
        if self._tracker and self._entered and name not in self._stops.ids:
            self._tracker.begin_soon(name)
        self._stops.ids[name] = self._caller.clock.monotonic()

    def _add_client(self, client: object) -> None:
        inner = http_client(client)
        Account.from_settings(self._caller.settings).check(client)
        self._clients.append(inner)
        if self._entered:
            self._scope.add(self._clients)

    async def history(self, response_id: str) -> History:
        """Return the progress of a response in earlier waits, also of processes that have died."""
        return History() if self._tracker is None else await self._tracker.history(response_id)

    async def note_progress(self, response_id: str, mark: str, ago: float) -> bool:
        """Write the progress of a response to the ledger, and return whether that was possible. See `Tracker`."""
        return self._tracker is None or await self._tracker.note_progress(response_id, mark, ago)

    def disarm(self) -> None:
        """Stop guarding the responses so far, and let them run on. Later ones are guarded again."""
        if self._tracker and self._entered:
            self._tracker.release_soon(self._stops.unsettled())
        self._stops.ids.clear()

    def leave(self) -> None:
        """End a block whose responses may run on and are in no ledger, from any thread, for `BlockingGuard`."""
        self._entered = False
        self._open_guards.discard(self._stops)
        self._scope.close()

    async def __aenter__(self) -> Self:
        self._caller.transport.check_open()  # a guard that could stop nothing refuses its block
        if self._entered:
            raise SessionStateError("The block of this guard is still running: use another guard for another block.")
        self._entered = True
        self._cancelling = cast("asyncio.Task[Any]", asyncio.current_task()).cancelling()
        self._stops.begin()
        self._scope = Scope(self._caller.settings, Home(asyncio.get_running_loop(), self._run), self._stops)
        self._open_guards.add(self._stops)
        try:
            self._open_guards.check_open()
            if self._tracker and self._stops.ids:
                await self._tracker.begin([*self._stops.ids])
            self._scope.enter()
            self._scope.add(self._clients)
        except BaseException as error:  # there will be no block that could be left
            await self._leave(error)
            raise
        if self._watcher:
            self._watcher.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._run is None:  # otherwise the caller is in another thread
            self._scope.check_context()
        if self._watcher is None or not in_asyncio():
            await self._leave(error)
            return
        abandonment, cancellation = await self._watcher.end(error)
        await self._leave(abandonment or error, cancellation)
        if abandonment is not None:
            abandonment.outcome = self.outcome
            raise abandonment from error

    async def _leave(self, error: BaseException | None, cancellation: asyncio.CancelledError | None = None) -> None:
        """End the block.

        Args:
            error: the exception that ends it, or None.
            cancellation: a cancellation of the task that has been held back.
        """
        self._entered = False
        stops = self._stops
        lets_run = error is None and not self.stops_on_exit
        if not lets_run:
            self._scope.fail()
        try:
            if lets_run and stops.orphans and in_asyncio():
                cancellation = await stops.finish() or cancellation
            if lets_run and not stops.under_way:
                self._open_guards.discard(stops)  # before any await: closing the session must not stop them
                self._scope.close()
                if self._tracker and (names := stops.left_running()):
                    await self._tracker.release(names)
            elif (stops.ids or stops.arrivals) and in_asyncio():
                cancellation = await stops.run() or cancellation
                stops.report(error)
                stops.raise_exit(error)
            elif stops.ids:
                _log.warning(
                    "%r could not stop its responses: its event loop is closed", self,
                    extra=fields("loop_closed", affected=len(stops.ids)),
                )  # fmt: skip
        finally:
            self._open_guards.discard(stops)
            self._scope.close()
        if cancellation is not None and not isinstance(error, asyncio.CancelledError):
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            asyncio.get_running_loop().call_soon(_cancel_again, task, self._cancelling, cancellation.args)


class Stops:
    """Stops the responses of a guard, at the end of its block or when its session closes, whichever is first.

    Attributes:
        ids: the time at which each id was added, in the order in which they were added.
        outcomes: the outcomes of the responses by id, once they were stopped.
        taken: the last outcomes of responses that another process stops, and has not stopped yet, by id.
        closed: whether the session was closed while the block ran.
        arrivals: the creations that are under way.
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
        self.arrivals: Arrivals = Arrivals(caller.clock)
        self.orphans: Arrivals = Arrivals(caller.clock)
        if tracker:
            tracker.listen(self._take)

    @property
    def under_way(self) -> bool:
        """Whether the responses are being stopped."""
        return self._run is not None

    def keep(self, pace: Pace) -> None:
        """Stop the responses at a pace that others share. Their grace then begins with the turn of each."""
        self._caller = self._caller.with_pace(pace, is_urgent=True)

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

    def join(self, response_id: str) -> Work | None:
        """Guard a response that a client has created, and return what records it. Can be called from any thread."""
        self.ids[response_id] = self._caller.clock.monotonic()
        tracker = self._tracker
        return None if tracker is None else lambda: tracker.begin([response_id])

    def leave(self, response_id: str) -> None:
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
        """Stop all responses, or wait for that if it is under way, and return the last cancellation of this task.

        No cancellation ends it.
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
        until = math.inf if self._caller.pace else clock.monotonic() + self._grace
        caller = self._caller
        while True:
            # A loop that shuts down cancels all tasks, also these, which are then started again.
            while (left := until - clock.monotonic()) > 0 and ((names := self._open()) or self.arrivals):
                if not names:
                    cancellation = await self.arrivals.wait(left) or cancellation
                    continue
                if caller.pace is None and len(names) > MANY:
                    caller = caller.with_pace(self._pace(len(names) / left), is_urgent=True)
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
        """Wait until the orphans are stopped, and return the last cancellation of this task, which does not end it."""
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

    def _pace(self, needed: float) -> Pace:
        """Return a pace for the stops of many responses.

        Args:
            needed: the requests a second that are at least needed to stop all in time.
        """
        return Pace(sys.maxsize, self._caller.clock, rate=max(FIRST_RATE, 2 * needed))

    async def _stop_one(self, name: str, caller: Caller, until: float) -> None:
        """Stop a response until a time of the clock, and in the grace."""
        try:
            young = caller.clock.monotonic() - self.ids[name] < YOUNG
            async with caller.pace.slots.take(self._grace) if caller.pace else nullcontext():
                left = min(self._grace, until - caller.clock.monotonic())
                if left <= 0:  # it was not its turn in time
                    return
                await stop(
                    caller,
                    name,
                    deadline=left,
                    poll=self._poll,
                    max_retries=self._max_retries,
                    young=young,
                    unseen=True,
                    keep=partial(self.outcomes.__setitem__, name),
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
                extra=fields("stop_failed", response_id=name, error=error),
            )  # fmt: skip

    def _note(self, name: str) -> str:
        """Return a note about a response that was not stopped. Of a foreign exception it has only the class."""
        outcome, failure = self.outcomes.get(name), self._failures.get(name)
        if outcome is not None:
            reason = f": {outcome.error}" if outcome.error else ""
            return "" if outcome.stopped else f"{name} was not stopped ({outcome.verdict}{reason})"
        words = str(failure) if isinstance(failure, OpenAICancelError) else type(failure).__name__
        return f"{name} was not stopped ({words if failure else f'no answer within {self._grace:g} s'})"


class OpenGuards:
    """The guards of a session whose blocks run. It is a `Holder` of the metrics.

    Attributes:
        kind: `guard`.
        base_url: the address of the server.
    """

    def __init__(self, base_url: str) -> None:
        self._stops: set[Stops] = set()
        self._closing = False
        self.kind: str = "guard"
        self.base_url: str = base_url

    @property
    def held(self) -> int:
        """The number of guarded responses. It can be read in any thread."""
        return sum(len(stops.ids) for stops in [*self._stops])

    def add(self, stops: Stops) -> None:
        """Add a guard whose block begins."""
        self._stops.add(stops)
        if tracing.has_metrics():
            from openai_cancel import metrics  # not imported unless metrics are used

            metrics.observe(self)

    def discard(self, stops: Stops) -> None:
        """Remove a guard whose block has ended. Can be called from any thread."""
        self._stops.discard(stops)

    def check_open(self) -> None:
        """Make sure that the session is not about to close.

        Raises:
            SessionStateError: it is.
        """
        if self._closing:
            raise SessionStateError("The session is being closed: create another one.")

    async def close(self) -> asyncio.CancelledError | None:
        """Stop the responses of all guards, refuse new ones, and return the last cancellation of this task.

        No cancellation ends it.
        """
        self._closing = True
        cancellation: asyncio.CancelledError | None = None
        with shielded_from_anyio():
            # A loop that shuts down may cancel these tasks before they begin. New guards stop their responses, too.
            while open_ones := [stops for stops in [*self._stops] if not stops.closed]:
                tasks = [asyncio.create_task(stops.close()) for stops in open_ones]
                cancellation = await wait_through_cancellation(*tasks) or cancellation
        return cancellation


def _cancel_again(task: "asyncio.Task[Any]", cancelling: int, arguments: tuple[Any, ...]) -> None:
    """Deliver the cancellation that was held back, unless its sender has undone it, as `asyncio.timeout` does."""
    if task.cancelling() > cancelling and not task.done():
        task.uncancel()
        task.cancel(*arguments)

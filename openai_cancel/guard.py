"""`guard`: responses that run no longer than the block that needs them."""

import asyncio
import logging
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, cast

from openai_cancel.caller import Caller
from openai_cancel.cancellation import shielded_from_anyio, wait_through_cancellation
from openai_cancel.errors import OpenAICancelError, detached
from openai_cancel.outcome import Outcome
from openai_cancel.stop import stop
from openai_cancel.tracking import Tracker
from openai_cancel.wire import ResponseId

TRUSTED_FOR = 1.0
"""Seconds for which an idle connection is trusted by a guard, which has little time: a dead one gives no sign."""

_log = logging.getLogger("openai_cancel")


class Guard:
    """Stops responses if its block is left by an exception: an error, a time-out, a cancelled task, Ctrl-C.

    The responses are stopped first. Then the same exception is raised. While the responses are being stopped, further
    cancellations of the task are held back; they take effect afterwards. A response that could not be stopped is
    mentioned in a note of the exception. A block that ends normally leaves the responses alone.

    Guards are created by `AsyncSession.guard` and `Session.guard`.

    Attributes:
        outcomes: the outcomes of the responses by id, once they were stopped.
    """

    def __init__(self, caller: Caller, *, grace: float, tracker: Tracker | None = None) -> None:
        self._caller = caller
        self._grace = grace
        self._tracker = tracker
        self._entered = False
        self._ids: dict[str, None] = {}  # an ordered set
        self._failures: dict[str, BaseException] = {}
        self._cancelling = 0  # the number of cancellations of the task when the block began
        self.outcomes: dict[str, Outcome] = {}

    def __repr__(self) -> str:
        """Return the guarded ids."""
        return f"<{type(self).__name__} {', '.join(self._ids) or 'disarmed'}>"

    @property
    def outcome(self) -> Outcome | None:
        """The outcome of the response, or of the first one of several; None if none was stopped."""
        return next((self.outcomes[name] for name in self._ids if name in self.outcomes), None)

    @property
    def armed(self) -> bool:
        """Whether any response is guarded."""
        return bool(self._ids)

    @property
    def tracked(self) -> bool:
        """Whether a ledger records the responses."""
        return self._tracker is not None

    def add(self, response_id: ResponseId) -> None:
        """Guard another response, for example one that was just created.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
        """
        name = self._caller.identify(response_id)
        if self._tracker and self._entered and name not in self._ids:
            self._tracker.begin_soon(name)
        self._ids[name] = None

    def disarm(self) -> None:
        """Let all responses run on that are guarded so far."""
        if self._tracker and self._entered:
            self._tracker.release_soon([*self._ids])
        self._ids.clear()

    async def __aenter__(self) -> Self:
        self._caller.transport.check_open()  # a guard that could stop nothing refuses its block
        self._entered = True
        self._cancelling = cast("asyncio.Task[Any]", asyncio.current_task()).cancelling()
        if self._tracker and self._ids:
            try:
                await self._tracker.begin([*self._ids])
            except BaseException as error:  # there will be no block that could be left
                await self.__aexit__(type(error), error, error.__traceback__)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        if not self._ids:
            return
        if error is None:
            if self._tracker:
                await self._tracker.release([*self._ids])
            return
        try:
            task = cast("asyncio.Task[Any]", asyncio.current_task())
        except RuntimeError:  # the event loop is closed, and the interpreter discards this coroutine
            _log.warning("%r could stop nothing: its event loop is closed", self)
            return
        held_back = await self._stop_all()
        self._report(error)
        for failure in self._failures.values():
            if not isinstance(failure, Exception | asyncio.CancelledError) and isinstance(error, Exception):
                raise failure  # a KeyboardInterrupt or SystemExit takes precedence over an error of the block
        if held_back is not None and not isinstance(error, asyncio.CancelledError):
            asyncio.get_running_loop().call_soon(_cancel_again, task, self._cancelling, held_back)

    async def _stop_all(self) -> tuple[Any, ...] | None:
        """Stop all responses, whatever cancels this task, and return the arguments of the last cancellation."""
        clock = self._caller.clock
        self._caller.transport.drop_idle(TRUSTED_FOR)
        cancellation: asyncio.CancelledError | None = None
        until = clock.monotonic() + self._grace
        self._failures.clear()
        self.outcomes = {name: outcome for name, outcome in self.outcomes.items() if outcome.stopped}
        with shielded_from_anyio():
            # A loop that shuts down cancels all tasks, also these, which are then started again.
            while (left := until - clock.monotonic()) > 0 and (names := self._open()):
                stops = [asyncio.create_task(self._stop_one(name, left)) for name in names]
                cancellation = await wait_through_cancellation(*stops) or cancellation
            if self._tracker:
                settling = asyncio.create_task(self._tracker.settle([*self._ids], self.outcomes))
                cancellation = await wait_through_cancellation(settling) or cancellation
        return None if cancellation is None else cancellation.args

    def _open(self) -> list[str]:
        """Return the ids that have neither an outcome nor a failure."""
        return [name for name in self._ids if name not in self.outcomes and name not in self._failures]

    async def _stop_one(self, name: str, left: float) -> None:
        try:
            self.outcomes[name] = await stop(self._caller, name, deadline=left)
        except BaseException as error:
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            if isinstance(error, asyncio.CancelledError) and task.cancelling():
                raise
            self._failures[name] = detached(error)

    def _report(self, error: BaseException) -> None:
        """Name the responses that were not stopped, in notes of the exception and in the log."""
        for name in self._ids:
            if note := self._note(name):
                with suppress(Exception):  # some exceptions cannot take a note
                    error.add_note(f"openai-cancel: {note}")
                _log.warning("%s", self._log_line(name))

    def _log_line(self, name: str) -> str:
        """Return a line for the log, which contains no text of a server."""
        outcome, failure = self.outcomes.get(name), self._failures.get(name)
        error = failure if outcome is None else outcome.error
        said = [] if outcome is None else [str(outcome.verdict)]
        said += [] if error is None else [type(error).__name__]
        return f"{name} was not stopped ({', '.join(said) or 'no answer in time'})"

    def _note(self, name: str) -> str:
        """Return a note about a response that was not stopped. Of a foreign exception it has only the class."""
        outcome, failure = self.outcomes.get(name), self._failures.get(name)
        if outcome is not None:
            reason = f": {outcome.error}" if outcome.error else ""
            return "" if outcome.stopped else f"{name} was not stopped ({outcome.verdict}{reason})"
        words = str(failure) if isinstance(failure, OpenAICancelError) else type(failure).__name__
        return f"{name} was not stopped ({words if failure else f'no answer within {self._grace:g} s'})"


def _cancel_again(task: "asyncio.Task[Any]", cancelling: int, arguments: tuple[Any, ...]) -> None:
    """Deliver the cancellation that was held back, unless its sender has undone it, as `asyncio.timeout` does."""
    if task.cancelling() > cancelling and not task.done():
        task.uncancel()
        task.cancel(*arguments)

"""`guard` and `wait`: a response that lives no longer than the code that waits for it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, cast

from openai_cancel.errors import (
    APIError,
    OpenAICancelError,
    ResponseDecodeError,
    WaitTimeoutError,
    detached,
)
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome
from openai_cancel.retry import is_transient, poll_delay
from openai_cancel.shield import outlast, shielded_from_anyio

_log = logging.getLogger("openai_cancel")


class _Stop(Protocol):
    def __call__(self, response_id: str, /, *, deadline: float) -> Awaitable[Outcome]: ...


class Tracking(Protocol):
    """What a ledger does for a guard: it has the responses stopped if this process cannot do it."""

    async def begin(self, names: Collection[str]) -> None:
        """Write down responses, by id."""

    def begin_soon(self, name: str) -> None:
        """Write down one more, without a wait, from any thread."""

    async def release(self, names: Collection[str]) -> None:
        """Let responses be."""

    def release_soon(self, names: Collection[str]) -> None:
        """Let responses be, without a wait, from any thread."""

    async def settle(self, names: Collection[str], outcomes: Mapping[str, Outcome]) -> None:
        """Write down what became of responses; those without an outcome are left to others."""


class Guard:
    """Stops responses when its block is left by an exception: an error, a time-out, a cancelled task, Ctrl-C.

    The remote responses are stopped first, then the exception goes on, the same object. While they are stopped, no
    other cancel of the task gets through; it takes effect afterwards. What could not be stopped stands in a note of
    the exception. A block that ends normally leaves them alone.

    Made by `AsyncSession.guard` and `Session.guard`.

    Attributes:
        outcomes: what became of the responses, by id, once they were stopped.
    """

    def __init__(
        self,
        *,
        stop: _Stop,
        identify: Callable[[Any], str],
        monotonic: Callable[[], float],
        grace: float,
        tracking: Tracking | None = None,
    ) -> None:
        self._stop = stop
        self._identify = identify
        self._monotonic = monotonic
        self._grace = grace
        self._tracking = tracking
        self._entered = False
        self._ids: dict[str, None] = {}  # a set that keeps the order
        self._failures: dict[str, BaseException] = {}
        self._cancels = 0  # of the task, when the block began
        self.outcomes: dict[str, Outcome] = {}

    def __repr__(self) -> str:
        """The ids that are guarded."""
        return f"<{type(self).__name__} {', '.join(self._ids) or 'disarmed'}>"

    @property
    def outcome(self) -> Outcome | None:
        """What became of the response; of the first one, where several are guarded; None if nothing was stopped."""
        return next((self.outcomes[name] for name in self._ids if name in self.outcomes), None)

    def add(self, response_id: Any) -> None:
        """Guard another response, such as one that was just created.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
        """
        name = self._identify(response_id)
        if self._tracking and self._entered and name not in self._ids:
            self._tracking.begin_soon(name)
        self._ids[name] = None

    def disarm(self) -> None:
        """Guard nothing any more: what is guarded so far may run on."""
        if self._tracking and self._entered:
            self._tracking.release_soon([*self._ids])
        self._ids.clear()

    @property
    def armed(self) -> bool:
        """Whether anything is guarded."""
        return bool(self._ids)

    @property
    def tracked(self) -> bool:
        """Whether a ledger has what is guarded."""
        return self._tracking is not None

    async def __aenter__(self) -> Self:
        self._entered = True
        self._cancels = cast("asyncio.Task[Any]", asyncio.current_task()).cancelling()
        if self._tracking and self._ids:
            try:
                await self._tracking.begin([*self._ids])
            except BaseException as error:  # there will be no block to leave
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
            if self._tracking:
                await self._tracking.release([*self._ids])
            return
        try:
            task = cast("asyncio.Task[Any]", asyncio.current_task())
        except RuntimeError:  # its loop is closed, and the coroutine thrown away
            _log.warning("%r could stop nothing: its event loop is closed", self)
            return
        held_back = await self._stop_all()
        for name in self._ids:
            if note := self._note(name):
                with suppress(Exception):  # an exception can be strange enough to take none
                    error.add_note(f"openai-cancel: {note}")
                _log.warning("%s", self._line(name))
        for failure in self._failures.values():
            if not isinstance(failure, Exception | asyncio.CancelledError) and isinstance(error, Exception):
                raise failure  # the end of the program goes before what went wrong in it
        if held_back is not None and not isinstance(error, asyncio.CancelledError):
            asyncio.get_running_loop().call_soon(_cancel_again, task, self._cancels, held_back)

    async def _stop_all(self) -> tuple[Any, ...] | None:
        """Stop all responses, through any cancel of this task; gives the arguments of the last that came meanwhile."""
        cancel: asyncio.CancelledError | None = None
        until = self._monotonic() + self._grace
        self._failures.clear()
        self.outcomes = {name: outcome for name, outcome in self.outcomes.items() if outcome.stopped}
        with shielded_from_anyio():
            # A loop that is shutting down cancels every task, also those here: they are begun again.
            while (left := until - self._monotonic()) > 0 and (names := self._open()):
                stops = [asyncio.create_task(self._stop_one(name, left)) for name in names]
                cancel = await outlast(*stops) or cancel
            if self._tracking:
                settling = asyncio.create_task(self._tracking.settle([*self._ids], self.outcomes))
                cancel = await outlast(settling) or cancel
        return None if cancel is None else cancel.args

    def _open(self) -> list[str]:
        return [name for name in self._ids if name not in self.outcomes and name not in self._failures]

    async def _stop_one(self, name: str, left: float) -> None:
        try:
            self.outcomes[name] = await self._stop(name, deadline=left)
        except BaseException as error:
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            if isinstance(error, asyncio.CancelledError) and task.cancelling():
                raise
            self._failures[name] = detached(error)

    def _line(self, name: str) -> str:
        """What a log says of it, in which there is no word of a body."""
        outcome, failure = self.outcomes.get(name), self._failures.get(name)
        error = failure if outcome is None else outcome.error
        said = [] if outcome is None else [str(outcome.verdict)]
        said += [] if error is None else [type(error).__name__]
        return f"{name} was not stopped ({', '.join(said) or 'no answer in time'})"

    def _note(self, name: str) -> str:
        """What is to be said of a response that was not stopped; of a stranger's exception only its kind."""
        outcome, failure = self.outcomes.get(name), self._failures.get(name)
        if outcome is not None:
            reason = f": {outcome.error}" if outcome.error else ""
            return "" if outcome.stopped else f"{name} was not stopped ({outcome.verdict}{reason})"
        words = str(failure) if isinstance(failure, OpenAICancelError) else type(failure).__name__
        return f"{name} was not stopped ({words if failure else f'no answer within {self._grace:g} s'})"


def _cancel_again(task: "asyncio.Task[Any]", cancels: int, arguments: tuple[Any, ...]) -> None:
    """Pass on the cancel that was held back, unless whoever sent it has taken it back, as `asyncio.timeout` does."""
    if task.cancelling() > cancels and not task.done():
        task.uncancel()
        task.cancel(*arguments)


async def wait_until_over(
    name: str,
    *,
    retrieve: Callable[..., Awaitable[Response]],
    monotonic: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    random: Callable[[], float],
    timeout: float,  # noqa: ASYNC109 - of many requests, on a clock that tests set
) -> Response:
    """Look at a response until it is over.

    Raises:
        WaitTimeoutError: it was not over in time.
        APIStatusError: the server refuses, and will not change its mind.
    """
    began = monotonic()
    response: Response | None = None
    looks = 0
    while (left := timeout - (monotonic() - began)) > 0:
        answer: Response | APIError
        try:
            answer = response = await retrieve(deadline=left)
            if response.is_terminal:
                return response
        except APIError as error:
            if not (is_transient(error) or isinstance(error, ResponseDecodeError)):
                raise
            answer = error
        asked: float | None = getattr(answer, "retry_after", None)
        del answer
        delay = poll_delay(looks, asked=asked, random=random())
        await sleep(min(delay, max(timeout - (monotonic() - began), 0.0)))
        looks += 1
    status = "no answer" if response is None else f"its status was {response.status!r}"
    raise WaitTimeoutError(f"{name} was not over within {timeout:g} s: {status}.", response=response)

"""Timeouts, shields, and waiting that a cancellation does not end."""

import asyncio
import inspect
import math
import sys
from collections.abc import Awaitable, Generator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import attrs

CLEANUP_TIME = 0.1
"""Seconds that a contained coroutine has to finish after it was cancelled."""

_T = TypeVar("_T")


class TimeoutScheduler:
    """One timer of the event loop for any number of timeouts.

    `asyncio.timeout` creates a timer for each block, and a cancelled timer stays in the loop's heap until its time has
    come. That costs a tenth of a whole exchange, and timeouts of requests almost never expire.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.at: float = math.inf
        self.running: dict[Timeout, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self, at: float) -> None:
        """Set the timer to a time of the event loop; `math.inf` turns it off."""
        if self._timer:
            self._timer.cancel()
        self.at = at
        self._timer = self.loop.call_at(at, self._expire_due) if at < math.inf else None

    def close(self) -> None:
        """Turn the timer off, unless a block is still running."""
        if not self.running:
            self.schedule(math.inf)

    def _expire_due(self) -> None:
        now = self.loop.time()
        for timeout in self.running:
            if timeout.until <= now and not timeout.expired:
                timeout.expire()
        self.schedule(min((timeout.until for timeout in self.running if not timeout.expired), default=math.inf))


@attrs.define(eq=False)
class Timeout:
    """A block that ends with a `TimeoutError` if it takes too long, as with `asyncio.timeout`.

    Attributes:
        scheduler: the timer that it shares with others.
        seconds: how long the block may take.
        until: the time of the event loop at which the block ends.
        expired: whether this timeout has ended the block.
        is_lifted: whether the block may take as long as it likes.
    """

    scheduler: TimeoutScheduler
    seconds: float
    until: float = math.inf
    expired: bool = False
    is_lifted: bool = False

    _task: "asyncio.Task[object] | None" = None
    _cancelling: int = 0

    def lift(self) -> None:
        """Let the block take as long as it likes."""
        self.until = math.inf
        self.is_lifted = True

    def expire(self) -> None:
        """End the block by cancelling its task."""
        if self._task:
            self.expired = True
            self._task.cancel()

    def __enter__(self) -> Self:
        scheduler = self.scheduler
        self._task = task = asyncio.current_task()
        self._cancelling = task.cancelling() if task else 0
        self.until = scheduler.loop.time() + self.seconds
        scheduler.running[self] = None
        if self.until < scheduler.at:
            scheduler.schedule(self.until)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self.scheduler.running[self]
        task, self._task = self._task, None
        # Another cancellation, before this one or beside it, takes precedence.
        if self.expired and task and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error


async def contain(awaitable: Awaitable[_T]) -> _T:
    """Await foreign code, such as a caller's key function, in a task of its own.

    Foreign code may swallow a cancellation. In a task of its own it can swallow neither the timeout of the call that
    awaits it nor the cancellation of the caller's task: this function ends `CLEANUP_TIME` seconds after either.
    """
    task = asyncio.create_task(_capture(awaitable))
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait((task,), timeout=CLEANUP_TIME)
        close_unstarted(awaitable)
        raise
    result, error = task.result()
    del task  # its result refers to the error, and the error's traceback to this frame
    if error is not None:
        try:
            raise error
        finally:
            del error
    return cast("_T", result)


def close_unstarted(awaitable: Awaitable[object]) -> None:
    """Close a coroutine whose task was cancelled before its first step, as in a loop that ends. Python would warn."""
    if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
        awaitable.close()


async def _capture(awaitable: Awaitable[_T]) -> tuple[_T | None, BaseException | None]:
    """Return a result or an error. A SystemExit that a task raises would end the event loop."""
    try:
        return await awaitable, None
    except BaseException as error:  # noqa: BLE001 - `contain` raises it
        return None, error


async def wait_through_cancellation(*futures: "asyncio.Future[Any]") -> asyncio.CancelledError | None:
    """Wait until all futures are done.

    Cancellations of this task do not end the wait; the last one is returned, for the caller to raise.
    """
    cancellation: asyncio.CancelledError | None = None
    while pending := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancellation = error
    return cancellation


@contextmanager
def shielded_from_anyio() -> Generator[None, None, None]:
    """Keep anyio's cancel scopes from cancelling the task again in each iteration of the event loop.

    See https://anyio.readthedocs.io/en/stable/cancellation.html#shielding.
    """
    anyio: Any = sys.modules.get("anyio")  # a service that uses it has imported it
    with ExitStack() as stack:
        if anyio is not None:
            with suppress(Exception):  # it may run on trio, or be only half imported
                stack.enter_context(anyio.CancelScope(shield=True))
        yield

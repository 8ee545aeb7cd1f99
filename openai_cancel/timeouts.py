"""Time-outs of any number of tasks, with one timer of the event loop.

`asyncio.timeout` makes a timer for each block, which then waits in the loop's heap, cancelled, for its hour: a tenth of
what a whole exchange costs. Next to none of ours ever expire. What happens to a task is what `asyncio.timeout` does.
"""

import asyncio
import math
from types import TracebackType
from typing import Self

import attrs


class Alarm:
    """One timer for all time-outs of an event loop: it rings for the first of them, and then looks for the next."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.at: float = math.inf
        self.running: dict[Timeout, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Ring at a time of the loop."""
        if self._timer:
            self._timer.cancel()
        self.at = at
        self._timer = self.loop.call_at(at, self._ring) if at < math.inf else None

    def close(self) -> None:
        """Leave no timer behind, unless there is still something to end."""
        if not self.running:
            self.set(math.inf)

    def _ring(self) -> None:
        now = self.loop.time()
        for timeout in self.running:
            if timeout.until <= now and not timeout.expired:
                timeout.expire()
        self.set(min((timeout.until for timeout in self.running if not timeout.expired), default=math.inf))


@attrs.define(eq=False)
class Timeout:
    """A block that ends with a `TimeoutError` if it takes too long.

    Attributes:
        alarm: what looks after it.
        seconds: that it may take.
        until: the time of the loop when it ends.
        expired: whether it was this time-out that ended it.
    """

    alarm: Alarm
    seconds: float
    until: float = math.inf
    expired: bool = False

    _task: "asyncio.Task[object] | None" = None
    _cancelling: int = 0

    def expire(self) -> None:
        """End the block, by a cancel of its task."""
        if self._task:
            self.expired = True
            self._task.cancel()

    def __enter__(self) -> Self:
        alarm = self.alarm
        self._task = task = asyncio.current_task()
        self._cancelling = task.cancelling() if task else 0
        self.until = alarm.loop.time() + self.seconds
        alarm.running[self] = None
        if self.until < alarm.at:
            alarm.set(self.until)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self.alarm.running[self]
        task, self._task = self._task, None
        # A cancel by somebody else, before ours or beside it, goes on.
        if self.expired and task and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

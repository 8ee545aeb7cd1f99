"""The slots of stops that share a rate limiter: each begins when there is time for its requests."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import attrs

from openai_cancel.clock import Clock

TURN_SHARE = 0.125
"""The share of its time that a stop may wait for its first turn, if all slots are taken. It may need several turns."""

LONGEST_TURN = 0.8
"""Seconds that it may wait at most. A `RateLimiter` gives turns one second ahead: a longer wait can be overtaken."""


@attrs.define(eq=False)
class Slots:
    """The slots of stops that share a rate limiter, and have the same time. They are taken in the order of requests.

    If all stops began at once, the time of most would be over before the limiter lets their first request through. But
    there is no sense in waiting for stops that get nowhere: once one has used up its time, and no other has ended
    meanwhile, all begin.

    Attributes:
        rate: returns the rate of requests a second.
        clock: the clock.
    """

    rate: Callable[[], float]
    clock: Clock

    _held: int = 0
    _waiting: deque[asyncio.Future[None]] = attrs.field(factory=deque[asyncio.Future[None]])
    _ended: float = -math.inf  # when a stop last ended before its time was over
    _stuck: bool = False  # whether the stops get nowhere

    @asynccontextmanager
    async def take(self, seconds: float) -> AsyncGenerator[None, None]:
        """Wait for a slot, and hold it.

        Args:
            seconds: seconds that the stop may take once it has the slot.
        """
        await self._wait(seconds)
        began = self.clock.monotonic()
        try:
            yield
        finally:
            self._note_end(began, seconds)
            self._release(seconds)

    async def _wait(self, seconds: float) -> None:
        if self._has_room(seconds) and not self._waiting:
            self._held += 1
            return
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(slot)
        try:
            await slot
        except asyncio.CancelledError:
            if not slot.cancelled():  # it was given to a task that is gone
                self._release(seconds)
            raise

    def _release(self, seconds: float) -> None:
        self._held -= 1
        while self._waiting and self._has_room(seconds):
            slot = self._waiting.popleft()
            if not slot.done():
                self._held += 1
                slot.set_result(None)

    def _has_room(self, seconds: float) -> bool:
        return self._stuck or self._held < max(1.0, self.rate() * min(seconds * TURN_SHARE, LONGEST_TURN))

    def _note_end(self, began: float, seconds: float) -> None:
        now = self.clock.monotonic()
        if now - began < seconds / 2:
            self._ended, self._stuck = now, False
        elif self._ended < began:
            self._stuck = True

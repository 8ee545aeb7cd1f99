"""A clock that a test moves."""

import asyncio

from openai_cancel import Clock


class ManualClock(Clock):
    """A clock that stands still until a test moves it.

    Attributes:
        now: the time.
        slept: the seconds of all sleeps that were begun.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self._alarms: dict[asyncio.Event, float] = {}

    def monotonic(self) -> float:
        return self.now

    def random(self) -> float:
        return 1.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        alarm = asyncio.Event()
        self._alarms[alarm] = self.now + seconds
        try:
            await alarm.wait()
        finally:
            del self._alarms[alarm]

    def advance(self, seconds: float) -> None:
        """Move the clock, and wake those who have slept long enough."""
        self.now += seconds
        for alarm, at in self._alarms.items():
            if at <= self.now:
                alarm.set()

    async def run(self) -> None:
        """Let the clock run, in addition to what the test moves it, until this task is cancelled."""
        while True:
            await asyncio.sleep(0.01)
            self.advance(0.01)

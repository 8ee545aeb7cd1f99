"""The clock: monotonic time, sleep and chance, in one object."""

import asyncio
import random
import time


class Clock:
    """The clock and the source of randomness for everything that a session does.

    A subclass can make tests of retries and polling fast and deterministic:

    ```python
    class FastClock(Clock):
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        async def sleep(self, seconds: float) -> None:
            self.now += seconds

    session = AsyncSession(clock=FastClock())
    ```

    Timeouts of requests are timers of the event loop and do not use it.
    """

    def monotonic(self) -> float:
        """Return the time in seconds since an arbitrary point in the past. It never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds."""
        await asyncio.sleep(seconds)

    def random(self) -> float:
        """Return a random number from 0 up to, but not including, 1. It is used for jitter."""
        return random.random()  # noqa: S311 - jitter needs no cryptographic randomness


SYSTEM_CLOCK = Clock()

"""`RateLimiter`: a bulk run sends as many requests a second as the server allows."""

import asyncio
import math

import attrs

from openai_cancel.clock import Clock
from openai_cancel.errors import APIStatusError, APITimeoutError, OpenAICancelError
from openai_cancel.retry import is_transient, poll_delay
from openai_cancel.silence_monitor import SilenceMonitor
from openai_cancel.slots import Slots

CUT = 0.9
"""The factor by which the measured rate is cut when the server refuses a request."""

GROWTH = 0.01
"""The growth of the rate per second, relative to itself, for each second since the last cut."""

MIN_GROWTH = 0.1
"""The least growth of the rate, in requests a second per second."""

SLOW_START = 2.0
"""The factor by which a rate grows each second until the server refuses a request for the first time."""

MIN_RATE = 0.5
"""The lowest rate, in requests a second."""

HORIZON = 1.0
"""Seconds for which turns are given ahead."""

STOP_PAUSE = 2.0
"""Seconds that a stop, which has little time, pauses at most after the server has refused a request."""

OVERLOAD = frozenset({429, 529})
UNAVAILABLE = 503


@attrs.define
class RateLimiter:
    """The rate at which all requests of a bulk run are sent: additive increase, multiplicative decrease.

    It controls the rate and not only the concurrency, because a single connection can be too fast for a server that
    limits requests a second. Only `acquire` waits.

    Attributes:
        concurrency: the maximum number of responses that are worked on at once.
        clock: the clock and the source of randomness.
        rate: the current rate in requests a second; `math.inf` until the server refuses a request.
        max_rate: the highest rate.
        silence: gives up if the server does not answer.
        slots: the slots of stops at this rate.
    """

    concurrency: int
    clock: Clock
    rate: float = math.inf
    max_rate: float = math.inf
    silence: SilenceMonitor = attrs.Factory(lambda self: SilenceMonitor(self.clock), takes_self=True)
    slots: Slots = attrs.field(init=False)

    _next: float = 0.0  # when the next request may be sent
    _resume: float = 0.0  # the end of the pause that the server asked for
    _refused: float = -math.inf  # when the server last refused a request
    _cut: float = -math.inf  # when the rate was last cut
    _urgent: int = 0  # the number of stops that wait for a turn
    _grown: float = attrs.field(init=False)  # the time up to which the growth is included in the rate
    _second: float = -math.inf  # when the second that is being counted began
    _counts: tuple[int, int] = (0, 0)  # the requests that got through in the last second, and in this one

    def __attrs_post_init__(self) -> None:
        self._grown = self.clock.monotonic()
        self.slots = Slots(lambda: self.rate, self.clock)

    @property
    def limit(self) -> int:
        """The number of responses to work on at once: low at a low rate, so that none waits until its deadline."""
        return self.concurrency if self.rate == math.inf else max(1, min(self.concurrency, math.ceil(self.rate)))

    async def acquire(self, deadline: float = math.inf, *, is_urgent: bool = False) -> float:
        """Wait until a request may be sent, and return the time.

        Args:
            deadline: a time of the clock.
            is_urgent: whether the request stops a response. Such a request goes before all others.

        Raises:
            APITimeoutError: that would be after the deadline.
        """
        self._urgent += is_urgent
        try:
            return await self._acquire(deadline, is_urgent=is_urgent)
        finally:
            self._urgent -= is_urgent

    async def _acquire(self, deadline: float, *, is_urgent: bool) -> float:
        while True:
            now, resume = self.clock.monotonic(), self._resume_at(is_urgent=is_urgent)
            at = max(now, self._next, resume)
            if at > deadline:
                raise APITimeoutError("The server's rate limit leaves no time for a request before the deadline.")
            # Beyond the horizon, the rate may have grown.
            if at - now > HORIZON or (self._urgent and not is_urgent):
                await self.clock.sleep(max(HORIZON, resume - now))
                continue
            interval = 1 / self.rate
            self._next = at + interval
            if at > now:
                try:
                    await self.clock.sleep(at - now)
                except asyncio.CancelledError:
                    self._next -= interval  # another request can have the turn
                    raise
            if self._resume_at(is_urgent=is_urgent) <= (now := self.clock.monotonic()):
                return now

    def _resume_at(self, *, is_urgent: bool) -> float:
        return min(self._resume, self._refused + STOP_PAUSE) if is_urgent else self._resume

    def note(self, sent: float, error: OpenAICancelError | None) -> None:
        """Adapt the rate to the result of a request that was sent at a time of the clock."""
        self.silence.note(sent, error)
        now = self.clock.monotonic()
        if not isinstance(error, APIStatusError) or not _is_overload(error):
            self._count(now, sent)
            return
        delay = poll_delay(0, asked=error.retry_after, random=self.clock.random())
        self._refused, self._resume = now, max(self._resume, now + delay)
        if sent > self._cut:  # requests that were under way at the last cut do not cut again
            self.rate = min(self.rate, max(MIN_RATE, CUT * self._measured(now)))
            self._cut = self._grown = now

    def _count(self, now: float, sent: float) -> None:
        self._roll(now)
        before, current = self._counts
        self._counts = (before, current + 1)
        if sent <= self._cut:  # it got through beside those that were refused, so the cut was too deep
            self.rate = max(self.rate, min(self.max_rate, CUT * self._measured(now)))
        elif self.rate != math.inf and now > self._grown:
            self._grow(min(now - self._grown, 1.0), since_cut=now - self._cut)
            self._grown = now

    def _grow(self, seconds: float, *, since_cut: float) -> None:
        """Raise the rate: it doubles each second until the server refuses a request, and then grows slowly."""
        if since_cut == math.inf:
            rate = self.rate * SLOW_START**seconds
        else:
            rate = self.rate + max(MIN_GROWTH, GROWTH * since_cut * self.rate) * seconds
        self.rate = min(rate, self.max_rate)

    def _measured(self, now: float) -> float:
        """Return the number of requests that got through in the last second."""
        self._roll(now)
        before, current = self._counts
        return before * (1 - (now - self._second)) + current

    def _roll(self, now: float) -> None:
        if now - self._second >= 1:
            whole = math.floor(now - self._second) if self._second > -math.inf else 2
            self._counts = (self._counts[1] if whole == 1 else 0, 0)
            self._second = self._second + whole if whole == 1 else now


def _is_overload(error: APIStatusError) -> bool:
    """Return whether all requests should slow down.

    A 503 without `retry-after` may be about one response, and waiting does not help against a used-up quota.
    """
    said = error.status in OVERLOAD or (error.status == UNAVAILABLE and error.retry_after is not None)
    return said and is_transient(error)

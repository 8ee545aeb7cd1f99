"""The pace of a bulk run: as many requests a second as the server allows."""

import math
from collections.abc import Callable

import attrs

from openai_cancel.clock import Clock
from openai_cancel.errors import APIConnectionError, APIStatusError, APITimeoutError, OpenAICancelError
from openai_cancel.retry import is_transient, poll_delay

CUT = 0.9
"""The factor by which the measured rate is cut when the server refuses a request."""

GROWTH = 0.01
"""The growth of the rate per second, relative to itself, for each second since the last cut."""

LEAST_GROWTH = 0.1
"""The least growth of the rate, in requests a second per second."""

SLOW_START = 2.0
"""The factor by which a rate grows each second until the server refuses a request for the first time."""

LEAST_RATE = 0.5
"""The lowest rate, in requests a second."""

HORIZON = 1.0
"""Seconds for which turns are given ahead."""

OVERLOAD = frozenset({429, 529})
UNAVAILABLE = 503


@attrs.define
class Pace:
    """The rate at which all requests of a bulk run are sent: additive increase, multiplicative decrease.

    It controls the rate and not only the concurrency, because a single connection can be too fast for a server that
    limits requests a second. Only `turn` waits.

    Attributes:
        concurrency: the maximum number of responses that are worked on at once.
        clock: the clock and the source of randomness.
        give_up_after: seconds in which every request must fail for want of an answer before `give_up` is called.
        give_up: is called with the error of the last request if the server cannot be reached.
        rate: the current rate in requests a second; `math.inf` until the server refuses a request.
        max_rate: the highest rate.
    """

    concurrency: int
    clock: Clock
    give_up_after: float = math.inf
    give_up: Callable[[APIConnectionError], None] | None = None
    rate: float = math.inf
    max_rate: float = math.inf

    _next: float = 0.0  # when the next request may be sent
    _resume: float = 0.0  # the end of the pause that the server asked for
    _cut: float = -math.inf  # when the rate was last cut
    _grown: float = attrs.field(init=False)  # the time up to which the growth is included in the rate
    _second: float = -math.inf  # when the second that is being counted began
    _silent_since: float = math.inf  # when the first request after the last answer had none
    _counts: tuple[int, int] = (0, 0)  # the requests that got through in the last second, and in this one

    def __attrs_post_init__(self) -> None:
        self._grown = self.clock.monotonic()

    @property
    def limit(self) -> int:
        """The number of responses to work on at once: low at a low rate, so that none waits until its deadline."""
        return self.concurrency if self.rate == math.inf else max(1, min(self.concurrency, math.ceil(self.rate)))

    async def turn(self, deadline: float = math.inf) -> float:
        """Wait until a request may be sent, and return the time.

        Raises:
            APITimeoutError: that would be after the deadline, a time of the clock.
        """
        while True:
            now = self.clock.monotonic()
            at = max(now, self._next, self._resume)
            if at > deadline:
                raise APITimeoutError("The server's rate limit leaves no time for a request before the deadline.")
            if at - now > HORIZON:  # by then, the rate may have grown
                await self.clock.sleep(max(HORIZON, self._resume - now))
                continue
            self._next = at + 1 / self.rate
            if at > now:
                await self.clock.sleep(at - now)
            if self._resume <= (now := self.clock.monotonic()):
                return now

    def note(self, sent: float, error: OpenAICancelError | None) -> None:
        """Adapt the rate to the result of a request that was sent at a time of the clock."""
        now = self.clock.monotonic()
        self._note_silence(now, error)
        if not isinstance(error, APIStatusError) or not _is_overload(error):
            self._count(now, sent)
            return
        delay = poll_delay(0, asked=error.retry_after, random=self.clock.random())
        self._next = self._resume = max(self._resume, now + delay)
        if sent > self._cut:  # requests that were under way at the last cut do not cut again
            self.rate = max(LEAST_RATE, CUT * min(self.rate, self._measured(now)))
            self._cut = self._grown = now

    def _note_silence(self, now: float, error: OpenAICancelError | None) -> None:
        if not isinstance(error, APIConnectionError):
            self._silent_since = math.inf
            return
        self._silent_since = min(self._silent_since, now)
        silent = error.permanent or now - self._silent_since >= self.give_up_after
        if silent and self.give_up and self.give_up_after < math.inf:
            self.give_up(error)

    def _count(self, now: float, sent: float) -> None:
        self._roll(now)
        before, current = self._counts
        self._counts = (before, current + 1)
        if sent <= self._cut:  # it got through beside those that were refused, so the cut was too deep
            self.rate = max(self.rate, CUT * self._measured(now))
        elif self.rate != math.inf and now > self._grown:
            self._grow(min(now - self._grown, 1.0), since_cut=now - self._cut)
            self._grown = now

    def _grow(self, seconds: float, *, since_cut: float) -> None:
        """Raise the rate: it doubles each second until the server refuses a request, and then grows slowly."""
        if since_cut == math.inf:
            rate = self.rate * SLOW_START**seconds
        else:
            rate = self.rate + max(LEAST_GROWTH, GROWTH * since_cut * self.rate) * seconds
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

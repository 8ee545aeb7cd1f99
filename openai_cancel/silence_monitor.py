"""`SilenceMonitor`: gives up on a server that does not answer."""

import asyncio
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager

import attrs

from openai_cancel.clock import Clock
from openai_cancel.errors import APIConnectionError, APITimeoutError, OpenAICancelError


@attrs.define
class SilenceMonitor:
    """Gives up when the server has answered no request of a bulk run for too long.

    Attributes:
        clock: the clock.
        give_up_after: seconds without any answer after which `give_up` is called.
        first_answer_timeout: as `give_up_after`, until the server answers for the first time.
        give_up: is called once, with the error of the last request.
    """

    clock: Clock
    give_up_after: float = math.inf
    first_answer_timeout: float = math.inf
    give_up: Callable[[APIConnectionError], None] | None = None

    _answered: float = -math.inf  # when the server last answered
    _silent_since: float = math.inf  # when the oldest request without an answer was sent, since the last answer
    _under_way: int = 0  # the number of requests without an answer so far
    _heard: float = 0.0  # the loop's time of the last answer, or of the first request under way
    _failure: APIConnectionError | None = None  # of the last request since the last answer
    _alarm: asyncio.TimerHandle | None = None  # gives up if the requests that are under way get no answer

    @property
    def has_answered(self) -> bool:
        """Whether the server has ever answered."""
        return self._answered > -math.inf

    @property
    def _limit(self) -> float:
        """Seconds without any answer after which to give up."""
        return self.give_up_after if self.has_answered else min(self.give_up_after, self.first_answer_timeout)

    @contextmanager
    def sending(self) -> Generator[None, None, None]:
        """Give up if no request is answered for too long while this one is under way."""
        if not self._under_way:
            self._heard = asyncio.get_running_loop().time()
            self._set_alarm()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way and self._alarm:
                self._alarm.cancel()
                self._alarm = None

    def note(self, sent: float, error: OpenAICancelError | None) -> None:
        """Note the result of a request that was sent at a time of the clock."""
        now = self.clock.monotonic()
        if not isinstance(error, APIConnectionError):
            self._answered, self._silent_since, self._failure = now, math.inf, None
            if self._alarm:
                self._heard = asyncio.get_running_loop().time()
            return
        self._failure = error
        # A request that was sent before the last answer may hang, although the server answers others.
        self._silent_since = min(self._silent_since, max(sent, self._answered))
        if error.permanent or now - self._silent_since >= self._limit:
            self._give_up(error)

    def _set_alarm(self) -> None:
        """Give up if the requests that are under way had no answer for too long, or look again when that may be so."""
        self._alarm = None
        if self.give_up is None or (seconds := self._limit) == math.inf:
            return
        loop = asyncio.get_running_loop()
        if (left := self._heard + seconds - loop.time()) > 0:
            self._alarm = loop.call_later(left, self._set_alarm)
        else:
            self._give_up(self._failure or APITimeoutError(f"No answer within {seconds:g} s."))

    def _give_up(self, error: APIConnectionError) -> None:
        give_up = self.give_up
        if give_up and self._limit < math.inf:
            self.give_up = None
            give_up(error)

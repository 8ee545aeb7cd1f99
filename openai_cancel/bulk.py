"""`stop_many`: any number of responses, in constant memory, as fast as the server lets us and no faster."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import attrs

from openai_cancel.errors import APIStatusError, APITimeoutError, InvalidResponseIdError, OpenAICancelError
from openai_cancel.outcome import Outcome, Verdict
from openai_cancel.retry import is_transient, poll_delay
from openai_cancel.shield import outlast

CUT = 0.9
"""What is left of the rate that got through when the server says that it is too much."""

GROWTH = 0.01
"""By how much of itself the rate grows in a second, for each second without a refusal: slowly first, and then fast."""

LEAST_GROWTH = 0.1
"""Requests a second by which it grows at least."""

LEAST_RATE = 0.5
"""Requests a second that are sent at least."""

OVERLOAD = frozenset({429, 529})
UNAVAILABLE = 503


@attrs.define
class Pace:
    """How fast requests are sent, all of them together: additive increase, multiplicative decrease.

    What is controlled is the rate, and not only how many are under way: one connection alone can be too fast for a
    server that allows so many requests a second. Pure but for `turn`, which sleeps.

    Attributes:
        concurrency: how many responses may be under way at most.
        rate: requests a second that are sent now; `math.inf` until the server refuses one.
    """

    concurrency: int
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    random: Callable[[], float]
    rate: float = math.inf

    _next: float = 0.0  # when the next request may be sent
    _resume: float = 0.0  # until when none may, since the server said so
    _cut: float = -math.inf  # when the rate was last cut
    _grown: float = 0.0  # up to when the rate has grown
    _second: float = -math.inf  # when the second began that is being counted
    _counts: tuple[int, int] = (0, 0)  # what got through in the second before, and in this one

    @property
    def limit(self) -> int:
        """How many responses may be under way now: few where the rate is low, lest they wait past their deadlines."""
        return self.concurrency if self.rate == math.inf else max(1, min(self.concurrency, math.ceil(self.rate)))

    async def turn(self, deadline: float = math.inf) -> float:
        """Wait until a request may be sent; gives the time.

        Raises:
            APITimeoutError: that would be after the deadline, a time of the clock.
        """
        while True:
            now = self.monotonic()
            at = max(now, self._next, self._resume)
            if at > deadline:
                raise APITimeoutError("The server's limit leaves no turn before the deadline.")
            self._next = at + 1 / self.rate
            if at > now:
                await self.sleep(at - now)
            if self._resume <= (now := self.monotonic()):
                return now

    def note(self, sent: float, error: OpenAICancelError | None) -> None:
        """Take account of an answer to what was sent at a time."""
        now = self.monotonic()
        if not isinstance(error, APIStatusError) or not _is_overload(error):
            self._count(now, sent)
            return
        asked = error.retry_after
        self._next = self._resume = max(self._resume, now + poll_delay(0, asked=asked, random=self.random()))
        if sent > self._cut:  # and not a part of the wave that was answered already
            self.rate = max(LEAST_RATE, CUT * min(self.rate, self._measured(now)))
            self._cut = self._grown = now

    def _count(self, now: float, sent: float) -> None:
        self._roll(now)
        before, current = self._counts
        self._counts = (before, current + 1)
        if sent <= self._cut:  # it got through beside what was refused: the cut was too deep
            self.rate = max(self.rate, CUT * self._measured(now))
        elif self.rate != math.inf and now > self._grown:
            growth = max(LEAST_GROWTH, GROWTH * (now - self._cut) * self.rate)
            self.rate += growth * min(now - self._grown, 1.0)
            self._grown = now

    def _measured(self, now: float) -> float:
        """What got through in the last second."""
        self._roll(now)
        before, current = self._counts
        return before * (1 - (now - self._second)) + current

    def _roll(self, now: float) -> None:
        if now - self._second >= 1:
            whole = math.floor(now - self._second) if self._second > -math.inf else 2
            self._counts = (self._counts[1] if whole == 1 else 0, 0)
            self._second = self._second + whole if whole == 1 else now


PACE: ContextVar[Pace | None] = ContextVar("openai_cancel.pace", default=None)
"""What the requests of a `stop_many` have in common; other calls of the session have none."""


class Bulk:
    """One `stop_many` under way.

    Args:
        stop: stops one response.
        identify: gives an id as a string, or raises.
        pace: what all requests have in common.
    """

    def __init__(
        self, *, stop: Callable[[str], Awaitable[Outcome]], identify: Callable[[Any], str], pace: Pace
    ) -> None:
        self._stop = stop
        self._identify = identify
        self._pace = pace
        self._results: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self._asked: dict[str, int] = {}  # the ids that are under way, and how often each was asked for
        self._taken = 0  # ids whose outcome was not handed out yet
        self._room = asyncio.Event()
        self._failure: BaseException | None = None
        self._reader: asyncio.Task[None]
        self._left = False  # by whom the outcomes are for

    async def run(self, ids: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Outcome, None]:
        """The outcomes as they come. What goes wrong is raised once all that was begun has been handed out."""
        feeder = asyncio.create_task(self._feed(ids))
        try:
            while outcome := await self._results.get():
                yield outcome
                self._taken -= 1
                self._room.set()
            failure, self._failure = self._failure, None  # which its traceback would keep alive
            if failure:
                raise failure
        finally:
            self._left = True
            feeder.cancel()
            if cancel := await outlast(feeder):
                raise cancel

    async def _feed(self, ids: Iterable[Any] | AsyncIterable[Any]) -> None:
        async with asyncio.TaskGroup() as group:
            self._reader = group.create_task(self._read(ids, group))
        self._results.put_nowait(None)

    async def _read(self, ids: Iterable[Any] | AsyncIterable[Any], group: asyncio.TaskGroup) -> None:
        try:
            async with aclosing(_each(ids)) as source:
                async for response_id in source:
                    if self._left or self._failure:
                        raise asyncio.CancelledError  # noqa: TRY301 - again, for the source has swallowed it
                    self._begin(response_id, group)
                    while self._taken >= self._pace.limit:
                        self._room.clear()
                        await self._room.wait()
        except BaseException as error:
            if self._left:
                raise
            # The source's own, with which what is under way has nothing to do; or what has ended the reading.
            self._failure = self._failure or error

    def _begin(self, response_id: Any, group: asyncio.TaskGroup) -> None:
        self._taken += 1
        if isinstance(response_id, str):
            response_id = response_id.rstrip("\r\n")  # the lines of a file have theirs
        try:
            name = self._identify(response_id)
        except InvalidResponseIdError as error:
            self._results.put_nowait(_refused(response_id, error))
            return
        self._asked[name] = self._asked.get(name, 0) + 1
        if self._asked[name] == 1:  # else it is under way, and its outcome will do for both
            group.create_task(self._stop_one(name))

    async def _stop_one(self, name: str) -> None:
        PACE.set(self._pace)
        try:
            outcome = await self._stop(name)
        except BaseException as error:
            if self._left:
                raise
            self._failure = self._failure or error  # a key function's, say: no other id would fare better
            self._reader.cancel()  # it may wait for the source
        else:
            for _ in range(self._asked.pop(name)):
                self._results.put_nowait(outcome)


def _is_overload(error: APIStatusError) -> bool:
    """Whether all should slow down: a 503 that asks for no pause may be about one response, and a quota never heals."""
    said = error.status in OVERLOAD or (error.status == UNAVAILABLE and error.retry_after is not None)
    return said and is_transient(error)


async def _each(ids: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    if isinstance(ids, AsyncIterable):
        async for response_id in ids:
            yield response_id
    else:
        for response_id in ids:
            yield response_id
            await asyncio.sleep(0)  # a source that takes its time should not hold up what is under way


def _refused(response_id: object, error: InvalidResponseIdError) -> Outcome:
    return Outcome(
        response_id=response_id if isinstance(response_id, str) else repr(response_id),
        verdict=Verdict.UNKNOWN,
        response=None,
        error=error.with_traceback(None),
        attempts=0,
        elapsed=0.0,
        request_id=None,
    )

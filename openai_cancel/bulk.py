"""Bulk runs: work on any number of responses in constant memory, as fast as the server allows; and `stop_many`."""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Generic, NamedTuple, TypeVar, cast

from openai_cancel.caller import Caller
from openai_cancel.cancellation import wait_through_cancellation
from openai_cancel.errors import APIConnectionError, InvalidResponseIdError
from openai_cancel.outcome import Outcome, Verdict
from openai_cancel.rate_limiter import RateLimiter
from openai_cancel.retry import MAX_POLL
from openai_cancel.silence_monitor import SilenceMonitor
from openai_cancel.stop import publish, stop
from openai_cancel.update_hook import OnUpdate
from openai_cancel.wire import ResponseId

_R = TypeVar("_R")

MAX_NOTES = 20
"""The maximum number of responses that the notes of an exception name."""


class Interrupted(NamedTuple):
    """The fate of a response in a run that was interrupted.

    Attributes:
        words: a sentence that begins with the id.
        stopped: whether the response has ended.
    """

    words: str
    stopped: bool


def add_fates(interruption: asyncio.CancelledError | None, fates: Iterable[Interrupted]) -> None:
    """Add notes about responses to an exception, first about those that may still be running."""
    if interruption is None:
        return
    ordered = sorted(fates, key=lambda fate: fate.stopped)
    for fate in ordered[:MAX_NOTES]:
        interruption.add_note(f"openai-cancel: {fate.words}")
    if rest := ordered[MAX_NOTES:]:
        running = sum(not fate.stopped for fate in rest)
        interruption.add_note(f"openai-cancel: and {len(rest):,} more, {running:,} of which may still be running")


def stop_many(
    caller: Caller,
    response_ids: Iterable[ResponseId] | AsyncIterable[ResponseId],
    *,
    concurrency: int,
    deadline: float,
    confirm: float | None = None,
    dry_run: bool = False,
    poll: float = MAX_POLL,
    max_retries: int | None = None,
    on_update: OnUpdate | None = None,
    give_up_after: float = math.inf,
    keep: Callable[[Outcome], object] | None = None,
) -> AsyncGenerator[Outcome, None]:
    """Stop any number of responses, and yield their outcomes. For the arguments, see `AsyncSession.stop_many`.

    The function `keep` is called with each outcome as it comes, also with those that nobody takes.
    """
    limiter = RateLimiter(concurrency, caller.clock, silence=SilenceMonitor(caller.clock, give_up_after))
    bulk = _StopMany(
        caller,
        limiter,
        deadline=deadline,
        confirm=confirm,
        dry_run=dry_run,
        poll=poll,
        max_retries=max_retries,
        on_update=on_update,
        keep=keep,
    )
    return bulk.run(response_ids)


class Bulk(ABC, Generic[_R]):
    """A bulk run that is under way, which has a result for each id.

    Args:
        caller: makes the requests.
        limiter: limits the rate of the requests.

    Attributes:
        caller: makes the requests at that rate.
        limiter: as above.
    """

    def __init__(self, caller: Caller, limiter: RateLimiter) -> None:
        limiter.silence.give_up = self.give_up
        self.caller: Caller = caller.with_limiter(limiter)
        self.limiter: RateLimiter = limiter
        self._results: asyncio.Queue[_R | None] = asyncio.Queue()
        self._fates: dict[str, Interrupted] = {}  # of the responses that were under way when the consumer left
        self._asked: dict[str, int] = {}  # the ids that are under way, and how often each was requested
        self._taken = 0  # the number of ids whose result was not consumed yet
        self._room = asyncio.Event()
        self._failure: BaseException | None = None
        self._feeder: asyncio.Task[Any]
        self._reader: asyncio.Task[Any]
        self._left = False  # whether the consumer has stopped iterating

    @property
    def limit(self) -> int:
        """The number of responses to work on at once."""
        return self.limiter.limit

    @abstractmethod
    async def work(self, response_id: str) -> _R:
        """Work on a response. An error of it ends the run."""

    @abstractmethod
    def refuse(self, response_id: str, error: InvalidResponseIdError) -> _R:
        """Return the result of an id that cannot be sent."""

    @abstractmethod
    def fate(self, result: _R) -> Interrupted:
        """Return the fate of a response whose result was not consumed."""

    @abstractmethod
    def interrupted(self, response_id: str) -> Interrupted:
        """Return the fate of a response that was under way, if nothing else is known."""

    async def run(self, ids: Iterable[ResponseId] | AsyncIterable[ResponseId]) -> AsyncGenerator[_R, None]:
        """Yield the results. A failure is raised after the results of everything that was started before.

        If the task is cancelled, notes of the exception say what became of the responses that have no result yet.
        """
        feeder = asyncio.create_task(self._feed(ids))
        interruption: asyncio.CancelledError | None = None
        try:
            while (result := await self._results.get()) is not None:
                yield result
                self._taken -= 1
                self._room.set()
            failure, self._failure = self._failure, None  # its traceback would keep this object alive
            if failure:
                raise failure
        except asyncio.CancelledError as error:
            interruption = error
            raise
        finally:
            self._left = True
            feeder.cancel()
            cancellation = await wait_through_cancellation(feeder)
            add_fates(cancellation or interruption, self._fates_of_the_rest())
            interruption = None  # its traceback refers to this frame
            if cancellation:
                raise cancellation

    def _fates_of_the_rest(self) -> Iterator[Interrupted]:
        """Yield the fate of each response that was taken, and whose result was not yielded."""
        while not self._results.empty():
            if (result := self._results.get_nowait()) is not None:
                yield self.fate(result)
        for name in self._asked:
            yield self._fates.get(name) or self.interrupted(name)

    def give_up(self, error: APIConnectionError) -> None:
        """End the run, because the server cannot be reached."""
        self._failure = self._failure or error
        self._feeder.cancel()

    async def _feed(self, ids: Iterable[ResponseId] | AsyncIterable[ResponseId]) -> None:
        # Set here and in `_read`, because an eager task runs before its creator has it.
        self._feeder = cast("asyncio.Task[Any]", asyncio.current_task())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(ids, group))
        finally:
            self._results.put_nowait(None)

    async def _read(self, ids: Iterable[ResponseId] | AsyncIterable[ResponseId], group: asyncio.TaskGroup) -> None:
        self._reader = cast("asyncio.Task[Any]", asyncio.current_task())
        try:
            async with aclosing(_each(ids)) as source:
                async for response_id in source:
                    if self._left or self._failure:
                        return  # the source has swallowed the cancellation
                    self._start(response_id, group)
                    while self._taken >= self.limit:
                        self._room.clear()
                        await self._room.wait()
        except BaseException as error:
            if self._left:
                raise
            # An error of the source has nothing to do with the responses that are under way.
            self._failure = self._failure or error

    def _start(self, response_id: ResponseId, group: asyncio.TaskGroup) -> None:
        self._taken += 1
        if isinstance(response_id, str):
            response_id = response_id.rstrip("\r\n")  # a line of a file ends in a line break
        try:
            name = self.caller.identify(response_id)
        except InvalidResponseIdError as error:
            shown = response_id if isinstance(response_id, str) else repr(response_id)
            self._results.put_nowait(self.refuse(shown, error.with_traceback(None)))
            return
        self._asked[name] = self._asked.get(name, 0) + 1
        if self._asked[name] == 1:  # an id that is under way is not sent again
            group.create_task(self._work_on(name))

    async def _work_on(self, name: str) -> None:
        try:
            result = await self.work(name)
        except BaseException as error:
            if self._left:
                raise
            self._failure = self._failure or error  # for example of the key function: no other id would do better
            self._reader.cancel()  # it may be waiting for the source
        else:
            self._fates.pop(name, None)
            for _ in range(self._asked.pop(name)):
                self._results.put_nowait(result)


class _StopMany(Bulk[Outcome]):
    """A `stop_many` that is under way."""

    def __init__(
        self,
        caller: Caller,
        limiter: RateLimiter,
        *,
        deadline: float,
        confirm: float | None,
        dry_run: bool,
        poll: float,
        max_retries: int | None,
        on_update: OnUpdate | None,
        keep: Callable[[Outcome], object] | None,
    ) -> None:
        super().__init__(caller, limiter)
        self._deadline = deadline
        self._confirm = confirm
        self._dry_run = dry_run
        self._poll = poll
        self._max_retries = max_retries
        self._on_update = on_update
        self._keep: Callable[[Outcome], object] = keep or (lambda _: None)

    async def work(self, response_id: str) -> Outcome:
        """Stop a response."""
        return await stop(
            self.caller,
            response_id,
            deadline=self._deadline,
            confirm=self._confirm,
            dry_run=self._dry_run,
            poll=self._poll,
            max_retries=self._max_retries,
            on_update=self._on_update,
            on_verdict=self._note,
        )

    def _note(self, outcome: Outcome) -> None:
        self._fates[outcome.response_id] = self.fate(outcome)
        self._keep(outcome)

    def refuse(self, response_id: str, error: InvalidResponseIdError) -> Outcome:
        """Return the outcome of an id that cannot be sent."""
        outcome = Outcome(
            response_id=response_id,
            verdict=Verdict.UNKNOWN,
            response=None,
            error=error,
            attempts=0,
            elapsed=0.0,
            request_id=None,
        )
        self._keep(outcome)
        publish(self.caller, outcome, dry_run=self._dry_run)
        return outcome

    def fate(self, result: Outcome) -> Interrupted:
        """Return the verdict."""
        return Interrupted(f"{result.response_id}: {result.verdict}", result.stopped)

    def interrupted(self, response_id: str) -> Interrupted:
        """Return that the stop was interrupted."""
        return Interrupted(f"{response_id} may still be running: its stop was interrupted", stopped=False)


async def _each(ids: Iterable[ResponseId] | AsyncIterable[ResponseId]) -> AsyncGenerator[ResponseId, None]:
    if isinstance(ids, AsyncIterable):
        async for response_id in ids:
            yield response_id
    else:
        for response_id in ids:
            yield response_id
            await asyncio.sleep(0)  # a slow source must not hold up the requests that are under way

"""`BlockingIteration`: iterate in one thread over what an async generator in the event loop of another one yields."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Generic, Literal, TypeVar, cast

import attrs

from openai_cancel.errors import SessionStateError
from openai_cancel.loop_thread import LoopThread

BATCHES = 8
"""A collection is read in batches of `concurrency / BATCHES` items."""

_T = TypeVar("_T")


class _Signal(Enum):
    WANTED = auto()


@attrs.frozen(kw_only=True)
class _Read(Generic[_T]):
    """Items of an iterable, and then perhaps an error, which is a StopAsyncIteration at its end."""

    items: list[_T]
    error: Exception | None = None


class Feed(AsyncIterator[_T]):
    """The items of an iterable that is read in the caller's thread, for a coroutine in the event loop of another one.

    Cursors of databases and the like refuse other threads. A slow iterable does not block the event loop either.

    Args:
        iterable: what is read.
        ahead: the number of items that may be wanted at once. A collection is read in batches of a part of it, which
            costs less. Any other iterable may make the thread wait, and is read item by item.

    Attributes:
        changed: set as the coroutine begins to wait for an item, and by `wake`.
    """

    def __init__(self, iterable: Iterable[_T], *, ahead: int) -> None:
        self._iterable = iterable
        self._iterator: Iterator[_T] | None = None
        is_collection = isinstance(iterable, list | tuple | set | frozenset | dict)
        self._batch = max(ahead // BATCHES, 1) if is_collection else 1
        self._items: deque[_T] = deque()
        self._error: Exception | None = None
        self._next: asyncio.Future[_Read[_T]] | None = None
        self.changed: asyncio.Event = asyncio.Event()

    @property
    def is_wanted(self) -> bool:
        """Whether the coroutine waits for an item."""
        return self._next is not None and not self._next.done()

    def wake(self, _: object) -> None:
        """Wake up whoever waits for a change."""
        self.changed.set()

    def read(self) -> _Read[_T]:
        """Read some items, in the caller's thread."""
        items: list[_T] = []
        try:
            self._iterator = self._iterator or iter(self._iterable)
            while len(items) < self._batch:
                items.append(next(self._iterator))
        except StopIteration:
            return _Read(items=items, error=StopAsyncIteration())
        except Exception as error:  # noqa: BLE001 - the coroutine raises it
            return _Read(items=items, error=error)
        return _Read(items=items)

    def put(self, read: _Read[_T]) -> None:
        """Hand over what was read, in the event loop."""
        if self._next is not None and not self._next.done():
            self._next.set_result(read)

    async def __anext__(self) -> _T:
        if not self._items and self._error is None:
            self._next = asyncio.get_running_loop().create_future()
            self.changed.set()
            read = await self._next
            self._items.extend(read.items)
            self._error = read.error
        if self._items:
            return self._items.popleft()
        raise cast("Exception", self._error)


class BlockingIteration(Generic[_T]):
    """An iteration over an async generator that runs in the event loop of a thread.

    Args:
        source: the generator.
        feed: what the generator iterates over, if the caller's thread has to read it; otherwise None.
        loop_thread: the thread with the event loop.
    """

    def __init__(self, source: AsyncGenerator[_T, None], feed: Feed[Any] | None, loop_thread: LoopThread) -> None:
        self._source = source
        self._feed = feed
        self._loop_thread = loop_thread
        self._step: asyncio.Task[_T | None] | None = None
        self._notes: list[str] = []  # of the cancellation of a step

    def run(self) -> Generator[_T, None, None]:
        """Yield what the generator yields, and read what it waits for.

        Closing this generator, or the session, closes the other one.
        """
        with self._loop_thread.closing(self._close):
            yield from self._run()

    def _run(self) -> Generator[_T, None, None]:
        feed, read = self._feed, None
        try:
            while (item := self._loop_thread.run(self._advance, read)) is not None:
                if feed is not None and item is _Signal.WANTED:
                    read = feed.read()
                else:
                    read = None
                    yield cast("_T", item)
        except BaseException as error:  # for example Ctrl-C
            for note in self._notes:
                if note not in getattr(error, "__notes__", ()):
                    error.add_note(note)
            raise
        finally:
            with suppress(SessionStateError):  # closing the session has ended it
                self._loop_thread.run(self._close)

    async def _advance(self, read: _Read[Any] | None) -> _T | Literal[_Signal.WANTED] | None:
        """Hand over what was read, and return an item, or None at the end, or that the feed has to be read."""
        feed = self._feed
        if feed is not None and read is not None:
            feed.put(read)
        step = self._step
        if step is None:
            step = self._step = asyncio.ensure_future(self._next())
            self._loop_thread.adopt(step)
            if feed is not None:
                step.add_done_callback(feed.wake)
        if feed is not None:
            while not (feed.is_wanted or step.done()):
                await self._wait(feed.changed)
            # Reads and items take turns: neither a slow iterable nor a slow consumer holds up everything else.
            if feed.is_wanted and (read is None or not step.done()):
                return _Signal.WANTED
        self._step = None
        return await step

    async def _wait(self, changed: asyncio.Event) -> None:
        changed.clear()
        try:
            await changed.wait()
        except asyncio.CancelledError:
            await self._close()
            raise

    async def _close(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
        await self._source.aclose()

    async def _next(self) -> _T | None:
        try:
            return await anext(self._source, None)
        except asyncio.CancelledError as error:
            self._notes = getattr(error, "__notes__", [])
            raise

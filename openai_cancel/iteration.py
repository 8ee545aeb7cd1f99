"""`BlockingIteration`: iterate in one thread over what an async generator in the event loop of another one yields."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Generic, Literal, TypeVar, cast

import attrs

from openai_cancel.errors import SessionStateError
from openai_cancel.worker import LoopThread

_T = TypeVar("_T")


class _Signal(Enum):
    WANTED = auto()


@attrs.frozen(kw_only=True)
class _Read(Generic[_T]):
    """A step of an iterator: an item, or an error, which is a StopAsyncIteration at the end."""

    item: _T | None = None
    error: Exception | None = None


class Feed(AsyncIterator[_T]):
    """The items of an iterable that is read in the caller's thread, for a coroutine in the event loop of another one.

    Cursors of databases and the like refuse other threads. A slow iterable does not block the event loop either.

    Attributes:
        wanted: set while the coroutine waits for an item.
    """

    def __init__(self, iterable: Iterable[_T]) -> None:
        self._iterable = iterable
        self._iterator: Iterator[_T] | None = None
        self._next: asyncio.Future[_Read[_T]] | None = None
        self.wanted: asyncio.Event = asyncio.Event()

    def read(self) -> _Read[_T]:
        """Read an item, in the caller's thread."""
        try:
            self._iterator = self._iterator or iter(self._iterable)
            return _Read(item=next(self._iterator))
        except StopIteration:
            return _Read(error=StopAsyncIteration())
        except Exception as error:  # noqa: BLE001 - the coroutine raises it
            return _Read(error=error)

    def put(self, read: _Read[_T]) -> None:
        """Hand over what was read, in the event loop."""
        self.wanted.clear()
        if self._next is not None and not self._next.done():
            self._next.set_result(read)

    async def __anext__(self) -> _T:
        self._next = asyncio.get_running_loop().create_future()
        self.wanted.set()
        read = await self._next
        if read.error is not None:
            raise read.error
        return cast("_T", read.item)


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

    def run(self) -> Generator[_T, None, None]:
        """Yield what the generator yields, and read what it waits for. Closing this generator closes the other one."""
        feed, read = self._feed, None
        try:
            while (item := self._loop_thread.run(self._advance, read)) is not None:
                if feed is not None and item is _Signal.WANTED:
                    read = feed.read()
                else:
                    read = None
                    yield cast("_T", item)
        finally:
            with suppress(SessionStateError):  # closing the session has ended it
                self._loop_thread.run(self._close)

    async def _advance(self, read: _Read[Any] | None) -> _T | Literal[_Signal.WANTED] | None:
        """Hand over what was read, and return an item, or None at the end, or that the feed has to be read."""
        feed = self._feed
        if feed is not None and read is not None:
            feed.put(read)
        if self._step is None:
            self._step = asyncio.ensure_future(_next_of(self._source))
            self._loop_thread.adopt(self._step)
        step = self._step
        if feed is not None:
            await self._wait_for(step, feed)
            # Reads and items take turns: neither a slow iterable nor a slow consumer holds up everything else.
            if feed.wanted.is_set() and (read is None or not step.done()):
                return _Signal.WANTED
        self._step = None
        return await step

    async def _wait_for(self, step: "asyncio.Task[_T | None]", feed: Feed[Any]) -> None:
        wanted = asyncio.ensure_future(feed.wanted.wait())
        try:
            await asyncio.wait((step, wanted), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._close()
            raise
        finally:
            wanted.cancel()

    async def _close(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
        await self._source.aclose()


async def _next_of(source: AsyncGenerator[_T, None]) -> _T | None:
    return await anext(source, None)

"""`BodyObserver`: look at the body of an httpx response while its own reader reads it, chunk by chunk."""

import logging
from abc import ABCMeta
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from functools import cache
from typing import Any, Self, cast
from weakref import WeakKeyDictionary

from openai_cancel.body_readers import DocumentReader, EventReader, Reader, decoder
from openai_cancel.log_events import log_fields

FIRST_EVENTS = 3
"""The id is expected within so many events. It is in the first one, unless a gateway adds its own."""

_log = logging.getLogger("openai_cancel")


class BodyObserver:
    """Reads the bytes of an answer. It never fails: what it cannot read, it does not see.

    Args:
        response: the httpx response.
        on_end: called once if the response was seen to end.

    Attributes:
        on_end: the same, which may be set later.
        on_id: called once with this object when the id is seen, if it is set by then.
        knows_encoding: whether it can read the body as it is sent.
    """

    def __init__(self, response: Any, on_end: Callable[[], None] | None = None) -> None:
        headers = response.headers
        is_stream = headers.get("content-type", "").lower().startswith("text/event-stream")
        self._reader: Reader = EventReader() if is_stream else DocumentReader()
        decode = decoder(headers.get("content-encoding", ""))
        self.knows_encoding: bool = decode is not None
        self._is_blind = decode is None
        self._decode: Callable[[bytes], bytes] = decode or bytes
        self._feed: Callable[[bytes], None] = self._reader.feed if is_stream else self._begin
        self.on_end: Callable[[], None] | None = on_end
        self.on_id: Callable[[BodyObserver], None] | None = None

    @property
    def response_id(self) -> str | None:
        """The id of the response that runs, once it was seen."""
        return None if self._reader.has_ended else self._reader.response_id

    @property
    def is_settled(self) -> bool:
        """Whether the id is known, or no longer expected."""
        reader = self._reader
        return self._is_blind or reader.response_id is not None or reader.events >= FIRST_EVENTS

    def _begin(self, data: bytes) -> None:
        """Look at the begin of a body. A gateway may send events with another content type; a document has a brace."""
        data = data.lstrip()
        if data:
            if not data.startswith(b"{"):
                self._reader = EventReader()
            self._feed = self._reader.feed
            self._feed(data)

    def see(self, chunk: bytes) -> None:
        """Look at the next bytes, as they were sent."""
        if not self._is_blind:
            try:
                self._feed(self._decode(chunk))
            except Exception as error:  # noqa: BLE001 - the answer belongs to somebody else, who reads it, too
                self._give_up(error)
            if self.on_id is not None and self.response_id is not None:
                on_id, self.on_id = self.on_id, None
                on_id(self)
            if self._reader.has_ended:
                self._tell()

    def see_whole(self, body: bytes) -> None:
        """Look at a whole body that is decoded already."""
        self._decode, self._is_blind = bytes, False
        self.see(body)
        self.finish()

    def finish(self) -> None:
        """Look at what is left at the end."""
        if not self._is_blind:
            try:
                self._reader.finish()
            except Exception as error:  # noqa: BLE001 - as above
                self._give_up(error)
            if self._reader.has_ended:
                self._tell()

    def _tell(self) -> None:
        self._is_blind = True  # there is nothing more to see
        if self.on_end is not None:
            self.on_end()

    def _give_up(self, error: Exception) -> None:
        self._is_blind = True
        _log.warning(
            "an answer of the API could not be read: %s", type(error).__name__,
            extra=log_fields("answer_unreadable", error=error),
        )  # fmt: skip


class _Ahead:
    """The part of a body that was read before its reader asked for it.

    Args:
        stream: the stream of the response.
        observer: what looks at it.
    """

    def __init__(self, stream: Any, observer: BodyObserver) -> None:
        self._stream = stream
        self._observer = observer
        self._chunks: list[bytes] = []
        self._error: Exception | None = None  # to be raised where the reader would have met it
        self._iterator: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)  # httpx2 asks it for `elapsed`

    def _replayed(self) -> Generator[bytes, None, None]:
        while self._chunks:
            yield self._chunks.pop(0)
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None


class _AsyncStream(_Ahead):
    """The stream of an asynchronous response."""

    async def read_ahead(self) -> None:
        """Read until the id is known. An error waits for the reader of the body."""
        self._iterator = aiter(self._stream)
        try:
            while not self._observer.is_settled:
                chunk = await anext(self._iterator)
                self._chunks.append(chunk)
                self._observer.see(chunk)
            _begun[self] = self._iterator
        except StopAsyncIteration:
            self._observer.finish()
        except Exception as error:  # noqa: BLE001 - see above
            self._error = error
            self._observer.finish()

    def __aiter__(self) -> "_AsyncChunks":
        iterator, self._iterator = self._iterator or aiter(self._stream), None
        chunks = _AsyncChunks(iterator, self._observer, self._replayed())
        if _begun.pop(self, None) is not None:
            _begun[chunks] = iterator
        return chunks

    async def aclose(self) -> None:
        """Close the connection, or give it back."""
        iterator, self._iterator = self._iterator, None
        _begun.pop(self, None)
        try:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
        finally:
            await self._stream.aclose()


_begun: "WeakKeyDictionary[_AsyncStream | _AsyncChunks, Any]" = WeakKeyDictionary()
"""The iterators of bodies of which a part was read ahead.

These generators are older than those of their reader. If the garbage collector found all of them at once, it would
close them in that order, and a generator cannot close another one that is being closed. So it finds them one by one.
"""


class _AsyncChunks:
    """Iterates over the chunks of an asynchronous body.

    It is not a generator: an event loop closes every generator by itself, possibly at the same time as the ones inside,
    which then fails.

    Args:
        iterator: the chunks that were not read yet.
        observer: looks at the chunks.
        replayed: the chunks that were read before.
    """

    def __init__(self, iterator: Any, observer: BodyObserver, replayed: Iterator[bytes]) -> None:
        self._iterator = iterator
        self._observer = observer
        self._replayed: Iterator[bytes] | None = replayed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._replayed is not None:
            replayed = next(self._replayed, None)
            if replayed is not None:
                return replayed
            self._replayed = None
        try:
            chunk: bytes = await self._iterator.__anext__()
        except StopAsyncIteration:
            self._observer.finish()
            raise
        self._observer.see(chunk)
        return chunk

    async def aclose(self) -> None:
        self._replayed = None
        iterator = self._iterator
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


ABCMeta.register(cast("ABCMeta", AsyncGenerator), _AsyncChunks)  # httpx2 closes only generators


class _Stream(_Ahead):
    """The stream of a blocking response."""

    def read_ahead(self) -> None:
        """Read until the id is known. An error waits for the reader of the body."""
        self._iterator = iter(self._stream)
        try:
            while not self._observer.is_settled:
                chunk = next(self._iterator)
                self._chunks.append(chunk)
                self._observer.see(chunk)
        except StopIteration:
            self._observer.finish()
        except Exception as error:  # noqa: BLE001 - see above
            self._error = error
            self._observer.finish()

    def __iter__(self) -> Iterator[bytes]:
        iterator, self._iterator = self._iterator or iter(self._stream), None
        try:
            for chunk in self._replayed():
                yield chunk
            for chunk in iterator:
                self._observer.see(chunk)
                yield chunk
            self._observer.finish()
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    def close(self) -> None:
        """Close the connection, or give it back."""
        iterator, self._iterator = self._iterator, None
        try:
            if isinstance(iterator, Generator):
                iterator.close()
        finally:
            self._stream.close()


def observed(response: Any, observer: BodyObserver) -> Any:
    """Let an observer look at the body of a response as it is read, and return its new stream.

    If the body was read before, as by an event hook, look at it now, and return None.
    """
    if response.is_stream_consumed or response.is_closed:
        observer.see_whole(response.content)
        return None
    stream = _class_for(_base(response.stream))(response.stream, observer)
    response.stream = stream
    return stream


def _base(stream: Any) -> type:
    """Return the class of httpx that a response's stream must have."""
    return next(kind for kind in type(stream).__mro__ if kind.__name__ in {"AsyncByteStream", "SyncByteStream"})


@cache
def _class_for(base: type) -> Any:
    ours = _AsyncStream if base.__name__ == "AsyncByteStream" else _Stream
    return type(ours.__name__, (ours, base), {})

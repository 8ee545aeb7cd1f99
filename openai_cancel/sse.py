"""A parser of server-sent events, fed with bytes in chunks of any size. Pure: no I/O.

See https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

import re
from collections.abc import Iterator

import attrs

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
_RETRY = re.compile(rb"[0-9]{1,9}")


@attrs.frozen
class ServerSentEvent:
    """An event.

    Attributes:
        type: its type, `message` if the server names none.
        data: its data in UTF-8.
    """

    type: str
    data: bytes


class EventParser:
    """Reads events from the bytes of a stream. It keeps no more than the event that is not complete yet.

    The field `id` is ignored, because the events of a response have numbers in their data. At the end of a stream, an
    event that no empty line has ended is not an event.

    Args:
        limit: the maximum number of bytes of an event's data, and of any line. An event above it is left out.

    Attributes:
        type: the type of the event that is not complete yet; empty if it is not known.
        retry: the seconds to wait before the next connection, if the server has asked for them; otherwise None.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.type: str = ""
        self.retry: float | None = None
        self._line = bytearray()
        self._data: list[bytes] = []
        self._room = limit
        self._is_spoiled = False  # the event has exceeded the limit
        self._is_first_line = True
        self._ends_with_cr = False  # a line feed that follows ends the same line

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Read the next bytes, and yield the events that they complete."""
        begin = 1 if self._ends_with_cr and chunk.startswith(b"\n") else 0
        for end in _LINE_END.finditer(chunk, begin):
            self._keep(chunk[begin : end.start()])
            event = self._end_line()
            if event is not None:
                yield event
            begin = end.end()
        self._keep(chunk[begin:])
        self._ends_with_cr = chunk.endswith(b"\r") or (self._ends_with_cr and not chunk)

    def _keep(self, part: bytes) -> None:
        """Keep a part of a line. Of a line above the limit, only the fact that it was there."""
        if len(self._line) + len(part) <= self._limit:
            self._line += part
        else:
            self._line = bytearray(b":")
            self._is_spoiled = True

    def _end_line(self) -> ServerSentEvent | None:
        line = bytes(self._line)
        self._line.clear()
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._end_event()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._room -= len(value) + 1
            if self._room < 0:
                self._data.clear()
                self._is_spoiled = True
            elif not self._is_spoiled:
                self._data.append(value)
        elif name == b"event":
            self.type = value.decode(errors="replace")
        elif name == b"retry" and _RETRY.fullmatch(value):
            self.retry = int(value) / 1000
        return None

    def _end_event(self) -> ServerSentEvent | None:
        event = None
        if self._data and not self._is_spoiled:
            event = ServerSentEvent(self.type or "message", b"\n".join(self._data))
        self.type = ""
        self._data.clear()
        self._room = self._limit
        self._is_spoiled = False
        return event

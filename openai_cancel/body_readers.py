"""Readers that see in the bytes of an answer which response it is about, and whether that has ended. Pure: no I/O.

They keep no more of an answer than the part that is not complete yet.

See https://platform.openai.com/docs/api-reference/responses-streaming.
"""

import json
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import orjson

from openai_cancel.models.response import LAST_EVENTS, TERMINAL

MAX_DOCUMENT = 16 * 2**20
"""The size in bytes of the largest document, or event, that is read."""

# A document that was cut off: servers write the id first.
_FIRST_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*("[^"\\\x00-\x1f\x80-\xff]+")')

# See https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream.
_EVENT_END = re.compile(rb"\n\n|\r\n\r\n|\r\r")
_STATE = b'"response"'  # the events that tell the state have an object of this name; text cannot contain it

_LONGEST_END = 4  # bytes


class Reader(Protocol):
    """Reads an answer as it arrives.

    Attributes:
        response_id: the id, once it was seen.
        has_ended: whether the answer says that the response has ended, or does not run in the background.
        events: the number of events that were read, if it is a stream of them.
    """

    response_id: str | None
    has_ended: bool
    events: int

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body."""

    def finish(self) -> None:
        """Read what is left, because no more bytes will come."""


class DocumentReader:
    """Reads a response from a JSON document. See `Reader`."""

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.has_ended: bool = False
        self.events: int = 0
        self._body = bytearray()
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Keep the next bytes until the document is complete."""
        self._size += len(data)
        if self._size <= MAX_DOCUMENT:
            self._body += data

    def finish(self) -> None:
        """Read the document, or its id if it was cut off."""
        body, self._body = self._body, bytearray()
        document = _parse(body)
        if document is not None:
            self.response_id, self.has_ended = _read(document)
        elif found := _FIRST_ID.match(body):
            self.response_id, _ = _read({"id": orjson.loads(found[1])})


class EventReader:
    """Reads the id from the first event of a stream, and the end of the response from its last one. See `Reader`.

    Attributes:
        events: the number of events that were read, of which most are not.
    """

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.has_ended: bool = False
        self.events: int = 0
        self._rest = bytearray()  # an event that is not complete yet

    def feed(self, data: bytes) -> None:
        """Read the events that the next bytes complete."""
        rest = self._rest
        if not rest and data.endswith(b"\n\n"):  # most chunks are whole events
            if self.response_id is None or _STATE in data:
                self._read_events(data)
            return
        begin = max(0, len(rest) - _LONGEST_END)
        rest += data
        ends = [found.end() for found in _EVENT_END.finditer(rest, begin)]
        if ends:
            self._read_events(bytes(rest[: ends[-1]]))
            del rest[: ends[-1]]
        elif len(rest) > MAX_DOCUMENT:
            rest.clear()

    def finish(self) -> None:
        """Read an event that no empty line ends."""
        rest, self._rest = bytes(self._rest), bytearray()
        self._read_events(rest)

    def _read_events(self, data: bytes) -> None:
        for event in _EVENT_END.split(data):
            fields = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
            if fields and (document := _parse(b"\n".join(fields))) is not None:
                self._read_event(document)

    def _read_event(self, event: Mapping[str, Any]) -> None:
        self.events += 1
        response = event.get("response")
        if isinstance(response, dict):
            response_id, has_ended = _read(cast("dict[str, Any]", response))
            self.response_id = self.response_id or response_id
            self.has_ended = self.has_ended or has_ended or event.get("type") in LAST_EVENTS


def _parse(data: bytes | bytearray) -> dict[str, Any] | None:
    """Return the object in a JSON document, or None if there is none."""
    document: Any
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        # It refuses NaN, and a lone surrogate, which a truncated text may have and the server repeats.
        try:
            document = json.loads(data.decode("utf-8-sig", "replace"), strict=False)
        except (ValueError, RecursionError):
            return None
    return cast("dict[str, Any]", document) if isinstance(document, dict) else None


def _read(document: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return the id of a response, and whether it has ended or does not run in the background."""
    response_id = document.get("id")
    has_ended = document.get("status") in TERMINAL or document.get("background") is False
    return (response_id if isinstance(response_id, str) else None), has_ended


def decoder(encoding: str) -> Callable[[bytes], bytes] | None:
    """Return a function that decodes the bytes of a body as they arrive, or None if the encoding is unknown.

    Args:
        encoding: the Content-Encoding header.
    """
    if encoding.lower() in {"", "identity"}:
        return bytes
    if encoding.lower() in READABLE_ENCODINGS:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress
    return None


READABLE_ENCODINGS = frozenset({"gzip", "x-gzip"})
"""The encodings that `decoder` knows, besides `identity`."""

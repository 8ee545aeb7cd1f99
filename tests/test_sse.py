"""Server-sent events are read as the HTML standard says, however their bytes arrive."""

import re
import tracemalloc
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_cancel.sse import EventParser, ServerSentEvent

LIMIT = 100


def parse(*chunks: bytes, limit: int = LIMIT) -> list[tuple[str, bytes]]:
    parser = EventParser(limit)
    return [(event.type, event.data) for chunk in chunks for event in parser.feed(chunk)]


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut data into chunks of some sizes, and one with the rest."""
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


def by_the_book(data: bytes) -> list[tuple[str, bytes]]:
    """Read whole events as the standard says it, word by word."""
    text = data.decode("latin-1").removeprefix("\xef\xbb\xbf")
    events, kind, buffer = [], "", ""
    lines = re.split(r"\r\n|\n|\r", text)
    for line in lines[:-1]:  # the last one has no end
        if line == "":
            if buffer:
                events.append((kind or "message", buffer.removesuffix("\n").encode("latin-1")))
            kind, buffer = "", ""
        elif not line.startswith(":"):
            field, colon, value = line.partition(":")
            value = value[1:] if colon and value.startswith(" ") else value
            if field == "event":
                kind = value.encode("latin-1").decode(errors="replace")
            elif field == "data":
                buffer += value + "\n"
    return events


PIECES = [
    b"event: a", b"event:b", b"event", b"data: x", b"data:", b"data", b"data:  two", b"data: \xc3\xa9\xff", b": c",
    b":", b"id: 7", b"retry: 10", b"nonsense", b" data: x", b"data: a:b", b"", b"", b"", b"\xef\xbb\xbfdata: x",
]  # fmt: skip
STREAMS = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]))).map(
    lambda pairs: b"".join(chain.from_iterable(pairs))
)


@given(STREAMS, st.lists(st.integers(0, 6)))
def test_events_are_those_of_the_standard_however_they_are_cut(stream: bytes, sizes: list[int]) -> None:
    assert parse(*cut(stream, sizes)) == by_the_book(stream)


@given(st.lists(st.sampled_from([b"a", b":", b"\n", b"\r", b"data: ", b"\xef\xbb\xbf", b"\0"])), st.integers(1, 5))
def test_any_bytes_are_read(pieces: list[bytes], size: int) -> None:
    stream = b"".join(pieces)
    assert parse(*cut(stream, [size] * len(stream))) == by_the_book(stream)


def test_an_event_comes_as_soon_as_its_empty_line_does() -> None:
    parser = EventParser(LIMIT)
    assert [*parser.feed(b"event: a\r\ndata: x\r\n\r")] == [ServerSentEvent("a", b"x")]
    assert [*parser.feed(b"\ndata: y\n\n")] == [ServerSentEvent("message", b"y")]


def test_the_type_of_an_event_is_known_before_its_data() -> None:
    parser = EventParser(LIMIT)
    assert [*parser.feed(b"event: response.completed\ndata: {")] == []
    assert parser.type == "response.completed"
    assert [*parser.feed(b"}\n\n")] == [ServerSentEvent("response.completed", b"{}")]
    assert parser.type == ""


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (b"retry: 1500\n", 1.5),
        (b"retry: 1\nretry: 2000\n", 2.0),
        (b"retry: -1\n", None),
        (b"retry: 1.5\n", None),
        (b"retry:\n", None),
        (b"retry: \xd9\xa1\n", None),
        (b"retry: " + b"9" * 90 + b"\n", None),
    ],
)
def test_the_server_may_ask_for_a_pause_before_the_next_connection(lines: bytes, seconds: float | None) -> None:
    parser = EventParser(LIMIT)
    assert [*parser.feed(lines)] == []
    assert parser.retry == seconds


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("large", [b"data: " + b"x" * 101, b"data: " + b"x" * 60 + b"\ndata: " + b"x" * 60])
def test_an_event_above_the_limit_is_left_out_and_the_next_one_is_not(large: bytes, size: int) -> None:
    stream = b"data: 1\n\nevent: large\n" + large + b"\ndata: rest\n\ndata: 2\n\n"
    assert parse(*cut(stream, [size] * len(stream))) == [("message", b"1"), ("message", b"2")]
    assert parse(b"data: " + b"x" * (LIMIT - 6) + b"\n\n") == [("message", b"x" * (LIMIT - 6))]


@pytest.mark.parametrize("piece", [b"x" * 1000, b"data: x\n", b"data\n", b": x\n", b"data: 1\n\n"])
def test_memory_does_not_grow_with_the_stream(piece: bytes) -> None:
    parser = EventParser(LIMIT)
    tracemalloc.start()
    try:
        for _ in range(2000):
            for _ in parser.feed(piece):
                pass
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()

"""Readers of answers, however the bytes arrive."""

import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_cancel import body_readers
from openai_cancel.body_readers import DocumentReader, EventReader, decoder


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def response(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "status": status, **fields}


STREAM = b"".join(
    [
        b": a comment\n\n",
        event("response.created", response=response("queued")),
        event("response.output_text.delta", delta="it says response.completed\n\n", item_id="msg_1"),
        event("response.in_progress", response=response("in_progress")),
        event("response.completed", response=response("completed", output=["é" * 100])),
    ]
)


def read(reader: Any, data: bytes, sizes: list[int]) -> Any:
    """Feed data in chunks of some sizes, and one with the rest."""
    for size in sizes:
        reader.feed(data[:size])
        data = data[size:]
    reader.feed(data)
    reader.finish()
    return reader


@given(st.lists(st.integers(0, 200)), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_are_read_however_they_are_split(sizes: list[int], newline: bytes) -> None:
    reader = read(EventReader(), STREAM.replace(b"\n", newline), sizes)
    assert reader.response_id == "resp_1"
    assert reader.has_ended


def test_each_event_is_read_as_soon_as_it_is_complete() -> None:
    reader = EventReader()
    created = event("response.created", response=response("queued"))
    reader.feed(created[:-1])
    assert reader.response_id is None
    reader.feed(created[-1:] + b"event: respon")
    assert (reader.response_id, reader.has_ended) == ("resp_1", False)
    reader.feed(b"se.failed\ndata: {}\n")
    reader.finish()
    assert not reader.has_ended
    reader.feed(event("response.failed", response={}))
    assert reader.has_ended


@pytest.mark.parametrize("kind", ["completed", "failed", "incomplete", "cancelled", "canceled"])
def test_the_last_event_may_have_another_name_line_or_none(kind: str) -> None:
    reader = EventReader()
    reader.feed(b"data: " + json.dumps({"response": response("queued")}).encode() + b"\n\n")
    reader.feed(b'data:{"response": {},\ndata: "type": "response.%s"}\n\n' % kind.encode())
    assert reader.has_ended


@pytest.mark.parametrize(
    "oddity",
    [rb'"\ud83d"', b"NaN", b'"\xff"', b'"\x01"', b'"' + b"9" * 400 + b'"'],
    ids=["a lone surrogate", "NaN", "not UTF-8", "a control character", "plain"],
)
def test_what_orjson_refuses_is_read_nevertheless(oddity: bytes) -> None:
    document = b'{"instructions": %s, "id": "resp_1", "status": "completed"}' % oddity
    for reader, body in (
        (DocumentReader(), document),
        (DocumentReader(), b"\xef\xbb\xbf" + document),
        (EventReader(), b'data: {"type": "response.completed", "response": %s}\n\n' % document),
    ):
        read(reader, body, [])
        assert (reader.response_id, reader.has_ended) == ("resp_1", True)


def test_text_that_looks_like_an_event_is_no_end() -> None:
    reader = EventReader()
    reader.feed(event("response.created", response=response("in_progress")))
    reader.feed(event("response.output_text.delta", delta="response.completed"))
    reader.feed(event("response.completed"))
    reader.feed(b"data: response.completed\n\ndata: [DONE]\n\n: response.failed\n\n")
    assert not reader.has_ended
    assert reader.events == 1


def test_a_response_that_does_not_run_in_the_background_has_ended_for_a_guard() -> None:
    reader = EventReader()
    reader.feed(event("response.created", response=response("in_progress", background=False)))
    assert reader.has_ended


@given(st.lists(st.integers(0, 50)))
def test_a_document_is_read_however_it_is_split(sizes: list[int]) -> None:
    reader = read(DocumentReader(), json.dumps(response("queued", background=True)).encode(), sizes)
    assert (reader.response_id, reader.has_ended) == ("resp_1", False)


@pytest.mark.parametrize(
    ("body", "response_id", "has_ended"),
    [
        (b'{"id": "resp_1", "status": "completed"}', "resp_1", True),
        (b'{"id": "resp_1", "background": false}', "resp_1", True),
        (b'{"id": 7}', None, False),
        (b'["id"]', None, False),
        (b"", None, False),
        (b'\n { "id" : "resp_1", "status": "queu', "resp_1", False),
        (b'{"object": "response", "id": "resp_1", ', None, False),
        (b'{"id": "resp_', None, False),
        (b'{"id": "re\\u0073p"', None, False),
    ],
)
def test_documents_may_be_strange_or_cut_off(body: bytes, response_id: str | None, *, has_ended: bool) -> None:
    reader = read(DocumentReader(), body, [])
    assert (reader.response_id, reader.has_ended) == (response_id, has_ended)


def test_what_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_readers, "MAX_DOCUMENT", 100)
    document, events = DocumentReader(), EventReader()
    for _ in range(20):
        document.feed(b'{"id": "resp_1"}')
        events.feed(b"data: 123456")
        assert len(events._rest) <= 100
    document.finish()
    assert len(document._body) == 0
    assert (document.response_id, document.has_ended) == ("resp_1", False)  # as if it had been cut off


@pytest.mark.parametrize("name", ["gzip", "GZIP", "x-gzip"])
def test_gzip_is_decoded_as_it_arrives(name: str) -> None:
    compressor = zlib.compressobj(wbits=31)
    decode = decoder(name)
    first = compressor.compress(b"first") + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert decode(first) == b"first"
    assert decode(gzip.compress(b"")[:0]) == b""


def test_other_encodings_are_not_decoded() -> None:
    assert decoder("")(b"plain") == decoder("identity")(b"plain") == b"plain"
    assert decoder("br") is None

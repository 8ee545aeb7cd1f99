"""Numbers: integers however they are written, and as long as they are."""

import asyncio
import copy
import pickle
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from openai_cancel import APIStatusError, AsyncSession, Response
from openai_cancel.converter import response_hook
from openai_cancel.models import Problem
from openai_cancel.wire import Answer, Request, decode, decode_page

structure = response_hook()

REQUEST = Request("GET", "http://127.0.0.1/v1/responses/x", {})
LARGE = 2**70 + 1


def decoded(body: bytes, *, status: int = 200) -> Response:
    return decode(Answer(status, CIMultiDict(), body, complete=True), REQUEST)


class TestIntegers:
    @pytest.mark.parametrize(("value", "integer"), [(12.0, 12), (-0.0, 0), (1e3, 1000), (2.0**60, 2**60), (12, 12)])
    def test_a_number_without_a_fraction_is_an_integer(self, value: float, integer: int) -> None:
        response = structure({"id": "x", "max_tool_calls": value, "usage": {"total_tokens": value}})
        for number in (response.max_tool_calls, response.usage.total_tokens):
            assert (number, type(number)) == (integer, int)
        assert response.problems == ()
        assert repr(response.to_dict()["max_tool_calls"]) == repr(value)  # as the server wrote it

    def test_integers_in_lists_may_be_written_as_floats_too(self) -> None:
        part = {"type": "output_text", "text": "a", "logprobs": [{"token": "a", "bytes": [97.0, 98]}]}
        response = structure({"id": "x", "output": [{"type": "message", "content": [part]}]})
        assert repr(response.output[0].content[0].logprobs[0].bytes) == "[97, 98]"

    @pytest.mark.parametrize("value", [12.5, float("inf"), float("nan")])
    def test_a_number_with_a_fraction_is_no_integer(self, value: float) -> None:
        response = structure({"id": "x", "max_tool_calls": value})
        assert (response.max_tool_calls, response.problems) == (None, (Problem("$.max_tool_calls", "integer"),))

    def test_a_number_field_keeps_its_fraction_of_zero(self) -> None:
        assert repr(structure({"id": "x", "temperature": 1.0}).temperature) == "1.0"

    def test_the_code_of_an_error_may_be_written_as_a_float(self) -> None:
        for code, read in ((b"404.0", 404), (b"404.5", None)):
            with pytest.raises(APIStatusError) as caught:
                decoded(b'{"error": {"message": "No.", "code": %b}}' % code, status=400)
            assert (caught.value.code, type(caught.value.code)) == (read, type(read))


def nested(number: int) -> tuple[bytes, dict[str, Any]]:
    body = b'{"id": "x", "max_tool_calls": %d, "usage": {"total_tokens": %d, "new": %d}, "new": [{"n": -%d}]}'
    document = {
        "id": "x",
        "max_tool_calls": number,
        "usage": {"total_tokens": number, "new": number},
        "new": [{"n": -number}],
    }
    return body % (number, number, number, number), document


class TestLongIntegers:
    """orjson reads an integer of more than 64 bits as a float."""

    @given(st.integers(2**62, 2**200))
    def test_to_dict_returns_them_exactly(self, number: int) -> None:
        body, document = nested(number)
        assert decoded(body).to_dict() == document

    def test_fields_and_parts_have_them_exactly_whichever_is_read_first(self) -> None:
        body, document = nested(LARGE)
        assert decoded(body).max_tool_calls == LARGE
        assert decoded(body).usage.total_tokens == LARGE
        assert decoded(body).usage.to_dict() == document["usage"]
        assert decoded(body).extra == {"new": document["new"]}
        assert decoded(body) == structure(document)
        assert vars(decoded(body)) == document
        assert decoded(body).problems == ()

    @pytest.mark.parametrize("duplicate", [lambda whole: pickle.loads(pickle.dumps(whole)), copy.copy, copy.deepcopy])
    def test_copies_and_pickles_have_them_exactly(self, duplicate) -> None:
        body, document = nested(LARGE)
        assert duplicate(decoded(body)).to_dict() == document

    def test_a_page_of_a_list_has_them_exactly(self) -> None:
        body = b'{"data": [{"id": "x", "n": %d}]}' % LARGE
        page = decode_page(Answer(200, CIMultiDict(), body, complete=True), REQUEST)
        assert page.responses[0].to_dict() == {"id": "x", "n": LARGE}

    async def test_a_response_in_an_event_has_them_exactly(self) -> None:
        document = b'{"id": "x", "status": "%s", "n": %d}'

        async def answer(request: web.Request) -> web.StreamResponse:
            if "stream" not in request.query:
                return web.Response(body=document % (b"completed", LARGE), content_type="application/json")
            stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await stream.prepare(request)
            event = b'data: {"type": "response.in_progress", "sequence_number": 1, "response": %b}\n\n'
            await stream.write(event % (document % (b"in_progress", LARGE)))
            await seen.wait()
            await stream.write(b'data: {"type": "response.completed", "sequence_number": 2}\n\n')
            return stream

        def note(response: Response) -> None:
            numbers.append(response.to_dict()["n"])
            seen.set()

        numbers: list[Any] = []
        seen = asyncio.Event()
        app = web.Application()
        app.router.add_get("/responses/x", answer)
        async with TestServer(app) as server, AsyncSession(api_key="any", base_url=str(server.make_url(""))) as session:
            await session.wait("x", stream=True, on_update=note)
        assert numbers == [LARGE, LARGE]

    def test_digits_inside_a_string_change_nothing(self) -> None:
        assert decoded(b'{"id": "%d", "top_p": 0.5}' % LARGE).to_dict() == {"id": str(LARGE), "top_p": 0.5}

    def test_the_body_is_kept_only_until_the_document_is_used(self) -> None:
        response = decoded(b'{"id": "x", "status": "completed", "usage": {"total_tokens": 1}}')
        assert (response.status, response.is_terminal) == ("completed", True)
        assert "__body__" in response.__values__
        assert response.usage.total_tokens == 1
        assert "__body__" not in response.__values__

    def test_a_document_that_only_orjson_can_follow_keeps_its_floats(self) -> None:
        deep = b"[" * 1000 + b"]" * 1000
        body = b'{"id": "x", "n": %d, "deep": %b}' % (LARGE, deep)
        assert decoded(body).to_dict()["n"] == pytest.approx(LARGE)

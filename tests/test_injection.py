"""Whatever an id, a header or a parameter contains, a call sends one request, with its path and its headers only."""

import asyncio
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import pytest
from conftest import KEY, hasty_session
from exposure import failure
from hypothesis import given, settings
from hypothesis import strategies as st
from recorders import recording_server

from openai_cancel import AsyncSession, ConfigurationError, InvalidResponseIdError
from openai_cancel.emulator import Emulator
from openai_cancel.wire import SEGMENT

IDS = [
    "a\u2028b", "a\u2029b", "a\u205fb", "../../v1/models", "..%2f..%2fadmin", "%2e%2e", "a/../b",
    "a?b=c", "a#b", "a%2Fb", "a%00b", "a%0d%0aX: y", "a;b", "a@b", "//host/x", "http://host/x", "user:pass@host",
    "a\\b", "\uff0e\uff0e\uff0f", "\u2215", "\uff03", "\uff1f",
    "a\u202eb", "\u0130", "\u010d\u010a", "\ufeff", "\u00ad",
    "e\u0301", "\u212a", "\U0001f600", " a ", "a HTTP/1.1", "a+b/c=", "*",
    "?", "#", "%", "&", "=", "'", '"', "<>", "{}", "|", "^",
    "`", "~", "...", ".a", "-", "--", "a" * 500,
]  # fmt: skip
"""Ids that would be more than one segment of a path if they were not encoded."""

REFUSED = ["", " ", ".", "..", "a\r\nX: y", "a\nb", "a\rb", "a\0b", "a\x7fb", "a\x85b", "a\ud800b", "\t"]


def request_lines(received: bytearray) -> list[str]:
    """Return the lines of the request, and make sure that there is only one."""
    lines, end, rest = bytes(received).partition(b"\r\n\r\n")
    assert (end, rest) == (b"\r\n\r\n", b"")
    assert b"\r" not in lines.replace(b"\r\n", b"")
    assert b"\n" not in lines.replace(b"\r\n", b"")
    return lines.decode().split("\r\n")


async def send(response_id: str, **options: Any) -> tuple[str, dict[str, str]]:
    """Make a call, and return the target and the headers of the request that the server receives."""
    async with recording_server() as (origin, received):
        async with hasty_session(api_key=KEY, base_url=f"{origin}/v1", max_retries=0) as session:
            await failure(session.cancel(response_id, **options))
        first, *headers = request_lines(received)
    method, target, version = first.split(" ")
    assert (method, version) == ("POST", "HTTP/1.1")
    found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}
    assert len(found) == len(headers)
    return target, found


HEADER_NAMES = {"accept", "accept-encoding", "authorization", "content-length", "host", "user-agent"}


class TestOneRequest:
    async def test_an_id_with_special_characters_is_one_segment_of_the_path(self) -> None:
        for response_id in IDS:
            target, headers = await send(response_id)
            assert target == f"/v1/responses/{quote(response_id, safe='')}/cancel"
            assert target.count("/") == 4
            assert headers.keys() == HEADER_NAMES

    @settings(max_examples=60, deadline=None)
    @given(st.text(min_size=1, max_size=9).filter(SEGMENT.fullmatch))
    def test_any_id_that_is_accepted_is_one_segment_of_the_path(self, response_id: str) -> None:
        target, headers = asyncio.run(send(response_id))
        assert [unquote(part) for part in target.split("/")] == ["", "v1", "responses", response_id, "cancel"]
        assert headers.keys() == HEADER_NAMES

    @pytest.mark.parametrize("response_id", REFUSED)
    async def test_an_id_that_could_not_be_one_segment_is_not_sent(self, server: Emulator, response_id: str) -> None:
        async with hasty_session(api_key=KEY, base_url=server.base_url) as session:
            for call in (session.cancel(response_id), session.retrieve(response_id), session.stop(response_id)):
                assert isinstance(await failure(call), InvalidResponseIdError)
        assert server.received == []

    @pytest.mark.parametrize(
        "value", ["b&c=d", "b#c", "b c", "b\u2028c", "%0d%0a", "é", "?", "/../", "b\tc", "\U0001f600"]
    )
    async def test_a_query_parameter_stays_one_parameter(self, value: str) -> None:
        target, headers = await send("resp_1", query={"a": value, value: "a"})
        path, _, query = target.partition("?")
        assert path == "/v1/responses/resp_1/cancel"
        assert parse_qsl(query) == [("a", value), (value, "a")]
        assert headers.keys() == HEADER_NAMES

    @pytest.mark.parametrize("value", ["\u010d\u010aX: y", "a\u2028b", "é", "a: b", "a\xa0b", "\tb"])
    async def test_a_header_value_stays_one_header(self, value: str) -> None:
        target, headers = await send("resp_1", headers={"X-A": value})
        assert target == "/v1/responses/resp_1/cancel"
        assert headers.keys() == {*HEADER_NAMES, "x-a"}
        assert headers["x-a"] == value.strip()

    @pytest.mark.parametrize("text", ["b\r\nX: y", "b\nX: y", "b\rX: y", "b\0", "b\x0b", "b\ud800"])
    async def test_text_with_control_characters_is_refused_everywhere(self, server: Emulator, text: str) -> None:
        for options in (
            {"headers": {"X-A": text}},
            {"headers": {text: "a"}},
            {"query": {"a": text}},
            {"query": {text: "a"}},
        ):
            async with hasty_session(api_key=KEY, base_url=server.base_url) as session:
                assert isinstance(await failure(session.cancel("resp_1", **options)), ConfigurationError)
            with pytest.raises(ConfigurationError):
                AsyncSession(api_key=KEY, base_url=server.base_url, **options)
        for options in ({"organization": text}, {"project": text}, {"api_key": text}, {"base_url": f"http://{text}/"}):
            with pytest.raises(ConfigurationError):
                AsyncSession(**{"api_key": KEY, "base_url": server.base_url, **options})
        async with hasty_session(api_key=lambda: text, base_url=server.base_url) as session:
            assert isinstance(await failure(session.cancel("resp_1")), ConfigurationError)
        assert server.received == []

    @pytest.mark.parametrize("name", ["Transfer-Encoding", "content-length", "a b", "a:b", "é", "", "\u017ftatus"])
    async def test_a_header_name_that_could_start_another_request_is_refused(self, server: Emulator, name: str) -> None:
        async with hasty_session(api_key=KEY, base_url=server.base_url) as session:
            assert isinstance(await failure(session.cancel("resp_1", headers={name: "a"})), ConfigurationError)
        assert server.received == []

    @pytest.mark.parametrize("form", ["http://{0}@127.0.0.1:9", "http://127.0.0.1:9@{0}", "http://{0}#@127.0.0.1:9/"])
    async def test_a_base_url_with_two_hosts_is_refused(self, form: str) -> None:
        with pytest.raises(ConfigurationError):
            AsyncSession(api_key=KEY, base_url=form.format("elsewhere.example"))

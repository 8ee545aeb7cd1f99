"""The key: it shows in nothing that a failure leaves behind, goes to one server, and nothing is put in its way."""

import asyncio
import gc
import io
import json
import logging
import math
import pickle
import ssl
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import aiohttp
import pytest
import trustme
from conftest import hasty_session, until
from faults import FAULTS, FaultProxy, NetFault, framed, head, instead
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.traceback import Traceback

from openai_cancel import (
    APIConnectionError,
    AsyncSession,
    ConfigurationError,
    InvalidResponseIdError,
    OpenAICancelError,
    Session,
)
from openai_cancel.cli import app as cli
from openai_cancel.emulator import Emulator, Script
from openai_cancel.wire import SEGMENT

MARKER = "M4RK3R0F7H3K3Y"
KEY = f"sk-proj/{MARKER}+x="


def shown(error: BaseException) -> dict[str, str]:
    """All that may be written down of an exception, by people, by a logger, or by a collector of errors."""
    # What rich draws; to draw it takes it half a second.
    drawn = Traceback.extract(
        type(error), error, error.__traceback__, show_locals=True, locals_max_length=None, locals_max_string=None
    )
    frames = [frame for stack in drawn.stacks for frame in stack.frames]
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    return {
        "text": f"{error} {error!r} {error.args!r}",
        "attributes": repr(vars(error)),
        "traceback": "".join(found.format()),
        "rich": "\n".join(
            [stack.exc_value for stack in drawn.stacks]
            + [f"{name} = {value}" for frame in frames for name, value in (frame.locals or {}).items()]
        ),
        "pickle": pickle.dumps(error).decode("latin-1"),
        "json": json.dumps(vars(error), default=repr),
    }


def leaks(error: BaseException) -> list[str]:
    return [f"{how}: {line}" for how, text in shown(error).items() for line in text.splitlines() if MARKER in line]


async def failure(call) -> OpenAICancelError | None:
    try:
        await call
    except OpenAICancelError as error:
        return error
    return None


@pytest.fixture
async def server() -> AsyncIterator[Emulator]:
    async with Emulator(script=Script(runs_for=math.inf)) as emulator:
        yield emulator


@asynccontextmanager
async def behind(server: Emulator, fault: NetFault, **options: Any) -> AsyncIterator[AsyncSession]:
    """A session in whose every exchange the same goes wrong."""
    async with (
        FaultProxy(server.base_url, choose=lambda: fault) as proxy,
        hasty_session(api_key=KEY, base_url=proxy.base_url, max_retries=0, **options) as session,
    ):
        yield session


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that any library logs."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)r"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(1)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


ECHOES = {
    "a body": NetFault(sends=instead(head("HTTP/1.1 400 No"), b"Invalid key: " + KEY.encode()), ends="close"),
    "a success": NetFault(sends=instead(head("HTTP/1.1 200 OK"), KEY.encode()), ends="close"),
    "half a body": NetFault(
        sends=instead(head("HTTP/1.1 400 No", f"A: {KEY}", "Content-Length: 999"), KEY.encode()), ends="close"
    ),
    "a body that stalls": NetFault(
        sends=instead(head("HTTP/1.1 400 No", f"A: {KEY}", "Content-Length: 999"), KEY.encode()), ends="stall"
    ),
    "a reason phrase": NetFault(sends=instead(head(f"HTTP/1.1 500 {KEY}", "Content-Length: 0"))),
    "a bad status line": NetFault(sends=instead(head(f"HTTP/1.1 5000 {KEY}")), ends="close"),
    "a header": NetFault(sends=instead(head("HTTP/1.1 400 No", f"X-Request-Id: {KEY}", "Content-Length: 0"))),
    "a bad header": NetFault(sends=instead(head("HTTP/1.1 400 No", KEY)), ends="close"),
    "a header with a NUL": NetFault(sends=instead(head("HTTP/1.1 400 No", f"A: {KEY}\0")), ends="close"),
    "a long header": NetFault(sends=instead(head("HTTP/1.1 400 No", f"A: {KEY * 999}")), ends="close"),
    "a bad length": NetFault(sends=instead(head("HTTP/1.1 400 No", f"Content-Length: {KEY}")), ends="close"),
    "headers that are cut": NetFault(sends=instead(head("HTTP/1.1 400 No", f"A: {KEY}", "B: c")), cut=-3, ends="close"),
    "a bad chunk": NetFault(
        sends=instead(head("HTTP/1.1 400 No", "Transfer-Encoding: chunked"), KEY.encode() + b"\r\n"), ends="close"
    ),
    "a bad gzip": NetFault(sends=framed("Content-Encoding: gzip", f"A: {KEY}", "Content-Length: {length}")),
    "an encoding": NetFault(sends=instead(head("HTTP/1.1 400 No", f"Content-Encoding: {KEY}", "Content-Length: 0"))),
    "a redirect": NetFault(sends=instead(head("HTTP/1.1 302 Go", f"Location: /?k={quote(KEY)}", "Content-Length: 0"))),
    "cookies": NetFault(
        sends=instead(head("HTTP/1.1 400 No", f"Set-Cookie: a={KEY}", f"Set-Cookie: {KEY};", "Content-Length: 0"))
    ),
    "no HTTP": NetFault(sends=instead(KEY.encode() + b"\r\n\r\n"), ends="close"),
}
"""Where a server, or whatever is before it, may repeat the key to us."""


class TestNothingShowsIt:
    async def test_whatever_goes_wrong_with_an_answer(self, server: Emulator, log: io.StringIO) -> None:
        found: dict[str, list[str]] = {}
        for name, fault in FAULTS.items():
            async with behind(server, fault, timeout=0.05, max_body_bytes=2**16) as session:
                error = await failure(session.cancel(server.add()))
            if error and (lines := leaks(error)):
                found[name] = lines
        assert found == {}
        assert "openai_cancel" in log.getvalue()
        assert MARKER not in log.getvalue()

    @pytest.mark.parametrize("name", ECHOES)
    @pytest.mark.parametrize("way", ["key", "function", "azure"])
    async def test_an_answer_that_repeats_it(self, server: Emulator, log: io.StringIO, name: str, way: str) -> None:
        options: dict[str, Any] = {"timeout": 0.1, "max_retries": 0}
        async with FaultProxy(server.base_url, choose=lambda: ECHOES[name]) as proxy:
            make = {
                "key": lambda: hasty_session(api_key=KEY, base_url=proxy.base_url, **options),
                "function": lambda: hasty_session(api_key=lambda: KEY, base_url=proxy.base_url, **options),
                "azure": lambda: AsyncSession.azure(proxy.base_url, api_key=KEY, **options),
            }[way]
            async with make() as session:
                error = await failure(session.cancel("resp_1"))
                assert error is not None
                assert leaks(error) == []
                outcome = await session.stop("resp_1", deadline=0.1)
                assert MARKER not in repr(outcome)
                assert leaks(outcome.error) == []
                assert MARKER not in f"{session!r} {session.caller!r} {vars(session)!r}"
        assert "openai_cancel" in log.getvalue()
        assert MARKER not in log.getvalue()

    @pytest.mark.parametrize("status", [200, 301, 400, 418, 503])
    @pytest.mark.parametrize(
        "form",
        [
            '{"error": {"message": "Incorrect API key: KEY", "code": "KEY", "type": "KEY", "param": "KEY"}}',
            '{"detail": [{"loc": ["KEY"], "msg": "KEY"}]}',
            "<html><title>KEY</title></html>",
            '{"error": {"message": "Bearer KEY"}, "request_id": "KEY"}',
        ],
    )
    async def test_a_body_that_repeats_it(self, server: Emulator, status: int, form: str) -> None:
        body = form.replace("KEY", KEY).encode()
        said = head(f"HTTP/1.1 {status} {KEY}", f"Content-Length: {len(body)}", f"Location: {KEY}", f"A: {KEY}"), body
        async with behind(server, NetFault(sends=instead(*said))) as session:
            error = await failure(session.cancel("resp_1"))
        assert leaks(error) == []
        assert "***" in str(error.body)

    async def test_no_connection(self, unused_tcp_port: int, log: io.StringIO) -> None:
        for options in ({"api_key": KEY}, {"api_key": lambda: KEY}, {"headers": {"Authorization": f"Bearer {KEY}"}}):
            for url in (f"http://127.0.0.1:{unused_tcp_port}", f"https://127.0.0.1:{unused_tcp_port}"):
                async with hasty_session(base_url=url, max_retries=1, **options) as session:
                    assert leaks(await failure(session.cancel("resp_1"))) == []
        assert MARKER not in log.getvalue()

    async def test_a_connection_that_closes_while_the_request_is_written(self, server: Emulator) -> None:
        """What is written is a local variable of aiohttp's then."""
        trace = aiohttp.TraceConfig()

        async def cut(*_: object) -> None:
            [protocol] = client.connector._acquired
            protocol.transport.abort()

        trace.on_connection_reuseconn.append(cut)
        async with (
            aiohttp.ClientSession(trace_configs=[trace]) as client,
            hasty_session(api_key=KEY, base_url=server.base_url, client_session=client, max_retries=0) as session,
        ):
            await session.cancel(server.add())
            error = await failure(session.cancel("resp_1"))
        assert isinstance(error, APIConnectionError)
        assert "closing transport" in str(error)
        assert leaks(error) == []
        assert len(server.received) == 1

    async def test_a_call_that_is_refused(self, server: Emulator) -> None:
        session = hasty_session(api_key=KEY, base_url=server.base_url)
        errors = [await failure(session.cancel("resp_1"))]
        async with session:
            errors += [
                await failure(session.cancel("..")),
                await failure(session.cancel("resp_1", timeout=-1)),
                await failure(session.cancel("resp_1", headers={"a b": "c"})),
                await failure(session.stop("resp_1", deadline=0)),
                await failure(session.wait(server.add(), timeout=0.001)),
            ]
        errors.append(await failure(session.cancel("resp_1")))
        with pytest.raises(TypeError, match="holds a key") as caught:
            pickle.dumps(session)
        for error in [*errors, caught.value]:
            assert error is not None
            assert leaks(error) == []

    @pytest.mark.parametrize(
        "options",
        [{"api_key": f"{KEY}\n"}, {"api_key": KEY, "timeout": -1}, {"api_key": KEY, "headers": {"a b": "c"}}],
        ids=["a newline", "another setting", "a header"],
    )
    @pytest.mark.parametrize("make", [AsyncSession, AsyncSession.azure, Session])
    def test_a_setting_that_is_refused(self, make: Any, options: dict[str, Any]) -> None:
        options = options if make != AsyncSession.azure else {"endpoint": "http://x", **options}
        with pytest.raises(ConfigurationError) as caught:
            make(**options)
        del options
        assert leaks(caught.value) == []

    async def test_a_key_function_that_gives_what_can_be_none(self, server: Emulator) -> None:
        async with hasty_session(api_key=lambda: f"{KEY}\n", base_url=server.base_url) as session:
            assert leaks(await failure(session.cancel("resp_1"))) == []

    async def test_a_key_among_the_headers_of_a_call(self, unused_tcp_port: int) -> None:
        async with hasty_session(
            api_key="any", base_url=f"http://127.0.0.1:{unused_tcp_port}", max_retries=0
        ) as session:
            error = await failure(session.cancel("resp_1", headers={"Authorization": f"Bearer {KEY}"}))
        assert leaks(error) == []

    async def test_an_exception_through_a_guard(self, server: Emulator, log: io.StringIO) -> None:
        async with behind(server, ECHOES["a bad header"]) as session:
            with pytest.raises(ZeroDivisionError) as caught:
                async with session.guard("resp_1", grace=0.6):
                    raise ZeroDivisionError
        assert "was not stopped" in caught.value.__notes__[0]
        assert leaks(caught.value) == []
        assert MARKER not in log.getvalue()

    async def test_what_a_key_function_raises_is_its_own_affair(self, server: Emulator) -> None:
        """It goes on as it is; in what this package adds to its traceback there is no key."""

        def rotate() -> str:
            raise LookupError("no key today")

        async with hasty_session(api_key=rotate, base_url=server.base_url, headers={"X-Key": KEY}) as session:
            with pytest.raises(LookupError) as caught:
                await session.cancel("resp_1")
        assert leaks(caught.value) == []

    async def test_the_blocking_session(self, server: Emulator) -> None:
        def run() -> OpenAICancelError:
            with Session(api_key=KEY, base_url=proxy.base_url, max_retries=0) as session:
                assert MARKER not in f"{session!r} {vars(session)!r}"
                with pytest.raises(OpenAICancelError) as caught:
                    session.cancel("resp_1")
            return caught.value

        async with FaultProxy(server.base_url, choose=lambda: ECHOES["half a body"]) as proxy:
            error = await asyncio.to_thread(run)
        assert leaks(error) == []

    async def test_a_crash_log(self, server: Emulator, log: io.StringIO) -> None:
        """A task whose exception nobody asked for."""
        async with behind(server, ECHOES["a body"]) as session:
            task = asyncio.create_task(session.cancel("resp_1"))
            await until(task.done)
            assert MARKER not in repr(task)
            del task
            gc.collect()
        assert "never retrieved" in log.getvalue()
        assert MARKER not in log.getvalue()

    @pytest.mark.parametrize("command", ["cancel", "stop", "status", "wait"])
    @pytest.mark.parametrize("echo", ["a body", "a header", "a bad header", "a reason phrase"])
    async def test_the_command(  # noqa: PLR0917 - what pytest gives
        self,
        server: Emulator,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        command: str,
        echo: str,
    ) -> None:
        key = tmp_path / "key"
        key.write_text(KEY)
        log = tmp_path / "log"
        more = ["--log", str(log), "--deadline", "0.6"] if command in {"stop", "status"} else []
        more = ["--timeout", "0.1", "--on-abandon", "leave"] if command == "wait" else more
        monkeypatch.setattr("random.random", lambda: 0.0)
        async with FaultProxy(server.base_url, choose=lambda: ECHOES[echo]) as proxy:
            arguments = [command, "resp_1", "--json", "--key-file", str(key), "--base-url", proxy.base_url, *more]
            status = await asyncio.to_thread(cli.run, arguments)
        out, err = capsys.readouterr()
        assert status == 1
        assert out or err
        assert MARKER not in out + err + (log.read_text() if log.exists() else "")

    def test_a_key_among_the_arguments(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["stop", "resp_1", "--api-key", KEY]) == 3
        assert MARKER not in "".join(capsys.readouterr())


@asynccontextmanager
async def listening(said: bytes = head("HTTP/1.1 200 OK", "Content-Length: 0")) -> AsyncIterator[tuple[str, bytearray]]:
    """A stranger: hears everything, and always says the same; gives its origin and what it heard."""
    heard = bytearray()
    tasks: set[asyncio.Task] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with suppress(ConnectionError):
            while piece := await reader.read(2**16):
                heard.extend(piece)
                if heard.endswith(b"\r\n\r\n"):
                    writer.write(said)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", heard
    listener.close()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)  # the loop closes a socket in its next turn


@asynccontextmanager
async def tunnelling() -> AsyncIterator[tuple[str, bytearray]]:
    """A proxy that knows CONNECT, and keeps all that clients tell it; gives its origin and what it heard."""
    heard = bytearray()
    tasks: set[asyncio.Task] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: bytearray) -> None:
        while piece := await reader.read(2**16):
            copy.extend(piece)
            writer.write(piece)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        asked = await reader.readuntil(b"\r\n\r\n")
        heard.extend(asked)
        host, _, port = asked.split()[1].decode().rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(head("HTTP/1.1 200 Connected"))
        await asyncio.gather(pump(reader, far_writer, heard), pump(far_reader, writer, bytearray()))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", heard
    listener.close()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)


class TestItGoesToOneServer:
    @pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
    async def test_redirects(self, server: Emulator, status: int) -> None:
        async with listening() as (elsewhere, heard):
            said = head(
                f"HTTP/1.1 {status} Go", f"Location: {elsewhere}/v1/responses/x", f"Refresh: 0; url={elsewhere}",
                f'Alt-Svc: http/1.1="{urlsplit(elsewhere).netloc}"', f"Content-Location: {elsewhere}",
                "Content-Length: 0",
            )  # fmt: skip
            async with behind(server, NetFault(sends=instead(said))) as session:
                assert str(await failure(session.cancel("resp_1"))).startswith(f"{status}: The server redirects")
                assert not (await session.stop("resp_1", deadline=0.6)).stopped
            assert heard == b""

    async def test_the_environment_changes(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        async with listening() as (elsewhere, heard), AsyncSession() as session:
            monkeypatch.setenv("OPENAI_BASE_URL", elsewhere)
            monkeypatch.setenv("HTTP_PROXY", elsewhere)
            assert (await session.cancel(server.add())).status == "cancelled"
            assert heard == b""

    async def test_a_key_of_another_server_is_not_taken_from_the_environment(
        self, server: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
        with pytest.raises(ConfigurationError, match="No API key"):
            AsyncSession(base_url=server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.delenv("AZURE_OPENAI_API_KEY")
        with pytest.raises(ConfigurationError, match="No API key"):
            AsyncSession.azure(server.base_url)

    @pytest.mark.parametrize("variable", [None, "HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
    @pytest.mark.parametrize("password", [False, True])
    @pytest.mark.parametrize("azure", [False, True])
    async def test_a_proxy_hears_nothing_of_it(
        self, server: Emulator, monkeypatch: pytest.MonkeyPatch, variable: str | None, *, password: bool, azure: bool
    ) -> None:
        """It knows where we go; what goes there is encrypted. Its own password goes no further than to it."""
        authority = trustme.CA()
        ours, theirs = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.configure_trust(ours)
        authority.issue_cert("127.0.0.1").configure_cert(theirs)
        async with tunnelling() as (origin, heard), FaultProxy(server.base_url, tls=theirs) as secure:
            proxy = origin.replace("http://", f"http://user:{MARKER[::-1]}@") if password else origin
            if variable:
                monkeypatch.setenv(variable, proxy)
            make = AsyncSession.azure if azure else lambda url, **options: AsyncSession(base_url=url, **options)
            async with make(secure.base_url, api_key=KEY, proxy=None if variable else proxy) as session:
                session.caller.transport.client.connector._ssl = ours
                await failure(session.cancel(server.add()))
            asked, _, rest = heard.partition(b"\r\n\r\n")
            assert asked.startswith(f"CONNECT {urlsplit(secure.base_url).netloc} HTTP/1.1\r\n".encode())
            assert (b"proxy-authorization" in asked.lower()) is password
            assert b"\r\nauthorization" not in asked.lower()
            assert rest
            assert MARKER.encode() not in heard
        [received] = server.received
        assert received.headers.get("api-key") == (KEY if azure else None)
        assert received.headers.get("authorization") == (None if azure else f"Bearer {KEY}")
        assert "proxy-authorization" not in received.headers
        assert MARKER[::-1] not in str(received)

    @pytest.mark.parametrize("status", [200, 302, 403, 407, 500])
    async def test_nor_does_one_that_refuses(self, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
        said = head(f"HTTP/1.1 {status} Hm", "Location: https://127.0.0.1:9/", "Content-Length: 0", "Connection: close")
        async with listening(said + b"garbage") as (proxy, heard):
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            async with hasty_session(api_key=KEY, base_url="https://secure.invalid/v1", max_retries=1) as session:
                error = await failure(session.cancel("resp_1"))
            assert isinstance(error, APIConnectionError)
            assert leaks(error) == []
            assert heard.startswith(b"CONNECT secure.invalid:443 ")
            assert MARKER.encode() not in heard

    async def test_a_host_that_goes_without_a_proxy(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        async with listening() as (proxy, heard):
            monkeypatch.setenv("HTTP_PROXY", proxy)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
                assert (await session.cancel(server.add())).status == "cancelled"
            assert heard == b""

    @pytest.mark.parametrize("azure", [False, True])
    async def test_it_is_in_one_header_and_nowhere_else(self, azure: bool) -> None:  # noqa: FBT001
        async with listening() as (origin, heard):
            make = AsyncSession.azure if azure else lambda url, **options: AsyncSession(base_url=url, **options)
            async with make(origin, api_key=KEY, max_retries=0, query={"a": "b"}) as session:
                for call in (session.cancel("resp_1"), session.retrieve("resp_1")):
                    await failure(call)
            lines = [line for line in heard.decode().split("\r\n") if MARKER in line]
        assert [line.lower().partition(":")[0] for line in lines] == ["api-key" if azure else "authorization"] * 2


IDS = [
    "a\u2028b", "a\u2029b", "a\u205fb", "../../v1/models", "..%2f..%2fadmin", "%2e%2e", "a/../b",
    "a?b=c", "a#b", "a%2Fb", "a%00b", "a%0d%0aX: y", "a;b", "a@b", "//host/x", "http://host/x", "user:pass@host",
    "a\\b", "\uff0e\uff0e\uff0f", "\u2215", "\uff03", "\uff1f",
    "a\u202eb", "\u0130", "\u010d\u010a", "\ufeff", "\u00ad",
    "e\u0301", "\u212a", "\U0001f600", " a ", "a HTTP/1.1", "a+b/c=", "*",
    "?", "#", "%", "&", "=", "'", '"', "<>", "{}", "|", "^",
    "`", "~", "...", ".a", "-", "--", "a" * 500,
]  # fmt: skip
"""What might be more than one segment of a path, were it not encoded whole."""

REFUSED = ["", " ", ".", "..", "a\r\nX: y", "a\nb", "a\rb", "a\0b", "a\x7fb", "a\x85b", "a\ud800b", "\t"]


def request_lines(heard: bytearray) -> list[str]:
    """The lines of the one request that was heard, and no more than that."""
    head, end, rest = bytes(heard).partition(b"\r\n\r\n")
    assert (end, rest) == (b"\r\n\r\n", b"")
    assert b"\r" not in head.replace(b"\r\n", b"")
    assert b"\n" not in head.replace(b"\r\n", b"")
    return head.decode().split("\r\n")


async def heard_of(response_id: str, **options: Any) -> tuple[str, dict[str, str]]:
    """What arrives of a call: its target, and its headers."""
    async with listening() as (origin, heard):
        async with hasty_session(api_key=KEY, base_url=f"{origin}/v1", max_retries=0) as session:
            await failure(session.cancel(response_id, **options))
        first, *headers = request_lines(heard)
    method, target, version = first.split(" ")
    assert (method, version) == ("POST", "HTTP/1.1")
    found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}
    assert len(found) == len(headers)
    return target, found


NAMES = {"accept", "accept-encoding", "authorization", "content-length", "host", "user-agent"}


class TestNothingIsPutInItsWay:
    async def test_an_id_is_one_segment(self) -> None:
        for response_id in IDS:
            target, headers = await heard_of(response_id)
            assert target == f"/v1/responses/{quote(response_id, safe='')}/cancel"
            assert target.count("/") == 4
            assert headers.keys() == NAMES

    @settings(max_examples=60, deadline=None)
    @given(st.text(min_size=1, max_size=9).filter(SEGMENT.fullmatch))
    def test_whatever_it_is_made_of(self, response_id: str) -> None:
        target, headers = asyncio.run(heard_of(response_id))
        assert [unquote(part) for part in target.split("/")] == ["", "v1", "responses", response_id, "cancel"]
        assert headers.keys() == NAMES

    @pytest.mark.parametrize("response_id", REFUSED)
    async def test_what_could_be_more_is_not_sent(self, server: Emulator, response_id: str) -> None:
        async with hasty_session(api_key=KEY, base_url=server.base_url) as session:
            for call in (session.cancel(response_id), session.retrieve(response_id), session.stop(response_id)):
                assert isinstance(await failure(call), InvalidResponseIdError)
        assert server.received == []

    @pytest.mark.parametrize(
        "value", ["b&c=d", "b#c", "b c", "b\u2028c", "%0d%0a", "é", "?", "/../", "b\tc", "\U0001f600"]
    )
    async def test_a_query_value_stays_one(self, value: str) -> None:
        target, headers = await heard_of("resp_1", query={"a": value, value: "a"})
        path, _, query = target.partition("?")
        assert path == "/v1/responses/resp_1/cancel"
        assert parse_qsl(query) == [("a", value), (value, "a")]
        assert headers.keys() == NAMES

    @pytest.mark.parametrize("value", ["\u010d\u010aX: y", "a\u2028b", "é", "a: b", "a\xa0b", "\tb"])
    async def test_a_header_stays_one(self, value: str) -> None:
        target, headers = await heard_of("resp_1", headers={"X-A": value})
        assert target == "/v1/responses/resp_1/cancel"
        assert headers.keys() == {*NAMES, "x-a"}
        assert headers["x-a"] == value.strip()

    @pytest.mark.parametrize("text", ["b\r\nX: y", "b\nX: y", "b\rX: y", "b\0", "b\x0b", "b\ud800"])
    async def test_what_would_not_is_not_sent(self, server: Emulator, text: str) -> None:
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
    async def test_a_name_that_could_frame_another_request(self, server: Emulator, name: str) -> None:
        async with hasty_session(api_key=KEY, base_url=server.base_url) as session:
            assert isinstance(await failure(session.cancel("resp_1", headers={name: "a"})), ConfigurationError)
        assert server.received == []

    @pytest.mark.parametrize("form", ["http://{0}@127.0.0.1:9", "http://127.0.0.1:9@{0}", "http://{0}#@127.0.0.1:9/"])
    async def test_a_base_url_with_two_hosts_is_refused(self, form: str) -> None:
        with pytest.raises(ConfigurationError):
            AsyncSession(api_key=KEY, base_url=form.format("elsewhere.example"))

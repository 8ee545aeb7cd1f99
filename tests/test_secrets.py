"""The API key does not show in anything that a failure leaves behind: errors, tracebacks, logs, output."""

import asyncio
import gc
import io
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp.connector import Connection
from conftest import hasty_session, until
from exposure import KEY, MARKER, failure, leaks, session_behind
from faults import FAULTS, FaultProxy, NetFault, head, replaced_by, with_headers

from openai_cancel import APIConnectionError, AsyncSession, ConfigurationError, OpenAICancelError, Session
from openai_cancel.cli.app import run as run_command
from openai_cancel.emulator import Emulator


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that any library logs."""
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
    "body": NetFault(sends=replaced_by(head("HTTP/1.1 400 No"), b"Invalid key: " + KEY.encode()), ends="close"),
    "success": NetFault(sends=replaced_by(head("HTTP/1.1 200 OK"), KEY.encode()), ends="close"),
    "truncated body": NetFault(
        sends=replaced_by(head("HTTP/1.1 400 No", f"A: {KEY}", "Content-Length: 999"), KEY.encode()), ends="close"
    ),
    "stalled body": NetFault(
        sends=replaced_by(head("HTTP/1.1 400 No", f"A: {KEY}", "Content-Length: 999"), KEY.encode()), ends="stall"
    ),
    "reason phrase": NetFault(sends=replaced_by(head(f"HTTP/1.1 500 {KEY}", "Content-Length: 0"))),
    "bad status line": NetFault(sends=replaced_by(head(f"HTTP/1.1 5000 {KEY}")), ends="close"),
    "header": NetFault(sends=replaced_by(head("HTTP/1.1 400 No", f"X-Request-Id: {KEY}", "Content-Length: 0"))),
    "bad header": NetFault(sends=replaced_by(head("HTTP/1.1 400 No", KEY)), ends="close"),
    "header with a NUL": NetFault(sends=replaced_by(head("HTTP/1.1 400 No", f"A: {KEY}\0")), ends="close"),
    "long header": NetFault(sends=replaced_by(head("HTTP/1.1 400 No", f"A: {KEY * 999}")), ends="close"),
    "bad length": NetFault(sends=replaced_by(head("HTTP/1.1 400 No", f"Content-Length: {KEY}")), ends="close"),
    "truncated headers": NetFault(
        sends=replaced_by(head("HTTP/1.1 400 No", f"A: {KEY}", "B: c")), cut=-3, ends="close"
    ),
    "bad chunk": NetFault(
        sends=replaced_by(head("HTTP/1.1 400 No", "Transfer-Encoding: chunked"), KEY.encode() + b"\r\n"), ends="close"
    ),
    "bad gzip": NetFault(sends=with_headers("Content-Encoding: gzip", f"A: {KEY}", "Content-Length: {length}")),
    "encoding": NetFault(sends=replaced_by(head("HTTP/1.1 400 No", f"Content-Encoding: {KEY}", "Content-Length: 0"))),
    "redirect": NetFault(
        sends=replaced_by(head("HTTP/1.1 302 Go", f"Location: /?k={quote(KEY)}", "Content-Length: 0"))
    ),
    "cookies": NetFault(
        sends=replaced_by(head("HTTP/1.1 400 No", f"Set-Cookie: a={KEY}", f"Set-Cookie: {KEY};", "Content-Length: 0"))
    ),
    "not HTTP": NetFault(sends=replaced_by(KEY.encode() + b"\r\n\r\n"), ends="close"),
}
"""Answers that repeat the key, by the place where they do so."""


class TestErrorsAndLogs:
    @pytest.mark.slow
    async def test_no_fault_of_the_network_shows_the_key(self, server: Emulator, log: io.StringIO) -> None:
        found: dict[str, list[str]] = {}
        for name, fault in FAULTS.items():
            async with session_behind(server, fault, timeout=0.05, max_body_bytes=2**16) as session:
                error = await failure(session.cancel(server.add()))
            if error and (lines := leaks(error)):
                found[name] = lines
        assert found == {}
        assert "openai_cancel" in log.getvalue()
        assert MARKER not in log.getvalue()

    @pytest.mark.parametrize("name", ECHOES)
    @pytest.mark.parametrize("source", ["key", "function", "azure"])
    async def test_an_answer_that_repeats_the_key_does_not_show_it(
        self, server: Emulator, log: io.StringIO, name: str, source: str
    ) -> None:
        options: dict[str, Any] = {"timeout": 0.1, "max_retries": 0}
        async with FaultProxy(server.base_url, choose=lambda: ECHOES[name]) as proxy:
            make = {
                "key": lambda: hasty_session(api_key=KEY, base_url=proxy.base_url, **options),
                "function": lambda: hasty_session(api_key=lambda: KEY, base_url=proxy.base_url, **options),
                "azure": lambda: AsyncSession.azure(proxy.base_url, api_key=KEY, **options),
            }[source]
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
    async def test_a_body_that_repeats_the_key_is_redacted(self, server: Emulator, status: int, form: str) -> None:
        body = form.replace("KEY", KEY).encode()
        answer = head(f"HTTP/1.1 {status} {KEY}", f"Content-Length: {len(body)}", f"Location: {KEY}", f"A: {KEY}"), body
        async with session_behind(server, NetFault(sends=replaced_by(*answer))) as session:
            error = await failure(session.cancel("resp_1"))
        assert leaks(error) == []
        assert "***" in str(error.body)

    async def test_a_refused_connection_does_not_show_the_key(self, unused_tcp_port: int, log: io.StringIO) -> None:
        for options in ({"api_key": KEY}, {"api_key": lambda: KEY}, {"headers": {"Authorization": f"Bearer {KEY}"}}):
            for url in (f"http://127.0.0.1:{unused_tcp_port}", f"https://127.0.0.1:{unused_tcp_port}"):
                async with hasty_session(base_url=url, max_retries=1, **options) as session:
                    assert leaks(await failure(session.cancel("resp_1"))) == []
        assert MARKER not in log.getvalue()

    async def test_a_connection_that_closes_while_the_request_is_written_does_not_show_the_key(
        self, server: Emulator
    ) -> None:
        """The request is then a local variable of aiohttp's."""

        class AbortingConnector(aiohttp.TCPConnector):
            async def connect(self, *arguments: Any, **options: Any) -> Connection:
                connection = await super().connect(*arguments, **options)
                if server.received:  # the connection was used before
                    connection.transport.abort()
                return connection

        async with (
            aiohttp.ClientSession(connector=AbortingConnector()) as client,
            hasty_session(api_key=KEY, base_url=server.base_url, client_session=client, max_retries=0) as session,
        ):
            await session.cancel(server.add())
            error = await failure(session.cancel("resp_1"))
        assert isinstance(error, APIConnectionError)
        assert "closing transport" in str(error)
        assert leaks(error) == []
        assert len(server.received) == 1

    async def test_a_call_that_is_refused_does_not_show_the_key(self, server: Emulator) -> None:
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
        ids=["newline", "timeout", "header"],
    )
    @pytest.mark.parametrize("make", [AsyncSession, AsyncSession.azure, Session])
    def test_a_setting_that_is_refused_does_not_show_the_key(self, make: Any, options: dict[str, Any]) -> None:
        options = options if make != AsyncSession.azure else {"endpoint": "http://x", **options}
        with pytest.raises(ConfigurationError) as caught:
            make(**options)
        del options
        assert leaks(caught.value) == []

    async def test_a_key_function_that_returns_a_bad_key_does_not_show_it(self, server: Emulator) -> None:
        async with hasty_session(api_key=lambda: f"{KEY}\n", base_url=server.base_url) as session:
            assert leaks(await failure(session.cancel("resp_1"))) == []

    async def test_a_key_among_the_headers_of_a_call_is_not_shown(self, unused_tcp_port: int) -> None:
        async with hasty_session(
            api_key="any", base_url=f"http://127.0.0.1:{unused_tcp_port}", max_retries=0
        ) as session:
            error = await failure(session.cancel("resp_1", headers={"Authorization": f"Bearer {KEY}"}))
        assert leaks(error) == []

    async def test_the_notes_and_warnings_of_a_guard_do_not_show_the_key(
        self, server: Emulator, log: io.StringIO
    ) -> None:
        async with session_behind(server, ECHOES["bad header"]) as session:
            with pytest.raises(ZeroDivisionError) as caught:
                async with session.guard("resp_1", grace=0.6):
                    raise ZeroDivisionError
        assert "was not stopped" in caught.value.__notes__[0]
        assert leaks(caught.value) == []
        assert MARKER not in log.getvalue()

    async def test_the_frames_that_an_exception_of_a_key_function_passes_do_not_show_a_key(
        self, server: Emulator
    ) -> None:

        def rotate() -> str:
            raise LookupError("no key today")

        async with hasty_session(api_key=rotate, base_url=server.base_url, headers={"X-Key": KEY}) as session:
            with pytest.raises(LookupError) as caught:
                await session.cancel("resp_1")
        assert leaks(caught.value) == []

    async def test_an_error_of_a_blocking_session_does_not_show_the_key(self, server: Emulator) -> None:
        def run() -> OpenAICancelError:
            with Session(api_key=KEY, base_url=proxy.base_url, max_retries=0) as session:
                assert MARKER not in f"{session!r} {vars(session)!r}"
                with pytest.raises(OpenAICancelError) as caught:
                    session.cancel("resp_1")
            return caught.value

        async with FaultProxy(server.base_url, choose=lambda: ECHOES["truncated body"]) as proxy:
            error = await asyncio.to_thread(run)
        assert leaks(error) == []

    async def test_the_log_of_an_exception_that_was_never_retrieved_does_not_show_the_key(
        self, server: Emulator, log: io.StringIO
    ) -> None:
        async with session_behind(server, ECHOES["body"]) as session:
            task = asyncio.create_task(session.cancel("resp_1"))
            await until(task.done)
            assert MARKER not in repr(task)
            del task
            gc.collect()
        assert "never retrieved" in log.getvalue()
        assert MARKER not in log.getvalue()


class TestCommand:
    @pytest.mark.parametrize("command", ["cancel", "stop", "status", "wait"])
    @pytest.mark.parametrize("echo", ["body", "header", "bad header", "reason phrase"])
    async def test_neither_output_nor_log_of_the_command_shows_the_key(
        self,
        server: Emulator,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        *,
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
            status = await asyncio.to_thread(run_command, arguments)
        out, err = capsys.readouterr()
        assert status == 1
        assert out or err
        assert MARKER not in out + err + (log.read_text() if log.exists() else "")

    def test_the_command_does_not_repeat_a_key_among_its_arguments(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_command(["stop", "resp_1", "--api-key", KEY]) == 3
        assert MARKER not in "".join(capsys.readouterr())

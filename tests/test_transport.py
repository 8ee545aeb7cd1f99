"""`Transport`: one exchange over a socket, its limits, and the translation of aiohttp's errors."""

import asyncio
import gzip
import socket
import ssl
import subprocess
import traceback
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from conftest import KEY, QuickSession
from faults import FaultProxy
from processes import running

from openai_cancel import (
    APIConnectionError,
    APITimeoutError,
    AsyncSession,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    ResponseDecodeError,
    SessionStateError,
)
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.settings import Settings
from openai_cancel.transport import Transport
from openai_cancel.wire import Request

DOCUMENT = b'{"id": "resp_1", "status": "cancelled"}'


def open_transport(**options: object) -> Transport:
    """Open a transport in the running event loop."""
    transport = Transport(Settings.openai(api_key="any", max_body_bytes=1000, **options), {}, None)
    transport.open()
    return transport


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    transport = open_transport()
    yield transport
    await transport.close()


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The folder with a private certificate authority and its certificate for 127.0.0.1."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    return tmp_path


@pytest.fixture
async def secure_url(authority: Path) -> AsyncIterator[str]:
    """The URL of a server over TLS whose certificate is not trusted by default."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority / "server.pem")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=DOCUMENT)

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


class TestRequest:
    async def test_a_request_has_neither_a_body_nor_a_content_type(
        self, transport: Transport, server: Emulator
    ) -> None:
        await transport.send(Request("POST", f"{server.base_url}/responses/x/cancel", {"authorization": "Bearer k"}))
        [received] = server.received
        assert received.body == b""
        assert "content-type" not in received.headers
        assert received.headers["content-length"] == "0"

    @pytest.mark.parametrize("segment", ["a%2Fb%2Bc%3D", "%252F", "a%20b", "%C3%A9", "..%2F", "%E2%82%AC"])
    async def test_the_path_and_the_query_are_sent_unchanged(
        self, transport: Transport, server: Emulator, segment: str
    ) -> None:
        await transport.send(Request("GET", f"{server.base_url}/responses/{segment}?q=%2F+%20", {}))
        assert server.received[0].path == f"/v1/responses/{segment}?q=%2F+%20"


class TestAnswer:
    async def test_status_headers_and_body_are_returned(self, transport: Transport, server: Emulator) -> None:
        server.faults.append(Fault(status=418, headers={"X-A": "1"}, body=b"tea"))
        status, headers, body, complete = await transport.send(Request("GET", f"{server.base_url}/x", {}))
        assert (status, headers["x-a"], body, complete) == (418, "1", b"tea", True)

    async def test_a_redirect_is_not_followed(self, transport: Transport, server: Emulator) -> None:
        server.faults.append(Fault(status=303, headers={"Location": f"{server.base_url}/elsewhere"}))
        assert (await transport.send(Request("POST", f"{server.base_url}/x", {})))[0] == 303
        assert len(server.received) == 1

    async def test_a_compressed_body_is_decompressed(self, transport: Transport, server: Emulator) -> None:
        server.faults.append(Fault(status=200, headers={"Content-Encoding": "gzip"}, body=gzip.compress(DOCUMENT)))
        assert (await transport.send(Request("GET", f"{server.base_url}/x", {})))[2] == DOCUMENT

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(status=200, body=b"x" * 1001),
            Fault(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"),
            Fault(status=200, headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"x" * 50_000_000)),
        ],
        ids=["announced", "chunked", "bomb"],
    )
    async def test_a_body_over_the_limit_is_not_read(
        self, transport: Transport, server: Emulator, fault: Fault
    ) -> None:
        server.faults.append(fault)
        assert (await transport.send(Request("GET", f"{server.base_url}/x", {})))[2:] == (b"", False)

    async def test_a_body_at_the_limit_is_read(self, transport: Transport, server: Emulator) -> None:
        server.faults.append(Fault(status=200, body=b"x" * 1000))
        assert (await transport.send(Request("GET", f"{server.base_url}/x", {})))[2:] == (b"x" * 1000, True)

    async def test_a_session_reports_a_body_over_its_limit(self, server: Emulator) -> None:
        async with QuickSession(api_key=KEY, base_url=server.base_url, max_body_bytes=10) as session:
            server.faults.append(Fault(status=200, body=DOCUMENT))
            with pytest.raises(ResponseDecodeError, match="larger than the limit of the session"):
                await session.cancel("x")
            server.faults += [Fault(status=500, body=b"x" * 100)] * 5
            with pytest.raises(InternalServerError):
                await session.cancel("x")


class TestFailures:
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (Fault(cut="connection"), "Server disconnected"),
            (Fault(status=200, body=DOCUMENT, cut="body"), "payload is not completed"),
            (Fault(raw=b"220 smtp.example ESMTP\r\n\r\n"), "No usable answer"),
            (Fault(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "No usable answer"),
            (Fault(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"), "No usable answer"),
            (Fault(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"), "No usable answer"),
            (Fault(raw=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), "No usable answer"),
            (Fault(status=200, headers={"Content-Encoding": "gzip"}, body=b"not gzip"), "No usable answer"),
        ],
        ids=[
            "closed",
            "truncated body",
            "not HTTP",
            "bad chunk",
            "truncated chunk",
            "two lengths",
            "long header",
            "bad gzip",
        ],
    )
    async def test_an_answer_that_is_not_http_or_incomplete_is_a_connection_error(
        self, transport: Transport, server: Emulator, fault: Fault, message: str
    ) -> None:
        server.faults.append(fault)
        with pytest.raises(APIConnectionError, match=message) as caught:
            await transport.send(Request("POST", f"{server.base_url}/x?key={KEY}", {"authorization": KEY}))
        assert not caught.value.permanent
        assert "\n" not in str(caught.value)
        assert KEY not in "".join(traceback.format_exception(caught.value))

    async def test_a_refused_connection_is_named_with_host_and_port(
        self, transport: Transport, unused_tcp_port: int
    ) -> None:
        with pytest.raises(APIConnectionError, match=r"Cannot connect to 127.0.0.1:\d+: Connection refused\."):
            await transport.send(Request("GET", f"http://127.0.0.1:{unused_tcp_port}/", {}))

    async def test_a_host_name_that_cannot_be_resolved_is_reported(self) -> None:
        class Resolver(aiohttp.abc.AbstractResolver):
            async def resolve(self, *_: object, **__: object) -> list[aiohttp.abc.ResolveResult]:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

            async def close(self) -> None:
                pass

        connector = aiohttp.TCPConnector(resolver=Resolver())
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            QuickSession(api_key=KEY, base_url="http://host.invalid:81", client_session=client) as session,
        ):
            with pytest.raises(APIConnectionError, match="Cannot connect to host.invalid:81: Name or service"):
                await session.cancel("x", max_retries=0)

    async def test_a_name_of_a_proxy_that_cannot_be_resolved_is_reported(self) -> None:
        proxy = "http://user:password@proxy.invalid:3128"
        async with QuickSession(api_key=KEY, base_url="https://host.invalid/v1", proxy=proxy) as session:
            with pytest.raises(APIConnectionError, match=r"Cannot connect to the proxy proxy.invalid:3128: "):
                await session.cancel("x", max_retries=0)

    async def test_a_connection_that_is_not_made_in_time_is_a_time_out(self) -> None:
        # The kernel accepts the connection, but the TLS handshake gets no answer.
        transport = open_transport(connect_timeout=0.05)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with pytest.raises(APITimeoutError, match=r"No connection to 127.0.0.1 within 0.05 s"):
                await transport.send(Request("GET", f"https://127.0.0.1:{port}/", {}))
        await transport.close()

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (b"", r"Cannot connect to 127.0.0.1:\d+: The connection was closed before TLS was ready\.$"),
            (
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
                r"failed: .*If this port has no TLS, use http:// in the base URL\.$",
            ),
            (b"\x15\x03\x01\x00\x02\x02\x28", r"failed: .*ALERT_HANDSHAKE_FAILURE.*\)\.$"),
        ],
        ids=["nothing", "no TLS", "an alert"],
    )
    async def test_a_failed_handshake_of_tls_is_explained(self, answer: bytes, words: str) -> None:
        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            writer.write(answer)
            writer.close()

        transport = open_transport()
        async with await asyncio.start_server(respond, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            with pytest.raises(APIConnectionError, match=words):
                await transport.send(Request("GET", f"https://127.0.0.1:{port}/", {}))
        await transport.close()

    async def test_connecting_may_have_no_limit(self, server: Emulator) -> None:
        transport = open_transport(connect_timeout=float("inf"))
        assert (await transport.send(Request("GET", f"{server.base_url}/x", {})))[0] == 401
        await transport.close()


class TestTLS:
    async def test_a_certificate_that_is_not_trusted_is_a_permanent_error(self, secure_url: str) -> None:
        async with QuickSession(api_key=KEY, base_url=secure_url) as session:
            with pytest.raises(
                APIConnectionError, match=r"certificate of 127.0.0.1 is not trusted.*SSL_CERT_FILE"
            ) as caught:
                await session.cancel("x")
            assert caught.value.permanent
            assert caught.value.attempts == 1

    async def test_a_wrong_fingerprint_is_a_permanent_error(self, secure_url: str) -> None:
        connector = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(b"x" * 32))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            AsyncSession(api_key=KEY, base_url=secure_url, client_session=client) as session,
        ):
            with pytest.raises(APIConnectionError, match="is not trusted") as caught:
                await session.cancel("x")
            assert caught.value.permanent

    async def test_ssl_cert_file_names_the_authorities_to_trust(
        self, secure_url: str, authority: Path, python: str
    ) -> None:
        script = f"""
from openai_cancel import Session
with Session(api_key="k", base_url="{secure_url}") as session:
    print(session.cancel("x").status)
"""
        done = await asyncio.to_thread(
            subprocess.run,
            [python, "-c", script],
            env={"SSL_CERT_FILE": str(authority / "authority.pem")},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("cancelled\n", "")


class TestClientOfTheCaller:
    async def test_the_client_is_used_and_not_closed(self, server: Emulator) -> None:
        async with aiohttp.ClientSession(headers={"X-Mine": "1", "Accept": "text/html"}) as client:
            async with AsyncSession(api_key=KEY, base_url=server.base_url, client_session=client) as session:
                with pytest.raises(NotFoundError):
                    await session.retrieve("x")
            assert not client.closed
        headers = server.received[0].headers
        assert (headers["x-mine"], headers["accept"]) == ("1", "application/json")

    async def test_options_of_the_client_do_not_change_the_request(self, server: Emulator) -> None:
        client = aiohttp.ClientSession(
            base_url="http://nowhere.invalid/", raise_for_status=True, auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=1e-9),
        )  # fmt: skip
        server.faults.append(Fault(status=200, headers={"Content-Encoding": "gzip"}, body=gzip.compress(DOCUMENT)))
        server.faults.append(Fault(status=409, body={"error": {"message": "No."}}))
        async with client, AsyncSession(api_key=KEY, base_url=server.base_url, client_session=client) as session:
            assert (await session.cancel("x")).status == "cancelled"
            with pytest.raises(ConflictError, match="409: No."):
                await session.cancel("x")

    @pytest.mark.parametrize("azure", [False, True])
    async def test_the_key_of_the_session_replaces_credentials_of_the_client(
        self, server: Emulator, *, azure: bool
    ) -> None:
        with warnings.catch_warnings(action="ignore"):  # some versions of aiohttp deprecate `auth`
            client = aiohttp.ClientSession(auth=aiohttp.BasicAuth("a", "b"), headers={"X-A": "1"})
        make = AsyncSession.azure if azure else lambda url, **options: AsyncSession(base_url=url, **options)
        async with client, make(server.base_url, api_key=KEY, client_session=client) as session:
            with pytest.raises(NotFoundError):
                await session.retrieve("x")
        headers = server.received[0].headers
        assert headers.get("authorization") == (None if azure else f"Bearer {KEY}")
        assert headers["x-a"] == "1"

    async def test_a_call_after_the_client_was_closed_is_refused(self, server: Emulator) -> None:
        client = aiohttp.ClientSession()
        async with AsyncSession(api_key=KEY, base_url=server.base_url, client_session=client) as session:
            await client.close()
            with pytest.raises(SessionStateError, match=r"aiohttp.ClientSession that it was given, is closed"):
                await session.cancel("x")


class TestNetrc:
    @pytest.fixture(autouse=True)
    def netrc(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "netrc"
        file.write_text("default login somebody password something\n")
        monkeypatch.setenv("NETRC", str(file))

    async def test_an_entry_never_replaces_the_key(self, server: Emulator) -> None:
        async with AsyncSession(api_key=KEY, base_url=server.base_url, max_retries=0) as session:
            with pytest.raises(NotFoundError):
                await session.retrieve("x")
        assert server.received[0].headers["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize("azure", [False, True])
    async def test_an_entry_never_replaces_the_key_in_a_client_that_trusts_the_environment(
        self, server: Emulator, *, azure: bool
    ) -> None:
        methods: list[str] = []

        async def watch(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            methods.append(request.method)
            return await handler(request)

        async with aiohttp.ClientSession(trust_env=True, middlewares=[watch]) as client:
            make = AsyncSession.azure if azure else lambda url, **options: AsyncSession(base_url=url, **options)
            async with make(server.base_url, api_key=KEY, client_session=client) as session:
                with pytest.raises(NotFoundError):
                    await session.retrieve("x")
        headers = server.received[0].headers
        assert headers.get("authorization") == (None if azure else f"Bearer {KEY}")
        assert headers.get("api-key") == (KEY if azure else None)
        assert methods == ["GET"]


class TestProxy:
    @pytest.fixture
    async def proxy(self, python: str, tmp_path: Path) -> AsyncIterator[str]:
        """The URL of a real HTTP proxy, proxy.py, in another process."""
        port_file = tmp_path / "port"
        command = (
            python, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0", "--port-file", str(port_file),
            "--num-workers", "1", "--num-acceptors", "1", "--basic-auth", "user:pass", "--data-dir", str(tmp_path),
        )  # fmt: skip
        quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
        async with running(*command, **quiet) as process:
            while not (port_file.exists() and port_file.read_text().strip()):
                assert process.returncode is None
                await asyncio.sleep(0.02)
            yield f"http://user:pass@127.0.0.1:{int(port_file.read_text())}"

    async def test_a_proxy_comes_from_the_environment_or_from_an_option(
        self, proxy: str, server: Emulator, secure_url: str, authority: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        identifier = "resp_a+b/c="
        monkeypatch.setenv("HTTP_PROXY", proxy)
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            with pytest.raises(NotFoundError, match=f"Response with id '{identifier}' not found".replace("+", r"\+")):
                await session.cancel(identifier)
        assert "proxy.py" in server.received[-1].headers["via"]
        assert server.received[-1].path == "/v1/responses/resp_a%2Bb%2Fc%3D/cancel"

        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            with pytest.raises(NotFoundError):
                await session.cancel(identifier)
        assert "via" not in server.received[-1].headers

        context = ssl.create_default_context(cafile=authority / "authority.pem")
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as client,
            AsyncSession(api_key=KEY, base_url=secure_url, client_session=client, proxy=proxy) as session,
        ):
            assert (await session.cancel("x")).status == "cancelled"

        wrong_password = proxy.replace("user:pass", "user:wrong")
        async with QuickSession(api_key=KEY, base_url=secure_url, proxy=wrong_password) as session:
            with pytest.raises(APIConnectionError, match="The proxy refused to connect to 127.0.0.1: 407") as caught:
                await session.cancel("x")
            assert caught.value.permanent
            assert "wrong" not in "".join(traceback.format_exception(caught.value))

        async with QuickSession(api_key=KEY, base_url=secure_url, proxy="http://127.0.0.1:9", max_retries=0) as session:
            with pytest.raises(APIConnectionError, match="Cannot connect to the proxy 127.0.0.1:9: Connection"):
                await session.cancel("x")


class TestConnectionPool:
    async def test_a_kept_connection_that_the_server_closes_during_a_request_is_replaced(self) -> None:
        """A server may close an idle connection just as the next request is written to it."""
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(DOCUMENT), DOCUMENT))
            with suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")  # keeps the connection open until there is a second request
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with QuickSession(api_key=KEY, base_url=f"http://127.0.0.1:{port}") as session:
            assert (await session.cancel("x")).status == "cancelled"
            assert (await session.cancel("x")).status == "cancelled"
            assert session.clock.slept == [0.5]
        assert connections == 2
        listener.close()
        await asyncio.sleep(0)

    async def test_max_connections_limits_the_connections(self, server: Emulator, create) -> None:
        server.faults += [Fault(delay=0.05)] * 10
        async with (
            FaultProxy(server.base_url) as proxy,
            AsyncSession(api_key=KEY, base_url=proxy.base_url, max_connections=2) as session,
        ):
            await asyncio.gather(*(session.cancel(create()) for _ in range(10)))
        assert proxy.connections == 2


class TestTraceConfigs:
    async def test_trace_configs_are_called(self, server: Emulator, create) -> None:
        methods: list[str] = []
        trace = aiohttp.TraceConfig()

        async def note(_: object, __: object, ended: aiohttp.TraceRequestEndParams) -> None:
            methods.append(ended.method)

        trace.on_request_end.append(note)
        async with AsyncSession(api_key=KEY, base_url=server.base_url, trace_configs=[trace]) as session:
            await session.cancel(create())
        assert methods == ["POST"]

    async def test_trace_configs_cannot_be_combined_with_a_client_of_the_caller(self) -> None:
        async with aiohttp.ClientSession() as client:
            with pytest.raises(ConfigurationError, match="pass them to that client"):
                AsyncSession(api_key=KEY, client_session=client, trace_configs=[aiohttp.TraceConfig()])


class TestABodyThatCannotBeRead:
    """open-responses-server announces gzip, and sends nothing."""

    @pytest.mark.parametrize(
        ("status", "kind"), [(400, BadRequestError), (404, NotFoundError), (503, InternalServerError)]
    )
    @pytest.mark.parametrize("length", [0, 20])
    async def test_an_error_keeps_its_status(self, session, server, status: int, kind: type, length: int) -> None:
        head = f"HTTP/1.1 {status} No\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n"
        server.faults.append(Fault(raw=head.encode()))
        with pytest.raises(kind) as caught:
            await session.cancel("resp_x", max_retries=0)
        assert caught.value.status == status

    async def test_a_success_is_no_usable_answer(self, session, server) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n"
        server.faults.append(Fault(raw=head))
        with pytest.raises(APIConnectionError):
            await session.cancel("resp_x", max_retries=0)


class TestOneAttemptIsOneRequest:
    """aiohttp itself would send a GET again after a disconnect, which the number of attempts would not show."""

    @pytest.fixture
    async def closing(self) -> AsyncIterator[tuple[str, list[str]]]:
        """A server that answers the first request of each connection and closes it after reading the second.

        Yield its URL and the requests that it has read.
        """
        requests: list[str] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(DOCUMENT), DOCUMENT))
            with suppress(asyncio.IncompleteReadError):
                requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", requests
        listener.close()

    @pytest.mark.parametrize("owner", ["session", "caller"])
    @pytest.mark.parametrize("call", ["retrieve", "cancel"])
    async def test_without_retries_a_lost_connection_means_one_request(self, closing, owner: str, call: str) -> None:
        base_url, requests = closing
        async with AsyncExitStack() as opened:
            client = await opened.enter_async_context(aiohttp.ClientSession()) if owner == "caller" else None
            session = await opened.enter_async_context(
                QuickSession(api_key=KEY, base_url=base_url, client_session=client, max_retries=0)
            )
            await session.retrieve("resp_1")
            with pytest.raises(APIConnectionError, match="Server disconnected") as caught:
                await getattr(session, call)("resp_1")
        assert (caught.value.attempts, len(requests)) == (1, 2)

    async def test_a_retry_after_a_lost_connection_is_counted_as_an_attempt(self, closing) -> None:
        base_url, requests = closing
        async with QuickSession(api_key=KEY, base_url=base_url) as session:
            await session.retrieve("resp_1")
            assert (await session.retrieve("resp_1")).attempts == 2
        assert len(requests) == 3

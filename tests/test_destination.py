"""The API key goes to the configured server, in one header, and to no other server or proxy."""

import ssl
from urllib.parse import urlsplit

import pytest
import trustme
from conftest import hasty_session
from exposure import KEY, MARKER, failure, leaks, session_behind
from faults import FaultProxy, NetFault, head, replaced_by
from recorders import recording_proxy, recording_server

from openai_cancel import APIConnectionError, AsyncSession, ConfigurationError
from openai_cancel.emulator import Emulator


class TestDestination:
    @pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
    async def test_the_target_of_a_redirect_receives_nothing(self, server: Emulator, status: int) -> None:
        async with recording_server() as (elsewhere, received):
            answer = head(
                f"HTTP/1.1 {status} Go", f"Location: {elsewhere}/v1/responses/x", f"Refresh: 0; url={elsewhere}",
                f'Alt-Svc: http/1.1="{urlsplit(elsewhere).netloc}"', f"Content-Location: {elsewhere}",
                "Content-Length: 0",
            )  # fmt: skip
            async with session_behind(server, NetFault(sends=replaced_by(answer))) as session:
                assert str(await failure(session.cancel("resp_1"))).startswith(f"{status}: The server redirects")
                assert not (await session.stop("resp_1", deadline=0.6)).stopped
            assert received == b""

    async def test_a_change_of_the_environment_does_not_redirect_an_open_session(
        self, server: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        async with recording_server() as (elsewhere, received), AsyncSession() as session:
            monkeypatch.setenv("OPENAI_BASE_URL", elsewhere)
            monkeypatch.setenv("HTTP_PROXY", elsewhere)
            assert (await session.cancel(server.add())).status == "cancelled"
            assert received == b""

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
    async def test_a_proxy_for_https_does_not_receive_the_key(
        self, server: Emulator, monkeypatch: pytest.MonkeyPatch, variable: str | None, *, password: bool, azure: bool
    ) -> None:
        """It learns the address of the server, and its own password, which the server does not receive."""
        authority = trustme.CA()
        client_context = ssl.create_default_context()
        authority.configure_trust(client_context)
        server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(server_context)
        async with recording_proxy() as (origin, received), FaultProxy(server.base_url, tls=server_context) as secure:
            proxy = origin.replace("http://", f"http://user:{MARKER[::-1]}@") if password else origin
            if variable:
                monkeypatch.setenv(variable, proxy)
            make = AsyncSession.azure if azure else lambda url, **options: AsyncSession(base_url=url, **options)
            async with make(secure.base_url, api_key=KEY, proxy=None if variable else proxy) as session:
                # A proxy from the environment needs the session's own client, whose TLS context has no public option.
                session.caller.transport.client.connector._ssl = client_context
                await failure(session.cancel(server.add()))
            request, _, rest = received.partition(b"\r\n\r\n")
            assert request.startswith(f"CONNECT {urlsplit(secure.base_url).netloc} HTTP/1.1\r\n".encode())
            assert (b"proxy-authorization" in request.lower()) is password
            assert b"\r\nauthorization" not in request.lower()
            assert rest
            assert MARKER.encode() not in received
        [delivered] = server.received
        assert delivered.headers.get("api-key") == (KEY if azure else None)
        assert delivered.headers.get("authorization") == (None if azure else f"Bearer {KEY}")
        assert "proxy-authorization" not in delivered.headers
        assert MARKER[::-1] not in str(delivered)

    @pytest.mark.parametrize("status", [200, 302, 403, 407, 500])
    async def test_a_proxy_that_refuses_the_connection_does_not_receive_the_key(
        self, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = head(
            f"HTTP/1.1 {status} Hm", "Location: https://127.0.0.1:9/", "Content-Length: 0", "Connection: close"
        )
        async with recording_server(answer + b"garbage") as (proxy, received):
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            async with hasty_session(api_key=KEY, base_url="https://secure.invalid/v1", max_retries=1) as session:
                error = await failure(session.cancel("resp_1"))
            assert isinstance(error, APIConnectionError)
            assert leaks(error) == []
            assert received.startswith(b"CONNECT secure.invalid:443 ")
            assert MARKER.encode() not in received

    async def test_a_host_in_no_proxy_is_reached_without_the_proxy(
        self, server: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with recording_server() as (proxy, received):
            monkeypatch.setenv("HTTP_PROXY", proxy)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
                assert (await session.cancel(server.add())).status == "cancelled"
            assert received == b""

    @pytest.mark.parametrize("azure", [False, True])
    async def test_the_key_is_in_one_header_and_nowhere_else(self, *, azure: bool) -> None:
        async with recording_server() as (origin, received):
            make = AsyncSession.azure if azure else lambda url, **options: AsyncSession(base_url=url, **options)
            async with make(origin, api_key=KEY, max_retries=0, query={"a": "b"}) as session:
                for call in (session.cancel("resp_1"), session.retrieve("resp_1")):
                    await failure(call)
            lines = [line for line in received.decode().split("\r\n") if MARKER in line]
        assert [line.lower().partition(":")[0] for line in lines] == ["api-key" if azure else "authorization"] * 2

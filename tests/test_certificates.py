"""Certificate authorities from the environment, and the advice about certificates that are not trusted."""

import datetime as dt
import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import aiohttp
import pytest
import trustme
from aiohttp import web
from conftest import KEY, hasty_session

from openai_cancel import APIConnectionError, AsyncSession, transport
from openai_cancel.certificates import trusted_authorities

DOCUMENT = b'{"id": "resp_1", "status": "cancelled"}'


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


@pytest.fixture(params=["file", "directory"])
def trust(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[trustme.CA], None]:
    """Trust an authority through a variable of the environment."""

    def trust(authority: trustme.CA) -> None:
        if request.param == "file":
            authority.cert_pem.write_to_path(tmp_path / "authority.pem")
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        else:
            # OpenSSL finds an authority by the hash of its name. All authorities of trustme have names of their own.
            name = tmp_path / "authority.pem"
            authority.cert_pem.write_to_path(name)
            (tmp_path / f"{_name_hash(name)}.0").write_bytes(authority.cert_pem.bytes())
            monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'other'}:{tmp_path}")

    return trust


def _name_hash(path: Path) -> str:
    done = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", str(path)], capture_output=True, text=True, timeout=50, check=True
    )
    return done.stdout.strip()


@asynccontextmanager
async def serving(certificate: trustme.LeafCert) -> AsyncIterator[str]:
    """A server behind TLS; yields its base URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=DOCUMENT)

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def refusal(base_url: str, **options: object) -> str:
    async with hasty_session(api_key=KEY, base_url=base_url, **options) as session:
        with pytest.raises(APIConnectionError, match="is not trusted") as caught:
            await session.cancel("x")
    assert (caught.value.permanent, caught.value.attempts) == (True, 1)
    return str(caught.value)


async def test_variables_that_are_set_after_the_import_count(trust, authority: trustme.CA) -> None:
    """As with `load_dotenv()`. aiohttp has read them as it was imported."""
    async with serving(authority.issue_cert("127.0.0.1")) as base_url:
        assert "issued it" in await refusal(base_url)
        trust(authority)
        async with AsyncSession(api_key=KEY, base_url=base_url) as session:
            assert (await session.cancel("x")).status == "cancelled"


async def test_a_file_that_changes_is_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: trustme.CA
) -> None:
    file = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    async with serving(authority.issue_cert("127.0.0.1")) as base_url:
        assert "open another session" in await refusal(base_url)
        authority.cert_pem.write_to_path(file, append=True)
        async with AsyncSession(api_key=KEY, base_url=base_url) as session:
            assert (await session.cancel("x")).status == "cancelled"


async def test_a_file_that_was_replaced_is_read_again_although_its_time_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: trustme.CA
) -> None:
    """As with `cp -p`, and in images whose files all have the same time."""
    file, other = tmp_path / "authority.pem", tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(file)
    authority.cert_pem.write_to_path(other)
    os.utime(file, (0, 0))
    os.utime(other, (0, 0))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    async with serving(authority.issue_cert("127.0.0.1")) as base_url:
        await refusal(base_url)
        other.replace(file)
        async with AsyncSession(api_key=KEY, base_url=base_url) as session:
            assert (await session.cancel("x")).status == "cancelled"


class TestTheContext:
    def test_without_a_variable_it_is_the_one_of_aiohttp(self) -> None:
        assert trusted_authorities() is None

    def test_it_is_made_once(self, trust, authority: trustme.CA) -> None:
        trust(authority)
        assert trusted_authorities() is trusted_authorities()

    async def test_a_session_for_http_creates_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "trusted_authorities", Mock(side_effect=AssertionError))
        async with AsyncSession(api_key=KEY, base_url="http://127.0.0.1:9"):
            pass


class TestAdvice:
    async def test_the_error_for_an_unknown_authority_names_the_variables(self, authority: trustme.CA) -> None:
        async with serving(authority.issue_cert("127.0.0.1")) as base_url:
            assert (await refusal(base_url)).endswith(
                "set SSL_CERT_FILE to a file with that authority's certificates, and open another session."
            )

    @pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
    async def test_the_error_for_a_file_that_cannot_be_read_names_its_variable(
        self, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
    ) -> None:
        monkeypatch.setenv(variable, str(tmp_path / "missing"))
        async with serving(authority.issue_cert("127.0.0.1")) as base_url:
            assert f"{variable} is set to {tmp_path}/missing, which cannot be read" in await refusal(base_url)

    @pytest.mark.parametrize("content", ["", "hello", None], ids=["empty", "text", "folder"])
    async def test_a_file_without_certificates(
        self, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
    ) -> None:
        path = tmp_path / "authorities"
        if content is None:
            path.mkdir()
        else:
            path.write_text(content)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        async with serving(authority.issue_cert("127.0.0.1")) as base_url:
            assert f"SSL_CERT_FILE is set to {path}, which has no certificates" in await refusal(base_url)

    async def test_a_proxy_whose_authority_is_not_trusted(self, authority: trustme.CA) -> None:
        async with serving(authority.issue_cert("127.0.0.1")) as proxy:
            message = await refusal("http://host.invalid/v1", proxy=proxy)
        assert message.startswith("The certificate of the proxy 127.0.0.1 is not trusted: ")
        assert message.endswith(
            "set SSL_CERT_FILE to a file with that authority's certificates, and open another session."
        )

    async def test_a_proxy_with_a_certificate_for_another_host(self, trust, authority: trustme.CA) -> None:
        trust(authority)
        async with serving(authority.issue_cert("127.0.0.2")) as proxy:
            message = await refusal("https://host.invalid/v1", proxy=proxy)
        assert message.startswith("The certificate of the proxy 127.0.0.1 is not trusted: ")
        assert message.endswith("Use a host in the URL of the proxy that the certificate names.")

    async def test_the_error_for_a_wrong_host_says_to_change_the_base_url(self, trust, authority: trustme.CA) -> None:
        trust(authority)
        async with serving(authority.issue_cert("127.0.0.2")) as base_url:
            assert "Use a host in the base URL that the certificate names." in await refusal(base_url)
            url = base_url.replace("127.0.0.1", "localhost")
            assert "Use a host in the base URL that the certificate names." in await refusal(url)

    async def test_the_error_for_an_expired_certificate_says_so(self, trust, authority: trustme.CA) -> None:
        trust(authority)
        past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
        async with serving(authority.issue_cert("127.0.0.1", not_after=past)) as base_url:
            assert "Renew it, or set the clock of this machine." in await refusal(base_url)

    async def test_the_error_of_a_client_session_says_that_it_has_its_own_authorities(
        self, trust, authority: trustme.CA
    ) -> None:
        trust(authority)
        async with serving(authority.issue_cert("127.0.0.1")) as base_url, aiohttp.ClientSession() as client:
            assert "pass an ssl context" in await refusal(base_url, client_session=client)
            context = ssl.create_default_context()
            connector = aiohttp.TCPConnector(ssl=context)
            async with (
                aiohttp.ClientSession(connector=connector) as advised,
                AsyncSession(api_key=KEY, base_url=base_url, client_session=advised) as session,
            ):
                assert (await session.cancel("x")).status == "cancelled"

    async def test_the_error_for_another_fingerprint_says_so(self, authority: trustme.CA) -> None:
        connector = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(b"x" * 32))
        async with (
            serving(authority.issue_cert("127.0.0.1")) as base_url,
            aiohttp.ClientSession(connector=connector) as client,
        ):
            assert "Check the fingerprint" in await refusal(base_url, client_session=client)

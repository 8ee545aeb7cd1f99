"""Secrets in URLs, and in the arguments of key functions, do not show in the traceback of an error."""

import asyncio
import functools
import operator
import socket
from collections.abc import Callable
from typing import Any

import openai
import pytest
from exposure import MARKER, leaks

from openai_cancel import AsyncSession, ConfigurationError, OpenAICancelError, Session
from openai_cancel.secret_values import hidden


def key_with(secret: str) -> str:
    raise LookupError(f"no key for {len(secret)} characters")


async def async_key_with(secret: str) -> str:
    raise LookupError(f"no key for {len(secret)} characters")


class Vault:
    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return f"Vault({self.secret!r})"

    def key(self) -> str:
        raise LookupError("the vault is closed")

    async def __call__(self) -> str:
        raise LookupError("the vault is closed")


# A local variable with these values would show in the traceback, so the tests refer to them by name.
URLS: dict[str, Any] = {
    "query": f"http://127.0.0.1:1/v1?code={MARKER}",
    "fragment": f"https://host/v1?code={MARKER}#a",
    "user": f"https://user:{MARKER}@host/v1",
    "port": f"https://host:x/v1?code={MARKER}",
    "scheme": f"ftp://host/v1?code={MARKER}",
    "white space": f"https://host/v1?code={MARKER} x",
    "path": f"https://host/v1/responses?code={MARKER}",
    "bytes": f"https://host/v1?code={MARKER}".encode(),
}
PROXIES: dict[str, Any] = {
    "password": f"http://user:{MARKER}@127.0.0.1:1",
    "scheme": f"socks5://user:{MARKER}@127.0.0.1:1",
    "port": f"http://user:{MARKER}@127.0.0.1:x",
    "bytes": f"http://user:{MARKER}@127.0.0.1:1".encode(),
}
KEYS: dict[str, Callable[[], Any]] = {
    "partial": functools.partial(key_with, MARKER),
    "partial of a coroutine function": functools.partial(async_key_with, MARKER),
    "method": Vault(MARKER).key,
    "object": Vault(MARKER),
    "lambda": lambda secret=MARKER: key_with(secret),
}
BAD: dict[str, dict[str, Any]] = {
    "timeout": {"timeout": -1},
    "header": {"headers": {"a b": "c"}},
    "parameter": {"query": {"a": "\n"}},
    "ledger": {"ledger": 5},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    **{f"url: {name}": {"base_url": url} for name, url in URLS.items()},
    **{f"proxy: {name}": {"proxy": proxy} for name, proxy in PROXIES.items()},
    **{f"key: {name}": {"api_key": function} for name, function in KEYS.items()},
    **{f"token: {name}": {"token_provider": function, "api_key": None} for name, function in KEYS.items()},
    **BAD,
    "https": {"base_url": "https://host.invalid/v1"},
    "variable": {"base_url": None},
}
DEFAULTS = {"base_url": "http://127.0.0.1:1/v1", "api_key": "any"}


def new(kind: type, *cases: str) -> AsyncSession | Session:
    return kind(**functools.reduce(operator.or_, (OPTIONS[case] for case in cases), DEFAULTS))


def azure(kind: type, *cases: str) -> AsyncSession | Session:
    return kind.azure(**as_endpoint(functools.reduce(operator.or_, (OPTIONS[case] for case in cases), DEFAULTS)))


def as_endpoint(options: dict[str, Any]) -> dict[str, Any]:
    return {"endpoint" if name == "base_url" else name: value for name, value in options.items()}


def from_openai(kind: type, case: str, *cases: str) -> AsyncSession | Session:
    client = openai.OpenAI(**DEFAULTS | (OPTIONS[case] if case.startswith("url") else {}))
    if case.startswith("url"):
        return kind.from_openai(client, **functools.reduce(operator.or_, (OPTIONS[case] for case in cases), {}))
    return kind.from_openai(client, **functools.reduce(operator.or_, (OPTIONS[case] for case in cases), OPTIONS[case]))


async def failure_of(make: Callable[..., AsyncSession | Session], kind: type, *cases: str) -> BaseException:
    """Return the error of making a session or of a call with it."""
    with pytest.raises((OpenAICancelError, LookupError)) as caught:
        await use(make(kind, *cases))
    return caught.value


async def use(session: AsyncSession | Session) -> None:
    if isinstance(session, AsyncSession):
        async with session:
            await session.cancel("resp_1", max_retries=0)
    else:
        with session:
            session.cancel("resp_1", max_retries=0)


@pytest.mark.parametrize("kind", [AsyncSession, Session])
class TestUrls:
    @pytest.mark.parametrize("case", URLS)
    @pytest.mark.parametrize("make", [new, azure])
    async def test_a_secret_in_the_base_url_does_not_show(self, kind: type, make, case: str) -> None:
        assert leaks(await failure_of(make, kind, f"url: {case}")) == []

    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("make", [new, azure, from_openai])
    async def test_another_option_that_is_refused_shows_no_secret_in_the_base_url(
        self, kind: type, make, bad: str
    ) -> None:
        error = await failure_of(make, kind, "url: query", bad)
        assert isinstance(error, ConfigurationError)
        assert leaks(error) == []

    @pytest.mark.parametrize("case", ["query", "fragment", "path"])
    async def test_a_secret_in_the_base_url_of_an_openai_client_does_not_show(self, kind: type, case: str) -> None:
        assert leaks(await failure_of(from_openai, kind, f"url: {case}")) == []

    @pytest.mark.parametrize("case", [name for name in URLS if name != "bytes"])
    @pytest.mark.parametrize(("make", "variable"), [(new, "OPENAI_BASE_URL"), (azure, "AZURE_OPENAI_ENDPOINT")])
    async def test_a_secret_in_a_url_of_the_environment_does_not_show(
        self, monkeypatch: pytest.MonkeyPatch, kind: type, *, make, variable: str, case: str
    ) -> None:
        monkeypatch.setenv(variable, URLS[case])
        assert leaks(await failure_of(make, kind, "variable")) == []

    @pytest.mark.parametrize("case", PROXIES)
    @pytest.mark.parametrize("make", [new, azure, from_openai])
    async def test_the_password_of_a_proxy_does_not_show(self, kind: type, make, case: str) -> None:
        assert leaks(await failure_of(make, kind, f"proxy: {case}")) == []

    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("make", [new, azure, from_openai])
    async def test_another_option_that_is_refused_shows_no_password_of_a_proxy(
        self, kind: type, make, bad: str
    ) -> None:
        error = await failure_of(make, kind, "proxy: password", bad)
        assert isinstance(error, ConfigurationError)
        assert leaks(error) == []

    @pytest.mark.parametrize("case", [name for name in PROXIES if name != "bytes"])
    async def test_the_password_of_a_proxy_of_the_environment_does_not_show(
        self, monkeypatch: pytest.MonkeyPatch, kind: type, case: str
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", PROXIES[case])
        assert leaks(await failure_of(new, kind, "https")) == []


@pytest.mark.parametrize("by", ["the session", "the caller"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_does_not_answer_shows_no_password(scheme: str, by: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = hidden(f"http://user:{MARKER}@127.0.0.1:{listener.getsockname()[1]}")
        base_url = f"{scheme}://host.invalid/v1?signature={MARKER}"
        async with AsyncSession(api_key="any", base_url=hidden(base_url), proxy=proxy) as session:
            del base_url
            with pytest.raises(TimeoutError) as caught:
                if by == "the session":
                    await session.cancel("resp_1", max_retries=0, timeout=0.1)
                else:
                    await asyncio.wait_for(session.cancel("resp_1"), 0.1)
    assert leaks(caught.value) == []


@pytest.mark.parametrize("kind", [AsyncSession, Session])
@pytest.mark.parametrize("case", KEYS)
class TestKeyFunctions:
    @pytest.mark.parametrize(("make", "option"), [(new, "key"), (azure, "key"), (azure, "token")])
    async def test_a_failing_key_function_shows_no_argument_in_our_frames(
        self, kind: type, make, option: str, case: str
    ) -> None:
        error = await failure_of(make, kind, f"{option}: {case}")
        assert isinstance(error, LookupError)
        theirs = ("secret = ", "self = Vault(")  # the function's own locals
        assert [line for line in leaks(error) if not any(local in line for local in theirs)] == []

    @pytest.mark.parametrize(("make", "option"), [(new, "key"), (azure, "key"), (azure, "token")])
    async def test_another_option_that_is_refused_shows_no_argument(
        self, kind: type, make, option: str, case: str
    ) -> None:
        error = await failure_of(make, kind, f"{option}: {case}", "timeout")
        assert isinstance(error, ConfigurationError)
        assert leaks(error) == []

"""Secrets among the `headers` and the `query` of any call or constructor do not show in the traceback of an error."""

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import create_autospec

import openai
import pytest
from conftest import HastyClock
from exposure import MARKER, leaks

from openai_cancel import AsyncSession, ConfigurationError, OpenAICancelError, Outcome, Session, WaitTimeoutError

# A local variable with these values would show in the traceback, so the tests refer to them by name.
OPTIONS: dict[str, dict[str, Any]] = {
    "headers": {"headers": {"X-Secret": MARKER}},
    "query": {"query": {"secret": MARKER}},
}
REFUSED: dict[str, dict[str, Any]] = {
    "bad name after a secret header": {"headers": {"X-Secret": MARKER, "a b": "c"}},
    "bad name before a secret header": {"headers": {"a b": "c", "X-Secret": MARKER}},
    "line break in a secret header": {"headers": {"X-Secret": f"{MARKER}\n"}},
    "bytes as a secret header": {"headers": {"X-Secret": MARKER.encode()}},
    "pairs instead of a mapping of headers": {"headers": [("X-Secret", MARKER)]},
    "bad header beside a secret parameter": {"headers": {"a b": "c"}, "query": {"secret": MARKER}},
    "bad parameter after a secret one": {"query": {"secret": MARKER, "bad": "\n"}},
    "line break in a secret parameter": {"query": {"secret": f"{MARKER}\n"}},
    "list as a secret parameter": {"query": {"secret": [MARKER]}},
    "text instead of a mapping of parameters": {"query": f"secret={MARKER}"},
    "bad parameter beside a secret header": {"headers": {"X-Secret": MARKER}, "query": {"bad": "\n"}},
}
CASES = OPTIONS | REFUSED

LIMITS: dict[str, dict[str, float]] = {
    "cancel": {"max_retries": 0},
    "retrieve": {"max_retries": 0},
    "stop": {"deadline": 0.6, "max_retries": 0},
    "guard": {"grace": 0.6, "max_retries": 0},
    "wait": {"timeout": 0.01, "grace": 0.6, "max_retries": 0},
    "stop_many": {"deadline": 0.6, "max_retries": 0},
}
"""The calls, and options with which each fails quickly."""


def missing_key() -> str:
    raise LookupError("no key today")


async def call_async(session: AsyncSession, call: str, case: str = "") -> None:
    """Make a call with the options of a case, and raise the error that it raises or reports."""
    result: Any
    if call == "guard":
        async with session.guard("resp_1", **LIMITS[call], **CASES.get(case, {})):
            raise ZeroDivisionError
    elif call == "stop_many":
        result = await anext(session.stop_many(["resp_1"], **LIMITS[call], **CASES.get(case, {})))
    else:
        result = await getattr(session, call)("resp_1", **LIMITS[call], **CASES.get(case, {}))
    raise_error_of(result)


def call_blocking(session: Session, call: str, case: str = "") -> None:
    """Make a blocking call with the options of a case, and raise the error that it raises or reports."""
    result: Any
    if call == "guard":
        with session.guard("resp_1", **LIMITS[call], **CASES.get(case, {})):
            raise ZeroDivisionError
    elif call == "stop_many":
        result = next(session.stop_many(["resp_1"], **LIMITS[call], **CASES.get(case, {})))
    else:
        result = getattr(session, call)("resp_1", **LIMITS[call], **CASES.get(case, {}))
    raise_error_of(result)


def raise_error_of(outcome: Outcome) -> None:
    assert outcome.error is not None
    raise outcome.error


async def error_of(kind: type, call: str, case: str, **options: Any) -> BaseException:
    """Return the error of a call in a session of a kind."""
    with pytest.raises((OpenAICancelError, LookupError, ZeroDivisionError)) as caught:
        if kind is AsyncSession:
            async with AsyncSession(clock=HastyClock(), **options) as session:
                await call_async(session, call, case)
        else:
            with Session(clock=HastyClock(), **options) as session:
                call_blocking(session, call, case)
    return caught.value


@pytest.fixture
def closed_url(unused_tcp_port: int) -> str:
    """The URL of a port at which no server listens."""
    return f"http://127.0.0.1:{unused_tcp_port}"


@pytest.mark.parametrize("kind", [AsyncSession, Session])
@pytest.mark.parametrize("call", LIMITS)
class TestOptionsOfACall:
    @pytest.mark.parametrize("case", REFUSED)
    async def test_an_option_that_is_refused_shows_no_secret_of_the_others(
        self, closed_url: str, kind: type, call: str, case: str
    ) -> None:
        error = await error_of(kind, call, case, api_key="any", base_url=closed_url)
        assert isinstance(error, ConfigurationError)
        assert leaks(error) == []

    @pytest.mark.parametrize("case", OPTIONS)
    async def test_a_server_that_cannot_be_reached_shows_no_secret(
        self, closed_url: str, kind: type, call: str, case: str
    ) -> None:
        error = await error_of(kind, call, case, api_key="any", base_url=closed_url)
        assert isinstance(error, OpenAICancelError | ZeroDivisionError)
        assert leaks(error) == []

    @pytest.mark.parametrize("case", OPTIONS)
    async def test_a_key_function_that_fails_shows_no_secret(
        self, closed_url: str, kind: type, call: str, case: str
    ) -> None:
        error = await error_of(kind, call, case, api_key=missing_key, base_url=closed_url)
        assert isinstance(error, LookupError | ZeroDivisionError | WaitTimeoutError)  # the wait may end first
        assert leaks(error) == []


@pytest.mark.parametrize("call", ["cancel", "retrieve", "stop", "wait"])
def test_an_option_that_is_misspelt_shows_no_secret(call: str) -> None:
    session = AsyncSession(api_key="any")
    with pytest.raises(TypeError) as caught:
        getattr(session, call)("resp_1", header=OPTIONS["headers"]["headers"])
    assert leaks(caught.value) == []


def new(kind: type, url: str, case: str, **options: Any) -> AsyncSession | Session:
    return kind(base_url=url, **{"api_key": "any"} | options, **CASES[case])


def azure(kind: type, url: str, case: str, **options: Any) -> AsyncSession | Session:
    return kind.azure(url, **{"api_key": "any"} | options, **CASES[case])


def from_openai(kind: type, url: str, case: str, *, api_key: Any = "any", **options: Any) -> AsyncSession | Session:
    return kind.from_openai(openai.OpenAI(api_key=api_key, base_url=url), **options, **CASES[case])


def from_openai_with_defaults(
    kind: type, url: str, case: str, *, api_key: Any = "any", **options: Any
) -> AsyncSession | Session:
    defaults = {"default_headers": CASES[case].get("headers"), "default_query": CASES[case].get("query")}
    client = openai.OpenAI(api_key=api_key, base_url=url, **defaults)
    del defaults
    return kind.from_openai(client, **options)


Make = Callable[..., AsyncSession | Session]
CONSTRUCTORS = [new, azure, from_openai, from_openai_with_defaults]


@pytest.mark.parametrize("kind", [AsyncSession, Session])
class TestOptionsOfAConstructor:
    @pytest.mark.parametrize("make", CONSTRUCTORS[:3])
    @pytest.mark.parametrize("case", REFUSED)
    def test_an_option_that_is_refused_shows_no_secret_of_the_others(self, kind: type, make: Make, case: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            make(kind, "https://host", case)
        assert leaks(caught.value) == []

    @pytest.mark.parametrize("make", CONSTRUCTORS)
    @pytest.mark.parametrize("case", OPTIONS)
    def test_another_option_that_is_refused_shows_no_secret(self, kind: type, make: Make, case: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            make(kind, "https://host", case, timeout=-1)
        assert leaks(caught.value) == []

    @pytest.mark.parametrize("make", CONSTRUCTORS)
    @pytest.mark.parametrize("case", ["headers", "query"])
    @pytest.mark.parametrize("failing", ["server", "key function"])
    async def test_a_call_that_fails_shows_no_secret_of_the_session(
        self, closed_url: str, kind: type, make: Make, case: str, failing: str
    ) -> None:
        session = make(kind, closed_url, case, api_key="any" if failing == "server" else missing_key)
        with pytest.raises((OpenAICancelError, LookupError)) as caught:
            if isinstance(session, AsyncSession):
                async with session:
                    await call_async(session, "cancel")
            else:
                with session:
                    call_blocking(session, "cancel")
        assert leaks(caught.value) == []


@pytest.mark.parametrize("call", ["cancel", "retrieve", "stop", "wait"])
class TestBeforeTheFirstStep:
    @pytest.mark.parametrize("case", OPTIONS)
    async def test_a_call_that_is_cancelled_shows_no_secret(self, closed_url: str, call: str, case: str) -> None:
        async with AsyncSession(api_key="any", base_url=closed_url) as session:
            task = asyncio.create_task(getattr(session, call)("resp_1", **OPTIONS[case]))
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
        assert caught.traceback[-1].name == call
        assert leaks(caught.value) == []

    @pytest.mark.parametrize("case", OPTIONS)
    async def test_an_argument_that_does_not_exist_shows_no_secret(self, call: str, case: str) -> None:
        session = AsyncSession(api_key="any")
        with pytest.raises(TypeError, match=rf"AsyncSession\.{call}\(\) got an unexpected keyword") as caught:
            getattr(session, call)("resp_1", tiemout=1, **OPTIONS[case])
        assert leaks(caught.value) == []

    async def test_frameworks_and_mocks_see_a_coroutine_function(self, call: str) -> None:
        assert is_coroutine_function(getattr(AsyncSession, call))
        assert is_coroutine_function(getattr(AsyncSession(api_key="any"), call))
        session = create_autospec(AsyncSession, instance=True)
        await getattr(session, call)("resp_1")  # it would raise if the mock returned no coroutine


def is_coroutine_function(function: Any) -> bool:
    """Return what a framework finds out about a function, which depends on the version of Python."""
    return (inspect if sys.version_info >= (3, 12) else asyncio).iscoroutinefunction(function)

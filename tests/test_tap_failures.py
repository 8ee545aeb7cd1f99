"""Code of the user that raises after the server has created a response: the call fails, and the response is stopped."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import httpx2
import openai
import pytest
from conftest import KEY, cancels, until
from openai_clients import REQUEST, async_client, inside, states

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class CarelessError(Exception):
    """An error of the user's code."""


FAILURES = (CarelessError, httpx2.ResponseNotRead, openai.APIConnectionError)  # clients may wrap it


def fail(*_: object) -> None:
    raise CarelessError


class FailingAuth(httpx2.Auth):
    """An authentication that raises when it has its answer."""

    def auth_flow(self, request: httpx2.Request) -> Iterator[httpx2.Request]:
        yield request
        raise CarelessError


class FailingClient(httpx2.Client):
    """A client whose method raises when it has its answer."""

    def send(self, request: Any, **options: Any) -> Any:
        super().send(request, **options).close()
        raise CarelessError


class FailingAsyncClient(httpx2.AsyncClient):
    """The same for asyncio."""

    async def send(self, request: Any, **options: Any) -> Any:
        await (await super().send(request, **options)).aclose()
        raise CarelessError


async def look(answer: Any) -> None:
    answer.json()  # which httpx allows only when the body was read


async def fail_async(_: object) -> None:
    raise CarelessError


ASYNC: dict[str, Callable[[], Any]] = {
    "a hook that looks at a body that it has not read": lambda: httpx2.AsyncClient(event_hooks={"response": [look]}),
    "a hook": lambda: httpx2.AsyncClient(event_hooks={"response": [fail_async]}),
    "an authentication": lambda: httpx2.AsyncClient(auth=FailingAuth()),
    "a subclass": FailingAsyncClient,
}
BLOCKING: dict[str, Callable[[], Any]] = {
    "a hook": lambda: httpx2.Client(event_hooks={"response": [fail]}),
    "an authentication": lambda: httpx2.Client(auth=FailingAuth()),
    "a subclass": FailingClient,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ASYNC)
async def test_what_a_failed_call_has_created_is_stopped_at_once(
    server: Emulator, session: AsyncSession, kind: str, *, stream: bool
) -> None:
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=server.base_url, http_client=ASYNC[kind](), max_retries=0
    ) as client:
        before = inside(client)
        async with session.guard(client):
            with pytest.raises(FAILURES):
                await client.responses.create(**REQUEST, stream=stream)
            await until(lambda: states(server) == ["cancelled"])
        assert inside(client) == before


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", BLOCKING)
async def test_what_a_failed_call_of_a_blocking_client_has_created_is_stopped_at_once(
    server: Emulator, session: AsyncSession, kind: str, *, stream: bool
) -> None:
    with openai.OpenAI(api_key=KEY, base_url=server.base_url, http_client=BLOCKING[kind](), max_retries=0) as client:
        before = inside(client)
        async with session.guard(client):
            with pytest.raises(FAILURES):
                await asyncio.to_thread(client.responses.create, **REQUEST, stream=stream)
            await until(lambda: states(server) == ["cancelled"])
        assert inside(client) == before


@pytest.fixture
async def client(server: Emulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(server) as client:
        yield client


async def test_hooks_that_are_set_meanwhile_are_kept(
    server: Emulator, session: AsyncSession, client: openai.AsyncOpenAI
) -> None:
    async with session.guard(client):
        client._client.event_hooks = {"response": [fail_async]}
        with pytest.raises(FAILURES):
            await client.responses.create(**REQUEST)
        await until(lambda: states(server) == ["cancelled"])
    assert client._client.event_hooks == {"request": [], "response": [fail_async]}


async def test_a_variable_that_a_hook_sets_is_set_for_the_caller(session: AsyncSession, server: Emulator) -> None:
    request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

    async def note(answer: httpx2.Response) -> None:
        request_id.set(answer.headers["x-request-id"])

    inner = httpx2.AsyncClient(event_hooks={"response": [note]})
    async with (
        openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, http_client=inner) as client,
        session.guard(client),
    ):
        answer = await client.responses.with_raw_response.create(**REQUEST)
    assert request_id.get() == answer.headers["x-request-id"]


async def test_other_requests_of_a_client_pass_its_hooks(session: AsyncSession, client: openai.AsyncOpenAI) -> None:
    seen = []

    async def see(answer: Any) -> None:
        seen.append(answer.request.method)

    client._client.event_hooks["response"].append(see)
    async with session.guard(client):
        client._client.event_hooks["response"].append(see)
        created = await client.responses.create(**REQUEST)
        await client.responses.retrieve(created.id)
    assert seen == ["POST", "POST", "GET", "GET"]
    assert client._client.event_hooks["response"] == [see, see]


async def test_a_hook_may_read_the_body_and_fail(
    server: Emulator, session: AsyncSession, client: openai.AsyncOpenAI
) -> None:
    async def read(answer: Any) -> None:
        assert (await answer.aread()).startswith(b"{")
        raise CarelessError

    client._client.event_hooks["response"].append(read)
    async with session.guard(client):
        with pytest.raises(FAILURES):
            await client.responses.create(**REQUEST)
        await until(lambda: states(server) == ["cancelled"])


async def test_a_call_that_is_cancelled_and_then_fails_has_its_response_stopped_once(
    server: Emulator, session: AsyncSession, client: openai.AsyncOpenAI
) -> None:
    async def wait_and_fail(_: object) -> None:
        await cancelled.wait()
        raise CarelessError

    cancelled = asyncio.Event()
    client._client.event_hooks["response"].append(wait_and_fail)
    async with session.guard(client) as guard:
        creating = asyncio.create_task(client.responses.create(**REQUEST))
        await until(lambda: guard.armed)
        creating.cancel()
        await asyncio.wait([creating])
        cancelled.set()
        await until(lambda: states(server) == ["cancelled"])
    assert cancels(server) == 2  # the creation, and one cancel


async def test_guards_in_a_guard_see_an_answer_once(
    server: Emulator, session: AsyncSession, client: openai.AsyncOpenAI
) -> None:
    async with session.guard(client) as outer, session.guard(client) as inner:
        created = await client.responses.create(**REQUEST)
        assert outer.armed
        assert inner.armed
        assert await client.responses.cancel(created.id)
    assert states(server) == ["cancelled"]

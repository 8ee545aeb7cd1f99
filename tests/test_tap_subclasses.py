"""Clients whose `send` somebody has written anew: it gets what it asked for, and what it creates is seen."""

import asyncio
import functools
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from conftest import KEY
from openai_clients import REQUEST, async_client, states

from openai_cancel import AsyncSession, LedgerError
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class ReadingClient(httpx2.AsyncClient):
    """A client that looks at each body, as a log does."""

    async def send(self, request: Any, **options: Any) -> Any:
        answer = await super().send(request, **options)
        assert answer.text
        return answer


class RetryingClient(httpx2.AsyncClient):
    """A client that makes a request again if the connection fails, or the answer says that it has failed."""

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        while True:
            try:
                answer = await super().send(request, stream=stream, **options)
            except httpx2.TransportError:
                continue
            if answer.json()["status"] != "failed":
                return answer


class ForgetfulClient(httpx2.AsyncClient):
    """A client that drops all event hooks, and leaves the body to its caller."""

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        assert not stream
        self.event_hooks = {}
        return await super().send(request, stream=True, **options)


class ForgetfulBlockingClient(httpx2.Client):
    """The same for blocking code."""

    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        assert not stream
        self.event_hooks = {}
        return super().send(request, stream=True, **options)


class DelegatingClient(httpx2.AsyncClient):
    """A client whose method returns a coroutine and is no coroutine function."""

    def send(self, request: Any, **options: Any) -> Any:
        return super().send(request, **options)


def decorated(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def send(*arguments: Any, **options: Any) -> Any:
        return method(*arguments, **options)

    return send


class DecoratedClient(httpx2.AsyncClient):
    """The same by a decorator."""

    send = decorated(httpx2.AsyncClient.send)


@pytest.mark.parametrize("kind", [ReadingClient, RetryingClient, DelegatingClient, DecoratedClient])
async def test_a_method_of_a_subclass_works_as_before(
    server: Emulator, session: AsyncSession, kind: type[httpx2.AsyncClient]
) -> None:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, http_client=kind(), max_retries=0) as client:
        with pytest.raises(ZeroDivisionError):
            async with session.guard(client):
                response = await client.responses.create(**REQUEST)
                await client.responses.retrieve(response.id)
                raise ZeroDivisionError
    assert states(server) == ["cancelled"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(on="create", cut="body", act=True),
        Fault(on="create", status=200, body={"id": "resp_failed", "status": "failed", "background": True}),
    ],
    ids=["cut", "failed"],
)
async def test_each_answer_of_a_method_that_tries_again_is_seen(
    server: Emulator, session: AsyncSession, fault: Fault
) -> None:
    server.faults = [fault]
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=server.base_url, http_client=RetryingClient(), max_retries=0
    ) as client:
        with pytest.raises(ZeroDivisionError):
            async with session.guard(client):
                await client.responses.create(**REQUEST)
                raise ZeroDivisionError
    assert {*states(server)} == {"cancelled"}


@pytest.mark.parametrize("fails", [False, True])
async def test_a_body_that_a_method_leaves_to_its_caller_is_read_or_closed(
    server: Emulator, tmp_path: Path, *, fails: bool
) -> None:
    settings: dict[str, Any] = {"api_key": KEY, "base_url": server.base_url, "max_retries": 0}
    async with (
        openai.AsyncOpenAI(**settings, http_client=ForgetfulClient()) as client,
        Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
        AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger, ledger_required=True) as session,
        session.watch(client) as watch,
    ):
        with openai.OpenAI(**settings, http_client=ForgetfulBlockingClient()) as blocking:
            watch.add(blocking)
            if fails:
                await ledger.close()
            for create in (client.responses.create, partial(asyncio.to_thread, blocking.responses.create)):
                with pytest.raises((LedgerError, openai.APIConnectionError)) if fails else nullcontext():
                    assert (await create(**REQUEST)).id in server.responses
    assert len(server.responses) == 2


async def test_a_method_that_is_replaced_in_the_class_meanwhile_is_called(
    server: Emulator, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = httpx2.AsyncClient.send

    async def send(self: Any, request: Any, **options: Any) -> Any:
        seen.append(request.method)
        return await real(self, request, **options)

    async def replaced(request: Any, **options: Any) -> Any:
        return await real(client._client, request, **options)

    class Replacement:
        """A callable that binds no client, as a mock is."""

        async def __call__(self, request: Any, **options: Any) -> Any:
            return await replaced(request, **options)

    async with async_client(server) as client, session.guard(client, on_exit="stop"):
        kind = type(client._client)
        monkeypatch.setattr(kind, "send", send)
        response = await client.responses.create(**REQUEST)
        await client.responses.retrieve(response.id)
        assert seen == ["POST", "GET"]
        for replacement in (staticmethod(replaced), Replacement()):
            monkeypatch.setattr(kind, "send", replacement)
            await client.responses.create(**REQUEST)
    assert seen == ["POST", "GET"]
    assert states(server) == ["cancelled"] * 3

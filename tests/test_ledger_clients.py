"""Guards of clients whose responses a ledger records."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from conftest import KEY, hasty_session, until
from ledger_database import connected
from ledgers import states, sweep
from openai_clients import REQUEST, async_client
from openai_clients import states as server_states

from openai_cancel import AsyncSession, body_observer
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger

pytestmark = pytest.mark.usefixtures("no_task_is_left")


@pytest.fixture
def url(tmp_path: Any) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
async def client(server: Emulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(server) as client:
        yield client


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with hasty_session(api_key=KEY, base_url=server.base_url, ledger=ledger, account="tests") as session:
        yield session


async def create(client: openai.AsyncOpenAI) -> str:
    return (await client.responses.create(**REQUEST)).id


async def test_a_response_is_recorded_before_its_id_is_known_and_until_its_end_is_seen(
    session: AsyncSession, ledger: Ledger, client: openai.AsyncOpenAI
) -> None:
    async with session.guard(client):
        ended, left = await create(client), await create(client)
        assert await states(ledger) == {ended: "tracked", left: "tracked"}
        await client.responses.cancel(ended)
        async with asyncio.timeout(5):
            while (await states(ledger))[ended] != "already_finished":
                await asyncio.sleep(0.001)
    assert await states(ledger) == {ended: "already_finished", left: "released"}


async def test_a_response_whose_creator_was_cancelled_is_stopped_and_settled(
    session: AsyncSession, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI
) -> None:
    server.faults = [Fault(on="create", delay=0.05)]
    async with session.guard(client) as guard:
        task = asyncio.create_task(create(client))
        await until(lambda: server.received)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: guard.outcomes)
    async with asyncio.timeout(5):
        while [*(await states(ledger)).values()] != ["cancelled"]:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("refused", [False, True])
async def test_a_response_that_comes_after_the_grace_is_recorded_and_stopped(
    session: AsyncSession, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI, *, refused: bool
) -> None:
    server.faults = [Fault(on="create", delay=0.4)]
    with pytest.raises(ZeroDivisionError):
        async with session.guard(client, grace=0.2):
            task = asyncio.create_task(create(client))
            await until(lambda: server.received)
            raise ZeroDivisionError
    server.faults += [Fault(on=on, status=403) for on in ("cancel", "retrieve") if refused]
    created = await task
    assert await states(ledger) == {created: "tracked" if refused else "cancelled"}
    assert server_states(server) == ["in_progress" if refused else "cancelled"]
    assert await sweep(ledger, session) == ({created: "cancelled"} if refused else {})


async def test_a_reader_that_fails_changes_nothing(
    session: AsyncSession, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(body_observer.DocumentReader, "finish", lambda _: 1 / 0)
    async with session.guard(client) as guard:
        assert await create(client)
        assert not guard.armed
    assert "could not be read: ZeroDivisionError" in caplog.text


async def test_a_response_that_is_created_while_outcomes_are_written_is_stopped_too(
    session: AsyncSession, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI, url: str
) -> None:
    go = asyncio.Event()

    async def create_late() -> str:
        await go.wait()
        return await create(client)

    async def block() -> None:
        async with session.guard(client, grace=10):
            tasks.append(asyncio.create_task(create_late()))
            await create(client)
            locks.enter_context(connected(url))  # the outcomes have to wait
            raise ZeroDivisionError

    tasks: list[asyncio.Task[str]] = []
    with ExitStack() as locks:
        task = asyncio.create_task(block())
        await until(lambda: "cancelled" in server_states(server))
        go.set()
        await until(lambda: len(server.responses) == 2)
    with pytest.raises(ZeroDivisionError):
        await task
    late = await tasks[0]
    assert server_states(server) == ["cancelled", "cancelled"]
    assert (await states(ledger))[late] == "cancelled"

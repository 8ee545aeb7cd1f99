"""Watches: a ledger knows every response of a client before the code that creates it does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import KEY, hasty_session, until
from ledger_database import lapse, without_table
from ledgers import beat, open_session, states, sweep
from manual_clock import ManualClock
from openai_clients import REQUEST, async_client, blocking_client, inside
from openai_clients import states as server_states
from processes import StartProcess

from openai_cancel import (
    AsyncSession,
    ConfigurationError,
    LedgerError,
    Outcome,
    Session,
    SessionStateError,
    outcome_hook,
)
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger

pytestmark = pytest.mark.usefixtures("no_task_is_left")


@pytest.fixture
async def client(server: Emulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(server) as client:  # the guards of clients are tested with all transports
        yield client


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


async def create(client: openai.AsyncOpenAI, **options: Any) -> str:
    return (await client.responses.create(**REQUEST, **options)).id


class TestRecords:
    async def test_a_response_is_recorded_before_its_id_is_known(
        self, session: AsyncSession, ledger: Ledger, client: openai.AsyncOpenAI
    ) -> None:
        before = inside(client)
        async with session.watch(client) as watch:
            first = await asyncio.create_task(create(client))
            assert await states(ledger) == {first: "tracked"}
            async with await client.responses.create(**REQUEST, stream=True) as events:
                (second,) = {*await states(ledger)} - {first}
                assert (await anext(aiter(events))).response.id == second
            assert watch.response_ids == (first, second)
            assert repr(watch) == "<Watch 2 running>"
        assert repr(watch) == "<Watch closed>"
        assert inside(client) == before

    async def test_leases_are_renewed_until_the_end_is_seen(
        self, session: AsyncSession, ledger: Ledger, ledger_clock: ManualClock, client: openai.AsyncOpenAI
    ) -> None:
        session.watch(client)
        created = await create(client)
        await beat(ledger_clock)
        (entry,) = [entry async for entry in ledger.entries()]
        assert entry.lease_left > 59
        await client.responses.cancel(created)
        await until_ended(ledger, created)

    @pytest.mark.parametrize("way", ["client", "cancel", "stop", "retrieve", "stop_many", "guard"])
    async def test_a_response_leaves_the_ledger_whoever_sees_its_end(
        self, session: AsyncSession, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI, way: str
    ) -> None:
        watch = session.watch(client)
        created = await create(client)
        if way == "guard":
            with suppress(ZeroDivisionError):
                async with session.guard(created):
                    raise ZeroDivisionError
        elif way == "stop_many":
            _ = [outcome async for outcome in session.stop_many([created])]
        elif way == "client":
            server.responses[created].cancel(server.clock())
            await client.responses.retrieve(created)
        else:
            if way == "retrieve":
                server.responses[created].cancel(server.clock())
            await getattr(session, way)(created)
        await until_ended(ledger, created)
        assert watch.response_ids == ()

    async def test_a_cancel_that_fails_with_a_status_and_no_id_is_no_end(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        watch = session.watch(client)
        created = await create(client)
        server.faults.append(Fault(on="cancel", status=200, body={"status": "failed"}))
        assert (await session.cancel(created)).id is None
        assert watch.response_ids == (created,)

    async def test_a_response_that_ended_elsewhere_can_be_released(
        self, session: AsyncSession, ledger: Ledger, client: openai.AsyncOpenAI
    ) -> None:
        watch = session.watch(client)
        created = await create(client)
        watch.release(created)
        watch.release(created)
        assert watch.response_ids == ()
        async with asyncio.timeout(5):
            while await states(ledger) != {created: "released"}:
                await asyncio.sleep(0.001)

    async def test_guards_and_watches_do_not_disturb_each_other(
        self, session: AsyncSession, ledger: Ledger, client: openai.AsyncOpenAI
    ) -> None:
        watch = session.watch(client)
        async with session.guard(client):
            created = await create(client)
        assert await states(ledger) == {created: "tracked"}
        await watch.close()
        await create(client)
        assert len(await states(ledger)) == 1

    async def test_clients_can_be_added(
        self, session: AsyncSession, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        watch = session.watch()
        with blocking_client(server) as other:
            watch.add(client)
            watch.add(client)
            watch.add(other)
            created = {await create(client), (await asyncio.to_thread(other.responses.create, **REQUEST)).id}
        assert {*await states(ledger)} == created


async def until_ended(ledger: Ledger, name: str) -> None:
    async with asyncio.timeout(5):
        while (await states(ledger))[name] not in {"already_finished", "cancelled"}:
            await asyncio.sleep(0.001)


class TestEnds:
    @pytest.mark.parametrize("closed", ["watch", "session"])
    async def test_what_runs_at_the_end_is_left_to_a_sweep(
        self, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI, closed: str
    ) -> None:
        before = inside(client)
        async with open_session(server, ledger) as session:
            watch = session.watch(client)
            created = await create(client)
            if closed == "watch":
                await watch.close()
                await watch.close()
        assert inside(client) == before
        await create(client)
        async with open_session(server, ledger) as other:
            assert await sweep(ledger, other) == {created: "cancelled"}

    async def test_creations_under_way_are_waited_for(
        self, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        server.faults = [Fault(on="create", delay=0.05)]
        async with hasty_session(api_key=KEY, base_url=server.base_url, ledger=ledger, account="tests") as session:
            watch = session.watch(client)
            task = asyncio.create_task(create(client))
            await until(lambda: server.received)
            closing = asyncio.create_task(watch.close())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        assert await states(ledger) == {await task: "tracked"}

    async def test_a_creation_after_the_grace_is_not_recorded(
        self, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        server.faults = [Fault(on="create", delay=0.1)]
        async with hasty_session(api_key=KEY, base_url=server.base_url, ledger=ledger, account="tests") as session:
            session.watch(client, grace=0.01)
            task = asyncio.create_task(create(client))
            await until(lambda: server.received)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.responses)
        assert await states(ledger) == {}

    async def test_a_cancellation_while_the_session_closes_is_held_back(
        self, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        server.faults = [Fault(on="create", delay=0.05)]
        session = hasty_session(api_key=KEY, base_url=server.base_url, ledger=ledger, account="tests")
        await session.open()
        session.watch(client)
        task = asyncio.create_task(create(client))
        await until(lambda: server.received)
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert await states(ledger) == {await task: "tracked"}


class TestResponsesThatNobodyKnows:
    async def test_a_response_whose_creation_was_cancelled_is_stopped(
        self, session: AsyncSession, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        server.faults = [Fault(on="create", delay=0.05)]
        watch = session.watch(client)
        task = asyncio.create_task(create(client))
        await until(lambda: server.received)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server_states(server) == ["cancelled"])
        await watch.close()
        assert [*(await states(ledger)).values()] == ["cancelled"]

    async def test_one_that_cannot_be_stopped_is_left_to_a_sweep(
        self,
        session: AsyncSession,
        ledger: Ledger,
        server: Emulator,
        client: openai.AsyncOpenAI,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server.faults = [Fault(on="create", cut="body"), *(Fault(on=on, status=403) for on in ("cancel", "retrieve"))]
        watch = session.watch(client)
        with pytest.raises(openai.APIConnectionError):
            await create(client)
        await watch.close()
        (name,) = server.responses
        assert f"{name} was not stopped (forbidden, PermissionDeniedError)" in caplog.text
        assert await states(ledger) == {name: "tracked"}
        assert await sweep(ledger, session) == {name: "cancelled"}


class TestFailuresOfTheLedger:
    async def test_the_call_of_the_client_goes_on(
        self, session: AsyncSession, url: str, client: openai.AsyncOpenAI
    ) -> None:
        watch = session.watch(client)
        async with without_table(url):
            created = await create(client)
        assert watch.response_ids == (created,)

    async def test_a_required_ledger_raises_and_the_response_is_stopped(
        self, ledger: Ledger, url: str, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        async with open_session(server, ledger, ledger_required=True) as session:
            session.watch(client)
            async with without_table(url):
                with pytest.raises((LedgerError, openai.APIConnectionError)):
                    await create(client)
                await until(lambda: server_states(server) == ["cancelled"])

    async def test_what_is_not_possible_is_refused(
        self, session: AsyncSession, ledger: Ledger, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as other:
            with pytest.raises(ConfigurationError, match="ledger="):
                other.watch(client)
        with pytest.raises(SessionStateError):
            AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger, account="a").watch(client)
        with pytest.raises(ConfigurationError, match="grace"):
            session.watch(client, grace=-1)
        with pytest.raises(ConfigurationError, match="max_retries"):
            session.watch(client, max_retries=-1)
        with pytest.raises(ConfigurationError, match="AsyncOpenAI"):
            session.watch(client, client.responses)
        assert "send" not in vars(client._client)


class TestBlockingSessions:
    @pytest.fixture
    def url(self, tmp_path) -> str:
        return f"sqlite:///{tmp_path}/ledger.db"

    async def test_every_response_is_recorded_until_its_end_is_seen(
        self, ledger: Ledger, url: str, server: Emulator
    ) -> None:
        def work() -> list[str]:
            ids = []
            with (
                blocking_client(server) as client,
                Session(api_key=KEY, base_url=server.base_url, ledger=Ledger(url), account="tests") as session,
            ):
                with session.watch() as watch:
                    watch.add(client)
                    ids += [client.responses.create(**REQUEST).id for _ in range(3)]
                    assert watch.response_ids == tuple(ids)
                    session.stop(ids[0])
                    watch.release(ids[1])
                    assert repr(watch) == "<Watch 1 running>"
                watch.close()
                assert "send" not in vars(client._client)
                late = session.watch(client)
            late.close()
            return ids

        first, second, third = await asyncio.to_thread(work)
        assert await states(ledger) == {first: "already_finished", second: "released", third: "tracked"}

    async def test_the_ledger_is_needed(self, server: Emulator) -> None:
        def work() -> None:
            with Session(api_key=KEY, base_url=server.base_url) as session, pytest.raises(ConfigurationError):
                session.watch()

        await asyncio.to_thread(work)


@pytest.mark.slow
async def test_a_sweep_stops_everything_that_a_killed_service_has_created(
    python: str, url: str, server: Emulator, start_process: StartProcess
) -> None:
    script = str(Path(__file__).with_name("watching.py"))
    pipe = asyncio.subprocess.PIPE
    process = await start_process(python, script, url, server.base_url, KEY, stdout=pipe)
    names = [(await process.stdout.readline()).decode().strip() for _ in range(40)]
    process.kill()
    rest, _ = await process.communicate()
    names += [line.decode() for line in rest.splitlines() if line.decode() in server.responses]
    async with Ledger(url) as ledger, open_session(server, ledger, account=None) as session:
        assert {*names} <= {*await states(ledger)}  # each printed id is recorded
        await lapse(url)
        await sweep(ledger, session)
    assert {name for name, work in server.responses.items() if work.cancelled} >= {*names}


async def test_an_outcome_is_recorded_although_its_task_is_cancelled_before_everybody_was_told(
    ledger: Ledger,
    server: Emulator,
    client: openai.AsyncOpenAI,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hook(_: Outcome) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(outcome_hook, "HOOK_WAIT", 0.05)
    begun = asyncio.Event()
    server.faults = [Fault(on="create", delay=0.05)]
    async with open_session(server, ledger, on_outcome=hook) as session, session.watch(client):
        task = asyncio.create_task(create(client))
        await until(lambda: server.received)
        task.cancel()
        await begun.wait()
        (stopping,) = [one for one in asyncio.all_tasks() if "WatchedResponses._stop" in repr(one)]
        stopping.cancel()
        await asyncio.wait([stopping])
    assert [*(await states(ledger)).values()] == ["cancelled"]
    assert "was not stopped" not in caplog.text


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError])
async def test_a_response_that_cannot_be_stopped_is_left_to_the_next_sweep(
    ledger: Ledger,
    server: Emulator,
    client: openai.AsyncOpenAI,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
) -> None:
    def fail() -> str:
        raise kind

    server.faults = [Fault(on="create", delay=0.05)]
    async with (
        hasty_session(api_key=fail, base_url=server.base_url, ledger=ledger) as session,
        session.watch(client) as watch,
    ):
        task = asyncio.create_task(create(client))
        await until(lambda: server.received)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: f"was not stopped ({kind.__name__})" in caplog.text)
        async with asyncio.timeout(5):
            while not [entry async for entry in ledger.entries() if (entry.lease_left or 0) <= 0]:
                await asyncio.sleep(0.001)
        assert watch.response_ids == ()

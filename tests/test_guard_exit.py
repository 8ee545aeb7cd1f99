"""Guards that stop their responses at any exit of the block."""

import asyncio
import logging

import pytest
from conftest import KEY, hasty_session, until
from ledgers import states
from openai_clients import REQUEST, async_client

from openai_cancel import AsyncSession, ConfigurationError, Session, Verdict
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def test_a_block_that_ends_normally_stops_its_responses_if_told_so(session, server, create) -> None:
    first, second = create(), create(runs_for=0)
    async with session.guard(first, second, on_exit="stop") as guard:
        pass
    assert server.responses[first].cancelled
    assert [guard.outcomes[name].verdict for name in (first, second)] == [Verdict.CANCELLED, Verdict.ALREADY_FINISHED]


async def test_an_exception_stops_them_as_ever(session, server, create) -> None:
    name = create()
    with pytest.raises(ZeroDivisionError):
        async with session.guard(name, on_exit="stop"):
            _ = 1 / 0
    assert server.responses[name].cancelled


async def test_a_disarmed_guard_stops_nothing(session, server, create) -> None:
    async with session.guard(create(), on_exit="stop") as guard:
        guard.disarm()
    assert (server.received, guard.outcome) == ([], None)


async def test_what_was_not_stopped_is_logged_and_nothing_is_raised(
    session, server, create, caplog: pytest.LogCaptureFixture
) -> None:
    name = create()
    server.faults += [Fault(on="cancel", status=403), Fault(on="retrieve", status=403)]
    with caplog.at_level(logging.WARNING):
        async with session.guard(name, on_exit="stop") as guard:
            pass
    assert guard.outcome.verdict is Verdict.FORBIDDEN
    assert f"{name} was not stopped (forbidden" in caplog.text


async def test_a_consumer_that_leaves_a_stream_early_leaves_nothing_running(server: Emulator) -> None:
    async with async_client(server) as client, hasty_session(api_key=KEY, base_url=server.base_url) as session:
        async with session.guard(client, on_exit="stop") as guard:
            events = await client.responses.create(**REQUEST, stream=True)
            assert await anext(aiter(events))
        await events.close()
        assert guard.outcome.verdict is Verdict.CANCELLED
    assert all(response.cancelled for response in server.responses.values())


async def test_a_cancellation_while_they_are_stopped_is_delivered_afterwards(server, create) -> None:
    name = create()
    server.faults.append(Fault(on="cancel", delay=0.2))
    async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:

        async def block() -> None:
            async with session.guard(name, on_exit="stop"):
                pass
            await asyncio.Event().wait()

        task = asyncio.create_task(block())
        await until(lambda: server.received)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert server.responses[name].cancelled


async def test_a_ledger_has_the_outcome(server, create, tmp_path) -> None:
    name = create()
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        session = hasty_session(api_key=KEY, base_url=server.base_url, ledger=ledger)
        async with session, session.guard(name, on_exit="stop"):
            pass
        assert await states(ledger) == {name: "cancelled"}


@pytest.mark.parametrize("with_ledger", [False, True])
async def test_a_blocking_guard_stops_them_too(server, create, tmp_path, *, with_ledger: bool) -> None:
    name = create()
    options = {"ledger": Ledger(f"sqlite:///{tmp_path}/ledger.db")} if with_ledger else {}

    def run() -> str:
        with Session(api_key=KEY, base_url=server.base_url, **options) as session:
            with session.guard(name, on_exit="stop") as guard:
                pass
            return guard.outcome.verdict

    assert await asyncio.to_thread(run) == "cancelled"
    assert server.responses[name].cancelled


@pytest.mark.parametrize("on_exit", ["kill", None, True, []])
def test_another_word_is_refused(on_exit) -> None:
    for session in (AsyncSession(api_key=KEY), Session(api_key=KEY)):
        with pytest.raises(ConfigurationError, match="on_exit must be 'leave' or 'stop', not"):
            session.guard("resp_x", on_exit=on_exit)

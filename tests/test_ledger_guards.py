"""Guards and waits that record their responses in a ledger, on SQLite and on PostgreSQL."""

import asyncio
import math
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from conftest import KEY, QuickClock
from ledger_database import commits, without_table
from ledgers import beat, entries, open_session, states, sweep
from manual_clock import ManualClock

from openai_cancel import AsyncSession, Session, Verdict
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


class TestRecords:
    async def test_a_response_is_recorded_before_the_block_and_released_after_it(
        self, session, ledger: Ledger, create
    ) -> None:
        running = create()
        async with session.guard(running):
            (entry,) = [entry async for entry in ledger.entries()]
            assert (entry.response_id, entry.state, entry.attempts) == (running, "tracked", 0)
            assert (entry.base_url, entry.account) == (session.base_url, session.account)
            assert entry.labels == {"service": "tests"}
            assert 50 < entry.lease_left <= 60
            assert abs(entry.created.timestamp() - time.time()) < 60
        entry = (await entries(ledger))[running]
        assert (entry.state, entry.lease_left, entry.owner) == ("released", None, None)

    async def test_a_guard_of_several_responses_writes_once_at_each_end(self, session, create) -> None:
        with commits() as committed:
            async with session.guard(create(), create(), create()):
                assert len(committed) == 1
            assert len(committed) == 2

    async def test_outcomes_are_recorded(self, server: Emulator, ledger: Ledger, create) -> None:
        running, over = create(), create(runs_for=0)
        async with open_session(server, ledger, clock=QuickClock()) as session:
            with pytest.raises(ZeroDivisionError):
                async with session.guard(running, over, "resp_none"):
                    raise ZeroDivisionError
        found = await entries(ledger)
        assert {name: entry.state for name, entry in found.items()} == {
            running: "cancelled", over: "already_finished", "resp_none": "tracked"
        }  # fmt: skip
        assert all(entry.attempts == 1 and entry.request_id for entry in found.values())
        assert [name for name, entry in found.items() if entry.lease_left is not None] == ["resp_none"]
        assert "not found" in found["resp_none"].error  # a server may not know it yet, so a sweep tries again

    async def test_a_wait_is_recorded_unless_it_leaves_the_response_running(
        self, session, ledger: Ledger, create
    ) -> None:
        over, running, left = create(runs_for=0), create(), create()
        await session.wait(over)
        with pytest.raises(TimeoutError):
            await session.wait(running, timeout=0.01)
        with pytest.raises(TimeoutError):
            await session.wait(left, timeout=0.01, on_abandon="leave")
        assert await states(ledger) == {over: "released", running: "cancelled"}


class TestResponsesThatAreNotStopped:
    async def test_a_sweep_may_claim_a_response_at_once_if_the_server_refuses(
        self, session, ledger: Ledger, server: Emulator, create
    ) -> None:
        running = create()
        server.faults += [Fault(status=403, body={"error": {"message": "no\0pe \ud800"}})] * 2
        with pytest.raises(ZeroDivisionError):
            async with session.guard(running):
                raise ZeroDivisionError
        entry = (await entries(ledger))[running]
        assert (entry.state, entry.attempts, entry.owner) == ("tracked", 1, None)
        assert entry.lease_left <= 0
        assert entry.error.startswith("403: nope ?.")
        assert await sweep(ledger, session) == {running: Verdict.CANCELLED}

    async def test_a_sweep_stops_a_response_whose_guard_had_no_answer_within_its_grace(
        self, session, ledger: Ledger, server: Emulator, create
    ) -> None:
        running = create()
        server.faults += [Fault(delay=math.inf)] * 5
        with pytest.raises(ZeroDivisionError) as caught:
            async with session.guard(running, grace=0.2):
                raise ZeroDivisionError
        assert "was not stopped" in caught.value.__notes__[0]
        assert (await states(ledger)) == {running: "tracked"}
        server.faults.clear()
        assert await sweep(ledger, session) == {running: Verdict.CANCELLED}

    async def test_a_closed_client_leaves_the_response_to_a_sweep(
        self, server: Emulator, ledger: Ledger, create
    ) -> None:
        running = create()
        async with aiohttp.ClientSession() as client, open_session(server, ledger, client_session=client) as session:
            with pytest.raises(ZeroDivisionError) as caught:
                async with session.guard(running):
                    await client.close()
                    raise ZeroDivisionError
        assert "is closed" in caught.value.__notes__[0]
        entry = (await entries(ledger))[running]
        assert (entry.state, entry.attempts, entry.error) == ("tracked", 1, None)
        assert entry.lease_left <= 0


class TestBlocks:
    async def test_a_response_is_stopped_if_its_guard_is_cancelled_before_the_block(
        self, session, ledger: Ledger, server: Emulator, create
    ) -> None:
        running = create()

        async def work() -> None:
            async with session.guard(running):
                pytest.fail("there is no block")

        task = asyncio.create_task(work())
        await asyncio.sleep(0)  # it waits for the database
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.responses[running].cancelled
        assert await states(ledger) == {running: "cancelled"}

    async def test_the_lease_of_a_response_lasts_until_its_last_guard_ends(
        self, session, ledger: Ledger, create
    ) -> None:
        running = create()
        async with session.guard(running):
            async with session.guard(running):
                pass
            assert await states(ledger) == {running: "tracked"}
        assert await states(ledger) == {running: "released"}
        with pytest.raises(ZeroDivisionError):
            async with session.guard(running), session.guard(running):
                raise ZeroDivisionError
        assert await states(ledger) == {running: "cancelled"}

    async def test_responses_are_recorded_and_released_inside_the_block(self, session, ledger: Ledger, create) -> None:
        first, second, third = create(), create(), create()
        guard = session.guard(first)
        guard.add(second)
        async with guard:
            guard.add(third)
            guard.add(third)
            assert await states(ledger) == dict.fromkeys((first, second, third), "tracked")
            guard.disarm()
            assert await states(ledger) == dict.fromkeys((first, second, third), "released")
            guard.add(third)
        assert await states(ledger) == dict.fromkeys((first, second, third), "released")

    async def test_a_guard_that_is_used_again_records_again(self, session, ledger: Ledger, create) -> None:
        first, second = create(), create()
        guard = session.guard(first)
        async with guard:
            pass
        guard.add(second)  # for the next block
        assert await states(ledger) == {first: "released"}
        async with guard:
            assert await states(ledger) == {first: "tracked", second: "tracked"}
        assert await states(ledger) == {first: "released", second: "released"}

    async def test_a_guard_that_has_ended_twice_leaves_no_lease_to_renew(
        self, session, url: str, ledger_clock: ManualClock, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard = session.guard(create())
        async with guard:
            pass
        async with guard:
            pass
        async with without_table(url):
            await beat(ledger_clock)  # it would fail if it had something to renew
        assert not caplog.records

    async def test_an_empty_guard_records_nothing(self, session, ledger: Ledger) -> None:
        async with session.guard():
            pass
        assert await states(ledger) == {}

    async def test_a_response_is_stopped_after_the_ledger_was_closed(
        self, session, ledger: Ledger, server: Emulator, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        running = create()
        with pytest.raises(ZeroDivisionError):
            async with session.guard(running):
                await ledger.close()
                raise ZeroDivisionError
        assert server.responses[running].cancelled
        (said,) = caplog.messages
        assert said.startswith("the ledger was closed before it could write the new states of these responses")
        assert said.endswith(f": {running} (cancelled)")


class TestBlockingSessions:
    async def test_a_blocking_session_opens_its_ledger_in_its_own_event_loop(
        self, url: str, server: Emulator, create
    ) -> None:
        running, over, added, left = create(), create(), create(), create()

        def work() -> None:
            with Session(api_key=KEY, base_url=server.base_url, ledger=Ledger(url)) as session:
                with session.guard(over):
                    pass
                with pytest.raises(ZeroDivisionError), session.guard(running) as guard:
                    guard.add(added)
                    raise ZeroDivisionError
                with session.guard(left) as guard:
                    guard.disarm()

        await asyncio.to_thread(work)
        async with Ledger(url) as ledger:
            assert await states(ledger) == {
                over: "released", running: "cancelled", added: "cancelled", left: "released"
            }  # fmt: skip

    async def test_closing_a_blocking_session_in_the_block_stops_and_settles_the_response(
        self, url: str, server: Emulator, create
    ) -> None:
        running = create()

        def work() -> None:
            session = Session(api_key=KEY, base_url=server.base_url, ledger=Ledger(url))
            with session, session.guard(running) as guard:
                session.close()
                guard.add("resp_2")  # the event loop is closed

        await asyncio.to_thread(work)
        async with Ledger(url) as ledger:
            assert await states(ledger) == {running: "cancelled"}

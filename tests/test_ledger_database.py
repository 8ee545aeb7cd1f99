"""The database of a ledger: transactions, its end, and eager tasks."""

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest
from conftest import KEY, until
from ledger_database import commits, execute, lapse
from ledgers import beat, open_session, states, sweep
from manual_clock import ManualClock

from openai_cancel import AsyncSession, LedgerError, Verdict
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger, database
from openai_cancel.ledger.table import RESPONSES

REFUSE_RESP_WRONG = {
    "sqlite": f"CREATE TRIGGER refuse BEFORE INSERT ON {RESPONSES.name} WHEN NEW.response_id = 'resp_wrong' "
    "BEGIN SELECT RAISE(ABORT, 'refused'); END",
    "postgresql": f"ALTER TABLE {RESPONSES.name} ADD CONSTRAINT refused CHECK (response_id <> 'resp_wrong')",
}
"""Statements that make a database refuse one row."""


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


class TestTransactions:
    async def test_jobs_that_wait_share_a_transaction(self, session, ledger: Ledger) -> None:
        tracking = (ledger.track(f"resp_{number}", session=session, ttl=60) for number in range(250))
        with commits() as committed:
            await asyncio.gather(*tracking)
            assert len(committed) == 3  # 100 jobs are the most
        assert len(await states(ledger)) == 250

    async def test_a_job_that_fails_does_not_affect_the_others_of_its_transaction(
        self, session, ledger: Ledger, url: str
    ) -> None:
        await execute(url, REFUSE_RESP_WRONG[url.partition(":")[0]])
        results = await asyncio.gather(
            ledger.track("resp_1", session=session, ttl=60),
            ledger.track("resp_wrong", session=session, ttl=60),
            ledger.track("resp_2", session=session, ttl=60),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), LedgerError, type(None)]
        assert "refused" in str(results[1])
        assert await states(ledger) == {"resp_1": "tracked", "resp_2": "tracked"}

    async def test_a_cancellation_ends_the_wait_and_not_the_transaction(self, session, ledger: Ledger) -> None:
        tracking = asyncio.create_task(ledger.track("resp_1", session=session, ttl=60))
        await asyncio.sleep(0)
        tracking.cancel()
        await asyncio.wait([tracking])
        assert tracking.cancelled()
        assert await states(ledger) == {"resp_1": "tracked"}

    async def test_the_number_of_jobs_that_wait_is_limited(
        self, session, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "MAX_QUEUED", 3)
        tracking = (ledger.track(f"resp_{number}", session=session, ttl=60) for number in range(5))
        results = await asyncio.gather(*tracking, return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 3 + [LedgerError] * 2
        assert str(results[4]) == "The ledger's database is too slow: 3 transactions wait for it."


class TestTheEnd:
    async def test_a_close_that_is_cancelled_writes_what_is_left(self, url: str, server: Emulator) -> None:
        ledger = await Ledger(url).open()
        async with open_session(server, ledger) as session:
            tracking = asyncio.create_task(ledger.track("resp_1", session=session, ttl=60))
            await asyncio.sleep(0)
            closing = asyncio.create_task(ledger.close())
            for _ in range(3):
                await asyncio.sleep(0)
                closing.cancel()
            await asyncio.wait([closing])
            assert closing.cancelled()
            await tracking
        async with Ledger(url) as again:
            assert await states(again) == {"resp_1": "tracked"}

    async def test_a_loop_that_cancels_all_tasks_stops_the_response_and_leaves_it_tracked(
        self, url: str, server: Emulator, create
    ) -> None:
        running = create()

        async def guard(ledger: Ledger) -> None:
            async with open_session(server, ledger) as session, session.guard(running):
                await asyncio.Event().wait()

        async def main() -> list[asyncio.Task[object]]:
            ledger = await Ledger(url).open()
            unopened = AsyncSession(api_key=KEY, base_url=server.base_url, account="tests")
            guarding = asyncio.create_task(guard(ledger))
            while "tracked" not in (await states(ledger)).values():
                await asyncio.sleep(0.001)
            in_progress = asyncio.create_task(ledger.release("resp_none", session=unopened))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting = asyncio.create_task(ledger.release("resp_none", session=unopened))
            await asyncio.sleep(0)
            return [guarding, in_progress, waiting]

        tasks = await asyncio.to_thread(asyncio.run, main())
        assert all(task.cancelled() for task in tasks)
        assert server.responses[running].cancelled
        async with Ledger(url) as ledger:
            assert await states(ledger) == {running: "tracked"}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory is new in Python 3.12")
class TestEagerTasks:
    """A task of `asyncio.eager_task_factory` runs before the code that creates it continues."""

    async def test_guards_heartbeats_and_sweeps_work_in_eager_tasks(
        self, url: str, ledger_clock: ManualClock, server: Emulator, create
    ) -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        held, stopped, left = create(), create(), create()
        async with Ledger(url, clock=ledger_clock) as ledger, open_session(server, ledger) as session:
            with pytest.raises(ZeroDivisionError):
                async with session.guard(stopped):
                    raise ZeroDivisionError
            await ledger.track(left, session=session, ttl=60)
            async with session.guard(held):
                await lapse(url)
                await beat(ledger_clock)
                assert await asyncio.create_task(sweep(ledger, session)) == {left: Verdict.CANCELLED}
            assert await states(ledger) == {held: "released", stopped: "cancelled", left: "cancelled"}

    async def test_a_ledger_that_is_opened_without_a_check_writes_in_eager_tasks(
        self, url: str, server: Emulator, create
    ) -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        running = create()
        ledger = await Ledger(url).open(check=False)
        async with open_session(server, ledger) as session:
            tracking = asyncio.create_task(ledger.track(running, session=session, ttl=60))
            await until(tracking.done)
            await ledger.close()
        async with Ledger(url) as again:
            assert await states(again) == {running: "tracked"}

"""The database of a ledger: transactions, its end, and eager tasks."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import KEY, until
from ledger_database import commits, connected, execute, lapse, locked
from ledgers import beat, cancelled_ids, open_session, states, sweep
from manual_clock import ManualClock
from postgres import Postgres, empty
from sqlalchemy import Engine, event

from openai_cancel import AsyncSession, LedgerError, Verdict
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger, connection, database
from openai_cancel.ledger.database import Database, read_url
from openai_cancel.ledger.table import RESPONSES

REFUSE_RESP_WRONG = {
    "sqlite": f"CREATE TRIGGER refuse BEFORE INSERT ON {RESPONSES.name} WHEN NEW.response_id = 'resp_wrong' "
    "BEGIN SELECT RAISE(ABORT, 'refused'); END",
    "postgresql": f"ALTER TABLE {RESPONSES.name} ADD CONSTRAINT refused CHECK (response_id <> 'resp_wrong')",
}
"""Statements that make a database refuse one row."""


@contextmanager
def lock_timeouts() -> Iterator[list[int]]:
    """Collect the milliseconds that the transactions of the block wait for a lock."""
    found: list[int] = []

    def note(_core: object, _cursor: object, statement: str, *_: object) -> None:
        found.extend(int(limit) for limit in re.findall(r"lock_timeout = (\d+)", statement))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


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
        monkeypatch.setattr(database, "BATCH_SIZE", 2)
        monkeypatch.setattr(database, "MAX_QUEUED", 3)
        tracking = (ledger.track(f"resp_{number}", session=session, ttl=60) for number in range(5))
        results = await asyncio.gather(*tracking, return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 3 + [LedgerError] * 2
        assert str(results[4]) == "The ledger's database is too slow: 3 transactions wait for it."

    async def test_a_burst_of_jobs_is_not_refused(self, url: str) -> None:
        opened = Database(read_url(url), timeout=30)
        burst = [opened.submit(()) for _ in range(10_001)]
        await asyncio.wait(burst)
        assert not any(job.exception() for job in burst)
        await opened.close()

    async def test_jobs_are_refused_while_others_wait_in_vain(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "BATCH_SIZE", 1)
        url = f"sqlite:///{tmp_path}/ledger.db"
        opened = Database(read_url(url), timeout=0.3)
        await opened.execute()
        with connected(url):  # which locks the file
            waiting = [opened.submit(()) for _ in range(9)]
            await asyncio.wait(waiting[:3])  # each of them has waited for almost the whole time
            with pytest.raises(LedgerError, match="is too slow: [1-6] transactions wait for it"):
                opened.submit(())
        await asyncio.wait(waiting)
        await opened.submit(())
        await opened.close()

    async def test_jobs_that_are_done_one_by_one_do_not_take_longer_than_one_transaction(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/ledger.db"
        opened = Database(read_url(url), timeout=0.5)
        await opened.execute()
        with connected(url):  # which locks the file
            waiting = [opened.submit(()) for _ in range(50)]
            await asyncio.wait(waiting)
        errors = [str(job.exception()) for job in waiting]
        assert errors[-1] == "The ledger's database does not answer within 0.5 s."
        await opened.close()


class TestARowThatAnotherTransactionHasLocked:
    """Only PostgreSQL locks single rows."""

    @pytest.fixture
    async def url(self, postgres: Postgres) -> str:
        await empty(postgres.url)
        return postgres.url

    async def test_it_delays_only_what_concerns_it(self, url: str, server: Emulator, create) -> None:
        names = [create() for _ in range(5)]
        async with (
            Ledger(url, timeout=4) as ledger,
            open_session(server, ledger, ledger_required=True) as session,
        ):
            await ledger.track(names[0], session=session, ttl=60)

            async def guard(name: str) -> None:
                async with session.guard(name):
                    pass

            async with locked(url, names[0]):
                results = await asyncio.gather(*map(guard, names), return_exceptions=True)
            assert "canceling statement due to lock timeout" in str(results[0])
            assert results[1:] == [None] * 4
            assert cancelled_ids(server) == [names[0]]

    async def test_the_more_rows_are_locked_the_shorter_is_the_wait_for_each(
        self, url: str, server: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "LOCK_SHARE", 0.1)
        names = [f"resp_{number}" for number in range(5)]
        async with Ledger(url) as ledger, open_session(server, ledger) as session:
            tracking = [partial(ledger.track, name, session=session, ttl=60) for name in names]
            await asyncio.gather(*(track() for track in tracking))
            async with locked(url, names[0]), locked(url, names[1]), locked(url, names[2]):
                with lock_timeouts() as limits:
                    results = await asyncio.gather(*(track() for track in tracking), return_exceptions=True)
        assert [type(result) for result in results] == [LedgerError] * 3 + [type(None)] * 2
        waits = limits[:7:2]  # of all jobs, and of the first three: a fresh connection looks at the tables first
        assert waits == sorted(waits, reverse=True)
        assert waits[0] == pytest.approx(500, abs=20)
        assert waits[-1] <= 0.9**3 * 500

    async def test_a_job_that_waits_in_vain_is_not_repeated(
        self, url: str, server: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "LOCK_SHARE", 0.01)
        async with Ledger(url) as ledger, open_session(server, ledger) as session:
            await ledger.track("resp_1", session=session, ttl=60)
            async with locked(url, "resp_1"):
                with lock_timeouts() as limits, pytest.raises(LedgerError, match="lock timeout"):
                    await ledger.track("resp_1", session=session, ttl=60)
        assert len(limits) == 1


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

"""Tables and files that somebody changes under a running ledger."""

import math
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from ledger_database import execute, lapse
from ledgers import beat, entries, open_session, states
from manual_clock import ManualClock
from sqlalchemy import delete

from openai_cancel import AsyncSession, LedgerError
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger, leases
from openai_cancel.ledger.table import RESPONSES, VERSIONS, Command, look


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


def backup(file: Path) -> Path:
    copy = file.with_suffix(".copy")
    with closing(sqlite3.connect(file)) as connection, closing(sqlite3.connect(copy)) as other:
        connection.backup(other)
    return copy


def replace(file: Path, other: Path) -> None:
    """Move a file to the place of another one, as an operator does who restores a backup."""
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink()
    other.rename(file)


class TestTablesThatChange:
    @pytest.mark.parametrize("dropped", [[RESPONSES.name], [RESPONSES.name, VERSIONS.name]])
    async def test_a_dropped_table_is_created_again_with_the_rows_of_living_guards(
        self,
        session,
        ledger: Ledger,
        url: str,
        ledger_clock: ManualClock,
        create,
        *,
        caplog: pytest.LogCaptureFixture,
        dropped: list[str],
    ) -> None:
        held, over = create(), create()
        async with session.guard(held, max_age=3600):
            async with session.guard(over):
                for name in dropped:
                    await execute(url, f"DROP TABLE {name}")
                ledger_clock.now += 600
                await beat(ledger_clock)
                assert await states(ledger) == {held: "tracked", over: "tracked"}
            assert "2 running responses were not in the ledger, and are recorded again" in caplog.messages
            assert await states(ledger) == {held: "tracked", over: "released"}
            entry = (await entries(ledger))[held]
            assert 2900 < (entry.expires - entry.created).total_seconds() < 3000

    async def test_a_required_ledger_goes_on_after_its_table_was_dropped(
        self, server: Emulator, ledger: Ledger, url: str, create
    ) -> None:
        name = create()
        async with open_session(server, ledger, ledger_required=True) as session:
            await execute(url, f"DROP TABLE {RESPONSES.name}")
            async with session.guard(name):
                assert await states(ledger) == {name: "tracked"}

    async def test_rows_that_are_deleted_under_many_guards_are_recorded_again(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "MAX_LOOKED_AT", 3)
        names = [f"resp_{number}" for number in range(8)]
        async with session.guard(*names):
            await execute(url, delete(RESPONSES).where(RESPONSES.c.response_id != names[0]))
            await beat(ledger_clock)
            assert await states(ledger) == dict.fromkeys(sorted(names), "tracked")

    @pytest.mark.parametrize("still_guarded", [True, False])
    async def test_what_happens_while_a_heartbeat_looks_at_lost_rows_counts(
        self,
        session,
        ledger: Ledger,
        url: str,
        ledger_clock: ManualClock,
        create,
        *,
        monkeypatch: pytest.MonkeyPatch,
        still_guarded: bool,
    ) -> None:
        name = create()
        async with session.guard(name) as guard, session.guard() as other:

            def look_and_do(digests: list[str]) -> Command:
                if still_guarded:
                    other.add(name)
                else:
                    guard.disarm()
                return look(digests)

            monkeypatch.setattr(leases, "look", look_and_do)
            await execute(url, delete(RESPONSES))
            await beat(ledger_clock)
            assert await states(ledger) == ({name: "tracked"} if still_guarded else {})

    async def test_a_missing_column_is_logged_and_the_ledger_works_again_once_it_is_back(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, create, *, caplog: pytest.LogCaptureFixture
    ) -> None:
        name = create()
        await execute(url, f"ALTER TABLE {RESPONSES.name} RENAME COLUMN expires TO away")
        async with session.guard(name):
            await beat(ledger_clock)
            await execute(url, f"ALTER TABLE {RESPONSES.name} RENAME COLUMN away TO expires")
            assert await states(ledger) == {}
            await beat(ledger_clock)
            assert await states(ledger) == {name: "tracked"}
        (logged,) = [message for message in caplog.messages if "the ledger fails" in message]
        assert "expires" in logged

    async def test_a_newer_version_is_refused_once_the_tables_do_not_fit(
        self, session, ledger: Ledger, url: str, create
    ) -> None:
        await execute(url, f"ALTER TABLE {RESPONSES.name} RENAME COLUMN labels TO tags")
        await execute(url, f"UPDATE {VERSIONS.name} SET version = 3")
        with pytest.raises(LedgerError, match="have version 3, but this openai-cancel knows only version 2: upgrade"):
            await ledger.track(create(), session=session, ttl=60)


class TestFilesThatChange:
    """A SQLite file that is deleted or replaced under a running ledger."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "ledger.db"

    @pytest.fixture
    def url(self, file: Path) -> str:
        return f"sqlite:///{file}"

    async def test_a_deleted_file_is_created_again_with_the_rows_of_living_guards(
        self,
        session,
        ledger: Ledger,
        file: Path,
        ledger_clock: ManualClock,
        create,
        *,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        held, added = create(), create()
        async with session.guard(held):
            for path in file.parent.iterdir():
                path.unlink()
            async with session.guard(added):
                assert await states(ledger) == {added: "tracked"}
                await beat(ledger_clock)
                assert await states(ledger) == {added: "tracked", held: "tracked"}
        assert f"the ledger's file {file} was deleted or replaced: the new one is used from now on" in caplog.messages
        async with Ledger(f"sqlite:///{file}") as again:
            assert await states(again) == {added: "released", held: "released"}

    async def test_the_rows_of_living_guards_are_written_into_a_backup_that_replaces_the_file(
        self, session, ledger: Ledger, file: Path, ledger_clock: ManualClock, create
    ) -> None:
        before, held = create(), create()
        await ledger.track(before, session=session, ttl=60)
        copy = backup(file)
        async with session.guard(held):
            replace(file, copy)
            await beat(ledger_clock)
            assert await states(ledger) == {before: "tracked", held: "tracked"}


class TestSweepsWhoseLeasesHaveLapsed:
    async def test_a_sweep_that_claims_a_response_again_that_is_under_way_stops_it_once(
        self, session, ledger: Ledger, url: str, server: Emulator, create
    ) -> None:
        names = [create(), create()]
        for name in names:
            await ledger.track(name, session=session, ttl=1)
        await lapse(url)
        server.faults.append(Fault(delay=math.inf))  # the first response is under way until the other one is stopped
        found = []
        async for outcome in ledger.sweep(session, batch=1, concurrency=2, deadline=0.8):
            if not found:
                await lapse(url)  # as if the database had been away for longer than a lease
            found.append(outcome.response_id)
        assert sorted(found) == sorted(names)

"""The heartbeat that renews leases, and databases that fail while responses run."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from conftest import until
from ledger_database import execute, lapse, locked, without_table
from ledgers import beat, entries, open_session, states, sweep
from manual_clock import ManualClock
from postgres import Postgres, empty
from sqlalchemy import Engine, event, select

from openai_cancel import AsyncSession, LedgerError, Verdict
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger, connection, leases
from openai_cancel.ledger.table import RESPONSES


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


def ledger_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "ledger" in thread.name]


def logged_errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


class TestHeartbeat:
    async def test_a_heartbeat_renews_the_leases_of_guarded_responses_only(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, create
    ) -> None:
        held, by_hand, over = create(), create(), create()
        await ledger.track(by_hand, session=session, ttl=5)
        async with session.guard(over):
            pass
        async with session.guard(held):
            await lapse(url)
            await beat(ledger_clock)
            found = await entries(ledger)
            assert 50 < found[held].lease_left <= 60
            assert found[by_hand].lease_left < 0
            assert found[over].lease_left is None

    async def test_the_heart_beats_by_the_system_clock(self, url: str, server: Emulator, create) -> None:
        leases = select(RESPONSES.c.lease_until)
        async with Ledger(url, lease=0.2) as ledger, open_session(server, ledger) as session, session.guard(create()):
            before = await execute(url, leases)
            while await execute(url, leases) == before:
                await asyncio.sleep(0.01)

    @pytest.mark.usefixtures("ledger")
    async def test_a_heartbeat_without_leases_does_not_use_the_database(
        self, url: str, ledger_clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with without_table(url):
            await beat(ledger_clock)
        assert not [record for record in caplog.records if record.name == "openai_cancel"]


class TestADatabaseThatFailsForAWhile:
    async def test_the_block_goes_on_and_the_failure_is_logged_once(
        self, session, url: str, ledger_clock: ManualClock, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with without_table(url), session.guard(create()), session.guard(create()):
            await beat(ledger_clock)
        (logged,) = logged_errors(caplog)
        assert "running responses are not recorded until it works again: The ledger's database failed" in logged
        async with session.guard(create()):
            pass
        async with without_table(url), session.guard(create()):
            pass
        assert len(logged_errors(caplog)) == 2

    async def test_missed_changes_are_written_later_if_they_still_matter(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, create
    ) -> None:
        begun, ended, both = create(), create(), create()
        async with session.guard(ended):
            before = session.guard(begun)
            async with without_table(url):
                await before.__aenter__()
                async with session.guard(both):
                    pass
            await beat(ledger_clock)
            assert await states(ledger) == {begun: "tracked", ended: "tracked"}
            failing_end = without_table(url)
            await failing_end.__aenter__()
        await beat(ledger_clock)  # it fails, and the heart beats on
        with pytest.raises(LedgerError):
            await states(ledger)
        await failing_end.__aexit__(None, None, None)
        assert (await states(ledger))[ended] == "tracked"
        await beat(ledger_clock)
        assert await states(ledger) == {begun: "tracked", ended: "released"}
        await before.__aexit__(None, None, None)

    async def test_the_number_of_missed_ends_that_are_kept_is_limited_and_the_leases_of_others_lapse(
        self,
        session,
        ledger: Ledger,
        url: str,
        ledger_clock: ManualClock,
        create,
        *,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(leases, "MAX_MISSED", 2)
        async with session.guard(create()):
            async with session.guard(*(create() for _ in range(5))):
                broken = without_table(url)
                await broken.__aenter__()
            await broken.__aexit__(None, None, None)
            assert "the ends of 3 guarded responses could not be written: their leases will expire" in caplog.text
            for _ in range(2):
                await beat(ledger_clock)
                found = (await entries(ledger)).values()
                assert [entry.state for entry in found].count("released") == 2
                assert [entry.owner for entry in found].count(None) == 5
                assert len([entry for entry in found if entry.lease_left is not None]) == 4

    async def test_a_required_ledger_raises_before_the_block_and_after_it(
        self, server: Emulator, ledger: Ledger, url: str, create
    ) -> None:
        running, over = create(), create()
        async with open_session(server, ledger, ledger_required=True) as session:
            async with without_table(url):
                with pytest.raises(LedgerError, match="database failed"):
                    async with session.guard(running):
                        pytest.fail("there is no block")
            assert server.responses[running].cancelled
            with pytest.raises(LedgerError):
                async with session.guard(over):
                    broken = without_table(url)
                    await broken.__aenter__()
            await broken.__aexit__(None, None, None)
            assert not server.responses[over].cancelled


class TestRowsThatAnotherTransactionHasLocked:
    """Only PostgreSQL locks single rows."""

    @pytest.fixture
    async def url(self, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr(connection, "LOCK_SHARE", 0.01)  # so that no test waits long for a lock
        await empty(postgres.url)
        return postgres.url

    async def test_a_heartbeat_renews_all_other_leases_and_does_not_take_the_row_for_lost(
        self,
        session,
        ledger: Ledger,
        url: str,
        ledger_clock: ManualClock,
        create,
        *,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        blocked, held = create(), create()
        async with session.guard(blocked), session.guard(held):
            await lapse(url)
            async with locked(url, blocked):
                await beat(ledger_clock)
                found = await entries(ledger)
                assert found[blocked].lease_left < 0
                assert 50 < found[held].lease_left <= 60
                assert await sweep(ledger, session) == {}
            await beat(ledger_clock)
            assert 50 < (await entries(ledger))[blocked].lease_left <= 60
        assert await states(ledger) == {blocked: "released", held: "released"}
        assert logged_errors(caplog) == []

    async def test_an_end_that_cannot_be_written_delays_neither_heartbeats_nor_other_ends(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, create
    ) -> None:
        blocked, ended, held = create(), create(), create()
        async with session.guard(held):
            async with session.guard(ended), session.guard(blocked):
                failing = without_table(url)
                await failing.__aenter__()
            await failing.__aexit__(None, None, None)
            async with locked(url, blocked):
                for _ in range(2):
                    await lapse(url, held)
                    await beat(ledger_clock)
                    found = await entries(ledger)
                    assert 50 < found[held].lease_left <= 60
                    assert (found[blocked].state, found[ended].state) == ("tracked", "released")
            await beat(ledger_clock)
            assert (await states(ledger))[blocked] == "released"

    async def test_a_row_that_is_missing_is_recorded_again_although_an_end_cannot_be_written(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, create
    ) -> None:
        blocked, missing = create(), create()
        async with session.guard(missing):
            async with session.guard(blocked):
                failing = without_table(url)
                await failing.__aenter__()
            await failing.__aexit__(None, None, None)
            async with locked(url, blocked):
                await execute(url, RESPONSES.delete().where(RESPONSES.c.response_id == missing))
                await beat(ledger_clock)  # the process owns as many rows as it holds
                assert await states(ledger) == {blocked: "tracked", missing: "tracked"}

    async def test_an_end_that_cannot_be_written_at_the_close_is_the_only_one_that_is_not(
        self, url: str, server: Emulator, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        blocked, *ended = (create() for _ in range(5))
        async with Ledger(url) as ledger, open_session(server, ledger) as session:
            async with session.guard(blocked, *ended):
                failing = without_table(url)
                await failing.__aenter__()
            await failing.__aexit__(None, None, None)
            async with locked(url, blocked):
                await ledger.close()
        async with Ledger(url) as again:
            assert await states(again) == {blocked: "tracked", **dict.fromkeys(ended, "released")}
        (said,) = [message for message in caplog.messages if "was closed before" in message]
        assert said.endswith(f": {blocked} (released)")


class TestADatabaseOfAnotherEncoding:
    @pytest.fixture
    async def url(self, postgres: Postgres) -> AsyncIterator[str]:
        await asyncio.to_thread(self.change, postgres.url, "DROP DATABASE IF EXISTS latin")
        create = "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'"
        await asyncio.to_thread(self.change, postgres.url, create)
        yield postgres.url.replace("/postgres?", "/latin?")
        await asyncio.to_thread(self.change, postgres.url, "DROP DATABASE latin WITH (FORCE)")

    def change(self, url: str, statement: str) -> None:
        with psycopg.connect(url, autocommit=True) as found:
            found.execute(statement)

    async def test_letters_of_an_error_that_it_cannot_hold_are_escaped_and_guards_go_on(
        self, session, ledger: Ledger, url: str, server: Emulator, ledger_clock: ManualClock, *, create
    ) -> None:
        refused, held = create(), create()
        await ledger.track(refused, session=session, ttl=60)
        await lapse(url)
        server.faults.append(Fault(status=403, body={"error": {"message": "é サ"}}))
        async with session.guard(held):
            assert await sweep(ledger, session) == {refused: Verdict.FORBIDDEN}
            await lapse(url, held)
            await beat(ledger_clock)
            found = await entries(ledger)
            assert r"403: \xe9 \u30b5" in found[refused].error
            assert found[refused].lease_left > 0
            assert 50 < found[held].lease_left <= 60


class TestADatabaseThatCannotBeUsed:
    async def test_a_guard_stops_its_response_without_a_database(
        self, server: Emulator, create, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        nowhere = f"sqlite:///{tmp_path}/none/ledger.db"
        running = create()
        async with open_session(server, Ledger(nowhere)) as session:
            with pytest.raises(ZeroDivisionError):
                async with session.guard(running):
                    raise ZeroDivisionError
        assert server.responses[running].cancelled
        assert "unable to open database file" in caplog.text

    async def test_opening_a_ledger_without_a_database_fails(self, server: Emulator, tmp_path: Path) -> None:
        nowhere = f"sqlite:///{tmp_path}/none/ledger.db"
        with pytest.raises(LedgerError, match="unable to open database file"):
            await Ledger(nowhere).open()
        with pytest.raises(LedgerError):
            async with open_session(server, Ledger(nowhere), ledger_required=True):
                pass
        with pytest.raises(LedgerError, match="Connection refused"):
            await Ledger("postgresql://u:secret@127.0.0.1:1/d").open()
        await until(lambda: not ledger_threads())

    async def test_a_guard_waits_for_a_database_that_hangs_until_the_timeout(
        self, server: Emulator, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        over = asyncio.Event()

        async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await over.wait()
            writer.close()

        listener = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        hanging = Ledger(f"postgresql://127.0.0.1:{port}/d", timeout=0.1)
        async with listener:
            async with open_session(server, hanging) as session, session.guard(create()):
                assert "does not answer within 0.1 s" in caplog.text
            with pytest.raises(LedgerError, match="does not answer within 0.1 s"):
                await Ledger(f"postgresql://127.0.0.1:{port}/d", timeout=0.1).open()
            over.set()
            await until(lambda: not ledger_threads())

    async def test_a_guard_goes_on_if_the_file_is_read_only(
        self, server: Emulator, create, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = tmp_path / "ledger.db"
        async with Ledger(f"sqlite:///{file}"):
            pass
        read_only = Ledger(f"sqlite:///file:{file}?mode=ro&uri=true")
        async with open_session(server, read_only) as session, session.guard(create()):
            assert "attempt to write a readonly database" in caplog.text

    async def test_a_guard_goes_on_if_the_disk_is_full_and_tracking_fails(
        self, server: Emulator, create, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = f"sqlite:///{tmp_path}/ledger.db"
        async with Ledger(url):
            pass

        def limit_size(connection, _) -> None:
            connection.cursor().execute("PRAGMA max_page_count = 1")

        event.listen(Engine, "connect", limit_size)
        try:
            async with Ledger(url) as ledger, open_session(server, ledger) as session:
                async with session.guard(*(f"{create()}{'x' * 5000}" for _ in range(20))):
                    assert "database or disk is full" in caplog.text
                with pytest.raises(LedgerError, match="database or disk is full"):
                    await ledger.track("resp_" + "x" * 100_000, session=session, ttl=60)
        finally:
            event.remove(Engine, "connect", limit_size)

"""The end of a ledger: it comes within the timeout, or soon after a cancellation, and it says what was not written."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import until
from ledger_database import connected, without_table
from ledgers import open_session, states
from sqlalchemy import text

from openai_cancel import LedgerError
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger, database, leases
from openai_cancel.ledger.table import RESPONSES


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Let all writes to a database wait until the block ends."""
    with connected(url) as connection:  # which locks a file of SQLite
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"LOCK TABLE {RESPONSES.name}"))
        yield


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "openai_cancel.ledger" and record.levelname == "WARNING"
    ]


class TestADatabaseThatHangs:
    @pytest.mark.slow
    async def test_closing_ends_within_the_timeout_and_says_what_was_not_written(
        self, url: str, server: Emulator, create, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "BATCH_SIZE", 1)  # each transaction may take the whole time
        names = [create() for _ in range(10)]
        ledger = await Ledger(url, timeout=1).open()
        async with open_session(server, ledger) as session, session.guard(names[0]):
            pass
        async with open_session(server, ledger) as session:
            guards = [session.guard(name) for name in names]
            for guard in guards:
                await guard.__aenter__()
            with locked(url):
                ending = [asyncio.create_task(guard.__aexit__(None, None, None)) for guard in guards]
                await asyncio.sleep(0)
                began = asyncio.get_running_loop().time()
                await ledger.close()
                assert (
                    asyncio.get_running_loop().time() - began < 4
                )  # a busy machine takes its time, and ten transactions would take ten seconds
                await asyncio.gather(*ending)
        (said,) = warnings(caplog)
        assert all(f"{name} (released)" in said for name in names)
        await until(lambda: not [thread for thread in threading.enumerate() if "ledger" in thread.name])
        async with Ledger(url) as again:
            assert await states(again) == dict.fromkeys(names, "tracked")

    @pytest.mark.slow
    async def test_all_jobs_of_a_batch_that_is_done_one_by_one_are_named(
        self, tmp_path: Path, server: Emulator, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        url, names = f"sqlite:///{tmp_path}/ledger.db", [create() for _ in range(4)]
        ledger = await Ledger(url, timeout=1).open()
        async with open_session(server, ledger) as session, contextlib.AsyncExitStack() as blocks:
            guards = [await blocks.enter_async_context(session.guard(name)) for name in names]
            with locked(url):
                for guard in guards:
                    guard.disarm()  # one job each, in one batch that fails for the lock
                await ledger.close()
        assert all(f"{name} (released)" in "".join(warnings(caplog)) for name in names)

    async def test_a_cancellation_ends_the_close_soon(
        self, url: str, server: Emulator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "CANCELLED_CLOSE_TIME", 0.05)
        ledger = await Ledger(url, timeout=30).open()
        async with open_session(server, ledger) as session:
            with locked(url):
                tracking = asyncio.create_task(ledger.track("resp_1", session=session, ttl=60))
                await asyncio.sleep(0)
                closing = asyncio.create_task(ledger.close())
                await asyncio.sleep(0.1)
                began = asyncio.get_running_loop().time()
                closing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await closing
                assert asyncio.get_running_loop().time() - began < 5
                with pytest.raises(LedgerError, match="The ledger is closed"):
                    await tracking
        assert "resp_1 (tracked)" in warnings(caplog)[0]


class TestConnections:
    async def test_a_connection_is_closed_by_its_thread_even_if_nobody_waits_for_that(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "END_TIME", 0)
        for _ in range(10):
            async with Ledger(url):
                pass
        await until(lambda: not [thread for thread in threading.enumerate() if "ledger" in thread.name])
        gc.collect()  # a connection that is open warns


class TestMissedChanges:
    async def test_closing_writes_what_a_database_that_works_again_has_missed(
        self, url: str, server: Emulator, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        running = create()
        async with Ledger(url) as ledger, open_session(server, ledger) as session:
            guard = session.guard(running)
            await guard.__aenter__()
            async with without_table(url):
                await guard.__aexit__(None, None, None)
        async with Ledger(url) as again:
            assert await states(again) == {running: "released"}
        assert warnings(caplog) == ["the ledger works again"]

    async def test_closing_writes_many_missed_ends_some_at_a_time(
        self, url: str, server: Emulator, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "MAX_APART", 2)
        names = [create() for _ in range(5)]
        async with Ledger(url) as ledger, open_session(server, ledger) as session:
            guard = session.guard(*names)
            await guard.__aenter__()
            async with without_table(url):
                await guard.__aexit__(None, None, None)
        async with Ledger(url) as again:
            assert await states(again) == dict.fromkeys(names, "released")

    async def test_what_is_never_written_is_said_in_lines_of_limited_length(
        self, url: str, server: Emulator, create, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "REPORTED", 2)
        names = [create() for _ in range(3)]
        ledger = await Ledger(url).open()
        async with open_session(server, ledger) as session:
            guard = session.guard(*names)
            await guard.__aenter__()
            async with without_table(url):
                await guard.__aexit__(None, None, None)
                await ledger.close()
        said = warnings(caplog)
        assert [line.count("(released)") for line in said] == [2, 1]
        assert all(name in "".join(said) for name in names)

"""The tables of a ledger: their creation, their versions, and the way from each older version to the newest."""

import asyncio
import threading
import time
from contextlib import AsyncExitStack

import pytest
from ledger_database import execute
from ledgers import entries, open_session, states, sweep
from sqlalchemy import Connection, inspect, select

from openai_cancel import LedgerError, Verdict
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger, table
from openai_cancel.ledger import connection as connection_module
from openai_cancel.ledger.database import read_url
from openai_cancel.ledger.table import MIGRATIONS, RESPONSES, VERSIONS, Account

NEWEST = 1 + len(MIGRATIONS)

VERSION_1 = (
    """CREATE TABLE openai_cancel_responses (
        digest VARCHAR(64) NOT NULL,
        response_id TEXT NOT NULL,
        base_url TEXT NOT NULL,
        account TEXT NOT NULL,
        labels JSON NOT NULL,
        state VARCHAR(16) NOT NULL,
        owner TEXT,
        attempts INTEGER NOT NULL,
        created DOUBLE PRECISION NOT NULL,
        changed DOUBLE PRECISION NOT NULL,
        lease_until DOUBLE PRECISION,
        error TEXT,
        request_id TEXT,
        PRIMARY KEY (digest)
    )""",
    "CREATE INDEX openai_cancel_lapsing ON openai_cancel_responses (lease_until)",
    "CREATE INDEX openai_cancel_owners ON openai_cancel_responses (owner)",
    "CREATE TABLE openai_cancel_schema (version INTEGER NOT NULL)",
    "INSERT INTO openai_cancel_schema VALUES (1)",
)
"""The tables as openai-cancel 1.0 has created them."""

HELD = "host:1:00000000"

ROWS_OF_VERSION_1: dict[str, tuple[str, str | None, int, float | None, str | None]] = {
    "held": ("tracked", HELD, 0, 3600.0, None),
    "lapsed": ("tracked", HELD, 0, -1.0, None),
    "by_hand": ("tracked", None, 0, 3600.0, None),
    "claimed": ("stopping", f"{HELD}:11111111", 1, 3600.0, None),
    "claim_lapsed": ("stopping", f"{HELD}:11111111", 2, -1.0, "503"),
    "given_back": ("tracked", None, 0, -100.0, None),
    "left_by_a_guard": ("tracked", None, 1, -100.0, "timed out"),
    "tried": ("tracked", None, 3, 3600.0, "503"),
    "released": ("released", None, 0, None, None),
    **{str(verdict): (str(verdict), None, 1, None, "why") for verdict in Verdict},
}
"""A row in every state: its state, owner, attempts, seconds of its lease, and error."""


async def create_version_1(url: str, server: Emulator) -> None:
    """Create the tables of 1.0, and fill them. Rows were changed 100 seconds ago."""
    account, now = Account("tests", server.base_url), time.time()
    for statement in VERSION_1:
        await execute(url, statement)
    rows = [
        {
            "digest": account.digest(name), "response_id": name, "base_url": server.base_url, "account": "tests",
            "labels": {"job": name}, "state": state, "owner": owner, "attempts": attempts,
            "created": now - 200 + number, "changed": now - 100, "error": error, "request_id": None,
            "lease_until": None if lease is None else now + lease,
        }
        for number, (name, (state, owner, attempts, lease, error)) in enumerate(ROWS_OF_VERSION_1.items())
    ]  # fmt: skip
    await execute(url, RESPONSES.insert().values(rows))


async def describe(url: str) -> tuple[set[str], dict[str, list[str]]]:
    """Return the columns and the indexes of the table of responses."""
    backend = read_url(url)
    engine = backend.create_engine(10)
    with engine.connect() as connection:
        found = inspect(connection)
        columns, indexes = found.get_columns(RESPONSES.name), found.get_indexes(RESPONSES.name)
    engine.dispose()
    return {column["name"] for column in columns}, {str(index["name"]): index["column_names"] for index in indexes}


class TestCreation:
    async def test_ledgers_that_are_opened_at_once_create_the_tables_once(self, url: str) -> None:
        async with AsyncExitStack() as opened:
            await asyncio.gather(*(opened.enter_async_context(Ledger(url)) for _ in range(8)))
            assert await execute(url, select(VERSIONS.c.version)) == [(NEWEST,)]

    async def test_tables_of_a_newer_version_are_refused(self, url: str) -> None:
        async with Ledger(url):
            pass
        await execute(url, f"UPDATE {VERSIONS.name} SET version = {NEWEST + 1}")
        expected = f"have version {NEWEST + 1}, but this openai-cancel knows only version {NEWEST}: upgrade it"
        with pytest.raises(LedgerError, match=expected):
            await Ledger(url).open()

    async def test_a_table_that_is_missing_is_created_again_and_that_is_logged(
        self, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Ledger(url):
            pass
        await execute(url, f"DROP TABLE {RESPONSES.name}")
        async with Ledger(url) as ledger:
            assert await states(ledger) == {}
        assert "openai_cancel_responses was missing, and is created again" in caplog.text


class TestMigration:
    async def test_rows_in_every_state_keep_what_they_had(self, url: str, server: Emulator) -> None:
        await create_version_1(url, server)
        async with Ledger(url) as ledger:
            found = await entries(ledger)
        assert [*found] == [*ROWS_OF_VERSION_1]
        for name, (state, owner, attempts, lease, error) in ROWS_OF_VERSION_1.items():
            entry = found[name]
            assert (entry.state, entry.owner, entry.attempts, entry.error) == (state, owner, attempts, error)
            assert entry.lease_left == (lease if lease is None else pytest.approx(lease, abs=30))
            assert entry.labels == {"job": name}
        assert await execute(url, select(VERSIONS.c.version)) == [(NEWEST,)]

    async def test_a_sweep_of_migrated_rows_claims_those_that_have_lapsed(self, url: str, server: Emulator) -> None:
        await create_version_1(url, server)
        async with Ledger(url) as ledger, open_session(server, ledger) as session:
            swept = await sweep(ledger, session)
            assert set(swept) == {"lapsed", "claim_lapsed", "given_back", "left_by_a_guard"}
            assert (await states(ledger))["held"] == "tracked"

    async def test_only_the_time_of_a_row_that_was_tracked_by_hand_outlives_a_guard(
        self, url: str, server: Emulator
    ) -> None:
        await create_version_1(url, server)
        async with Ledger(url):
            kept = await execute(url, select(RESPONSES.c.response_id).where(RESPONSES.c.tracked_until.is_not(None)))
        assert kept == [("by_hand",)]

    async def test_migrated_tables_are_like_new_ones(self, url: str, server: Emulator) -> None:
        async with Ledger(url):
            new = await describe(url)
        for name in (RESPONSES.name, VERSIONS.name):
            await execute(url, f"DROP TABLE {name}")
        await create_version_1(url, server)
        async with Ledger(url):
            assert await describe(url) == new

    async def test_ledgers_that_are_opened_at_once_migrate_once(self, url: str, server: Emulator) -> None:
        await create_version_1(url, server)
        async with AsyncExitStack() as opened:
            ledgers = await asyncio.gather(*(opened.enter_async_context(Ledger(url)) for _ in range(8)))
            assert len(await states(ledgers[0])) == len(ROWS_OF_VERSION_1)
            assert await execute(url, select(VERSIONS.c.version)) == [(NEWEST,)]

    async def test_a_migration_that_fails_changes_nothing_and_is_tried_again(
        self, url: str, server: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await create_version_1(url, server)
        monkeypatch.setattr(table, "MIGRATIONS", ((*MIGRATIONS[0], "CREATE nothing"),))
        with pytest.raises(LedgerError, match="database failed"):
            await Ledger(url).open()
        assert "expires" not in (await describe(url))[0]
        monkeypatch.undo()
        async with Ledger(url) as ledger:
            assert len(await states(ledger)) == len(ROWS_OF_VERSION_1)

    @pytest.mark.parametrize("version", [1, NEWEST])
    async def test_a_version_that_was_lost_is_inferred_from_the_columns(
        self, url: str, server: Emulator, version: int
    ) -> None:
        await create_version_1(url, server)
        if version == NEWEST:
            async with Ledger(url):
                pass
        await execute(url, f"DROP TABLE {VERSIONS.name}")
        async with Ledger(url) as ledger:
            assert len(await states(ledger)) == len(ROWS_OF_VERSION_1)
            assert await execute(url, select(VERSIONS.c.version)) == [(NEWEST,)]

    @pytest.mark.slow
    async def test_a_migration_may_take_longer_than_a_transaction(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        goes_on = threading.Event()

        def migrate(connection: Connection) -> None:
            goes_on.wait(10)
            table.migrate(connection)

        monkeypatch.setattr(connection_module, "migrate", migrate)
        opening = asyncio.create_task(Ledger(url, timeout=0.5).open())
        await asyncio.sleep(0.8)
        goes_on.set()
        await (await opening).close()
        assert await execute(url, select(VERSIONS.c.version)) == [(NEWEST,)]

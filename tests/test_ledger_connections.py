"""Connections to PostgreSQL as in production: they die silently, lead to replicas, and are shared by poolers."""

import asyncio
import math
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from conftest import KEY, until
from ledger_database import execute
from ledgers import open_session, states
from pgbouncer import needs_pgbouncer, pooled
from postgres import Postgres, empty
from processes import StartProcess
from relay import Relay

from openai_cancel import AsyncSession, LedgerError
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger, connection
from openai_cancel.ledger.table import RESPONSES, VERSIONS

COMMIT = b"COMMIT\0"


@asynccontextmanager
async def behind(relay: Relay, server: Emulator) -> AsyncIterator[tuple[Ledger, AsyncSession]]:
    """Open a ledger behind a relay, and a session that requires it."""
    async with (
        Ledger(relay.base_url, timeout=4) as ledger,
        open_session(server, ledger, ledger_required=True) as session,
    ):
        yield ledger, session


@pytest.fixture
async def relay(postgres: Postgres) -> AsyncIterator[Relay]:
    await empty(postgres.url)
    async with Relay(postgres.url) as opened:
        yield opened


def read_only(postgres: Postgres, switch: str) -> None:
    """Let a server refuse to write, as one that was demoted, also on connections that are open."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {switch}")
        connection.execute("SELECT pg_reload_conf()")


class TestADeadConnection:
    """On a busy machine, more than one attempt may take too long, and there are more connections."""

    @pytest.mark.slow
    async def test_the_next_operation_uses_a_fresh_one_within_the_timeout(
        self, relay: Relay, server: Emulator, create
    ) -> None:
        running = create()
        async with behind(relay, server) as (ledger, session):
            relay.freeze()
            async with session.guard(running):
                assert relay.connections >= 2
                assert await states(ledger) == {running: "tracked"}
            relay.freeze()
            assert await states(ledger) == {running: "released"}
            assert relay.connections >= 3

    async def test_a_server_that_has_closed_it_is_asked_again(
        self, relay: Relay, server: Emulator, postgres: Postgres
    ) -> None:
        async with behind(relay, server) as (ledger, session):
            await execute(
                postgres.url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'openai-cancel' "
                "AND pid <> pg_backend_pid()",
            )
            await ledger.track("resp_1", session=session, ttl=60)
            assert relay.connections >= 2

    async def test_a_commit_whose_answer_was_lost_is_repeated_where_that_is_harmless(
        self, relay: Relay, server: Emulator
    ) -> None:
        async with behind(relay, server) as (ledger, session):
            relay.fatal = COMMIT
            await ledger.track("resp_1", session=session, ttl=60)
            assert relay.connections >= 2
            relay.fatal = COMMIT
            with pytest.raises(LedgerError, match="server closed the connection unexpectedly"):
                await ledger.release("resp_1", session=session)  # once more would say that it was not tracked
            assert await states(ledger) == {"resp_1": "released"}

    async def test_a_transaction_that_was_not_committed_is_repeated_whatever_it_does(
        self, relay: Relay, server: Emulator
    ) -> None:
        async with behind(relay, server) as (ledger, session):
            await ledger.track("resp_1", session=session, ttl=60)
            relay.fatal = b"UPDATE"
            assert await ledger.release("resp_1", session=session)
            assert relay.connections >= 2

    @pytest.mark.slow
    async def test_an_attempt_that_has_begun_has_the_whole_time(
        self, relay: Relay, server: Emulator, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "LOCK_SHARE", 1)
        async with behind(relay, server) as (ledger, session):
            async with await psycopg.AsyncConnection.connect(postgres.url) as blocking:
                await blocking.execute(f"LOCK TABLE {RESPONSES.name}")
                tracking = asyncio.create_task(ledger.track("resp_1", session=session, ttl=60))
                await asyncio.sleep(1)  # longer than an idle connection has to answer
            await tracking
            assert relay.connections == 1

    async def test_the_server_ends_what_was_given_up(self, relay: Relay, server: Emulator, postgres: Postgres) -> None:
        async with (
            Ledger(relay.base_url, timeout=0.5) as ledger,
            open_session(server, ledger) as session,
            await psycopg.AsyncConnection.connect(postgres.url) as blocking,
        ):
            await blocking.execute(f"LOCK TABLE {RESPONSES.name}")
            with pytest.raises(LedgerError, match="lock timeout|does not answer within 0.5 s"):
                await ledger.track("resp_1", session=session, ttl=60)
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while await execute(postgres.url, waiting) != [(0,)]:
                await asyncio.sleep(0.01)

    async def test_a_connection_that_comes_too_late_does_nothing(self, relay: Relay, postgres: Postgres) -> None:
        relay.gate.clear()
        with pytest.raises(LedgerError, match="does not answer within 0.2 s"):
            await Ledger(relay.base_url, timeout=0.2).open()
        relay.gate.set()
        await until(lambda: not [thread for thread in threading.enumerate() if "ledger" in thread.name])
        assert await execute(postgres.url, f"SELECT to_regclass('{VERSIONS.name}')") == [(None,)]

    async def test_a_ledger_can_wait_for_ever(self, relay: Relay, server: Emulator) -> None:
        async with Ledger(relay.base_url, timeout=math.inf) as ledger, open_session(server, ledger) as session:
            await ledger.track("resp_1", session=session, ttl=60)
            assert await states(ledger) == {"resp_1": "tracked"}


class TestAReplica:
    async def test_a_connection_that_cannot_write_is_dropped(
        self, relay: Relay, server: Emulator, postgres: Postgres
    ) -> None:
        async with behind(relay, server) as (ledger, session):
            await asyncio.to_thread(read_only, postgres, "on")
            try:
                with pytest.raises(LedgerError, match="session is read-only"):
                    while True:  # the server reads its configuration a little later
                        await ledger.track("resp_1", session=session, ttl=60)
                assert relay.connections >= 2
            finally:
                await asyncio.to_thread(read_only, postgres, "off")
            while True:
                try:
                    await ledger.track("resp_2", session=session, ttl=60)
                except LedgerError:
                    continue
                break
            assert relay.connections >= 3

    @pytest.mark.slow
    async def test_the_next_operation_goes_to_the_writer(
        self, relay: Relay, server: Emulator, postgres: Postgres
    ) -> None:
        async with Ledger(postgres.url):
            pass  # the tables exist
        with tempfile.TemporaryDirectory() as folder, postgres.replica(Path(folder)) as replica:
            relay.server_url = replica.url
            at_any_price = f"{relay.base_url}?target_session_attrs=any"
            async with Ledger(at_any_price) as ledger, open_session(server, ledger) as session:
                assert await states(ledger) == {}
                assert relay.connections == 1
                relay.server_url = postgres.url  # the name of the cluster leads to the writer now
                await ledger.track("resp_1", session=session, ttl=60)
                assert relay.connections >= 2
            hosts = ",".join(url.partition("host=")[2] for url in (replica.url, postgres.url))
            async with Ledger(f"postgresql://postgres@/postgres?host={hosts}") as ledger:
                while await states(ledger) != {"resp_1": "tracked"}:
                    await asyncio.sleep(0.01)
                await ledger.purge(older_than=1)  # which writes


@pytest.mark.slow
@needs_pgbouncer
async def test_processes_behind_pgbouncer_fail_in_nothing(
    postgres: Postgres, server: Emulator, create, python: str, start_process: StartProcess
) -> None:
    await empty(postgres.url)
    names = [create() for _ in range(3 * 40)]
    with tempfile.TemporaryDirectory() as folder, pooled(postgres.url, Path(folder)) as url:
        processes = [
            await start_process(
                python, str(Path(__file__).with_name("guarding.py")), url, server.base_url, KEY,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )
            for _ in range(3)
        ]  # fmt: skip
        for number, process in enumerate(processes):
            process.stdin.write("\n".join(names[number::3]).encode())
            process.stdin.close()
        for process in processes:
            _, complaints = await process.communicate()
            assert (process.returncode, complaints) == (0, b"")
        async with Ledger(url) as ledger, open_session(server, ledger) as session:
            assert await states(ledger) == dict.fromkeys(names, "released")
            for _ in range(3):  # both of the pooler's connections
                many = (f"resp_{number}" for number in range(2000))
                assert await ledger.track_many(many, session=session, ttl=60) == 2000

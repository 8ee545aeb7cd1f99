"""Reading a ledger: it neither waits for writers nor keeps them waiting, on SQLite and on PostgreSQL."""

import asyncio
import hashlib
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
from ledger_database import connected
from ledgers import entries, open_session, sweep
from sqlalchemy import text

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.table import RESPONSES


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


@contextmanager
def locked_for_writing(url: str) -> Iterator[None]:
    """Hold the lock of a writer that is in the middle of a transaction."""
    lock = {
        "sqlite": f"UPDATE {RESPONSES.name} SET attempts = 99",
        "postgresql": f"LOCK TABLE {RESPONSES.name} IN EXCLUSIVE MODE",
    }
    with connected(url) as connection:
        connection.execute(text(lock[connection.dialect.name]))
        yield
        connection.rollback()


async def test_a_ledger_is_opened_and_read_while_another_process_writes(session, ledger: Ledger, url: str) -> None:
    await ledger.track("resp_1", session=session, ttl=60)
    with locked_for_writing(url):
        async with Ledger(url) as reading:
            assert (await entries(reading))["resp_1"].attempts == 0


async def test_what_was_written_before_is_read(session, ledger: Ledger) -> None:
    tracking = [asyncio.create_task(ledger.track(f"resp_{number}", session=session, ttl=60)) for number in range(3)]
    await asyncio.sleep(0)
    assert len(await entries(ledger)) == 3
    await asyncio.gather(*tracking)


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads in which fingerprints were computed."""
    threads: list[threading.Thread] = []

    def scrypt(*arguments: object, **options: object) -> bytes:
        threads.append(threading.current_thread())
        return compute(*arguments, **options)

    compute = hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    return threads


class TestAccounts:
    async def test_a_fingerprint_is_computed_once_for_each_key(
        self, server: Emulator, ledger: Ledger, hashing: list[threading.Thread]
    ) -> None:
        key = secrets.token_hex()
        async with open_session(server, ledger, api_key=key, account=None) as session:
            pass
        async with open_session(server, ledger, api_key=key, account=None) as again:
            assert again.account == session.account
        assert len(hashing) == 1

    @pytest.mark.parametrize("call", ["open", "track", "release", "sweep"])
    async def test_a_fingerprint_is_not_computed_in_the_thread_of_the_event_loop(
        self, server: Emulator, ledger: Ledger, hashing: list[threading.Thread], call: str
    ) -> None:
        session = AsyncSession(api_key=secrets.token_hex(), base_url=server.base_url, ledger=ledger)
        match call:
            case "open":
                await session.open()
                await session.close()
            case "track":
                await ledger.track("resp_1", session=session, ttl=60)
            case "release":
                await ledger.release("resp_1", session=session)
            case _:
                assert await sweep(ledger, session) == {}
        assert len(hashing) == 1
        assert hashing[0] is not threading.main_thread()

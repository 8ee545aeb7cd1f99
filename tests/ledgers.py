"""Ledgers in tests: sessions that use them, what they hold, their sweeps and their heartbeats."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conftest import KEY, HastyClock, until
from manual_clock import ManualClock

from openai_cancel import AsyncSession, Session, Verdict
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Entry, Finding, Ledger, Stats

HEARTBEAT = 20.0
"""Seconds between two heartbeats, a third of a lease, unless a test sets another lease."""


def settings(server: Emulator, **options: Any) -> dict[str, Any]:
    """Return the options of a session that tries again at once.

    Its account has a name, because a fingerprint is slow to compute on purpose.
    """
    return {
        "api_key": KEY,
        "base_url": server.base_url,
        "max_retries": 0,
        "account": "tests",
        "clock": HastyClock(),
        **options,
    }


@asynccontextmanager
async def open_session(server: Emulator, ledger: Ledger, **options: Any) -> AsyncIterator[AsyncSession]:
    """Open a session with a ledger."""
    async with AsyncSession(ledger=ledger, **settings(server, **options)) as session:
        yield session


async def entries(ledger: Ledger) -> dict[str, Entry]:
    """Return everything that a ledger holds, by id."""
    return {entry.response_id: entry async for entry in ledger.entries(include_ended=True)}


async def states(ledger: Ledger) -> dict[str, str]:
    """Return the states of everything that a ledger holds, by id."""
    return {name: entry.state for name, entry in (await entries(ledger)).items()}


async def sweep(ledger: Ledger, session: AsyncSession, **options: Any) -> dict[str, Verdict]:
    """Sweep, and return the verdicts by id."""
    return {outcome.response_id: outcome.verdict async for outcome in ledger.sweep(session, **options)}


def troubles(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings and errors in the log."""
    return [record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


def cancelled_ids(server: Emulator) -> list[str]:
    """Return the ids of the cancels that a server has received."""
    return [request.path.split("/")[3] for request in server.received if request.method == "POST"]


class AsyncCalls:
    """The calls of a ledger, for the account of a session."""

    def __init__(self, ledger: Ledger, session: AsyncSession) -> None:
        self._ledger = ledger
        self._session = session

    async def track(self, response_id: Any, **options: Any) -> None:
        await self._ledger.track(response_id, session=self._session, **options)

    async def track_many(self, response_ids: Any, **options: Any) -> int:
        return await self._ledger.track_many(response_ids, session=self._session, **options)

    async def release(self, response_id: Any) -> bool:
        return await self._ledger.release(response_id, session=self._session)

    async def entries(self, **options: Any) -> list[Entry]:
        return [entry async for entry in self._ledger.entries(**options)]

    async def purge(self, **options: Any) -> int:
        return await self._ledger.purge(**options)

    async def stats(self, **options: Any) -> Stats:
        return await self._ledger.stats(**options)

    async def grant(self, role: Any) -> None:
        await self._ledger.grant(role)

    async def sweep(self, **options: Any) -> dict[str, Verdict]:
        return await sweep(self._ledger, self._session, **options)

    async def stop(self, **options: Any) -> dict[str, Verdict]:
        outcomes = self._ledger.stop(self._session, **options)
        return {outcome.response_id: outcome.verdict async for outcome in outcomes}

    async def reconcile(self, **options: Any) -> list[Finding]:
        return [finding async for finding in self._ledger.reconcile(self._session, **options)]


class BlockingCalls:
    """The same calls, of a blocking session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def track(self, response_id: Any, **options: Any) -> None:
        await asyncio.to_thread(self._session.ledger.track, response_id, **options)

    async def track_many(self, response_ids: Any, **options: Any) -> int:
        return await asyncio.to_thread(self._session.ledger.track_many, response_ids, **options)

    async def release(self, response_id: Any) -> bool:
        return await asyncio.to_thread(self._session.ledger.release, response_id)

    async def entries(self, **options: Any) -> list[Entry]:
        return await asyncio.to_thread(lambda: [*self._session.ledger.entries(**options)])

    async def purge(self, **options: Any) -> int:
        return await asyncio.to_thread(self._session.ledger.purge, **options)

    async def stats(self, **options: Any) -> Stats:
        return await asyncio.to_thread(self._session.ledger.stats, **options)

    async def grant(self, role: Any) -> None:
        await asyncio.to_thread(self._session.ledger.grant, role)

    async def sweep(self, **options: Any) -> dict[str, Verdict]:
        outcomes = await asyncio.to_thread(lambda: [*self._session.ledger.sweep(**options)])
        return {outcome.response_id: outcome.verdict for outcome in outcomes}

    async def stop(self, **options: Any) -> dict[str, Verdict]:
        outcomes = await asyncio.to_thread(lambda: [*self._session.ledger.stop(**options)])
        return {outcome.response_id: outcome.verdict for outcome in outcomes}

    async def reconcile(self, **options: Any) -> list[Finding]:
        return await asyncio.to_thread(lambda: [*self._session.ledger.reconcile(**options)])


Calls = AsyncCalls | BlockingCalls


@asynccontextmanager
async def open_calls(kind: str, url: str, server: Emulator, **options: Any) -> AsyncIterator[Calls]:
    """Open a ledger for a session of a kind, `async` or `blocking`."""
    ledger = Ledger(url, labels={"service": "tests"})
    if kind == "async":
        async with open_session(server, ledger, **options) as session:
            yield AsyncCalls(ledger, session)
        return
    blocking = Session(ledger=ledger, **settings(server, **options))
    await asyncio.to_thread(blocking.open)
    try:
        yield BlockingCalls(blocking)
    finally:
        await asyncio.to_thread(blocking.close)


async def beat(clock: ManualClock) -> None:
    """Let the heart of a ledger beat once, and wait until it has renewed the leases.

    The ends that were missed are then on their way, before whatever the test asks the ledger next.
    """
    await until(lambda: HEARTBEAT in clock.slept)
    before = clock.slept.count(HEARTBEAT)
    clock.advance(HEARTBEAT)
    await until(lambda: clock.slept.count(HEARTBEAT) > before)
    await asyncio.sleep(0)

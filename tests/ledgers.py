"""Ledgers in tests: sessions that use them, what they hold, their sweeps and their heartbeats."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from conftest import KEY, until
from manual_clock import ManualClock

from openai_cancel import AsyncSession, Verdict
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Entry, Ledger

HEARTBEAT = 20.0
"""Seconds between two heartbeats, a third of a lease, unless a test sets another lease."""


@asynccontextmanager
async def open_session(server: Emulator, ledger: Ledger, **options: Any) -> AsyncIterator[AsyncSession]:
    """Open a session with a ledger. Its account has a name, because a fingerprint is slow to compute on purpose."""
    options = {"api_key": KEY, "base_url": server.base_url, "max_retries": 0, "account": "tests", **options}
    async with AsyncSession(ledger=ledger, **options) as session:
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


def cancelled_ids(server: Emulator) -> list[str]:
    """Return the ids of the cancels that a server has received."""
    return [request.path.split("/")[3] for request in server.received if request.method == "POST"]


async def beat(clock: ManualClock) -> None:
    """Let the heart of a ledger beat once, and wait until it has renewed the leases."""
    await until(lambda: HEARTBEAT in clock.slept)
    before = clock.slept.count(HEARTBEAT)
    clock.advance(HEARTBEAT)
    await until(lambda: clock.slept.count(HEARTBEAT) > before)

"""Direct access to the database of a ledger, for tests and benchmarks."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Row, event, select, text, update
from sqlalchemy.sql import Executable

from openai_cancel.ledger.database import read_url
from openai_cancel.ledger.table import RESPONSES


async def execute(url: str, statement: Executable | str) -> list[Row[Any]]:
    """Execute a statement on a connection of its own, and return its rows."""
    return await asyncio.to_thread(_execute, url, text(statement) if isinstance(statement, str) else statement)


def _execute(url: str, statement: Executable) -> list[Row[Any]]:
    with connected(url) as connection:
        result = connection.execute(statement)
        return [*result] if result.returns_rows else []


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Connect to a database, and begin a transaction, which is committed at the end."""
    backend = read_url(url)
    engine = backend.create_engine(30)
    with engine.connect() as connection:
        backend.begin(connection, lambda: False, reads_only=False, timeout=30, lock_timeout=30)
        yield connection
        connection.commit()
    engine.dispose()


async def lapse(url: str, *names: str) -> None:
    """Let the leases of some responses lapse, or all leases."""
    statement = update(RESPONSES).where(RESPONSES.c.lease_until.is_not(None)).values(lease_until=0.0)
    await execute(url, statement.where(RESPONSES.c.response_id.in_(names)) if names else statement)


@asynccontextmanager
async def without_table(url: str) -> AsyncIterator[None]:
    """Put another table in the place of the table of responses until the block ends, so that the ledger fails."""
    await execute(url, f"ALTER TABLE {RESPONSES.name} RENAME TO away")
    await execute(url, f"CREATE TABLE {RESPONSES.name} (other INTEGER)")
    try:
        yield
    finally:
        await execute(url, f"DROP TABLE {RESPONSES.name}")
        await execute(url, f"ALTER TABLE away RENAME TO {RESPONSES.name}")


@asynccontextmanager
async def locked(url: str, name: str) -> AsyncIterator[None]:
    """Lock the row of a response in PostgreSQL until the block ends."""
    with connected(url) as connection:
        connection.execute(select(RESPONSES).where(RESPONSES.c.response_id == name).with_for_update())
        yield


@contextmanager
def commits() -> Iterator[list[float]]:
    """Collect the times at which transactions are committed in the block, by any engine of the process."""
    committed: list[float] = []

    def note(_: object) -> None:
        committed.append(time.perf_counter())

    event.listen(Engine, "commit", note)
    try:
        yield committed
    finally:
        event.remove(Engine, "commit", note)

"""The table of a ledger, the same on SQLite and PostgreSQL, and how the one of an older version becomes it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import JSON, Column, Double, Index, Integer, MetaData, String, Table, Text, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine

from openai_cancel.errors import LedgerError

METADATA = MetaData()

VERSIONS = Table("openai_cancel_schema", METADATA, Column("version", Integer, nullable=False))

RESPONSES = Table(
    "openai_cancel_responses",
    METADATA,
    # Of account, base URL and id, for an id may be longer than what an index of PostgreSQL takes.
    Column("digest", String(64), primary_key=True),
    Column("response_id", Text, nullable=False),
    Column("base_url", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("owner", Text),
    Column("attempts", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("changed", Double, nullable=False),
    Column("lease_until", Double),  # NULL for what is over
    Column("error", Text),
    Column("request_id", Text),
    Index("openai_cancel_lapsing", "lease_until"),
    Index("openai_cancel_owners", "owner"),
)


class database_time(GenericFunction[float]):  # noqa: N801 - functions of SQL have such names
    """Seconds since 1970 by the clock of the database, so that hosts with wrong clocks agree."""

    type: TypeEngine[float] = Double(asdecimal=False)
    inherit_cache: bool = True


@compiles(database_time, "sqlite")
def _in_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_time, "postgresql")
def _in_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


async def _create(connection: AsyncConnection) -> None:
    await connection.run_sync(METADATA.create_all)
    await connection.execute(insert(VERSIONS).values(version=0))


MIGRATIONS: Sequence[Callable[[AsyncConnection], Awaitable[None]]] = (_create,)
"""Each makes the next version out of the one before it; the first out of nothing. They are only ever added to."""

_LOCK = 7306_5143  # any number that is always the same


async def migrate(connection: AsyncConnection) -> None:
    """Bring the tables to the newest version, in the transaction that is open.

    Raises:
        LedgerError: they are of a version that is newer still.
    """
    if connection.dialect.name == "postgresql":
        # Two that begin at once would both find nothing; SQLite has locked the file by now.
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    known = await connection.run_sync(lambda sync: sync.dialect.has_table(sync, VERSIONS.name))
    version: int = await connection.scalar(select(VERSIONS.c.version)) or 0 if known else 0
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"The ledger has tables of version {version}, and this openai-cancel knows {len(MIGRATIONS)}: upgrade it."
        )
    for step in MIGRATIONS[version:]:
        await step(connection)
    if version < len(MIGRATIONS):
        await connection.execute(update(VERSIONS).values(version=len(MIGRATIONS)))

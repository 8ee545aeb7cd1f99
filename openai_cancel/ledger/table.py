"""The tables of a ledger and the SQL statements for them, the same for SQLite and PostgreSQL.

Everything but `migrate` is pure: it builds statements and does not execute them.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Double,
    Executable,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    delete,
    insert,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import Insert
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine

from openai_cancel.errors import LedgerError
from openai_cancel.outcome import Outcome, Verdict

TRACKED, RELEASED, STOPPING = "tracked", "released", "stopping"

FINAL_VERDICTS = frozenset({Verdict.CANCELLED, Verdict.ALREADY_FINISHED, Verdict.NOT_BACKGROUND, Verdict.NOT_FOUND})
"""The verdicts that another attempt would not change."""

MAX_ERROR_LENGTH = 1000
"""The number of characters of an error that are stored."""

METADATA = MetaData()

VERSIONS = Table("openai_cancel_schema", METADATA, Column("version", Integer, nullable=False))

RESPONSES = Table(
    "openai_cancel_responses",
    METADATA,
    # A hash of account, base URL and id, because an id can be too long for an index of PostgreSQL.
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
    Column("lease_until", Double),  # NULL if no sweep should claim the row any more
    Column("error", Text),
    Column("request_id", Text),
    Index("openai_cancel_lapsing", "lease_until"),
    Index("openai_cancel_owners", "owner"),
)

_table = RESPONSES.c
_has_lease = _table.lease_until.is_not(None)


class DatabaseTime(GenericFunction[float]):
    """Seconds since 1970 by the clock of the database, so that hosts with wrong clocks agree."""

    type: TypeEngine[float] = Double(asdecimal=False)
    inherit_cache: bool = True


@compiles(DatabaseTime, "sqlite")
def _compile_for_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(DatabaseTime, "postgresql")
def _compile_for_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


class Command(NamedTuple):
    """A statement, and one set of parameters for each of its executions.

    Attributes:
        statement: the statement.
        parameters: the parameters.
        is_repeatable: whether it does no harm, and has the same result, if it is executed twice in succession.
    """

    statement: Executable
    parameters: Sequence[Mapping[str, Any]] = ()
    is_repeatable: bool = True


class Record(NamedTuple):
    """A row to write: a response that is tracked from now on.

    Attributes:
        digest: the key of the row.
        response_id: the id.
        base_url: the address of the server that holds the response.
        account: the name of the account.
        labels: what the caller stores with it.
        owner: the holder of the lease, or None.
        seconds: the length of the lease.
    """

    digest: str
    response_id: str
    base_url: str
    account: str
    labels: Mapping[str, str]
    owner: str | None
    seconds: float

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the statement that writes the row."""
        return self._asdict()


class Settlement(NamedTuple):
    """A change of a row whose lease ends. It has no effect if the row belongs to another owner by now.

    Attributes:
        digest: the key of the row.
        response_id: the id.
        owner: the holder of the lease that ends.
        state: the new state.
        again_in: seconds until a sweep may claim the row; None for never.
        more_attempts: the number to add to the attempts.
        outcome: the outcome of the last attempt, or None.
    """

    digest: str
    response_id: str
    owner: str
    state: str
    again_in: float | None = None
    more_attempts: int = 0
    outcome: Outcome | None = None

    @classmethod
    def from_outcome(
        cls,
        digest: str,
        owner: str,
        outcome: Outcome,
        *,
        again_in: float | None,
        more_attempts: int = 0,
        young: bool = False,
    ) -> Self:
        """Return what to record for the outcome of a stop.

        Args:
            digest: the key of the row.
            owner: the holder of the lease.
            outcome: the outcome.
            again_in: seconds until a sweep may claim the row if the response was not stopped; None to give up.
            more_attempts: the number to add to the attempts.
            young: whether the response was recorded a moment ago, so that a server that does not find it may find it
                later.
        """
        final = outcome.verdict in FINAL_VERDICTS and not (young and outcome.verdict is Verdict.NOT_FOUND)
        ended = final or again_in is None
        return cls(
            digest=digest,
            response_id=outcome.response_id,
            owner=owner,
            state=outcome.verdict if ended else TRACKED,
            again_in=None if ended else again_in,
            more_attempts=more_attempts,
            outcome=outcome,
        )

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the statement that writes the change."""
        outcome = self.outcome
        error = None if outcome is None or outcome.error is None else str(outcome.error)
        return {
            "old_digest": self.digest,
            "old_owner": self.owner,
            "new_state": self.state,
            "again_in": self.again_in,
            "more_attempts": self.more_attempts,
            "new_error": _storable(error),
            "new_request_id": _storable(None if outcome is None else outcome.request_id),
        }


Change = Record | Settlement


class Account(NamedTuple):
    """An account on a server, whose responses a ledger tracks."""

    name: str
    base_url: str

    def digest(self, response_id: str) -> str:
        """Return the key of a row."""
        return hashlib.sha256("\0".join((*self, response_id)).encode()).hexdigest()

    def record(self, response_id: str, *, owner: str | None, seconds: float, labels: Mapping[str, str]) -> Record:
        """Return a row to write. For the arguments, see `Record`."""
        return Record(
            digest=self.digest(response_id),
            response_id=response_id,
            base_url=self.base_url,
            account=self.name,
            labels=labels,
            owner=owner,
            seconds=seconds,
        )


def _storable(words: str | None) -> str | None:
    """Return the text of a server in a form that both databases accept."""
    return words and words[:MAX_ERROR_LENGTH].encode(errors="replace").decode().replace("\0", "")


def _recording(dialect: str) -> Insert:
    make = sqlite.insert if dialect == "sqlite" else postgresql.insert
    statement = make(RESPONSES).values(
        state=TRACKED,
        attempts=0,
        created=DatabaseTime(),
        changed=DatabaseTime(),
        lease_until=DatabaseTime() + bindparam("seconds", type_=Double),
    )
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[_table.digest],
        set_={
            "labels": new.labels,
            "state": TRACKED,
            "owner": new.owner,
            "attempts": 0,
            "changed": new.changed,
            "lease_until": new.lease_until,
            "error": None,
            "request_id": None,
        },
    )


_RECORD: Mapping[str, Insert] = {dialect: _recording(dialect) for dialect in ("sqlite", "postgresql")}

_SETTLE = (
    update(RESPONSES)
    .where(_table.digest == bindparam("old_digest"), _table.owner == bindparam("old_owner"))
    .values(
        state=bindparam("new_state", type_=String),
        owner=None,
        attempts=_table.attempts + bindparam("more_attempts", type_=Integer),
        changed=DatabaseTime(),
        lease_until=DatabaseTime() + bindparam("again_in", type_=Double),  # the sum with NULL is NULL
        error=bindparam("new_error", type_=Text),
        request_id=bindparam("new_request_id", type_=Text),
    )
)


def write(changes: Collection[Change], dialect: str) -> list[Command]:
    """Return the commands that write rows and changes of rows.

    Args:
        changes: what to write.
        dialect: `sqlite` or `postgresql`.
    """
    records = [change.parameters() for change in changes if isinstance(change, Record)]
    settlements = [change.parameters() for change in changes if isinstance(change, Settlement)]
    commands = Command(_RECORD[dialect], records), Command(_SETTLE, settlements)
    return [command for command in commands if command.parameters]


def renew(owners: Collection[str], seconds: float) -> Command:
    """Return the command that renews the leases of some owners; they last that many seconds from now."""
    leases = update(RESPONSES).where(_table.owner.in_(owners), _has_lease)
    return Command(leases.values(lease_until=DatabaseTime() + seconds))


class Claimed(NamedTuple):
    """A row that a sweep has claimed. `attempts` includes the attempt of this claim."""

    digest: str
    response_id: str
    attempts: int
    age: float
    """Seconds since it was first recorded."""


def claim(owner: str, seconds: float, account: Account, *, limit: int) -> Command:
    """Return the command that claims rows whose lease has lapsed, the oldest leases first.

    Its rows are those of `Claimed`.

    Args:
        owner: the new holder of the leases.
        seconds: the length of the new leases.
        account: the account of the responses.
        limit: the largest number of rows.
    """
    lapsed = (
        select(_table.digest)
        .where(_table.lease_until < DatabaseTime())
        .where(_table.account == account.name, _table.base_url == account.base_url)
        .order_by(_table.lease_until)
        .limit(limit)
        .with_for_update(skip_locked=True)  # ignored by SQLite, where a claim has locked the whole file
        .cte("lapsed")
    )
    return Command(
        update(RESPONSES)
        .where(_table.digest.in_(select(lapsed.c.digest)))
        .values(
            state=STOPPING,
            owner=owner,
            attempts=_table.attempts + 1,
            changed=DatabaseTime(),
            lease_until=DatabaseTime() + seconds,
        )
        .returning(_table.digest, _table.response_id, _table.attempts, (DatabaseTime() - _table.created).label("age"))
    )


def release(digest: str) -> Command:
    """Return the command that releases a row with a lease, whoever holds it, and returns its digest."""
    return Command(
        update(RESPONSES)
        .where(_table.digest == digest, _has_lease)
        .values(state=RELEASED, owner=None, changed=DatabaseTime(), lease_until=None)
        .returning(_table.digest),
        is_repeatable=False,  # the second time it finds no lease
    )


def page(after: tuple[float, str], *, include_ended: bool, limit: int) -> Command:
    """Return the command that reads a page of rows, the oldest first, with the seconds that are left of their leases.

    Args:
        after: `created` and `digest` of the last row of the page before.
        include_ended: whether to read rows without a lease, too.
        limit: the number of rows of a page.
    """
    rows = select(RESPONSES, (_table.lease_until - DatabaseTime()).label("lease_left"))
    if not include_ended:
        rows = rows.where(_has_lease)
    rows = rows.where(tuple_(_table.created, _table.digest) > after)
    return Command(rows.order_by(_table.created, _table.digest).limit(limit))


def purge(older_than: float, *, limit: int) -> Command:
    """Return the command that deletes rows that ended more than so many seconds ago, and returns their digests."""
    old = select(_table.digest).where(_table.lease_until.is_(None), _table.changed < DatabaseTime() - older_than)
    return Command(delete(RESPONSES).where(_table.digest.in_(old.limit(limit))).returning(_table.digest))


def _create(connection: Connection) -> None:
    METADATA.create_all(connection)
    connection.execute(insert(VERSIONS).values(version=0))


MIGRATIONS: Sequence[Callable[[Connection], None]] = (_create,)
"""The steps from each version of the tables to the next one. The first creates them. Steps are only ever added."""

_MIGRATION_LOCK = 7306_5143  # an arbitrary constant that identifies the lock


def is_migrated(connection: Connection) -> bool:
    """Return whether the tables have the newest version. This takes no lock."""
    return _version(connection) == len(MIGRATIONS)


def migrate(connection: Connection) -> None:
    """Bring the tables to the newest version, in the transaction that is open.

    Raises:
        LedgerError: the tables have a version that this package does not know.
    """
    if connection.dialect.name == "postgresql":
        # Two processes that start at once would both try to create the tables. SQLite has locked the file by now.
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
    version = _version(connection)
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"The tables of the ledger have version {version}, but this openai-cancel knows only version "
            f"{len(MIGRATIONS)}: upgrade it."
        )
    for step in MIGRATIONS[version:]:
        step(connection)
    if version < len(MIGRATIONS):
        connection.execute(update(VERSIONS).values(version=len(MIGRATIONS)))


def _version(connection: Connection) -> int:
    exists = connection.dialect.has_table(connection, VERSIONS.name)
    return (connection.scalar(select(VERSIONS.c.version)) or 0) if exists else 0

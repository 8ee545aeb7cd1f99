"""The tables of a ledger and the SQL statements for them, the same for SQLite and PostgreSQL.

Everything but `migrate` is pure: it builds statements and does not execute them.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Double,
    Executable,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    case,
    delete,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine

from openai_cancel.errors import LedgerError
from openai_cancel.log_events import log_fields
from openai_cancel.outcome import Outcome, Verdict

TRACKED, RELEASED, STOPPING = "tracked", "released", "stopping"

FINAL_VERDICTS = frozenset({Verdict.CANCELLED, Verdict.ALREADY_FINISHED, Verdict.NOT_BACKGROUND, Verdict.NOT_FOUND})
"""The verdicts that another attempt would not change."""

BY_LEASE, BY_LIMIT, BY_STOP, BY_HAND = "lease", "max_age", "stop", "release"
"""Why an owner has lost its row: the lease had expired, `max_age` was over, or somebody has stopped or released it."""

MAX_ERROR_LENGTH = 1000
"""The number of characters of an error that are stored."""

METADATA = MetaData()

_log = logging.getLogger("openai_cancel.ledger")


def _index(name: str, *columns: str, where: str) -> Index:
    """Return a partial index."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


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
    Column("tracked_until", Double),  # the lease that remains when its guards have ended: that of `Ledger.track`
    Column("expires", Double),  # no lease lasts longer than this
    Column("reason", Text),  # why its owner has lost the row
    Column("progress", Text),  # a mark of the last progress that a wait has seen
    Column("progressed", Double),  # the time of that progress
    Column("shared_until", Double),  # the lease that its owner, a guard or a sweep, has taken over from another process
    # Partial indexes, because most rows of an old ledger have ended.
    _index("openai_cancel_lapsing", "lease_until", where="lease_until IS NOT NULL"),
    _index("openai_cancel_owners", "owner", where="owner IS NOT NULL"),
    _index("openai_cancel_open", "created", "digest", where="lease_until IS NOT NULL"),
    _index("openai_cancel_ended", "changed", where="lease_until IS NULL"),
    Index("openai_cancel_created", "created", "digest"),
)

_table = RESPONSES.c
HAS_LEASE = _table.lease_until.is_not(None)
"""Whether a row is open: only such rows are renewed, or claimed."""


class DatabaseTime(GenericFunction[float]):
    """Seconds since 1970 by the clock of the database, so that hosts with wrong clocks agree."""

    type: TypeEngine[float] = Double(asdecimal=False)
    inherit_cache: bool = True


@compiles(DatabaseTime, "sqlite")
def _compile_for_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(DatabaseTime, "postgresql")
def _compile_for_postgresql(*_: Any, **__: Any) -> str:
    # That of the statement, which is the same in all of it: with `clock_timestamp()`, no index would be used.
    return "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"


class ArrayStatement(NamedTuple):
    """A statement that takes the parameters of many rows at once, in arrays.

    Attributes:
        statement: the statement.
        key: the name of the parameter that identifies a row.
    """

    statement: Executable
    key: str


class Command(NamedTuple):
    """A statement, and one set of parameters for each of its executions.

    Attributes:
        statement: the statement.
        parameters: the parameters.
        is_repeatable: whether it does no harm, and has the same result, if it is executed twice in succession.
        bulk: a statement that does the same, and is faster with more than one set of parameters; or None.
    """

    statement: Executable
    parameters: Sequence[Mapping[str, Any]] = ()
    is_repeatable: bool = True
    bulk: ArrayStatement | None = None


class Record(NamedTuple):
    """A row to write: a response that is tracked from now on.

    Attributes:
        digest: the key of the row.
        response_id: the id.
        base_url: the address of the server that holds the response.
        account: the name of the account.
        labels: what the caller stores with it.
        owner: the holder of the lease, or None for the time of a `track`, which remains when a guard has ended.
        seconds: the length of the lease.
        max_age: seconds since the response was first recorded after which its lease ends, whoever renews it; or None.
    """

    digest: str
    response_id: str
    base_url: str
    account: str
    labels: Mapping[str, str]
    owner: str | None
    seconds: float
    max_age: float | None = None

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
        more_attempts: the number to add to the attempts. If it is negative, the row remains as overdue as it was.
        error: the reason why the response was not stopped, or None.
        request_id: the server's id of the last request, or None.
    """

    digest: str
    response_id: str
    owner: str
    state: str
    again_in: float | None = None
    more_attempts: int = 0
    error: str | None = None
    request_id: str | None = None

    @classmethod
    def from_outcome(
        cls,
        digest: str,
        owner: str,
        outcome: Outcome,
        *,
        again_in: float | None,
        more_attempts: int = 0,
        attempts: int = 1,
        not_found_is_final: bool = True,
    ) -> Self:
        """Return what to record for the outcome of a stop.

        Args:
            digest: the key of the row.
            owner: the holder of the lease.
            outcome: the outcome.
            again_in: seconds until a sweep may claim the row if the response was not stopped; None to give up.
            more_attempts: the number to add to the attempts.
            attempts: the number of attempts to stop the response so far, for the reason of giving up.
            not_found_is_final: whether a response that the server does not find is not tried again. If it was created
                recently, the server may find it later.
        """
        final = outcome.verdict in FINAL_VERDICTS and (not_found_is_final or outcome.verdict is not Verdict.NOT_FOUND)
        gives_up = again_in is None and not final
        error = _reason(outcome)
        return cls(
            digest=digest,
            response_id=outcome.response_id,
            owner=owner,
            state=outcome.verdict if final or gives_up else TRACKED,
            again_in=None if final else again_in,
            more_attempts=more_attempts,
            error=f"Given up after {attempts:,} attempt{'s' * (attempts != 1)}: {error}" if gives_up else error,
            request_id=outcome.request_id,
        )

    def in_ascii(self) -> Self:
        """Return the same with what a database of any encoding can hold: a server's text, with its letters escaped."""
        return self._replace(error=_escaped(self.error), request_id=_escaped(self.request_id))

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the statement that writes the change."""
        return {
            "old_digest": self.digest,
            "old_owner": self.owner,
            "new_state": self.state,
            "again_in": self.again_in,
            "more_attempts": self.more_attempts,
            "new_error": _storable(self.error),
            "new_request_id": _storable(self.request_id),
        }


def _reason(outcome: Outcome) -> str | None:
    """Return the reason why a response was not stopped. There is one, even if no request has failed."""
    if outcome.error is not None:
        return str(outcome.error)
    if outcome.stopped:
        return None
    status = None if outcome.response is None else outcome.response.status
    return f"The server reports the status {status!r}."


class Release(NamedTuple):
    """The normal end of a guard: its response may run on, for as long as `Ledger.track` has said if it was called.

    If guards of other processes hold the response, too, the row stays tracked for them.

    Attributes:
        digest: the key of the row.
        response_id: the id.
        owner: the holder of the lease that ends.
    """

    digest: str
    response_id: str
    owner: str

    @property
    def state(self) -> str:
        """The new state, if `Ledger.track` was not called."""
        return RELEASED

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the statement that writes the change."""
        return {"old_digest": self.digest, "old_owner": self.owner}


End = Settlement | Release
Change = Record | End


class Account(NamedTuple):
    """An account on a server, whose responses a ledger tracks."""

    name: str
    base_url: str

    def digest(self, response_id: str) -> str:
        """Return the key of a row."""
        return hashlib.sha256("\0".join((*self, response_id)).encode()).hexdigest()

    def record(
        self,
        response_id: str,
        *,
        owner: str | None,
        seconds: float,
        labels: Mapping[str, str],
        max_age: float | None = None,
    ) -> Record:
        """Return a row to write. For the arguments, see `Record`."""
        return Record(
            digest=self.digest(response_id),
            response_id=response_id,
            base_url=self.base_url,
            account=self.name,
            labels=labels,
            owner=owner,
            seconds=seconds,
            max_age=max_age,
        )


def _escaped(words: str | None) -> str | None:
    return words and words.encode("ascii", errors="backslashreplace").decode()


def _storable(words: str | None) -> str | None:
    """Return the text of a server in a form that both databases accept."""
    return words and words[:MAX_ERROR_LENGTH].encode(errors="replace").decode().replace("\0", "")


_now = DatabaseTime()


def count_owned(owner: str) -> Command:
    """Return the command that counts the rows of an owner."""
    return Command(select(func.count()).select_from(RESPONSES).where(_table.owner == owner, HAS_LEASE))


def owned(owner: str) -> Command:
    """Return the command that reads the digests of the rows of an owner."""
    return Command(select(_table.digest).where(_table.owner == owner, HAS_LEASE))


def history(digest: str) -> Command:
    """Return the command that reads the seconds since a row was first recorded, its mark, and the seconds since that.

    They are those of `openai_cancel.ledger_protocols.History`.
    """
    age, unchanged_for = (_now - _table.created).label("age"), (_now - _table.progressed).label("unchanged_for")
    return Command(select(age, _table.progress.label("mark"), unchanged_for).where(_table.digest == digest))


def note_progress(digest: str, mark: str, ago: float) -> Command:
    """Return the command that writes the mark of the progress of a response, and its time, some seconds ago."""
    return Command(update(RESPONSES).where(_table.digest == digest).values(progress=mark, progressed=_now - ago))


class RowState(NamedTuple):
    """A row as it is now, for an owner that may have lost it. For the attributes, see `RESPONSES`."""

    digest: str
    state: str
    owner: str | None
    attempts: int
    lease_left: float | None
    """Seconds until its lease ends."""
    error: str | None
    request_id: str | None
    reason: str | None


def look(digests: Collection[str]) -> Command:
    """Return the command that reads some rows. They are those of `RowState`."""
    return Command(
        select(
            _table.digest,
            _table.state,
            _table.owner,
            _table.attempts,
            (_table.lease_until - _now).label("lease_left"),
            _table.error,
            _table.request_id,
            _table.reason,
        ).where(_table.digest.in_(digests))
    )


class Claimed(NamedTuple):
    """A row that a sweep has claimed. `attempts` includes the attempt of this claim."""

    digest: str
    response_id: str
    attempts: int
    age: float
    """Seconds since it was first recorded."""


def claim(owner: str, seconds: float, account: Account, *, limit: int) -> Command:
    """Return the command that claims rows whose lease has expired, the oldest leases first.

    Its rows are those of `Claimed`.

    Args:
        owner: the new holder of the leases.
        seconds: the length of the new leases.
        account: the account of the responses.
        limit: the maximum number of rows.
    """
    expired = (
        select(_table.digest)
        .where(_table.lease_until < DatabaseTime())
        .where(_table.account == account.name, _table.base_url == account.base_url)
        .order_by(_table.lease_until)
        .limit(limit)
    )
    # A row whose sweep was interrupted keeps the reason of the first one.
    reason = func.coalesce(_table.reason, case((_table.expires < _now, BY_LIMIT), else_=BY_LEASE))
    return take(expired, owner, seconds, reason)


def take(rows: Select[tuple[str]], owner: str, seconds: float, reason: ColumnElement[str] | str) -> Command:
    """Return the command that gives rows to a sweep, except those that another transaction has locked.

    Its rows are those of `Claimed`, with their `created`.

    Args:
        rows: selects their digests.
        owner: the new holder of the leases.
        seconds: the length of the new leases.
        reason: why the owners of the rows lose them.
    """
    # SQLite ignores the lock: there, a claim has locked the whole file.
    taken = rows.with_for_update(skip_locked=True).cte("taken")
    return Command(
        update(RESPONSES)
        .where(_table.digest.in_(select(taken.c.digest)))
        .values(
            state=STOPPING,
            owner=owner,
            attempts=_table.attempts + 1,
            changed=_now,
            lease_until=_now + seconds,
            shared_until=_table.lease_until,
            reason=reason,
        )
        .returning(
            _table.digest,
            _table.response_id,
            _table.attempts,
            (DatabaseTime() - _table.created).label("age"),
            _table.created,
        )
    )


def give_back(sweeps: Collection[str]) -> Command:
    """Return the command that lets others claim at once what some sweeps have claimed and not stopped.

    Its rows are as overdue as they were.
    """
    claimed = select(_table.digest).where(_table.owner.in_(sweeps), _table.state == STOPPING)
    locked = claimed.order_by(_table.digest).with_for_update(key_share=True).cte("locked")
    return Command(
        update(RESPONSES)
        .where(_table.digest.in_(select(locked.c.digest)))
        .values(
            state=TRACKED,
            owner=None,
            attempts=_table.attempts - 1,
            changed=_now,
            lease_until=case((_table.shared_until < _now, _table.shared_until), else_=_now),
            shared_until=None,
        )
    )


def release(digest: str) -> Command:
    """Return the command that releases a row with a lease, whoever holds it, and returns its digest.

    Its limits end, too.
    """
    ends = dict.fromkeys(("owner", "lease_until", "tracked_until", "shared_until", "expires"))
    return Command(
        update(RESPONSES)
        .where(_table.digest == digest, HAS_LEASE)
        .values(state=RELEASED, changed=_now, reason=BY_HAND, **ends)
        .returning(_table.digest),
        is_repeatable=False,  # the second time it finds no lease
    )


_VERSION_2 = (
    "ALTER TABLE openai_cancel_responses ADD COLUMN tracked_until DOUBLE PRECISION",
    "ALTER TABLE openai_cancel_responses ADD COLUMN expires DOUBLE PRECISION",
    "ALTER TABLE openai_cancel_responses ADD COLUMN reason TEXT",
    "ALTER TABLE openai_cancel_responses ADD COLUMN progress TEXT",
    "ALTER TABLE openai_cancel_responses ADD COLUMN progressed DOUBLE PRECISION",
    "ALTER TABLE openai_cancel_responses ADD COLUMN shared_until DOUBLE PRECISION",
    # The rows of `Ledger.track`. Those that a sweep has given back look like them, but their lease ended with that.
    """UPDATE openai_cancel_responses SET tracked_until = lease_until
    WHERE owner IS NULL AND attempts = 0 AND lease_until > changed + 0.001""",
    "DROP INDEX IF EXISTS openai_cancel_lapsing",
    "DROP INDEX IF EXISTS openai_cancel_owners",
    "CREATE INDEX openai_cancel_lapsing ON openai_cancel_responses (lease_until) WHERE lease_until IS NOT NULL",
    "CREATE INDEX openai_cancel_owners ON openai_cancel_responses (owner) WHERE owner IS NOT NULL",
    "CREATE INDEX openai_cancel_open ON openai_cancel_responses (created, digest) WHERE lease_until IS NOT NULL",
    "CREATE INDEX openai_cancel_ended ON openai_cancel_responses (changed) WHERE lease_until IS NULL",
    "CREATE INDEX openai_cancel_created ON openai_cancel_responses (created, digest)",
)

MIGRATIONS: Sequence[Sequence[str]] = (_VERSION_2,)
"""The statements from each version of the tables to the next one, from version 1 on. They are only ever added."""


_NEWEST = 1 + len(MIGRATIONS)

_MIGRATION_LOCK = 7306_5143  # an arbitrary constant that identifies the lock


def is_migrated(connection: Connection) -> bool:
    """Return whether the tables exist in the newest version. This takes no lock."""
    return bool(_columns(connection, RESPONSES)) and _stored_version(connection) == _NEWEST


def migrate(connection: Connection) -> None:
    """Create the tables, or bring them to the newest version, in the transaction that is open.

    Raises:
        LedgerError: the tables have a version that this package does not know.
    """
    if connection.dialect.name == "postgresql":
        # Two processes that start at once would both try to create the tables. SQLite has locked the file by now.
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
    stored = _stored_version(connection)
    if stored is not None and stored > _NEWEST:
        raise LedgerError(
            f"The tables of the ledger have version {stored}, but this openai-cancel knows only version {_NEWEST}: "
            "upgrade it."
        )
    names = _columns(connection, RESPONSES)
    if stored is None or not names:
        METADATA.create_all(connection)  # those that do not exist
    if stored is not None and not names:
        _log.error(
            "the ledger's table %s was missing, and is created again without its rows", RESPONSES.name,
            extra=log_fields("ledger_recreated"),
        )  # fmt: skip
    if names:
        version = stored or (_NEWEST if "expires" in names else 1)
        for statement in (statement for step in MIGRATIONS[version - 1 :] for statement in step):
            connection.execute(text(statement))
    if stored != _NEWEST:
        connection.execute(delete(VERSIONS))
        connection.execute(insert(VERSIONS).values(version=_NEWEST))


def _stored_version(connection: Connection) -> int | None:
    return connection.scalar(select(VERSIONS.c.version)) if _columns(connection, VERSIONS) else None


def _columns(connection: Connection, table: Table) -> set[str]:
    """Return the names of the columns of a table, or none if it does not exist."""
    if not connection.dialect.has_table(connection, table.name):
        return set()
    return {column["name"] for column in inspect(connection).get_columns(table.name)}

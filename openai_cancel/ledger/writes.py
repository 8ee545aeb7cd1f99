"""The statements that write the rows of responses, and the ends of their leases.

SQLite executes a statement for each row. On PostgreSQL, one execution writes many, which are in arrays. It locks them
in the order of their digests, so that two processes that write the same rows do not wait for each other in a circle.
"""

from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Double,
    FromClause,
    Integer,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import Insert
from sqlalchemy.types import TypeEngine

from openai_cancel.ledger.arrays import array_name
from openai_cancel.ledger.table import (
    HAS_LEASE,
    RELEASED,
    RESPONSES,
    STOPPING,
    TRACKED,
    ArrayStatement,
    Change,
    Command,
    DatabaseTime,
    Record,
    Settlement,
)

_Types = Mapping[str, type[TypeEngine[Any]]]

_RECORD_TYPES: _Types = {
    "digest": Text,
    "response_id": Text,
    "base_url": Text,
    "account": Text,
    "labels": JSON,
    "owner": Text,
    "seconds": Double,
    "max_age": Double,
}
"""The parameters of `Record`."""

_RELEASE_TYPES: _Types = {"old_digest": Text, "old_owner": Text}
"""The parameters of `Release`."""

_SETTLE_TYPES: _Types = {
    **_RELEASE_TYPES,
    "new_state": Text,
    "again_in": Double,
    "more_attempts": Integer,
    "new_error": Text,
    "new_request_id": Text,
}
"""The parameters of `Settlement`."""

_table = RESPONSES.c
_now = DatabaseTime()
_is_claimed = and_(_table.state == STOPPING, _table.lease_until >= _now)


def _earlier(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the earlier of two times. NULL is never."""
    return case((or_(one.is_(None), other < one), other), else_=one)


def _later(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the later of two times. NULL is none."""
    return case((or_(one.is_(None), other > one), other), else_=one)


def _unnested(types: _Types) -> FromClause:
    """Return the rows that a statement of PostgreSQL has in arrays, one for each parameter."""
    given = [bindparam(array_name(name), type_=postgresql.ARRAY(kind)) for name, kind in types.items()]
    columns = [column(name, kind) for name, kind in types.items()]
    return func.unnest(*given).table_valued(*columns, name="new").render_derived()


def inserting(dialect: str, *, guarded: bool, in_arrays: bool) -> sqlite.Insert | postgresql.Insert:
    """Return the statement that inserts rows, with the parameters of `Record`.

    Args:
        dialect: `sqlite` or `postgresql`.
        guarded: whether the rows have an owner, whose lease is not that of a `track`.
        in_arrays: whether it takes the parameters of many rows in arrays.
    """
    rows = _unnested(_RECORD_TYPES)
    seconds = rows.c.seconds if in_arrays else bindparam("seconds", type_=Double)
    max_age = rows.c.max_age if in_arrays else bindparam("max_age", type_=Double)
    made: dict[str, ColumnElement[Any]] = {
        "state": literal(TRACKED),
        "attempts": literal(0),
        "created": _now,
        "changed": _now,
        "lease_until": _earlier(_now + seconds, _now + max_age),
        "tracked_until": cast(null(), Double) if guarded else _now + seconds,
        "expires": _now + max_age,  # the sum with NULL is NULL
    }
    insert = sqlite.insert(RESPONSES) if dialect == "sqlite" else postgresql.insert(RESPONSES)
    if not in_arrays:
        return insert.values(made)  # and the parameters that have the names of columns
    made |= {name: rows.c[name] for name in _RECORD_TYPES if name in _table}
    return insert.from_select([*made], select(*made.values()).order_by(rows.c.digest))


def _recording(dialect: str, *, guarded: bool, in_arrays: bool) -> Insert:
    """Return the statement that writes a row: for a guard, which holds its lease, or for `Ledger.track`.

    It leaves a row alone that is being stopped. It keeps the time of a `track`, the earliest limit and all labels. The
    guard of another process loses the lease, which is kept as the one that they share.
    """
    statement = inserting(dialect, guarded=guarded, in_arrays=in_arrays)
    new = statement.excluded
    # No parameter can be seen here that a statement has in arrays: the limit is in the row that could not be inserted.
    expires = _earlier(_table.expires, _table.created + (new.expires - new.created))
    lease = _earlier(new.lease_until, expires)
    is_guarded = and_(_table.state == TRACKED, _table.owner.is_not(None), _table.lease_until >= _now)
    shared = case((_table.owner == new.owner, _table.shared_until), (is_guarded, _table.lease_until), else_=null())
    # The labels of a track take precedence over those of a guard, which are the same for all of its process.
    labels = (new.labels, _table.labels) if guarded else (_table.labels, new.labels)
    return statement.on_conflict_do_update(
        index_elements=[_table.digest],
        set_={
            "labels": _merged(dialect, *labels),
            "state": TRACKED,
            "owner": new.owner if guarded else case((is_guarded, _table.owner), else_=null()),
            "attempts": 0,
            "changed": _now,
            "lease_until": lease if guarded else case((is_guarded, _table.lease_until), else_=lease),
            # A row without a lease has ended, and with it the time of its track.
            "tracked_until": case((HAS_LEASE, _table.tracked_until), else_=null()) if guarded else new.tracked_until,
            "shared_until": shared if guarded else _table.shared_until,
            "expires": expires,
            "error": None,
            "request_id": None,
            "reason": None,
        },
        where=not_(_is_claimed),
    )


def _merged(dialect: str, one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the labels of both; those of the second one take precedence."""
    if dialect == "sqlite":
        return func.json_patch(one, other, type_=JSON)
    merged = cast(one, postgresql.JSONB).op("||")(cast(other, postgresql.JSONB))
    return cast(merged, JSON)


def _ending(types: _Types, *, in_arrays: bool) -> tuple[Update, Mapping[str, ColumnElement[Any]]]:
    """Return an update of a row, which is locked if many are in arrays, and the parameters of the update."""
    given: dict[str, ColumnElement[Any]] = {name: bindparam(name, type_=kind) for name, kind in types.items()}
    if in_arrays:
        rows = _unnested(types)
        # An update alone would lock the rows in whatever order they are joined in.
        locking = select(*rows.c).join(RESPONSES, _table.digest == rows.c.old_digest).order_by(_table.digest)
        locked = locking.with_for_update(of=RESPONSES, key_share=True).cte("locked")
        given = {name: locked.c[name] for name in types}
    return update(RESPONSES).where(_table.digest == given["old_digest"]).values(changed=_now), given


def _settling(_dialect: str, *, in_arrays: bool) -> Update:
    """Return the statement that writes a settlement."""
    ending, given = _ending(_SETTLE_TYPES, in_arrays=in_arrays)
    again_in = given["again_in"]
    until = _now + again_in  # the sum with NULL is NULL
    return ending.where(_table.owner == given["old_owner"]).values(
        owner=None,
        state=given["new_state"],
        attempts=_table.attempts + given["more_attempts"],
        lease_until=case((given["more_attempts"] < 0, _earlier(until, _table.shared_until)), else_=until),
        tracked_until=case((again_in.is_(None), null()), else_=_table.tracked_until),
        shared_until=None,
        error=given["new_error"],
        request_id=given["new_request_id"],
    )


def _releasing(_dialect: str, *, in_arrays: bool) -> Update:
    """Return the statement that writes a release by the owner of a row, or by a process that shares it.

    If the owner leaves first, the row stays tracked until the other process takes it with its next heartbeat. If the
    other process leaves first, the owner has the row alone.
    """
    ending, given = _ending(_RELEASE_TYPES, in_arrays=in_arrays)
    is_owned = _table.owner == given["old_owner"]
    is_shared = and_(_table.state == TRACKED, _table.shared_until.is_not(None))
    belongs_to_other = _table.owner != given["old_owner"]
    shared = case((and_(is_owned, _table.shared_until >= _now), _table.shared_until), else_=null())
    until = _later(shared, _table.tracked_until)
    return ending.where(or_(is_owned, is_shared)).values(
        owner=case((belongs_to_other, _table.owner), else_=null()),
        state=case((belongs_to_other, _table.state), (until.is_(None), RELEASED), else_=TRACKED),
        lease_until=case((belongs_to_other, _table.lease_until), (_table.expires < until, _table.expires), else_=until),
        shared_until=shared,
    )


_MAKERS: Mapping[str, tuple[Callable[..., Insert | Update], str]] = {
    "guard": (partial(_recording, guarded=True), "digest"),
    "track": (partial(_recording, guarded=False), "digest"),
    "settle": (_settling, "old_digest"),
    "release": (_releasing, "old_digest"),
}
"""For each kind of change, what makes its statement, and the parameter that identifies a row."""


@cache
def _template(kind: str, dialect: str) -> Command:
    """Return a command without its parameters. It is made when it is needed, because that takes some milliseconds."""
    make, key = _MAKERS[kind]
    bulk = ArrayStatement(make(dialect, in_arrays=True), key) if dialect == "postgresql" else None
    return Command(make(dialect, in_arrays=False), bulk=bulk)


def write(changes: Collection[Change], dialect: str) -> list[Command]:
    """Return the commands that write rows and changes of rows.

    Args:
        changes: what to write.
        dialect: `sqlite` or `postgresql`.
    """
    parts: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _MAKERS}
    for change in changes:
        parts[_kind(change)].append(change.parameters())
    return [_template(kind, dialect)._replace(parameters=part) for kind, part in parts.items() if part]


def _kind(change: Change) -> str:
    if isinstance(change, Record):
        return "track" if change.owner is None else "guard"
    return "settle" if isinstance(change, Settlement) else "release"


def renew(owners: Collection[str], seconds: float, dialect: str) -> Command:
    """Return the command that renews the leases of some owners: they last that many seconds from now.

    No lease of a guard lasts longer than the limit of its row. That of a sweep does, because it is stopping it.

    On PostgreSQL it skips rows that another transaction has locked, so that one of them does not let all others lapse.
    A lease lasts three heartbeats, and no sweep claims a row that is locked.

    Args:
        owners: the owners.
        seconds: the length of the leases.
        dialect: `sqlite` or `postgresql`.
    """
    until = _now + seconds
    renewed = case((_table.state == STOPPING, until), else_=_earlier(until, _table.expires))
    is_held = and_(_table.owner.in_(owners), HAS_LEASE)
    renewal = update(RESPONSES).where(is_held).values(lease_until=renewed)
    if dialect == "postgresql":
        held = select(_table.digest).where(is_held).order_by(_table.digest)
        locked = held.with_for_update(key_share=True, skip_locked=True).cte("locked")
        renewal = renewal.where(_table.digest.in_(select(locked.c.digest)))
    return Command(renewal)


def share(digests: Collection[str], owner: str, seconds: float) -> Command:
    """Return the command that renews the leases of an owner in rows whose lease an owner of another process has.

    Args:
        digests: the keys of the rows.
        owner: the owner that has lost them.
        seconds: the length of the leases.
    """
    until = _now + seconds
    is_shared = and_(_table.digest.in_(digests), _table.state == TRACKED, _table.owner != owner)
    held = select(_table.digest).where(is_shared).order_by(_table.digest)
    locked = held.with_for_update(key_share=True, skip_locked=True).cte("locked")  # as for `renew`
    return Command(
        update(RESPONSES)
        .where(_table.digest.in_(select(locked.c.digest)))
        # If the other process dies, the row is still held.
        .values(shared_until=until, lease_until=_later(_table.lease_until, _earlier(until, _table.expires)))
    )

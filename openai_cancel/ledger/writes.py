"""The statements that write the rows of responses, and the ends of their leases.

SQLite executes a statement for each row. On PostgreSQL, one execution writes many, which are in arrays. It locks them
in the order of their digests, so that two processes that write the same rows do not wait for each other in a circle.
"""

from collections.abc import Collection, Mapping, Sequence
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
    RELEASED,
    RESPONSES,
    STOPPING,
    TRACKED,
    Change,
    Command,
    DatabaseTime,
    Record,
    Release,
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
_has_lease = _table.lease_until.is_not(None)
_now = DatabaseTime()
_is_claimed = and_(_table.state == STOPPING, _table.lease_until >= _now)


def _earlier(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the earlier of two times. NULL is never."""
    return case((or_(one.is_(None), other < one), other), else_=one)


def _unnested(types: _Types) -> FromClause:
    """Return the rows that a statement of PostgreSQL has in arrays, one for each parameter."""
    given = [bindparam(array_name(name), type_=postgresql.ARRAY(kind)) for name, kind in types.items()]
    columns = [column(name, kind) for name, kind in types.items()]
    return func.unnest(*given).table_valued(*columns, name="new").render_derived()


def _inserting(dialect: str, *, guarded: bool) -> Insert:
    """Return the statement that inserts rows."""
    rows = _unnested(_RECORD_TYPES)
    on_sqlite = dialect == "sqlite"
    seconds = bindparam("seconds", type_=Double) if on_sqlite else rows.c.seconds
    max_age = bindparam("max_age", type_=Double) if on_sqlite else rows.c.max_age
    made: dict[str, ColumnElement[Any]] = {
        "state": literal(TRACKED),
        "attempts": literal(0),
        "created": _now,
        "changed": _now,
        "lease_until": _earlier(_now + seconds, _now + max_age),
        "tracked_until": cast(null(), Double) if guarded else _now + seconds,
        "expires": _now + max_age,  # the sum with NULL is NULL
    }
    if on_sqlite:
        return sqlite.insert(RESPONSES).values(made)  # and the parameters that have the names of columns
    made |= {name: rows.c[name] for name in _RECORD_TYPES if name in _table}
    return postgresql.insert(RESPONSES).from_select([*made], select(*made.values()).order_by(rows.c.digest))


def _recording(dialect: str, *, guarded: bool) -> Insert:
    """Return the statement that writes rows: for guards, which hold their leases, or for `Ledger.track`.

    It leaves a row alone that is being stopped. It keeps the time of a `track`, the earliest limit and all labels.
    """
    statement = _inserting(dialect, guarded=guarded)
    new = statement.excluded
    # No parameter can be seen here that a statement has in arrays: the limit is in the row that could not be inserted.
    expires = _earlier(_table.expires, _table.created + (new.expires - new.created))
    lease = _earlier(new.lease_until, expires)
    is_guarded = and_(_table.state == TRACKED, _table.owner.is_not(None), _table.lease_until >= _now)
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
            "tracked_until": case((_has_lease, _table.tracked_until), else_=null()) if guarded else new.tracked_until,
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


def _ending(dialect: str, types: _Types) -> tuple[Update, Mapping[str, ColumnElement[Any]]]:
    """Return an update of the rows that still belong to their owners, and its parameters."""
    given: Mapping[str, ColumnElement[Any]]
    if dialect == "sqlite":
        given = {name: bindparam(name, type_=kind) for name, kind in types.items()}
    else:
        rows = _unnested(types)
        is_owned = and_(_table.digest == rows.c.old_digest, _table.owner == rows.c.old_owner)
        # An update alone would lock the rows in whatever order they are joined in.
        locking = select(*rows.c).join(RESPONSES, is_owned).order_by(_table.digest)
        locked = locking.with_for_update(of=RESPONSES, key_share=True).cte("locked")
        given = {name: locked.c[name] for name in types}
    ending = update(RESPONSES).where(_table.digest == given["old_digest"], _table.owner == given["old_owner"])
    return ending.values(owner=None, changed=_now), given


def _settling(dialect: str) -> Update:
    """Return the statement that writes settlements."""
    ending, given = _ending(dialect, _SETTLE_TYPES)
    again_in = given["again_in"]
    return ending.values(
        state=given["new_state"],
        attempts=_table.attempts + given["more_attempts"],
        lease_until=_now + again_in,  # the sum with NULL is NULL
        tracked_until=case((again_in.is_(None), null()), else_=_table.tracked_until),
        error=given["new_error"],
        request_id=given["new_request_id"],
    )


def _releasing(dialect: str) -> Update:
    """Return the statement that writes releases."""
    ending, _ = _ending(dialect, _RELEASE_TYPES)
    return ending.values(
        state=case((_table.tracked_until.is_(None), RELEASED), else_=TRACKED),
        lease_until=case((_table.expires < _table.tracked_until, _table.expires), else_=_table.tracked_until),
    )


_DIALECTS = ("sqlite", "postgresql")
_GUARDED = {dialect: _recording(dialect, guarded=True) for dialect in _DIALECTS}
_TRACKED = {dialect: _recording(dialect, guarded=False) for dialect in _DIALECTS}
_SETTLE = {dialect: _settling(dialect) for dialect in _DIALECTS}
_RELEASE = {dialect: _releasing(dialect) for dialect in _DIALECTS}


def write(changes: Collection[Change], dialect: str) -> list[Command]:
    """Return the commands that write rows and changes of rows.

    Args:
        changes: what to write.
        dialect: `sqlite` or `postgresql`.
    """
    records = [change for change in changes if isinstance(change, Record)]
    parts: list[tuple[Mapping[str, Insert | Update], str, Sequence[Change]]] = [
        (_GUARDED, "digest", [record for record in records if record.owner is not None]),
        (_TRACKED, "digest", [record for record in records if record.owner is None]),
        (_SETTLE, "old_digest", [change for change in changes if isinstance(change, Settlement)]),
        (_RELEASE, "old_digest", [change for change in changes if isinstance(change, Release)]),
    ]
    return [
        Command(
            statements[dialect],
            [change.parameters() for change in part],
            key=key if dialect == "postgresql" else None,
        )
        for statements, key, part in parts
        if part
    ]


def renew(owners: Collection[str], seconds: float, dialect: str) -> Command:
    """Return the command that renews the leases of some owners: they last that many seconds from now.

    No lease of a guard lasts longer than the limit of its row. That of a sweep does, because it is stopping it.

    Args:
        owners: the owners.
        seconds: the length of the leases.
        dialect: `sqlite` or `postgresql`.
    """
    until = _now + seconds
    renewed = case((_table.state == STOPPING, until), else_=_earlier(until, _table.expires))
    is_held = and_(_table.owner.in_(owners), _has_lease)
    renewal = update(RESPONSES).where(is_held).values(lease_until=renewed)
    if dialect == "postgresql":
        held = select(_table.digest).where(is_held).order_by(_table.digest)
        locked = held.with_for_update(key_share=True).cte("locked")
        renewal = renewal.where(_table.digest.in_(select(locked.c.digest)))
    return Command(renewal)

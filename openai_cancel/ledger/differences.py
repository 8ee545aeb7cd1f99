"""The statements that compare a ledger with the list of a server, and that settle the differences.

Everything here is pure: it builds statements and does not execute them.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Double, cast, literal, not_, null, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from openai_cancel.ledger.selection import Place, Selection
from openai_cancel.ledger.table import (
    BY_STOP,
    HAS_LEASE,
    RESPONSES,
    STOPPING,
    TRACKED,
    Account,
    Command,
    DatabaseTime,
    Record,
)
from openai_cancel.outcome import Verdict

ENDED = tuple(map(str, set(Verdict) - {Verdict.NOT_BACKGROUND}))
"""The states of rows whose response should no longer run. One that is not in the background cannot be stopped."""

_table = RESPONSES.c
_now = DatabaseTime()
_is_held = _table.owner.is_not(None) & (_table.lease_until >= _now)


def accounts(base_url: str) -> Command:
    """Return the command that reads the names of all accounts on a server."""
    return Command(select(_table.account).where(_table.base_url == base_url).distinct())


def states(digests: Collection[str]) -> Command:
    """Return the command that reads the digests, the states, and the seconds since the last change, of some rows."""
    age = (_now - _table.changed).label("unchanged_for")
    return Command(select(_table.digest, _table.state, age).where(_table.digest.in_(digests)))


def free_rows(account: Account, after: Place, *, limit: int) -> Command:
    """Return the command that reads a page of open rows that no living guard and no sweep holds, the oldest first.

    Its rows have a digest, a response_id, a created, and an age in seconds.
    """
    age = (_now - _table.created).label("age")
    of_account = Selection(labels={}, state=None, older_than=None, account=account).conditions(since=_table.created)
    rows = select(_table.digest, _table.response_id, _table.created, age).where(HAS_LEASE, not_(_is_held), *of_account)
    rows = rows.where(_table.created >= after.created)  # so that the index serves
    is_after = or_(_table.created > after.created, _table.digest > after.digest)
    return Command(rows.where(is_after).order_by(_table.created, _table.digest).limit(limit))


def adopt(records: Sequence[Record], dialect: str, *, claim: bool = False) -> Command:
    """Return the command that writes rows which do not exist, leaves others as they are, and returns the new digests.

    Args:
        records: the rows.
        dialect: `sqlite` or `postgresql`.
        claim: whether their owner is stopping the responses already.
    """
    insert = sqlite.insert(RESPONSES) if dialect == "sqlite" else postgresql.insert(RESPONSES)
    # In one order, so that two processes that write the same rows do not wait for each other in a circle.
    rows = [_new_row(record, claim=claim) for record in sorted(records, key=lambda record: record.digest)]
    inserting = insert.values(rows).on_conflict_do_nothing(index_elements=[_table.digest])
    return Command(inserting.returning(_table.digest), is_repeatable=False)  # the second time it inserts nothing


def _new_row(record: Record, *, claim: bool) -> dict[str, Any]:
    until = _now + record.seconds
    expires: ColumnElement[Any] = cast(null(), Double) if record.max_age is None else _now + record.max_age
    lease: ColumnElement[Any] = until
    if record.max_age is not None and not claim:
        lease = _now + min(record.seconds, record.max_age)
    return {
        "digest": record.digest,
        "response_id": record.response_id,
        "base_url": record.base_url,
        "account": record.account,
        "labels": dict(record.labels),
        "state": STOPPING if claim else TRACKED,
        "owner": record.owner,
        "attempts": int(claim),
        "created": _now,
        "changed": _now,
        "lease_until": lease,
        "tracked_until": cast(null(), Double) if claim else until,
        "expires": expires,
        "reason": literal(BY_STOP) if claim else cast(null(), _table.reason.type),
    }


def claim_ended(digests: Collection[str], owner: str, seconds: float) -> Command:
    """Return the command that claims rows whose response should no longer run, and returns their digests.

    Args:
        digests: their digests. Rows that were recorded again meanwhile are left alone.
        owner: the new holder of the leases.
        seconds: the length of the leases.
    """
    is_ended = _table.lease_until.is_(None) & _table.state.in_(ENDED)
    return Command(
        update(RESPONSES)
        .where(_table.digest.in_(_locked(digests)), is_ended)
        .values(state=STOPPING, owner=owner, attempts=1, changed=_now, lease_until=_now + seconds, reason=BY_STOP)
        .returning(_table.digest),
        is_repeatable=False,
    )


def strike_off(digests: Collection[str], state: str) -> Command:
    """Return the command that records the end of responses, and returns the digests of their rows.

    Rows that a living guard or a sweep holds by now are left alone.
    """
    return Command(
        update(RESPONSES)
        .where(_table.digest.in_(_locked(digests)), HAS_LEASE, not_(_is_held))
        .values(state=state, owner=None, changed=_now, lease_until=None, tracked_until=None, error=None)
        .returning(_table.digest),
        is_repeatable=False,
    )


def _locked(digests: Collection[str]) -> Any:
    """Return the digests of the rows that no other transaction has locked: that one is changing them."""
    rows = select(_table.digest).where(_table.digest.in_(digests)).order_by(_table.digest)
    return select(rows.with_for_update(skip_locked=True).cte("locked").c.digest)

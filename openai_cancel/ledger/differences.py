"""The statements that compare a ledger with the list of a server, and that settle the differences.

Everything here is pure: it builds statements and does not execute them.
"""

from collections.abc import Collection, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import literal, not_, or_, select, update
from sqlalchemy.sql import Insert

from openai_cancel.ledger.selection import Place, Selection
from openai_cancel.ledger.table import (
    BY_STOP,
    HAS_LEASE,
    RESPONSES,
    STOPPING,
    Account,
    Command,
    DatabaseTime,
    Record,
)
from openai_cancel.ledger.writes import inserting
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
    # In one order, so that two processes that write the same rows do not wait for each other in a circle.
    rows = sorted((record.parameters() for record in records), key=itemgetter("digest"))
    return Command(_adopting(dialect, claim), rows, is_repeatable=False)  # the second time it inserts nothing


@cache
def _adopting(dialect: str, claim: bool) -> Insert:  # noqa: FBT001 - a cache
    insert = inserting(dialect, guarded=claim, in_arrays=False)
    if claim:
        insert = insert.values(state=literal(STOPPING), attempts=literal(1), reason=literal(BY_STOP))
    return insert.on_conflict_do_nothing(index_elements=[_table.digest]).returning(_table.digest)


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

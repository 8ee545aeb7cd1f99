"""What a ledger asks of its database, in SQL that SQLite and PostgreSQL share. Pure: it only makes statements."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Self

from sqlalchemy import Double, Integer, String, Text, bindparam, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import Delete, Insert, Select, Update

from openai_cancel.ledger.schema import RESPONSES, database_time
from openai_cancel.outcome import Outcome, Verdict

TRACKED, RELEASED, STOPPING = "tracked", "released", "stopping"

ERROR_LIMIT = 1000
"""How many characters of an error are kept."""

OVER = frozenset({Verdict.CANCELLED, Verdict.ALREADY_FINISHED, Verdict.NOT_BACKGROUND, Verdict.NOT_FOUND})
"""Verdicts that another attempt would not change."""

_table = RESPONSES.c
_open = _table.lease_until.is_not(None)


class Change(NamedTuple):
    """One row that is to be written: one that is held from now on, or one that is let go."""

    holds: bool
    digest: str
    values: Mapping[str, Any]

    @classmethod
    def settled(
        cls,
        digest: str,
        owner: str,
        state: str,
        *,
        again_in: float | None = None,
        more_attempts: int = 0,
        outcome: Outcome | None = None,
    ) -> Self:
        """What became of a row, if it is still its owner's.

        Args:
            digest: of the row.
            owner: of the row.
            state: that it has now.
            again_in: seconds until a sweep may claim it; None for what is over.
            more_attempts: to count.
            outcome: of the last attempt.
        """
        error = None if outcome is None or outcome.error is None else str(outcome.error)
        return cls(
            holds=False,
            digest=digest,
            values={
                "the_digest": digest,
                "the_owner": owner,
                "new_state": state,
                "again_in": again_in,
                "more_attempts": more_attempts,
                "new_error": _storable(error),
                "new_request_id": _storable(None if outcome is None else outcome.request_id),
            },
        )

    @classmethod
    def of_outcome(
        cls, digest: str, owner: str, outcome: Outcome, *, again_in: float | None, more_attempts: int = 0
    ) -> Self:
        """What became of a row that was to be stopped; `again_in` is for one that was not, None gives it up."""
        over = outcome.verdict in OVER or again_in is None
        return cls.settled(
            digest,
            owner,
            outcome.verdict if over else TRACKED,
            again_in=None if over else again_in,
            more_attempts=more_attempts,
            outcome=outcome,
        )


class Account(NamedTuple):
    """Whose responses they are, and where."""

    name: str
    base_url: str

    def digest(self, response_id: str) -> str:
        """The key of a row."""
        return hashlib.sha256("\0".join((*self, response_id)).encode()).hexdigest()

    def row(self, response_id: str, *, owner: str | None, seconds: float, labels: Mapping[str, str]) -> Change:
        """A row to be written, with a lease of so many seconds."""
        return Change(
            holds=True,
            digest=self.digest(response_id),
            values={
                "digest": self.digest(response_id),
                "response_id": response_id,
                "base_url": self.base_url,
                "account": self.name,
                "labels": dict(labels),
                "owner": owner,
                "seconds": seconds,
            },
        )


def _storable(words: str | None) -> str | None:
    """What a server said, as both databases take it."""
    return words and words[:ERROR_LIMIT].encode(errors="replace").decode().replace("\0", "")


def _recording(dialect: str) -> Insert:
    make = sqlite.insert if dialect == "sqlite" else postgresql.insert
    statement = make(RESPONSES).values(
        state=TRACKED,
        attempts=0,
        created=database_time(),
        changed=database_time(),
        lease_until=database_time() + bindparam("seconds", type_=Double),
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


_RECORDING: Mapping[str, Insert] = {name: _recording(name) for name in ("sqlite", "postgresql")}

_SETTLING = (
    update(RESPONSES)
    .where(_table.digest == bindparam("the_digest"), _table.owner == bindparam("the_owner"))
    .values(
        state=bindparam("new_state", type_=String),
        owner=None,
        attempts=_table.attempts + bindparam("more_attempts", type_=Integer),
        changed=database_time(),
        lease_until=database_time() + bindparam("again_in", type_=Double),  # NULL: it is over
        error=bindparam("new_error", type_=Text),
        request_id=bindparam("new_request_id", type_=Text),
    )
)


async def write(connection: AsyncConnection, changes: Collection[Change]) -> None:
    """Write rows: those that are to be held, then those that are let go."""
    for holds, statement in ((True, _RECORDING[connection.dialect.name]), (False, _SETTLING)):
        if values := [dict(change.values) for change in changes if change.holds is holds]:
            await connection.execute(statement, values)


def renewal(owners: Collection[str], seconds: float) -> Update:
    """The leases of some owners last so many seconds from now."""
    return update(RESPONSES).where(_table.owner.in_(owners), _open).values(lease_until=database_time() + seconds)


def claim(owner: str, seconds: float, account: Account, *, most: int) -> Update:
    """Take over what has lapsed, the longest first; gives digests, ids and attempts."""
    lapsed = (
        select(_table.digest)
        .where(_table.lease_until < database_time())
        .where(_table.account == account.name, _table.base_url == account.base_url)
        .order_by(_table.lease_until)
        .limit(most)
        .with_for_update(skip_locked=True)  # which SQLite has no need of: a claim is alone there
        .cte("lapsed")
    )
    return (
        update(RESPONSES)
        .where(_table.digest.in_(select(lapsed.c.digest)))
        .values(
            state=STOPPING,
            owner=owner,
            attempts=_table.attempts + 1,
            changed=database_time(),
            lease_until=database_time() + seconds,
        )
        .returning(_table.digest, _table.response_id, _table.attempts)
    )


def release(digest: str) -> Update:
    """Let go what is not over, whoever holds it."""
    return (
        update(RESPONSES)
        .where(_table.digest == digest, _open)
        .values(state=RELEASED, owner=None, changed=database_time(), lease_until=None)
    )


def page(after: tuple[float, str], *, ended: bool, most: int) -> Select[Any]:
    """Rows by their age, and what is left of their leases; `after` is the age and the digest of the one before."""
    rows = select(RESPONSES, (_table.lease_until - database_time()).label("lease_left"))
    if not ended:
        rows = rows.where(_open)
    return rows.where(tuple_(_table.created, _table.digest) > after).order_by(_table.created, _table.digest).limit(most)


def purge(older_than: float, most: int) -> Delete:
    """Forget what has been over for longer than so many seconds."""
    old = select(_table.digest).where(_table.lease_until.is_(None), _table.changed < database_time() - older_than)
    return delete(RESPONSES).where(_table.digest.in_(old.limit(most)))

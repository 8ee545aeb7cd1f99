"""`Selection`: the rows of a ledger that a caller reads, deletes or stops, and the statements for it.

Everything here is pure: it builds statements and does not execute them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import attrs
from sqlalchemy import ColumnElement, Text, and_, bindparam, cast, delete, not_, or_, select, tuple_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine

from openai_cancel.checks import check_seconds
from openai_cancel.errors import ConfigurationError
from openai_cancel.ledger.table import (
    BY_STOP,
    HAS_LEASE,
    RELEASED,
    RESPONSES,
    STOPPING,
    TRACKED,
    Account,
    Command,
    DatabaseTime,
    take,
)
from openai_cancel.outcome import Verdict

OPEN_STATES = (TRACKED, STOPPING)
"""The states of a response that a sweep may still stop."""

STATES = (*OPEN_STATES, RELEASED, *map(str, Verdict))
"""All states of a response in a ledger."""

_table = RESPONSES.c


class LabelValue(GenericFunction[str]):
    """The value of a label by its name, or NULL."""

    type: TypeEngine[str] = Text()
    inherit_cache: bool = True


@compiles(LabelValue, "sqlite")
def _compile_for_sqlite(element: LabelValue, compiler: SQLCompiler, **options: Any) -> str:
    # A path, as in `labels ->> '$."name"'`, could not contain every name.
    labels, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"(SELECT label.value FROM json_each({labels}) AS label WHERE label.key = {name})"  # noqa: S608 - compiled parts


@compiles(LabelValue, "postgresql")
def _compile_for_postgresql(element: LabelValue, compiler: SQLCompiler, **options: Any) -> str:
    labels, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({labels} ->> {name})"


class Place(NamedTuple):
    """A place in the order of a table: that of a row, or one before all rows."""

    created: float = -1.0
    digest: str = ""


@attrs.frozen(kw_only=True)
class Selection:
    """The conditions that rows fulfil, all of them.

    Attributes:
        labels: the labels that they have, and perhaps others.
        state: their state, or None for any.
        older_than: seconds since a time that the statement defines, or None.
        account: the account of their responses, or None for any.
        overdue: whether their lease has expired.
    """

    labels: Mapping[str, str]
    state: str | None
    older_than: float | None
    account: Account | None = None
    overdue: bool = False

    @classmethod
    def checked(
        cls, labels: Mapping[str, str] | None, state: str | None, older_than: float | None, *, overdue: bool = False
    ) -> Self:
        """Return a selection of arguments.

        Raises:
            ConfigurationError: an argument cannot work.
        """
        if state is not None and state not in STATES:
            raise ConfigurationError(f"state must be one of {', '.join(STATES)}, not {state!r}.")
        return cls(
            labels=check_labels(labels or {}),
            state=state,
            older_than=None if older_than is None else check_seconds("older_than", older_than),
            overdue=overdue,
        )

    def conditions(self, since: ColumnElement[float]) -> list[ColumnElement[bool]]:
        """Return the conditions of a statement, for which `older_than` counts from some column."""
        found = [
            LabelValue(_table.labels, cast(bindparam(None, name), Text)) == value for name, value in self.labels.items()
        ]
        if self.state is not None:
            found.append(_table.state == self.state)
        if self.older_than is not None:
            found.append(since < DatabaseTime() - self.older_than)
        if self.overdue:
            found.append(_table.lease_until < DatabaseTime())
        if self.account is not None:
            found += [_table.account == self.account.name, _table.base_url == self.account.base_url]
        return found


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Refuse labels that are not printable strings.

    Raises:
        ConfigurationError: they are not.
    """
    if not isinstance(labels, Mapping) or any(
        not isinstance(text, str) or not text.isprintable() for item in labels.items() for text in item
    ):
        raise ConfigurationError("labels must be a mapping of printable strings to printable strings.")
    return dict(labels)


def page(selection: Selection, after: Place, *, include_ended: bool, limit: int) -> Command:
    """Return the command that reads a page of rows, the oldest first, with the seconds that are left of their leases.

    Args:
        selection: the rows. Their age counts from their creation.
        after: the place of the last row of the page before.
        include_ended: whether to read rows without a lease, too. A state in the selection decides that by itself.
        limit: the number of rows of a page.
    """
    rows = select(RESPONSES, (_table.lease_until - DatabaseTime()).label("lease_left"))
    if selection.state in OPEN_STATES or (selection.state is None and not include_ended):
        rows = rows.where(HAS_LEASE)  # so that the index of open rows serves
    rows = rows.where(*selection.conditions(since=_table.created), tuple_(_table.created, _table.digest) > after)
    return Command(rows.order_by(_table.created, _table.digest).limit(limit))


def purge(selection: Selection, *, limit: int) -> Command:
    """Return the command that deletes some rows without a lease, and returns their digests.

    Args:
        selection: the rows. Their age counts from their last change.
        limit: the maximum number of rows.
    """
    old = select(_table.digest).where(_table.lease_until.is_(None), *selection.conditions(since=_table.changed))
    old = old.order_by(_table.changed).limit(limit)  # the order of an index, so that no page reads what others deleted
    # A row that another transaction is writing is no longer old, or that one deletes it.
    locked = old.with_for_update(skip_locked=True).cte("locked")
    return Command(delete(RESPONSES).where(_table.digest.in_(select(locked.c.digest))).returning(_table.digest))


def now() -> Command:
    """Return the command that reads the clock of the database."""
    return Command(select(DatabaseTime()))


def _claimable(selection: Selection, since: float) -> list[ColumnElement[bool]]:
    """Return the conditions of rows that a stop claims, whoever holds their leases.

    It leaves rows to another sweep or stop that works on them, and those that one has tried and not stopped since it
    began.
    """
    was_tried = and_(_table.owner.is_(None), _table.attempts > 0, _table.changed >= since)
    is_free = or_(_table.lease_until < DatabaseTime(), and_(_table.state == TRACKED, not_(was_tried)))
    return [HAS_LEASE, is_free, *selection.conditions(since=_table.created)]


def claim_selected(
    selection: Selection, owner: str, seconds: float, *, since: float, after: Place, limit: int
) -> Command:
    """Return the command that claims rows, the oldest first.

    Its rows are those of `Claimed`, with their `created`. Rows that another transaction has locked are skipped.

    Args:
        selection: the rows. Their age counts from their creation.
        owner: the new holder of the leases.
        seconds: the length of the new leases.
        since: the time at which the stop began.
        after: the place after which rows are claimed.
        limit: the maximum number of rows.
    """
    rows = select(_table.digest).where(*_claimable(selection, since))
    return take(
        rows.where(tuple_(_table.created, _table.digest) > after).order_by(_table.created, _table.digest).limit(limit),
        owner,
        seconds,
        BY_STOP,
    )


def any_claimable(selection: Selection, *, since: float) -> Command:
    """Return the command that reads one of the rows that `claim_selected` would claim, also if it is locked."""
    return Command(select(_table.digest).where(*_claimable(selection, since)).limit(1))

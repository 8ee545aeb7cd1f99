"""`Stats`: the numbers of responses in a ledger, also as JSON and for Prometheus."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import attrs
from sqlalchemy import Row, case, func, select

from openai_cancel.ledger.selection import OPEN_STATES
from openai_cancel.ledger.table import HAS_LEASE, RESPONSES, Command, DatabaseTime

_table = RESPONSES.c


@attrs.frozen(kw_only=True)
class Group:
    """The responses of one account on one server that are in one state.

    Attributes:
        account: the name of the account.
        base_url: the address of the server.
        state: see `Entry`.
        count: the number of responses.
        overdue: the number of them whose lease has expired. A sweep of the account should stop these.
        oldest: seconds since the oldest one was first recorded.
        overdue_for: seconds since the first of their leases has expired; 0.0 if none has.
    """

    account: str
    base_url: str
    state: str
    count: int
    overdue: int
    oldest: float
    overdue_for: float

    @classmethod
    def from_row(cls, row: Row[Any]) -> Self:
        """Return the group of a row of `count_groups`."""
        return cls(
            account=row.account,
            base_url=row.base_url,
            state=row.state,
            count=row.found,
            overdue=int(row.overdue),
            oldest=max(row.oldest, 0.0),
            overdue_for=row.overdue_for or 0.0,
        )

    @property
    def is_open(self) -> bool:
        """Whether a sweep may still stop them."""
        return self.state in OPEN_STATES


@attrs.frozen
class Stats:
    """The numbers of responses in a ledger, of all accounts.

    Attributes:
        groups: one for each account, server and state that occurs.
    """

    groups: tuple[Group, ...]

    @property
    def open(self) -> int:
        """The number of responses that a sweep may still stop."""
        return sum(group.count for group in self.groups if group.is_open)

    @property
    def overdue(self) -> int:
        """The number of responses whose lease has expired."""
        return sum(group.overdue for group in self.groups)

    @property
    def overdue_for(self) -> float:
        """Seconds since the first of their leases has expired; 0.0 if none has."""
        return max((group.overdue_for for group in self.groups), default=0.0)

    @property
    def oldest(self) -> float:
        """Seconds since the oldest open response was first recorded; 0.0 if there is none."""
        return max((group.oldest for group in self.groups if group.is_open), default=0.0)

    @property
    def by_state(self) -> dict[str, int]:
        """The number of responses in each state."""
        counts: dict[str, int] = {}
        for group in self.groups:
            counts[group.state] = counts.get(group.state, 0) + group.count
        return counts

    def others(self, account: str, base_url: str) -> "Stats":
        """Return the numbers of all other accounts and servers."""
        return Stats(tuple(group for group in self.groups if (group.account, group.base_url) != (account, base_url)))

    def overdue_longer_than(self, seconds: float) -> "Stats":
        """Return the numbers of the groups whose first lease has expired longer ago."""
        return Stats(tuple(group for group in self.groups if group.overdue_for > seconds))

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as a JSON document."""
        return {
            "open": self.open,
            "overdue": self.overdue,
            "overdue_for": self.overdue_for,
            "oldest": self.oldest,
            "by_state": self.by_state,
            "groups": [attrs.asdict(group) for group in self.groups],
        }

    def to_prometheus(self) -> str:
        """Return all numbers in the text format of Prometheus.

        See https://prometheus.io/docs/instrumenting/exposition_formats/.
        """
        states = {_labels(group.account, group.base_url, group.state): Stats((group,)) for group in self.groups}
        places = dict.fromkeys((group.account, group.base_url) for group in self.groups)
        servers = {
            _labels(*place): Stats(tuple(group for group in self.groups if (group.account, group.base_url) == place))
            for place in places
        }
        lines = [
            *_family("responses", "Responses in the ledger, by state.", states, lambda stats: stats.groups[0].count),
            *_family("overdue", "Responses whose lease has expired.", servers, lambda stats: stats.overdue),
            *_family(
                "overdue_seconds", "Seconds since the first of these leases has expired.", servers,
                lambda stats: stats.overdue_for,
            ),
            *_family(
                "oldest_open_seconds", "Seconds since the oldest open response was first recorded.", servers,
                lambda stats: stats.oldest,
            ),
        ]  # fmt: skip
        return "".join(f"{line}\n" for line in lines)


def _family(name: str, words: str, of: Mapping[str, Stats], number: Callable[[Stats], float]) -> list[str]:
    """Return the lines of a metric, which has a number for each set of labels."""
    metric = f"openai_cancel_ledger_{name}"
    rows = [f"{metric}{labels} {number(stats):.15g}" for labels, stats in of.items()]
    return [f"# HELP {metric} {words}", f"# TYPE {metric} gauge", *rows]


def _labels(account: str, base_url: str, state: str | None = None) -> str:
    pairs = {"account": account, "server": base_url, **({} if state is None else {"state": state})}
    escape = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{name}="{value.translate(escape)}"' for name, value in pairs.items()) + "}"


def count_groups(*, include_ended: bool) -> Command:
    """Return the command that counts rows. Its rows are those of `Group`.

    Args:
        include_ended: whether to count rows without a lease, too, for which the whole table is read.
    """
    keys = (_table.account, _table.base_url, _table.state)
    now = DatabaseTime()
    is_overdue = _table.lease_until < now
    groups = select(
        *keys,
        func.count().label("found"),
        func.sum(case((is_overdue, 1), else_=0)).label("overdue"),
        (now - func.min(_table.created)).label("oldest"),
        (now - func.min(case((is_overdue, _table.lease_until)))).label("overdue_for"),
    )
    if not include_ended:
        groups = groups.where(HAS_LEASE)  # so that the index of open rows serves
    return Command(groups.group_by(*keys).order_by(*keys))


def read(rows: Collection[Row[Any]]) -> Stats:
    """Return the numbers of the rows of `count_groups`."""
    return Stats(tuple(Group.from_row(row) for row in rows))

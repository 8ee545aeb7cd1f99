"""The totals of a run."""

from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING

import attrs

from openai_cancel.cli.lines import Kind, Line

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


@attrs.define
class Tally:
    """The totals of a run so far.

    Attributes:
        kinds: the number of results of each kind.
        good: the number of responses for which the run has done what it was asked for.
        skipped: the number of ids that an earlier run has finished.
        repeated: the number of ids that occurred again, and were handled once.
        bad: the number of lines without a usable id.
        blank: the number of lines whose id is blank.
        began: the monotonic time at which the run began.
    """

    kinds: dict[Kind, int] = attrs.field(factory=dict[Kind, int])
    good: int = 0
    skipped: int = 0
    repeated: int = 0
    bad: int = 0
    blank: int = 0
    began: float = attrs.field(factory=monotonic)

    @property
    def done(self) -> int:
        """The number of results."""
        return sum([*self.kinds.values()])

    @property
    def all_stopped(self) -> bool:
        """Whether every response has ended as it should, and every line had a usable id."""
        return self.good == self.done and not self.bad and not self.blank

    def note(self, line: Line) -> None:
        """Count a result."""
        self.kinds[line.kind] = self.kinds.get(line.kind, 0) + 1
        self.good += line.is_good

    def take_back(self, kind: Kind, is_good: bool) -> None:  # noqa: FBT001 - a pair
        """Take back a result, because its response is handled once more."""
        self.kinds[kind] -= 1
        self.good -= is_good

    def counts(self) -> Iterator[tuple[str, int, str]]:
        """Yield the title, the count and the style of everything that occurred."""
        for kind, count in sorted([*self.kinds.items()]):
            if count:
                yield kind.title, count, kind.style
        if self.bad:
            yield "bad lines", self.bad, "red"
        if self.blank:
            yield "without an id", self.blank, "yellow"
        if self.repeated:
            yield "repeated", self.repeated, "dim"
        if self.skipped:
            yield "stopped earlier", self.skipped, "dim"

    def line(self) -> "Text":
        """Return all counts on one line."""
        from rich.text import Text  # after the first request: it takes long to import

        parts = (Text(f"{name} {count:,}", style) for name, count, style in self.counts())
        return Text("  ").join(parts)

    def table(self) -> "Table":
        """Return all counts as a table, with the total and the speed."""
        from rich.table import Table  # as above
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right")
        for name, count, style in self.counts():
            table.add_row(Text(name, style), f"{count:,}")
        table.add_row("in all", f"{self.done:,}", Text(self._speed(), "dim"))
        return table

    def text(self) -> str:
        """Return the same table as plain text."""
        rows = [(name, f"{count:,}", "") for name, count, _ in self.counts()]
        rows.append(("in all", f"{self.done:,}", self._speed()))
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join(f"{name:{first}}  {count:>{second}}  {speed}".rstrip() for name, count, speed in rows)

    def _speed(self) -> str:
        seconds = monotonic() - self.began
        return f"in {seconds:,.1f} s, {self.done / seconds:,.0f}/s"

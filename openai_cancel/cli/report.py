"""The report of a run: its outcomes, its progress on a terminal, and its totals."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from time import monotonic

import attrs
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from openai_cancel.cli.documents import outcome_as_document, to_json
from openai_cancel.cli.output import complain, discard, print_line, printable
from openai_cancel.outcome import Outcome, Verdict

WIDE = 72
"""The number of columns from which on a terminal shows every column of the progress."""

COLUMNS: tuple[ProgressColumn, ...] = (
    BarColumn(bar_width=None),
    MofNCompleteColumn(),
    TextColumn("{task.fields[rate]:,.0f}/s"),
    TimeRemainingColumn(),
    TextColumn("left"),
    TextColumn("{task.fields[under_way]} under way"),
)
"""The columns of the progress. A narrow terminal shows neither the first nor the last."""

PROBLEM_LIMIT = 20
"""The number of responses that did not stop which are shown if the ids came from files. A log has all of them."""

STYLES = {
    Verdict.CANCELLED: "green",
    Verdict.ALREADY_FINISHED: "green",
    Verdict.STILL_RUNNING: "red",
}
"""The colours of verdicts. All others are yellow."""


@attrs.define
class Tally:
    """The totals of a run so far.

    Attributes:
        verdicts: the number of outcomes with each verdict.
        stopped: the number of responses that have ended.
        skipped: the number of ids that an earlier run has stopped.
        bad: the number of lines without a usable id.
        began: the monotonic time at which the run began.
    """

    verdicts: dict[Verdict, int] = attrs.field(factory=lambda: dict.fromkeys(Verdict, 0))
    stopped: int = 0
    skipped: int = 0
    bad: int = 0
    began: float = attrs.field(factory=monotonic)

    @property
    def done(self) -> int:
        """The number of outcomes."""
        return sum(self.verdicts.values())

    @property
    def all_stopped(self) -> bool:
        """Whether every response has ended, and every line had a usable id."""
        return self.stopped == self.done and not self.bad

    def note(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.verdicts[outcome.verdict] += 1
        self.stopped += outcome.stopped

    def counts(self) -> Iterator[tuple[str, int, str]]:
        """Yield the title, the count and the style of everything that occurred."""
        for verdict, count in self.verdicts.items():
            if count:
                yield title(verdict), count, STYLES.get(verdict, "yellow")
        if self.bad:
            yield "bad lines", self.bad, "red"
        if self.skipped:
            yield "stopped earlier", self.skipped, "dim"

    def line(self) -> Text:
        """Return all counts on one line."""
        parts = (Text(f"{name} {count:,}", style) for name, count, style in self.counts())
        return Text("  ").join(parts)

    def table(self) -> Table:
        """Return all counts as a table, with the total and the speed."""
        seconds = monotonic() - self.began
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right")
        for name, count, style in self.counts():
            table.add_row(Text(name, style), f"{count:,}")
        table.add_row("in all", f"{self.done:,}", Text(f"in {seconds:,.1f} s, {self.done / seconds:,.0f}/s", "dim"))
        return table


class Bar(Progress):
    """The progress of a run on a terminal, refreshed ten times per second.

    Args:
        tally: the totals of the run.
        console: the terminal.
        total: returns the number of ids, or None while it is not known.
        under_way: returns the number of responses that are being stopped.
    """

    def __init__(
        self, tally: Tally, console: Console, *, total: Callable[[], int | None], under_way: Callable[[], int]
    ) -> None:
        self._tally = tally
        self._total = total
        self._under_way = under_way
        self._terminal = console
        super().__init__(console=console, transient=True, expand=True, redirect_stdout=False)
        self.add_task("", total=None, rate=0, under_way=0)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the progress, and below it the counts."""
        for task in self.tasks:
            task.total = self._total()  # update() would restart the measurement of the speed
            self.update(task.id, completed=self._tally.done, rate=task.speed or 0, under_way=self._under_way())
        self.columns: tuple[str | ProgressColumn, ...] = COLUMNS if self._terminal.width >= WIDE else COLUMNS[1:-1]
        yield self.make_tasks_table(self.tasks)
        yield self._tally.line()


class Report:
    """The report of the outcomes of a run.

    Args:
        as_json: print a JSON line for each outcome. This is the default if standard output is not a terminal.
        quiet: print only the responses that did not stop, to standard error.
        show_stopped: print the responses that stopped, too.

    Attributes:
        tally: the totals of the run.
    """

    def __init__(self, *, as_json: bool, quiet: bool, show_stopped: bool) -> None:
        self.tally: Tally = Tally()
        terminal = sys.stdout is not None and sys.stdout.isatty()
        self._json = as_json or not (quiet or terminal)
        self._quiet = quiet
        self._show_stopped = show_stopped
        self._problems = 0
        self._errors = Console(stderr=True)
        # FORCE_COLOR and TTY_COMPATIBLE make rich treat a file as a terminal.
        draws = self._errors.is_terminal and sys.stderr is not None and sys.stderr.isatty()
        self._draws = draws and not quiet and not (self._json and terminal)
        self._console = self._errors if self._draws else Console()

    def bar(self, *, total: Callable[[], int | None], under_way: Callable[[], int]) -> AbstractContextManager[object]:
        """Return a context manager that draws the progress, or does nothing if there is no terminal."""
        return Bar(self.tally, self._errors, total=total, under_way=under_way) if self._draws else nullcontext()

    def show(self, outcome: Outcome) -> None:
        """Count an outcome and print it."""
        self.tally.note(outcome)
        if self._json:
            print_line(to_json(outcome_as_document(outcome)))
        elif not self._is_hidden(outcome):
            if self._quiet:
                complain(_describe(outcome))
            else:
                self._console.print(Text(_describe(outcome)), soft_wrap=True)

    def _is_hidden(self, outcome: Outcome) -> bool:
        if outcome.stopped:
            return self._quiet or not self._show_stopped
        self._problems += not self._show_stopped
        return self._problems > PROBLEM_LIMIT

    def complain_of_line(self, problem: str) -> None:
        """Count a line without a usable id, and report the problem."""
        self.tally.bad += 1
        complain(problem)

    def sum_up(self) -> None:
        """Print the totals of the run."""
        if self._problems > PROBLEM_LIMIT:
            complain(f"{self._problems - PROBLEM_LIMIT:,} more did not stop: use --log or --json to see all of them")
        if not self._quiet:
            try:
                self._errors.print(self.tally.table())
            except OSError:  # nobody can read it, and the work is done
                discard(sys.stderr)


def title(verdict: Verdict) -> str:
    """Return a verdict in words."""
    return verdict.replace("_", " ")


def _describe(outcome: Outcome) -> str:
    words = f"{outcome.response_id}  {title(outcome.verdict)}"
    status = outcome.response.status if outcome.response else None
    if status and status != outcome.verdict:
        words += f" ({status})"
    return printable(f"{words}: {outcome.error}" if outcome.error else words)

"""What the command shows of a run, and keeps of it."""

import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self, TextIO

import attrs
import orjson
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

from openai_cancel.errors import APIStatusError, OpenAICancelError
from openai_cancel.outcome import Outcome, Verdict

SYNC_EVERY = 1.0
"""Seconds after which what was written to a log is on the disk at the latest."""

REFRESH_EVERY = 0.1
"""Seconds between two pictures of the progress."""

WIDE = 72
"""Columns of a terminal that show the progress on one line."""

COLUMNS: tuple[ProgressColumn, ...] = (
    BarColumn(bar_width=None),
    MofNCompleteColumn(),
    TextColumn("{task.fields[rate]:,.0f}/s"),
    TimeRemainingColumn(),
    TextColumn("left"),
    TextColumn("{task.fields[under_way]} under way"),
)
"""Of the progress; a narrow terminal shows neither the first nor the last."""

SHOWN = 20
"""How many of those that did not stop are shown, where the ids came from files; a log has all."""

STYLES = {
    Verdict.CANCELLED: "green",
    Verdict.ALREADY_FINISHED: "green",
    Verdict.STILL_RUNNING: "red",
}
"""Of verdicts; the others are something to look at, too."""


def error_as_document(error: OpenAICancelError) -> dict[str, Any]:
    """An error as JSON."""
    described: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, APIStatusError):
        described |= {"status": error.status, "code": error.code, "request_id": error.request_id}
    return described


def outcome_as_document(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON: a line of the output, or of a log."""
    return {
        "id": outcome.response_id,
        "verdict": outcome.verdict,
        "stopped": outcome.stopped,
        "status": outcome.response and outcome.response.status,
        "attempts": outcome.attempts,
        "elapsed": round(outcome.elapsed, 6),
        "request_id": outcome.request_id,
        "error": outcome.error and error_as_document(outcome.error),
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def to_json(document: dict[str, Any]) -> str:
    """A document as one line."""
    try:
        return orjson.dumps(document).decode()  # which writes null for NaN, as JSON must
    except TypeError:  # half a surrogate, or a long number
        return json.dumps(document)


def printable(text: object) -> str:
    """A text on one line, in which nothing can steer a terminal, whatever server it comes from."""
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in line)


def _give_up(stream: TextIO) -> None:
    """Write nowhere from here on: it would fail again, at the latest when the interpreter flushes it."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - the name of a device
        os.dup2(nowhere.fileno(), stream.fileno())


def print_line(line: str) -> None:
    """Write a line. Where nobody reads it, or the disk is full, the work goes on all the same."""
    try:
        print(line, flush=True)  # noqa: T201 - this is the output
    except OSError as error:
        _give_up(sys.stdout)
        complain(f"the output is lost from here on: {error.strerror}")


def complain(problem: object) -> None:
    """Say what is wrong, on one line."""
    try:
        print("openai-cancel:", *printable(problem).split(), file=sys.stderr, flush=True)  # noqa: T201 - the place for it
    except OSError:
        _give_up(sys.stderr)


class Log:
    """A file with a JSON line for each outcome, to which every run adds. What is written survives a kill.

    Args:
        path: of the file; it is made if it is not there, readable for its owner alone.

    Attributes:
        failed: whether something could not be written.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.failed: bool = False
        self.file: int = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._path = path
        try:
            state = os.fstat(self.file)
            if not stat.S_ISREG(state.st_mode):
                raise OSError(errno.EINVAL, "a log must be a regular file", str(path))  # noqa: TRY301 - closed below
            # A line that was cut off, by a full disk or a loss of power, should not spoil the next one.
            self._torn = state.st_size > 0 and os.pread(self.file, 1, state.st_size - 1) != b"\n"
        except OSError:
            os.close(self.file)
            raise
        self._synced = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._noting_failure():
            os.fsync(self.file)
        os.close(self.file)

    def write(self, outcome: Outcome) -> None:
        """Add a line. Where that fails it is said once, and the run goes on."""
        line = b"\n" * self._torn + to_json(outcome_as_document(outcome)).encode() + b"\n"
        self._torn = True
        with self._noting_failure():
            if os.write(self.file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._torn = False
            if monotonic() - self._synced >= SYNC_EVERY:
                os.fsync(self.file)
                self._synced = monotonic()

    @contextmanager
    def _noting_failure(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if not self.failed:
                complain(f"the log is not complete from here on: {error.strerror}")
            self.failed = True

    def stopped(self) -> set[str]:
        """The ids that the last line about them shows as stopped. Lines that were cut off are passed over."""
        found: set[str] = set()
        with self._path.open("rb") as lines:
            for line in lines:
                try:
                    document: Any = orjson.loads(line)
                    (found.add if document["stopped"] is True else found.discard)(document["id"])
                except (ValueError, TypeError, KeyError):
                    continue
        return found


@attrs.define
class Tally:
    """What a run has come to so far.

    Attributes:
        verdicts: how many of each.
        stopped: how many are over.
        skipped: how many were stopped by a run before this one.
        bad: how many lines gave no id.
    """

    verdicts: dict[Verdict, int] = attrs.field(factory=lambda: dict.fromkeys(Verdict, 0))
    stopped: int = 0
    skipped: int = 0
    bad: int = 0
    began: float = attrs.field(factory=monotonic)

    @property
    def done(self) -> int:
        """How many have an outcome."""
        return sum(self.verdicts.values())

    @property
    def all_stopped(self) -> bool:
        """Whether nothing is left to be stopped, as far as the run has come."""
        return self.stopped == self.done and not self.bad

    def note(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.verdicts[outcome.verdict] += 1
        self.stopped += outcome.stopped

    def counts(self) -> Iterator[tuple[str, int, str]]:
        """What there is, how often, and its style."""
        for verdict, count in self.verdicts.items():
            if count:
                yield title(verdict), count, STYLES.get(verdict, "yellow")
        if self.bad:
            yield "bad lines", self.bad, "red"
        if self.skipped:
            yield "stopped before", self.skipped, "dim"

    def line(self) -> Text:
        """All counts, one beside the other."""
        parts = (Text(f"{name} {count:,}", style) for name, count, style in self.counts())
        return Text("  ").join(parts)

    def table(self) -> Table:
        """All counts, one below the other."""
        seconds = monotonic() - self.began
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right")
        for name, count, style in self.counts():
            table.add_row(Text(name, style), f"{count:,}")
        table.add_row("in all", f"{self.done:,}", Text(f"in {seconds:,.1f} s, {self.done / seconds:,.0f}/s", "dim"))
        return table


class Bar(Progress):
    """The progress of a run on a terminal, drawn again ten times a second.

    Args:
        tally: what has come of it.
        console: the terminal.
        total: gives how many there will be, as far as that is known.
        under_way: gives how many are under way.
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
        """The picture: how far it is, and below it the verdicts."""
        for task in self.tasks:
            task.total = self._total()  # not by update(), which would begin to measure the speed anew
            self.update(task.id, completed=self._tally.done, rate=task.speed or 0, under_way=self._under_way())
        self.columns: tuple[str | ProgressColumn, ...] = COLUMNS if self._terminal.width >= WIDE else COLUMNS[1:-1]
        yield self.make_tasks_table(self.tasks)
        yield self._tally.line()


class Report:
    """Shows the outcomes of a run.

    Args:
        as_json: one JSON line each, whatever the output is; into a pipe there are such lines anyhow.
        quiet: only what did not stop, as a complaint.
        each: those that stopped, too.

    Attributes:
        tally: what the run has come to.
    """

    def __init__(self, *, as_json: bool, quiet: bool, each: bool) -> None:
        self.tally: Tally = Tally()
        terminal = sys.stdout is not None and sys.stdout.isatty()
        self._json = as_json or not (quiet or terminal)
        self._quiet = quiet
        self._each = each
        self._problems = 0
        self._errors = Console(stderr=True)
        self._draws = self._errors.is_terminal and not quiet and not (self._json and terminal)
        self._console = self._errors if self._draws else Console()

    def bar(self, *, total: Callable[[], int | None], under_way: Callable[[], int]) -> AbstractContextManager[object]:
        """Draw a bar as long as the block lasts, if there is a terminal to draw on."""
        return Bar(self.tally, self._errors, total=total, under_way=under_way) if self._draws else nullcontext()

    def show(self, outcome: Outcome) -> None:
        """Count an outcome, and show it."""
        self.tally.note(outcome)
        if self._json:
            print_line(to_json(outcome_as_document(outcome)))
            return
        if outcome.stopped:
            if not self._each or self._quiet:
                return
        elif not self._each:
            self._problems += 1
            if self._problems > SHOWN:
                return
        if self._quiet:
            complain(_describe(outcome))
        else:
            self._console.print(Text(_describe(outcome)), soft_wrap=True)

    def complain_of_line(self, problem: str) -> None:
        """Count a line that gave no id, and say so."""
        self.tally.bad += 1
        complain(problem)

    def sum_up(self) -> None:
        """Show what the run has come to."""
        if self._problems > SHOWN:
            complain(f"{self._problems - SHOWN:,} more did not stop: --log or --json shows all")
        if not self._quiet:
            try:
                self._errors.print(self.tally.table())
            except OSError:  # nobody can read it: what was done is done
                _give_up(sys.stderr)


def title(verdict: Verdict) -> str:
    """A verdict in words."""
    return verdict.replace("_", " ")


def _describe(outcome: Outcome) -> str:
    words = f"{outcome.response_id}  {title(outcome.verdict)}"
    status = outcome.response.status if outcome.response else None
    if status and status != outcome.verdict:
        words += f" ({status})"
    return printable(f"{words}: {outcome.error}" if outcome.error else words)

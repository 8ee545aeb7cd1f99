"""The report of a run: its results, its progress on a terminal, and its totals."""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from openai_cancel.cli.bad_lines import BadLines
from openai_cancel.cli.documents import to_json
from openai_cancel.cli.ids import BadLine
from openai_cancel.cli.lines import Line, Result, document_of, line_of
from openai_cancel.cli.output import complain, discard, is_read_by_people, lose_output, print_line, write
from openai_cancel.cli.statuses import Statuses
from openai_cancel.cli.tally import Tally

if TYPE_CHECKING:
    from rich.console import Console

PROBLEM_LIMIT = 20
"""The maximum number of failed responses that are shown if the ids come from files. A log has all of them."""


class RunOutput:
    """The report of the results of a run. What draws is imported when it is needed, because that takes long.

    Results for people and their totals go to standard output. JSON lines go there alone: then the totals go to standard
    error. What goes wrong, and the progress, always go to standard error.

    Args:
        as_json: print a JSON line for each result, or lines for people. None for JSON lines if standard output is not
            a terminal.
        quiet: print only the responses that did not stop, to standard error.
        show_stopped: print the responses that stopped, too.
        plain: print lines for people also into a pipe, problems to standard error, and no totals.
        dry_run: whether the run only shows which responses would be stopped.
        has_log: whether there is a log, which has the problems that are not shown.
        one: the run is about one response, whose status is drawn on a terminal instead of a bar.
        statuses: the statuses of the responses under way, if a terminal shows them.

    Attributes:
        tally: the totals of the run.
        plain: as above.
        dry_run: as above.
    """

    def __init__(
        self,
        *,
        as_json: bool | None,
        quiet: bool,
        show_stopped: bool,
        plain: bool = False,
        dry_run: bool = False,
        has_log: bool = False,
        one: bool = False,
        statuses: Statuses | None = None,
    ) -> None:
        self.tally: Tally = Tally()
        self.plain: bool = plain
        self.dry_run: bool = dry_run
        self._terminal = is_read_by_people()
        self._json = not (quiet or plain or self._terminal) if as_json is None else as_json
        self._quiet = quiet
        self._show_stopped = show_stopped
        self._one = one
        self._statuses = statuses
        self._problems = 0
        self._rest = "the log has all of them" if has_log else "use --log or --json to see all of them"
        self._bad_lines = BadLines()
        # FORCE_COLOR and TTY_COMPATIBLE make rich treat a file as a terminal.
        # A dumb terminal cannot draw.
        draws = sys.stderr is not None and sys.stderr.isatty() and self._errors.is_interactive
        self._draws = draws and not quiet and not (self._json and self._terminal)

    @cached_property
    def _errors(self) -> "Console":
        from rich.console import Console

        return Console(stderr=True)

    @cached_property
    def _console(self) -> "Console":
        from rich.console import Console

        # A line on a terminal must not run into the progress.
        return self._errors if self._draws and self._terminal else Console()

    @contextmanager
    def bar(self, *, total: Callable[[], int | None], under_way: Callable[[], int]) -> Generator[None]:
        """Draw the progress until the block ends, or do nothing if there is no terminal."""
        if not self._draws:
            yield
            return
        from openai_cancel.cli.live import progress_of

        make = progress_of(self._statuses, one=self._one)
        progress = make(self.tally, self._errors, total=total, under_way=under_way)
        progress.__enter__()
        try:
            yield
        finally:
            try:
                progress.__exit__(None, None, None)
            except OSError:  # the terminal was closed
                discard(sys.stderr)

    def show(self, result: Result, columns: Mapping[str, Any] | None = None) -> None:
        """Count a result and print it, a JSON line with the other columns of its input."""
        line = line_of(result, dry_run=self.dry_run)
        self.tally.note(line)
        if self._statuses:
            self._statuses.forget(result)
        if self._json:
            print_line(to_json(document_of(line, columns)))
        elif not self._is_hidden(line):
            self._print(line)

    def _print(self, line: Line) -> None:
        words = line.describe()
        is_problem = self._quiet or (self.plain and not line.is_good)
        if is_problem and not self._draws:
            complain(words)
        elif not self._terminal and not is_problem:  # rich would end the process if the reader of a pipe has left
            print_line(words)
        else:
            from rich.text import Text

            console = self._errors if is_problem else self._console
            try:
                console.print(Text(f"openai-cancel: {words}" if is_problem else words), soft_wrap=True)
            except OSError as error:  # the terminal was closed, and the process was told to continue
                lose_output(error)

    def _is_hidden(self, line: Line) -> bool:
        if line.is_good:
            return self._quiet or not self._show_stopped
        self._problems += not self._show_stopped
        return self._problems > PROBLEM_LIMIT

    def complain_of_line(self, bad: BadLine) -> None:
        """Count a line without a usable id, and report the problem."""
        self.tally.bad += not bad.is_blank
        self.tally.blank += bad.is_blank
        self._bad_lines.note(bad)

    def sum_up(self) -> None:
        """Print what was not shown, and the totals of the run."""
        self._bad_lines.sum_up(self._rest)
        if self._problems > PROBLEM_LIMIT:
            complain(f"{self._problems - PROBLEM_LIMIT:,} more are not shown: {self._rest}")
        stream = sys.stderr if self._json else sys.stdout
        if self._quiet or self.plain or stream is None:
            return
        try:
            if stream.isatty():
                (self._errors if self._json else self._console).print(self.tally.table())
            else:
                write(stream, self.tally.text())
            if self.dry_run:
                write(stream, "This was a dry run: nothing was stopped.")
        except OSError as error:
            lose_output(error) if stream is sys.stdout else discard(stream)

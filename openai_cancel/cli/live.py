"""The progress of a run on a terminal: a bar, or a spinner for one response."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from openai_cancel.cli.statuses import Statuses
from openai_cancel.cli.tally import Tally

WIDE = 72
"""The number of columns from which on a terminal shows every column of the progress."""

WAIT_REFRESHES = 4
"""Drawings of the progress of waits per second. Waits may take hours."""


class MakeProgress(Protocol):
    """Makes the progress of a run."""

    def __call__(
        self, tally: Tally, console: Console, /, *, total: Callable[[], int | None], under_way: Callable[[], int]
    ) -> AbstractContextManager[object]:
        """Return a context manager that draws it.

        Args:
            tally: the totals of the run.
            console: the terminal.
            total: returns the number of ids, or None while it is not known.
            under_way: returns the number of responses under way.
        """
        ...


class Bar(Progress):
    """The progress of a run on a terminal, refreshed ten times per second. For the arguments, see `MakeProgress`."""

    all_columns: tuple[ProgressColumn, ...] = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[under_way]} under way"),
    )
    """The columns. A narrow terminal shows neither the first nor the last."""

    def __init__(
        self,
        tally: Tally,
        console: Console,
        *,
        total: Callable[[], int | None],
        under_way: Callable[[], int],
        refreshes: float = 10,
    ) -> None:
        self._tally = tally
        self._total = total
        self._under_way = under_way
        self._terminal = console
        super().__init__(
            console=console, transient=True, expand=True, redirect_stdout=False, refresh_per_second=refreshes
        )
        self.add_task("", total=None, rate=0, under_way=0)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the progress, and below it the counts."""
        for task in self.tasks:
            task.total = self._total()  # update() would restart the measurement of the speed
            self.update(task.id, completed=self._tally.done, rate=task.speed or 0, under_way=self._under_way())
        shown = self.all_columns if self._terminal.width >= WIDE else self.all_columns[1:-1]
        self.columns: tuple[str | ProgressColumn, ...] = shown
        yield self.make_tasks_table(self.tasks)
        yield self._tally.line()


class WaitBar(Bar):
    """The progress of many waits on a terminal: how many wait, by status, and the oldest. See `MakeProgress`.

    Args:
        statuses: the statuses of the responses that are waited for.
    """

    all_columns: tuple[ProgressColumn, ...] = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("ended"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[under_way]} waiting"),
    )

    def __init__(
        self,
        tally: Tally,
        console: Console,
        *,
        total: Callable[[], int | None],
        under_way: Callable[[], int],
        statuses: Statuses,
    ) -> None:
        self._statuses = statuses
        super().__init__(tally, console, total=total, under_way=under_way, refreshes=WAIT_REFRESHES)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the progress, the number of waits by status, the oldest response, and the counts."""
        progress, counts = super().get_renderables()
        yield progress
        yield self._waiting()
        yield counts

    def _waiting(self) -> Text:
        statuses, counts = self._statuses, self._statuses.counts()
        unseen = max(0, self._under_way() - counts.total())
        shown = [*counts.most_common(), *([("not seen yet", unseen)] if unseen else [])]
        words = [f"waiting {self._under_way():,}:  {'  '.join(f'{status} {count:,}' for status, count in shown)}"]
        if oldest := statuses.oldest():
            since, age = statuses.age(oldest.since), statuses.age(oldest.created)
            words.append(f"oldest {age}: {oldest.response_id}, {oldest.status} for {since}")
        return Text("\n".join(words), no_wrap=True, overflow="ellipsis")


class Spinner(Progress):
    """The progress of one response on a terminal: its status and its age. See `MakeProgress`.

    Args:
        statuses: the status of the response, once it was seen.
    """

    def __init__(
        self,
        tally: Tally,
        console: Console,
        *,
        total: Callable[[], int | None],  # noqa: ARG002 - one
        under_way: Callable[[], int],  # noqa: ARG002 - one
        statuses: Statuses,
    ) -> None:
        self._tally = tally
        self._statuses = statuses
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=console,
            transient=True,
            redirect_stdout=False,
        )
        self.add_task("", total=None, words="")

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the spinner with the status and the age of the response."""
        statuses, oldest = self._statuses, self._statuses.oldest()
        if oldest is None:
            words = f"no answer yet, {statuses.age(self._tally.began)}"
        else:
            words = f"{oldest.response_id}  {oldest.status}  {statuses.age(oldest.created)}"
        for task in self.tasks:
            self.update(task.id, words=words)
        yield self.make_tasks_table(self.tasks)


def progress_of(statuses: Statuses | None, *, one: bool) -> MakeProgress:
    """Return the class that draws the progress of a run, with the statuses if it needs them.

    Args:
        statuses: the statuses of the responses under way, or None if they are not shown.
        one: whether there is only one.
    """
    if statuses is None:
        return Bar
    return partial(Spinner if one else WaitBar, statuses=statuses)

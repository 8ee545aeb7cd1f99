"""The responses that a server lists as running: to look at, and to stop when nobody has their ids."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing, nullcontext
from functools import partial
from typing import Any, TypeAlias

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openai_cancel.cli.documents import to_json
from openai_cancel.cli.durations import format_duration
from openai_cancel.cli.exit_status import ExitStatus, UsageError, exit_status
from openai_cancel.cli.options import ConnectionOptions, FileOptions, FilterOptions, RunningOptions, RunOptions
from openai_cancel.cli.output import complain, has_terminal, print_line, printable, writes_json
from openai_cancel.cli.run import GIVE_UP_AFTER, HandleMany, Run, open_log
from openai_cancel.cli.run_output import RunOutput
from openai_cancel.cli.signals import run_until_signalled
from openai_cancel.errors import OpenAICancelError
from openai_cancel.models import Response
from openai_cancel.session import AsyncSession

SHOWN = 20
"""The number of responses that are shown before the question whether to stop them."""

ROUNDS = 3
"""The maximum number of times that a response is stopped if it runs again although it was stopped."""

RECHECK_DELAY = 1.0
"""Seconds after which the list is read again, to find responses that run although they were stopped."""

VALUES = 5
"""The number of values of metadata that the question names, the most frequent ones."""


Select: TypeAlias = Callable[[], AsyncGenerator[Response, None]]
"""Starts an iteration over responses."""


def list_running(session: AsyncSession, filters: FilterOptions, *, as_json: bool | None) -> int:
    """Print the responses that match, as a table or as JSON lines, and return the exit status.

    Args:
        session: makes the requests. It is not open yet.
        filters: which responses.
        as_json: whether to print JSON lines. None prints them if the output is not a terminal.
    """
    return asyncio.run(run_until_signalled(_list_running(session, filters, as_json=writes_json(as_json))))


async def _list_running(session: AsyncSession, filters: FilterOptions, *, as_json: bool) -> int:
    table = _table()
    try:
        async with session, aclosing(filters.select(session)) as responses:
            async for response in responses:
                if as_json:
                    print_line(to_json(_document(response)))
                else:
                    _add_row(table, response)
    except OpenAICancelError as error:
        complain(error)
        return exit_status(error)
    finally:
        if table.row_count:
            Console().print(table)
    return ExitStatus.OK


def stop_running(
    filters: FilterOptions,
    running: RunningOptions,
    files: FileOptions,
    options: RunOptions,
    connection: ConnectionOptions,
    *,
    confirm: float | None,
    dry_run: bool,
) -> int:
    """Stop the responses that run and match, after a question, and report their outcomes.

    Args:
        filters: which responses.
        running: whether to ask.
        files: the log.
        options: how to run and to report.
        connection: the server and the key.
        confirm: seconds after which a cancelled response is checked again.
        dry_run: only check the responses.

    Returns:
        The exit status.

    Raises:
        UsageError: the options are wrong, the log cannot be opened, or there is nobody to ask.
        ConfigurationError: a setting is missing or cannot work.
    """
    asks = not (running.yes or dry_run)
    if asks and not has_terminal():
        raise UsageError("--running asks before it stops anything: without a terminal, use --yes, or --dry-run first.")
    report = RunOutput(
        as_json=options.as_json, quiet=options.quiet, show_stopped=False, dry_run=dry_run, has_log=files.has_log
    )
    session = connection.session(max_connections=options.concurrency + 1)
    stop_many = partial(
        session.stop_many,
        concurrency=options.concurrency,
        deadline=options.deadline,
        confirm=confirm,
        dry_run=dry_run,
        give_up_after=GIVE_UP_AFTER,
    )
    with ExitStack() as opened:
        run = Run(report, open_log(opened, files), resume=files.resume, may_repeat=True)
        opened.callback(run.close)
        source = RunningSource(
            partial(filters.select, session), partial(filters.restarted().select, session), skip=run.skips
        )
        runner = opened.enter_context(asyncio.Runner())
        runner.run(session.open())
        try:
            if asks:
                # The question is asked while no loop runs, so that Ctrl-C is a KeyboardInterrupt.
                runner.run(source.read_ahead())
                if not source.found.ids:
                    complain("no running response was found")
                    return source.status(ExitStatus.OK)
                if not ask(source.found):
                    return source.status(ExitStatus.NOT_STOPPED)
            _stop_in_rounds(runner, run, source, stop_many, looks_again=not dry_run)
        finally:
            runner.run(session.close())
    report.sum_up()
    return source.status(run.status)


def _stop_in_rounds(
    runner: asyncio.Runner, run: Run, source: "RunningSource", stop_many: HandleMany, *, looks_again: bool
) -> None:
    """Stop the responses, and once more those that run again. A dry run does not look for these."""
    for number in range(ROUNDS):
        if number:
            run.take_back(source.found.ids)
        # Its second argument is entered and left; the session stays open until the end.
        runner.run(run.handle_all(source, nullcontext(), stop_many))
        if source.ended or not looks_again or not runner.run(source.look_again()):
            break


@attrs.define
class FoundResponses:
    """The responses that were found, as far as a question about them needs to know.

    Attributes:
        ids: their ids.
        first: the first ones.
        metadata: the number of responses with each key and value.
        without_metadata: the number of responses that have none.
        ages: the ages that are known, in seconds: the lowest and the highest.
    """

    ids: list[str] = attrs.field(factory=list[str])
    first: list[Response] = attrs.field(factory=list[Response])
    metadata: Counter[tuple[str, str]] = attrs.field(factory=Counter[tuple[str, str]])
    without_metadata: int = 0
    ages: tuple[float, float] | None = None

    def note(self, response: Response) -> None:
        """Add a response."""
        self.ids.append(str(response.id))
        if len(self.first) < SHOWN:
            self.first.append(response)
        self.metadata.update((response.metadata or {}).items())
        self.without_metadata += not response.metadata
        if (age := response.age) is not None:
            low, high = self.ages or (age, age)
            self.ages = (min(low, age), max(high, age))

    def describe(self) -> list[str]:
        """Return lines that say how many there are, how old, and whose."""
        count = len(self.ids)
        ages = f", created {_between(*self.ages)} ago" if self.ages else ", of unknown age"
        values = [f"{name}={value} ({number:,})" for (name, value), number in self.metadata.most_common(VALUES)]
        if len(self.metadata) > VALUES:
            values.append(f"{len(self.metadata) - VALUES:,} more values")
        if self.without_metadata:
            values.append(f"none ({self.without_metadata:,})")
        return [
            f"{count:,} {'responses run' if count > 1 else 'response runs'}{ages}",
            f"metadata: {', '.join(values)}",
        ]


class RunningSource:
    """The ids of the responses that run, as an `IdSource` of a run.

    What does not run in the background cannot be stopped by an id, and is left out.

    Args:
        select: starts the iteration over the responses.
        select_again: the same, for a later look.
        skip: called with the id of each response that has ended. Returns whether to skip it. What still runs is not
            skipped, also if an earlier run has stopped it.

    Attributes:
        found: what `read_ahead` has found.
        total: the number of ids, or None while it is not known.
        yielded: the number of ids yielded so far.
        skipped: the number of ids skipped so far.
        ended: whether `end` was called.
        again: the number of responses that ran at the last look, although they were stopped.
    """

    def __init__(self, select: Select, select_again: Select, *, skip: Callable[[str], bool]) -> None:
        self.found: FoundResponses = FoundResponses()
        self.total: int | None = None
        self.yielded: int = 0
        self.skipped: int = 0
        self.ended: bool = False
        self._select = select
        self._select_again = select_again
        self._skip = skip
        self._over: set[str] = set()  # the ids of responses that have ended
        self.again: int = 0
        self._foreground = 0
        self._given: set[str] = set()
        self._failure: OpenAICancelError | None = None

    def end(self) -> None:
        """Yield no more ids."""
        self.ended = True

    def status(self, status: int) -> int:
        """Return the exit status, and report what could not be found or stopped."""
        if self._foreground:
            complain(f"{self._foreground:,} more do not run in the background: only their own callers can end them")
        if self.again:
            status = max(status, ExitStatus.NOT_STOPPED)
        if self._failure is None:
            return status
        complain(f"{self._failure} There may be more responses than those that were found.")
        return max(status, exit_status(self._failure))

    async def read_ahead(self) -> None:
        """Find all responses, before any is stopped."""
        async with aclosing(self._background(self._select)) as responses:
            async for response in responses:
                self.found.note(response)
        self.total = len(self.found.ids)

    async def look_again(self) -> bool:
        """Find the responses that run again although the server said that they were stopped, to yield them once more.

        A server that begins to work on a response just as it is cancelled may forget the cancellation.

        Returns:
            Whether there are any.
        """
        self.again = 0
        if not self._given or self._failure is not None:
            return False
        await asyncio.sleep(RECHECK_DELAY)
        foreground = self._foreground
        async with aclosing(self._background(self._select_again)) as responses:
            running = [str(response.id) async for response in responses if not response.is_terminal]
        names = [name for name in running if name in self._given]
        self._foreground = foreground  # they were counted before
        if names:
            complain(f"running again after they were stopped: {len(names):,}")
        self.again = len(names)
        self.found = FoundResponses(names)
        self.total = self.yielded + self.skipped
        self.yielded -= len(names)
        self._over.clear()
        return bool(names)

    async def read(self) -> AsyncGenerator[str, None]:
        """Yield the ids."""
        if self.total is not None:
            for name in self.found.ids:
                if self._takes(name):
                    yield name
            return
        async with aclosing(self._background(self._select)) as responses:
            async for response in responses:
                if self._takes(name := str(response.id)):
                    yield name

    def _takes(self, name: str) -> bool:
        if self.ended:
            return False
        skips = name in self._over and self._skip(name)
        if not skips:
            self._given.add(name)
        self.skipped += skips
        self.yielded += not skips
        return not skips

    async def _background(self, select: Select) -> AsyncGenerator[Response, None]:
        try:
            async with aclosing(select()) as responses:
                async for response in responses:
                    if self.ended:
                        return
                    if response.background is False:
                        self._foreground += 1
                        continue
                    if response.is_terminal:
                        self._over.add(str(response.id))
                    yield response
        except OpenAICancelError as error:
            self._failure = error


def ask(found: FoundResponses) -> bool:
    """Show what was found, and return whether to stop it."""
    console, table = Console(stderr=True), _table()
    for response in found.first:
        _add_row(table, response)
    console.print(table)
    if (more := len(found.ids) - len(found.first)) > 0:
        console.print(f"… and {more:,} more", highlight=False)
    console.print()
    for line in found.describe():
        console.print(Text(printable(line)), soft_wrap=True)
    console.print(Text(f"Stop {'all of them' if len(found.ids) > 1 else 'it'}? [y/N] ", "bold"), end="")
    answer = sys.stdin.readline().strip().lower()
    if answer not in {"y", "yes"}:
        complain("nothing was stopped")
        return False
    return True


def _table() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("id", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("metadata", overflow="fold")
    return table


def _add_row(table: Table, response: Response) -> None:
    age = "" if response.age is None else format_duration(response.age)
    metadata = ", ".join(f"{name}={value}" for name, value in (response.metadata or {}).items())
    cells = (response.id, response.status, age, response.model, metadata)
    table.add_row(*(Text(printable(cell or "")) for cell in cells))


def _document(response: Response) -> dict[str, Any]:
    return {
        "id": response.id,
        "status": response.status,
        "created_at": response.created_at,
        "age": response.age,
        "model": response.model,
        "background": response.background,
        "metadata": response.metadata,
    }


def _between(low: float, high: float) -> str:
    first, last = format_duration(low), format_duration(high)
    return first if first == last else f"{first} to {last}"

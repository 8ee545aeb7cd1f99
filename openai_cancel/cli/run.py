"""A run of `stop`, `status` or `wait`: any number of ids in, a line for each and an exit status out."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing
from functools import partial
from typing import Any, Protocol, TypeAlias

from openai_cancel.cli.exit_status import ExitStatus, UsageError, exit_status
from openai_cancel.cli.failed_ids import open_failed
from openai_cancel.cli.id_set import IdSet
from openai_cancel.cli.ids import BadLine, Row, Source
from openai_cancel.cli.lines import Kind, Result, line_of
from openai_cancel.cli.log import Log
from openai_cancel.cli.options import ConnectionOptions, FileOptions, RunOptions
from openai_cancel.cli.output import complain
from openai_cancel.cli.run_output import RunOutput
from openai_cancel.cli.signals import handling_signals
from openai_cancel.cli.statuses import Statuses
from openai_cancel.errors import APIConnectionError, AuthenticationError
from openai_cancel.session import AsyncSession

HandleMany: TypeAlias = Callable[[AsyncIterable[str]], AsyncGenerator[Result, None]]
"""`stop_many` or `wait_many` with its options."""

Abandon: TypeAlias = Callable[[int], None]
"""Abandons the responses that are under way, and is called with their number."""

GIVE_UP_AFTER = 10.0
"""Seconds without any answer after which a run ends, because the server cannot be reached."""


def stop_responses(
    ids: Sequence[str],
    files: FileOptions,
    options: RunOptions,
    connection: ConnectionOptions,
    *,
    confirm: float | None = None,
    dry_run: bool = False,
    is_status: bool = False,
) -> int:
    """Stop the responses whose ids are arguments or in files, and report their outcomes.

    Args:
        ids: the ids that are arguments.
        files: the files of ids, and the log.
        options: how to run and to report.
        connection: the server and the key.
        confirm: seconds after which a cancelled response is checked again.
        dry_run: only check the responses.
        is_status: show the state of the responses, and stop none.

    Returns:
        The exit status.

    Raises:
        UsageError: the arguments are wrong, or a file cannot be opened.
        ConfigurationError: a setting is missing or cannot work.
    """
    files.check(ids)
    statuses = Statuses() if len(ids) == 1 and not files.are_given else None
    report = RunOutput(
        as_json=options.as_json,
        quiet=options.quiet,
        show_stopped=not files.are_given,
        dry_run=dry_run,
        has_log=files.has_log,
        one=statuses is not None,
        statuses=statuses,
    )
    session = connection.session(max_connections=options.concurrency)
    stop_many = partial(
        session.stop_many,
        concurrency=options.concurrency,
        deadline=options.deadline,
        confirm=confirm,
        dry_run=dry_run or is_status,
        on_update=statuses.see if statuses else None,
        give_up_after=GIVE_UP_AFTER,
    )
    return handle_responses(ids, files, report, session, stop_many)


def handle_responses(
    ids: Sequence[str],
    files: FileOptions,
    report: RunOutput,
    session: AsyncSession,
    handle_many: HandleMany,
    *,
    abandon: Abandon | None = None,
) -> int:
    """Handle the responses whose ids are arguments or in files, and report the results.

    Args:
        ids: the ids that are arguments.
        files: the files of ids, and the log.
        report: shows the results.
        session: makes the requests. It is not open yet.
        handle_many: handles the responses with all ids that it is called with, and yields the results.
        abandon: as for `Run`.

    Returns:
        The exit status.

    Raises:
        UsageError: the arguments are wrong, or a file cannot be opened.
    """
    with ExitStack() as opened:
        run, source = _open(opened, ids, files, report, abandon)
        asyncio.run(run.handle_all(source, session, handle_many))
    report.sum_up()
    if run.was_interrupted and files.has_log and not files.rerun_failed:
        complain("interrupted: run the same command with --resume to continue")
    return run.status


def open_log(opened: ExitStack, files: FileOptions) -> Log | None:
    """Open the log of a run, if it has one.

    Raises:
        UsageError: it cannot be opened.
    """
    path = files.log or files.rerun_failed
    try:
        return opened.enter_context(Log(path)) if path else None
    except OSError as error:
        raise UsageError.of_file(error) from error


def _open(
    opened: ExitStack, ids: Sequence[str], files: FileOptions, report: RunOutput, abandon: Abandon | None
) -> "tuple[Run, IdSource]":
    failed = open_failed(opened, files)  # before the log, which may be the same file, and is made if there is none
    log = open_log(opened, files)
    run = Run(report, log, resume=files.resume, abandon=abandon)
    opened.callback(run.close)
    if failed:
        failed.see = run.see
        return run, failed
    try:
        source = Source(ids, files.file, complain=run.complain_of_line, skip=run.skips, see=run.see)
        opened.enter_context(source)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError.of_file(error) from error
    if log and source.reads(log.file):
        raise UsageError(f"{files.log} is one of the files of ids: use another file for --log.")
    return run, source


class IdSource(Protocol):
    """The source of the ids of a run: a `Source`, or the list of a server."""

    yielded: int
    skipped: int
    total: int | None
    ended: bool

    def read(self) -> AsyncGenerator[str, None]:
        """Yield the ids."""
        ...

    def end(self) -> None:
        """Yield no more ids."""


class Run:
    """One run over any number of ids.

    Args:
        report: shows the results.
        log: records the results, or None.
        resume: whether to skip the ids that the log shows as stopped.
        abandon: abandons the responses under way, after Ctrl-C or SIGTERM. Their results must follow soon. None to
            finish them.
        may_repeat: whether `take_back` may be called, for which the kind of each result is kept in memory.
    """

    _source: IdSource

    def __init__(
        self,
        report: RunOutput,
        log: Log | None = None,
        *,
        resume: bool = False,
        abandon: Abandon | None = None,
        may_repeat: bool = False,
    ) -> None:
        self._report = report
        self._log = log
        self._seen = IdSet()
        self._kinds: dict[str, tuple[Kind, bool]] | None = {} if may_repeat else None
        self._columns: dict[str, Mapping[str, Any]] = {}  # of the responses that are under way
        self._stopped = log.stopped() if log and resume else None
        self._abandon = abandon
        self._worst: int = ExitStatus.OK
        self._signal = 0  # the first that was received

    @property
    def status(self) -> int:
        """The exit status of the process."""
        if self._signal:
            return 128 + self._signal
        failed = not self._report.tally.all_stopped or (self._log is not None and self._log.failed)
        return max(self._worst, ExitStatus.NOT_STOPPED) if failed else self._worst

    @property
    def was_interrupted(self) -> bool:
        """Whether a signal has ended the run."""
        return bool(self._signal)

    def close(self) -> None:
        """Remove what the run has written to a temporary file."""
        self._seen.close()

    def skips(self, response_id: str) -> bool:
        """Count and skip an id that occurs again, or that is stopped according to the log."""
        if not self._seen.add(response_id):
            self._report.tally.repeated += 1
            return True
        skipped = self._stopped is not None and response_id in self._stopped
        self._report.tally.skipped += skipped
        return skipped

    def see(self, row: Row) -> None:
        """Remember the other columns of a row until its response has a result."""
        if row.columns:
            self._columns[row.response_id] = row.columns

    def complain_of_line(self, bad: BadLine) -> None:
        """Report and record a line without a usable id."""
        self._report.complain_of_line(bad)
        if self._log:
            self._log.write_bad_line(bad)

    def take_back(self, ids: Sequence[str]) -> None:
        """Take back the results of responses that are handled once more, so that each counts once."""
        kinds = self._kinds or {}
        for response_id in kinds.keys() & {*ids}:
            self._report.tally.take_back(*kinds.pop(response_id))

    async def handle_all(
        self, source: IdSource, session: AbstractAsyncContextManager[object], handle_many: HandleMany
    ) -> None:
        """Handle the responses with all ids of a source, while the session is open.

        After Ctrl-C or SIGTERM, the responses under way are finished, or abandoned if the run has an `abandon`. Without
        one, a second signal abandons them.
        """
        self._source = source
        interrupt = partial(self._interrupt, asyncio.current_task())
        with handling_signals(interrupt), self._report.bar(total=self._total, under_way=self._under_way):
            try:
                async with session, aclosing(handle_many(source.read())) as results:
                    async for result in results:
                        self._note(result)
            except APIConnectionError as error:
                if self._report.tally.done != self._total():  # otherwise every result has said so
                    complain(f"{error} The remaining ids are not tried.")
                self._worst = max(self._worst, exit_status(error))
            except asyncio.CancelledError:
                if not self._signal:
                    raise

    def _note(self, result: Result) -> None:
        line = line_of(result)
        columns = self._columns.pop(line.response_id, None)
        if self._log:
            self._log.write(result, columns)
        self._report.show(result, columns)
        if self._kinds is not None:
            self._kinds[line.response_id] = line.kind, line.is_good
        if line.error:
            self._worst = max(self._worst, exit_status(line.error))
        if isinstance(line.error, AuthenticationError) and not self._source.ended:
            complain("The server rejects the key. The remaining ids are not tried.")
            self._source.end()

    def _total(self) -> int | None:
        return None if self._source.total is None else self._source.total - self._source.skipped

    def _under_way(self) -> int:
        return self._source.yielded - self._report.tally.done

    def _interrupt(self, task: "asyncio.Task[Any] | None", number: int) -> None:
        if self._signal:
            if self._abandon is None and task:
                task.cancel()
            return
        self._signal = number
        self._source.end()
        if self._abandon is not None:
            self._abandon(self._under_way())
        else:
            complain(f"finishing {the_responses(self._under_way())} under way; press Ctrl-C again to quit at once")


def the_responses(count: int) -> str:
    """Return a number of responses in words."""
    return "the response" if count == 1 else f"the {count:,} responses"

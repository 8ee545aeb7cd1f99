"""The commands that talk to a server."""

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Sequence
from contextlib import ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from cyclopts import CycloptsError, Parameter, Token, convert
from cyclopts.validators import Number

from openai_cancel.cli.connection import Connection
from openai_cancel.cli.ids import Source
from openai_cancel.cli.report import Log, Report, complain, error_as_document, print_line, printable, to_json
from openai_cancel.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    InvalidResponseIdError,
    OpenAICancelError,
    PermissionDeniedError,
)
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome
from openai_cancel.session import AsyncSession

OK, NOT_STOPPED, USAGE, CONFIGURATION, INTERRUPTED = 0, 1, 2, 3, 130

HERE = Connection()
"""Where the environment says that the API is."""

Flag: Parameter = Parameter(negative=(), show_default=False)
Ids = Annotated[tuple[str, ...], Parameter(show_default=False)]


def _read_seconds(_: object, tokens: Sequence[Token]) -> float:
    seconds = 0.0
    try:
        seconds = float(tokens[0].value)
    except ValueError:
        with suppress(CycloptsError):
            seconds = cast("timedelta", convert(timedelta, tokens)).total_seconds()
    if not seconds > 0:  # nor is NaN
        raise ValueError("a duration is a number of seconds greater than 0, or such as 30s, 15m, 2h, 7d")
    return seconds


Seconds = Annotated[float, Parameter(converter=_read_seconds)]
"""A duration: a number of seconds, or `30s`, `15m`, `2h`, `7d`."""


class UsageError(Exception):
    """Arguments that do not go together."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Many:
    """Options of the commands that take any number of ids.

    Attributes:
        file: Files of ids: one id a line, JSON lines, or CSV with a column id or response_id. - is the standard input.
        concurrency: How many may be under way at once. A server's limit is found out and kept to.
        deadline: Seconds that each response may take.
        log: Add a JSON line for each outcome to this file.
        resume: Pass over the ids that the log shows as stopped.
        as_json: One JSON line for each outcome, also on a terminal.
        quiet: Show only what goes wrong.
    """

    file: Annotated[tuple[str, ...], Flag, Parameter(alias="-f", allow_leading_hyphen=True)] = ()
    concurrency: Annotated[int, Parameter(validator=Number(gte=1))] = 64
    deadline: Seconds = 60.0
    log: Path | None = None
    resume: Annotated[bool, Flag] = False
    as_json: Annotated[bool, Flag, Parameter("--json")] = False
    quiet: Annotated[bool, Flag, Parameter(alias="-q")] = False


DEFAULTS = Many()


def stop(
    ids: Ids = (),
    /,
    *,
    confirm: Seconds | None = None,
    dry_run: Annotated[bool, Flag] = False,
    many: Many = DEFAULTS,
    connection: Connection = HERE,
) -> int:
    """Make sure that responses no longer run, and find out what became of them.

    Ctrl-C takes no more ids and finishes those that are under way; a second one leaves at once.

    ```
    openai-cancel stop resp_123 resp_456
    openai-cancel stop --file ids.txt --log results.jsonl --resume
    psql -Atc "select id from runs" | openai-cancel stop - --json
    ```

    Parameters
    ----------
    ids
        Ids of responses; - reads them from the standard input.
    confirm
        Look at a cancelled response again after so many seconds: some servers run on.
    dry_run
        Only look, and cancel nothing: what would be cancelled is "still running".
    """
    return _run_many(ids, many, connection, confirm=confirm, dry_run=dry_run)


def status(ids: Ids = (), /, *, many: Many = DEFAULTS, connection: Connection = HERE) -> int:
    """Look how responses are; the exit status is 0 if all are over.

    ```
    openai-cancel status resp_123
    openai-cancel status --file ids.txt --quiet
    ```

    Parameters
    ----------
    ids
        Ids of responses; - reads them from the standard input.
    """
    return _run_many(ids, many, connection, confirm=None, dry_run=True)


def _run_many(ids: Sequence[str], many: Many, connection: Connection, *, confirm: float | None, dry_run: bool) -> int:
    if not ids and not many.file:
        raise UsageError("Give ids, or --file, or - for the standard input.")
    if many.resume and many.log is None:
        raise UsageError("--resume needs the --log of the run before.")
    report = Report(as_json=many.as_json, quiet=many.quiet, each=not many.file)
    session = connection.session(at_once=many.concurrency)
    with ExitStack() as opened:
        try:
            log = opened.enter_context(Log(many.log)) if many.log else None
            run = _Run(report, log, log.stopped() if log and many.resume else None)
            run.source = opened.enter_context(
                Source(ids, many.file, complain=report.complain_of_line, passes=run.passes)
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}") from error
        if log and run.source.reads(log.file):
            raise UsageError(f"{many.log} is read from already: give --log another file.")
        outcomes = partial(
            session.stop_many,
            concurrency=many.concurrency,
            deadline=many.deadline,
            confirm=confirm,
            dry_run=dry_run,
        )
        asyncio.run(run.run(session, outcomes))
    report.sum_up()
    return run.status if log is None or not log.failed else max(run.status, NOT_STOPPED)


class _Run:
    """One run through any number of ids."""

    source: Source

    def __init__(self, report: Report, log: Log | None, before: set[str] | None) -> None:
        self.report = report
        self._log = log
        self._before = before
        self._worst = OK
        self._signal = 0  # that was received

    @property
    def status(self) -> int:
        """Of the process."""
        if self._signal:
            return 128 + self._signal
        return self._worst if self.report.tally.all_stopped else max(self._worst, NOT_STOPPED)

    def passes(self, response_id: str) -> bool:
        """Whether a run before this one has stopped it."""
        known = self._before is not None and response_id in self._before
        self.report.tally.skipped += known
        return known

    async def run(
        self, session: AsyncSession, stop_many: Callable[[AsyncIterable[str]], AsyncGenerator[Outcome, None]]
    ) -> None:
        """Go through them all."""
        heed = partial(self._interrupt, asyncio.current_task())
        with heeding_signals(heed), self.report.bar(total=self._total, under_way=self._under_way):
            try:
                async with session, aclosing(stop_many(self.source.read())) as outcomes:
                    async for outcome in outcomes:
                        self._note(outcome)
            except asyncio.CancelledError:
                if not self._signal:
                    raise

    def _note(self, outcome: Outcome) -> None:
        if self._log:
            self._log.write(outcome)
        if outcome.stopped and self._before is not None:
            self._before.add(outcome.response_id)
        self.report.show(outcome)
        if outcome.error and not outcome.stopped:
            self._worst = max(self._worst, _exit_status(outcome.error))
        if isinstance(outcome.error, AuthenticationError) and not self.source.ended:
            complain("The key is refused, and no more ids are tried.")
            self.source.end()

    def _total(self) -> int | None:
        return None if self.source.total is None else self.source.total - self.source.passed

    def _under_way(self) -> int:
        return self.source.given - self.report.tally.done

    def _interrupt(self, task: "asyncio.Task[Any] | None", number: int) -> None:
        if self._signal and task:
            task.cancel()
            return
        self._signal = number
        self.source.end()
        complain(f"finishing the {self._under_way()} that are under way; Ctrl-C again leaves at once")


@contextmanager
def heeding_signals(heed: Callable[[int], None]) -> Generator[None]:
    """Call a function when Ctrl-C is pressed, or SIGTERM comes."""
    loop = asyncio.get_running_loop()
    heeded: list[int] = []
    with suppress(NotImplementedError, RuntimeError):  # on Windows, and outside the main thread, there are none
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            loop.add_signal_handler(number, heed, number)
            heeded.append(number)
    try:
        yield
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)


async def until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """Do some work, and cancel it when Ctrl-C is pressed or SIGTERM comes; gives the exit status."""
    task = asyncio.create_task(work)
    received: list[int] = []

    def interrupt(number: int) -> None:
        received.append(number)
        task.cancel()

    with heeding_signals(interrupt):
        await asyncio.wait([task])
    return 128 + received[0] if task.cancelled() else task.result()


def wait(
    ids: Ids,
    /,
    *,
    timeout: Seconds | None = None,
    on_abandon: Literal["stop", "leave"] = "stop",
    as_json: Annotated[bool, Flag, Parameter("--json")] = False,
    connection: Connection = HERE,
) -> int:
    """Wait until responses are over, and show how they ended.

    ```
    openai-cancel wait resp_123 --timeout 600 --on-abandon leave
    ```

    Parameters
    ----------
    ids
        Ids of responses, one or more.
    timeout
        Seconds to wait; else as long as it takes.
    on_abandon
        What to do with responses that are not over at the time-out, or at Ctrl-C.
    as_json
        One JSON object a line.
    """
    work = _wait(ids, timeout, on_abandon, as_json=as_json, session=connection.session(at_once=max(len(ids), 1)))
    return asyncio.run(until_signalled(work))


async def _wait(
    ids: Sequence[str],
    timeout: float | None,
    on_abandon: Literal["stop", "leave"],
    *,
    as_json: bool,
    session: AsyncSession,
) -> int:
    async def wait_for_one(response_id: str) -> int:
        try:
            return _show(response_id, await session.wait(response_id, timeout=timeout, on_abandon=on_abandon), as_json)
        except OpenAICancelError as error:
            return _show_error(response_id, error, as_json)
        except asyncio.CancelledError as error:
            for note in getattr(error, "__notes__", ()):  # that it could not be stopped
                complain(note)
            raise

    async with session, asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait_for_one(response_id)) for response_id in ids]
    return max(task.result() for task in tasks)


def cancel(
    ids: Ids,
    /,
    *,
    as_json: Annotated[bool, Flag, Parameter("--json")] = False,
    connection: Connection = HERE,
) -> int:
    """Cancel responses once, and show what the server says; `stop` makes sure.

    ```
    openai-cancel cancel resp_123 --json
    ```

    Parameters
    ----------
    ids
        Ids of responses, one or more.
    as_json
        One JSON object a line.
    """
    return asyncio.run(_cancel(ids, as_json=as_json, session=connection.session()))


async def _cancel(ids: Sequence[str], *, as_json: bool, session: AsyncSession) -> int:
    worst = OK
    async with session:
        for response_id in ids:
            refusal = ""
            try:
                try:
                    response = await session.cancel(response_id)
                except (BadRequestError, ConflictError) as error:
                    # Most often it is over already, which is what was wanted. Its state decides, not the words.
                    response, refusal = await session.retrieve(response_id), f"  ({error.message})"
            except OpenAICancelError as error:
                worst = max(worst, _show_error(response_id, error, as_json))
            else:
                worst = max(worst, _show(response_id, response, as_json, refusal))
    return worst


def _show(response_id: str, response: Response, as_json: bool, words: str = "") -> int:  # noqa: FBT001 - as it was given
    if as_json:
        print_line(to_json({"id": response_id, "status": response.status, "response": response.to_dict()}))
    else:
        print_line(f"{response_id}  {printable(f'{response.status}{words}')}")
    return OK if response.is_terminal else NOT_STOPPED


def _show_error(response_id: str, error: OpenAICancelError, as_json: bool) -> int:  # noqa: FBT001 - as it was given
    if as_json:
        print_line(to_json({"id": response_id, "error": error_as_document(error)}))
    else:
        complain(f"{response_id!r}: {error}")
    return _exit_status(error)


def _exit_status(error: OpenAICancelError) -> int:
    if isinstance(error, InvalidResponseIdError):
        return USAGE
    if isinstance(error, ConfigurationError | AuthenticationError | PermissionDeniedError):
        return CONFIGURATION
    return NOT_STOPPED

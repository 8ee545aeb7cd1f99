"""The commands of `ledger`: list the responses that are recorded, and stop those with an expired lease."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from openai_cancel.cli.exit_status import ExitStatus, UsageError, exit_status
from openai_cancel.cli.ledger_state import NEGLECTED, check, describe_neglected, existing, find_neglected, init, stats
from openai_cancel.cli.options import (
    DEFAULT_ACCOUNT,
    DEFAULT_CONNECTION,
    DEFAULT_FILTERS,
    DEFAULT_LEDGER,
    DEFAULT_RUN,
    DEFAULT_SELECTION,
    OPTIONS,
    AccountOptions,
    ConnectionOptions,
    Count,
    Files,
    FilterOptions,
    Flag,
    Ids,
    JsonOrText,
    LedgerOptions,
    Pairs,
    RunOptions,
    Seconds,
    SelectionOptions,
    check_ids,
    read_labels,
)
from openai_cancel.cli.output import complain, is_read_by_people, print_line, printable, writes_json
from openai_cancel.cli.reconcile_options import DEFAULT_RECONCILE, ReconcileOptions
from openai_cancel.errors import APIConnectionError, ConfigurationError, LedgerError

if TYPE_CHECKING:
    from openai_cancel.cli.ids import BadLine, Source
    from openai_cancel.cli.run_output import RunOutput
    from openai_cancel.ledger import Entry, Ledger
    from openai_cancel.outcome import Outcome
    from openai_cancel.session import AsyncSession

GIVE_UP_AFTER = 30.0
"""Seconds without any answer after which a run ends, because the server cannot be reached: a request may take as long.
"""

SETTLED = frozenset({"not_found", "not_background"})
"""Verdicts that leave nothing to do, so that a sweep has not failed: a timer should not fail for an unknown id."""

ledger: App = App(
    name="ledger",
    help="Manage the ledger, and stop recorded responses that nothing guards any more.",
    group_parameters=OPTIONS,
)


@ledger.command
def sweep(
    *,
    every: Seconds | None = None,
    once: Annotated[bool, Flag] = False,
    confirm: Seconds | None = None,
    max_attempts: Count = 12,
    lease: Seconds = 60.0,
    options: RunOptions = DEFAULT_RUN,
    where: LedgerOptions = DEFAULT_LEDGER,
    account: AccountOptions = DEFAULT_ACCOUNT,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """Stop the responses whose lease has expired, and record the outcomes.

    ```
    openai-cancel ledger sweep
    openai-cancel ledger sweep --every 30s
    ```

    An id that the server does not know is not a failure. Expired leases of other accounts or servers are reported: each
    of these needs a sweep with its own key.

    Args:
        every: Keep running, and sweep again after this time, such as 30s, 5m or 1h. Many sweeps can share the work.
        once: Sweep once. This is the default.
        confirm: Check cancelled responses again after this time, because some servers resume them.
        max_attempts: The number of attempts to stop a response before giving up.
        lease: The time after which another sweep takes over if this one dies, and for which the database may fail.
    """
    if once and every is not None:
        raise UsageError("--once cannot be combined with --every.")
    opened, session = where.make(lease=lease), account.session(connection, max_connections=options.concurrency)
    sweep_once = partial(
        opened.sweep,
        session,
        concurrency=options.concurrency,
        deadline=options.deadline,
        confirm=confirm,
        max_attempts=max_attempts,
        give_up_after=GIVE_UP_AFTER,
    )
    return _run(opened, session, sweep_once, options, every, tells_of_others=True)


@ledger.command
def stop(
    *,
    older_than: Seconds | None = None,
    dry_run: Annotated[bool, Flag] = False,
    confirm: Seconds | None = None,
    options: RunOptions = DEFAULT_RUN,
    selection: SelectionOptions = DEFAULT_SELECTION,
    where: LedgerOptions = DEFAULT_LEDGER,
    account: AccountOptions = DEFAULT_ACCOUNT,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """Stop recorded responses now, whoever guards them, and record the outcomes.

    ```
    openai-cancel ledger stop --label job=7
    openai-cancel ledger stop --older-than 2h --dry-run
    ```

    It needs a condition; --state tracked stops everything of the account.

    Args:
        older_than: Only responses that were first recorded this long ago, such as 30m, 2h or 7d, or earlier.
        dry_run: Only check the responses, and cancel none. Shows those that would be stopped.
        confirm: Check cancelled responses again after this time, because some servers resume them.
    """
    labels, state = selection.labels, selection.state
    if not labels and state is None and older_than is None:
        raise UsageError("No condition: use --label, --state or --older-than, or --state tracked for everything.")
    if state not in (None, "tracked", "stopping"):
        raise UsageError(f"--state must be tracked or stopping: responses that are {state} have ended.")
    opened, session = existing(where), account.session(connection, max_connections=options.concurrency)
    stop_once = partial(
        opened.stop,
        session,
        labels=labels,
        state=state,
        older_than=older_than,
        dry_run=dry_run,
        concurrency=options.concurrency,
        deadline=options.deadline,
        confirm=confirm,
        give_up_after=GIVE_UP_AFTER,
    )
    return _run(opened, session, stop_once, options, dry_run=dry_run)


@ledger.command
def reconcile(
    *,
    what: ReconcileOptions = DEFAULT_RECONCILE,
    filters: FilterOptions = DEFAULT_FILTERS,
    options: RunOptions = DEFAULT_RUN,
    where: LedgerOptions = DEFAULT_LEDGER,
    account: AccountOptions = DEFAULT_ACCOUNT,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """Compare the ledger with the server's list of responses, and strike off those that are over.

    ```
    openai-cancel ledger reconcile --dry-run
    openai-cancel ledger reconcile --adopt --ttl 1h --all
    openai-cancel ledger reconcile --stop --older-than 1h --metadata team=search
    ```

    Responses that run and that the ledger does not know are shown: the answer to their creation may have been lost.
    --adopt and --stop handle them. Those that were created within the last minute are left out, unless --older-than
    says otherwise, since they may be about to be recorded. Responses that are tracked and over are struck off. What a
    living process guards is left alone. It needs a server that lists its responses, such as ogx, Microsoft Foundry and
    Fireworks.

    The exit status is 1 if a response runs that the ledger does not track, or is unclear.
    """
    what.check(filters)
    from openai_cancel.cli.reconcile import reconcile_ledger

    return reconcile_ledger(what, filters, options=options, where=where, account=account, connection=connection)


for _command in (init, stats, check):
    ledger.command(_command)


def _run(
    opened: "Ledger",
    session: "AsyncSession",
    sweep_once: "Callable[[], AsyncGenerator[Outcome, None]]",
    options: RunOptions,
    every: float | None = None,
    *,
    tells_of_others: bool = False,
    dry_run: bool = False,
) -> int:
    import asyncio  # slow to import, as below: the help does without

    from openai_cancel.cli.run_output import RunOutput
    from openai_cancel.cli.signals import run_until_signalled
    from openai_cancel.cli.sweeper import showing_log

    report = RunOutput(as_json=options.as_json, quiet=options.quiet, show_stopped=True, dry_run=dry_run)
    work = _sweep(opened, session, sweep_once, report, every, tells_of_others=tells_of_others)
    if every is None:
        status = asyncio.run(run_until_signalled(work))
    else:
        with showing_log(quiet=options.quiet):
            try:
                status = asyncio.run(run_until_signalled(work))
            except (ConfigurationError, LedgerError) as error:  # reported here, so that the line has a time
                complain(error)
                return exit_status(error)
    if every is None or is_read_by_people():  # the log of a service has the totals of each round, with their time
        report.sum_up()
    return status


async def _sweep(
    opened: "Ledger",
    session: "AsyncSession",
    sweep_once: "Callable[[], AsyncGenerator[Outcome, None]]",
    report: "RunOutput",
    every: float | None,
    *,
    tells_of_others: bool,
) -> ExitStatus:
    from openai_cancel.cli.sweeper import Sweeper

    async with opened, session:
        if every is not None:
            where = f"{repr(opened).strip('<>')}, account {await session.load_account()}, {session.base_url}"
            look = partial(find_neglected, opened, session, overdue_for=NEGLECTED)
            await Sweeper(sweep_once, report.show, look, every, where).run()
        status = ExitStatus.OK
        try:
            async with aclosing(sweep_once()) as outcomes:
                async for outcome in outcomes:
                    report.show(outcome)
                    if not outcome.stopped and outcome.verdict not in SETTLED:
                        status = ExitStatus.NOT_STOPPED
        except APIConnectionError as error:
            complain(f"{error} The remaining responses are not tried.")
            status = ExitStatus.NOT_STOPPED
        if tells_of_others and (neglected := await find_neglected(opened, session)):
            complain(describe_neglected(neglected))
        return status


@ledger.command(name="list")
def list_(
    *,
    ended: Annotated[bool, Flag, Parameter("--all")] = False,
    older_than: Seconds | None = None,
    overdue: Annotated[bool, Flag] = False,
    as_json: JsonOrText = None,
    selection: SelectionOptions = DEFAULT_SELECTION,
    where: LedgerOptions = DEFAULT_LEDGER,
) -> None:
    """List the recorded responses of all accounts.

    ```
    openai-cancel ledger list --label job=7 --older-than 2h
    openai-cancel ledger list --state forbidden
    ```

    Args:
        ended: Also list the responses that have ended or were released.
        older_than: Only responses that were first recorded this long ago, such as 30m, 2h or 7d, or earlier.
        overdue: Only responses whose lease has expired, so that a sweep of their account should stop them.
        as_json: Print JSON lines. This is the default if the output is not a terminal. --no-json prints text.
    """
    show = _as_json if writes_json(as_json) else _as_line
    import asyncio

    labels = selection.labels

    async def run() -> None:
        async with existing(where) as opened:
            entries = opened.entries(
                include_ended=ended, labels=labels, state=selection.state, older_than=older_than, overdue=overdue
            )
            async with aclosing(entries):
                async for entry in entries:
                    print_line(show(entry))

    asyncio.run(run())


@ledger.command
def add(
    *ids: Ids,
    ttl: Seconds,
    file: Files = (),
    label: Pairs = (),
    where: LedgerOptions = DEFAULT_LEDGER,
    account: AccountOptions = DEFAULT_ACCOUNT,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """Record responses for sweeps on any hosts to stop, unless they are released first.

    ```
    openai-cancel ledger add resp_123 --ttl 15m --label job=7
    openai-cancel ledger add --file ids.txt --ttl 1s
    ```

    Args:
        ids: The ids of the responses. - reads them from standard input.
        ttl: The time after which a sweep stops the responses, such as 30s, 15m or 2h.
        file: Files of ids: one id per line, JSON, or CSV with a column id or response_id. - is standard input.
        label: A label of the responses, as NAME=VALUE. Can be repeated.
    """
    import asyncio

    from openai_cancel.cli.bad_lines import BadLines

    check_ids(ids, file)
    labels = read_labels(label)
    session, opened = account.session(connection), where.make()
    bad = BadLines()

    async def run(source: "Source") -> int:
        async with opened:
            return await opened.track_many(source.read(), session=session, ttl=ttl, labels=labels)

    with _open_source(ids, file, bad.note) as source:
        count = asyncio.run(run(source))
    bad.sum_up("the first ones show what is wrong")
    if file:
        print_line(f"{count:,} recorded")
    return ExitStatus.NOT_STOPPED if bad.count else ExitStatus.OK


def _open_source(ids: Sequence[str], files: Sequence[str], complain_of_line: "Callable[[BadLine], None]") -> "Source":
    from openai_cancel.cli.ids import Source  # it imports asyncio

    try:
        return Source(ids, files, complain=complain_of_line, skip=lambda _: False)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError.of_file(error) from error


@ledger.command
def release(
    *ids: Ids,
    file: Files = (),
    where: LedgerOptions = DEFAULT_LEDGER,
    account: AccountOptions = DEFAULT_ACCOUNT,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """Release responses, so that no sweep stops them.

    The exit status is 0 if the ledger held all of them.

    ```
    openai-cancel ledger release resp_123
    openai-cancel ledger release --file ids.txt --account batch
    ```

    Args:
        ids: The ids of the responses. - reads them from standard input.
        file: Files of ids: one id per line, JSON, or CSV with a column id or response_id. - is standard input.
    """
    import asyncio

    from openai_cancel.cli.bad_lines import BadLines

    check_ids(ids, file)
    session = account.session(connection)
    bad = BadLines()

    async def run(source: "Source") -> ExitStatus:
        status = ExitStatus.OK
        async with existing(where) as opened, aclosing(source.read()) as names:
            async for response_id in names:
                if not await opened.release(response_id, session=session):
                    complain(f"{response_id!r} is not in the ledger, or has ended.")
                    status = ExitStatus.NOT_STOPPED
        return status

    with _open_source(ids, file, bad.note) as source:
        status = asyncio.run(run(source))
    bad.sum_up("the first ones show what is wrong")
    return ExitStatus.NOT_STOPPED if bad.count else status


@ledger.command
def purge(
    *,
    older_than: Seconds,
    selection: SelectionOptions = DEFAULT_SELECTION,
    where: LedgerOptions = DEFAULT_LEDGER,
) -> None:
    """Delete the records of responses of all accounts that ended some time ago.

    ```
    openai-cancel ledger purge --older-than 7d
    openai-cancel ledger purge --older-than 12h --state cancelled
    ```

    Args:
        older_than: The time since the responses ended or were released, such as 12h or 7d.
    """
    import asyncio

    labels = selection.labels
    if selection.state in ("tracked", "stopping"):
        raise UsageError(f"--state must be a state in which responses have ended, not {selection.state}.")

    async def run() -> int:
        async with existing(where) as opened:
            return await opened.purge(older_than=older_than, labels=labels, state=selection.state)

    print_line(f"{asyncio.run(run()):,} deleted")


def _as_json(entry: "Entry") -> str:
    import attrs

    from openai_cancel.cli.documents import to_json

    document = attrs.asdict(entry)
    for moment in ("created", "changed", "expires"):
        if document[moment] is not None:
            document[moment] = document[moment].isoformat(timespec="milliseconds")
    return to_json({"id": document.pop("response_id"), **document})


def _as_line(entry: "Entry") -> str:
    lease = ""
    if entry.lease_left is not None:
        lease = f", {entry.lease_left:,.0f} s left" if entry.lease_left > 0 else ", lease expired"
    labels = "".join(f"  {name}={value}" for name, value in entry.labels.items())
    error = f": {entry.error}" if entry.error else ""
    return printable(f"{entry.response_id}  {entry.state}{lease}{labels}{error}")

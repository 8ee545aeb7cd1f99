"""`ledger reconcile`: compare a ledger with the list of its server."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, ExitStack, aclosing
from functools import partial
from typing import TYPE_CHECKING

from openai_cancel.cli.exit_status import ExitStatus, exit_status
from openai_cancel.cli.options import (
    AccountOptions,
    ConnectionOptions,
    FileOptions,
    FilterOptions,
    LedgerOptions,
    RunOptions,
    read_labels,
)
from openai_cancel.cli.output import complain
from openai_cancel.cli.reconcile_options import MIN_AGE, ReconcileOptions
from openai_cancel.cli.run import open_log
from openai_cancel.cli.run_output import RunOutput
from openai_cancel.cli.running import FoundResponses, ask
from openai_cancel.cli.signals import run_until_signalled
from openai_cancel.errors import APIError, OpenAICancelError

if TYPE_CHECKING:
    from openai_cancel.cli.log import Log
    from openai_cancel.finding import Finding
    from openai_cancel.models import Response

Reconcile = Callable[..., "AsyncGenerator[Finding, None]"]


def reconcile_ledger(
    what: ReconcileOptions,
    filters: FilterOptions,
    *,
    options: RunOptions,
    where: LedgerOptions,
    account: AccountOptions,
    connection: ConnectionOptions,
) -> int:
    """Compare a ledger with the list of its server, settle the differences, and return the exit status.

    Raises:
        UsageError: the options are wrong, the log cannot be opened, or there is nobody to ask.
        ConfigurationError: a setting is missing or cannot work.
        LedgerError: the database fails.
    """
    report = RunOutput(as_json=options.as_json, quiet=options.quiet, show_stopped=True)
    labels = read_labels(what.label)
    ledger, session = where.make(), account.session(connection, max_connections=options.concurrency + 1)
    reconcile = partial(
        ledger.reconcile,
        session,
        unknown="adopt" if what.adopt else "stop" if what.stop else "report",
        ttl=what.ttl,
        labels=labels,
        concurrency=options.concurrency,
        deadline=options.deadline,
        **{"older_than": MIN_AGE, **filters.keywords()},
    )
    opened = AsyncExitStack()
    with ExitStack() as files:
        log = open_log(files, FileOptions(log=what.log))
        runner = files.enter_context(asyncio.Runner())
        try:
            runner.run(opened.enter_async_context(ledger))
            runner.run(opened.enter_async_context(session))
            if what.asks:
                # The question is asked while no loop runs, so that Ctrl-C is a KeyboardInterrupt.
                try:
                    found = runner.run(_find(reconcile))
                except APIError as error:
                    complain(error)
                    return exit_status(error)
                if found.ids and not ask(found):
                    return ExitStatus.NOT_STOPPED
                reconcile = partial(reconcile, select=partial(_is_one_of, {*found.ids}))
            work = _show_all(partial(reconcile, dry_run=what.dry_run), report, log)
            status = runner.run(run_until_signalled(work))
        finally:
            runner.run(opened.aclose())
    report.sum_up()
    return max(status, ExitStatus.NOT_STOPPED) if log and log.failed else status


def _is_one_of(names: set[str], response: "Response") -> bool:
    return response.id in names


async def _find(reconcile: Reconcile) -> FoundResponses:
    """Find the responses about which to ask."""
    found = FoundResponses()
    async with aclosing(reconcile(dry_run=True)) as findings:
        async for finding in findings:
            if finding.outcome is not None or finding.response is None:
                break  # from here on, it is about responses that are tracked
            found.note(finding.response)
    return found


async def _show_all(reconcile: Reconcile, report: RunOutput, log: "Log | None") -> int:
    try:
        async with aclosing(reconcile()) as findings:
            async for finding in findings:
                if log:
                    log.write(finding)
                report.show(finding)
    except OpenAICancelError as error:
        complain(error)
        return exit_status(error)
    return ExitStatus.OK if report.tally.all_stopped else ExitStatus.NOT_STOPPED

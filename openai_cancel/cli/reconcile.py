"""`ledger reconcile`: compare a ledger with the list of its server."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from openai_cancel.cli.exit_status import ExitStatus, UsageError, exit_status
from openai_cancel.cli.log import Log
from openai_cancel.cli.options import (
    AccountOptions,
    Connection,
    FileOptions,
    FilterOptions,
    Flag,
    LedgerOptions,
    RunOptions,
    Seconds,
    read_labels,
)
from openai_cancel.cli.output import complain
from openai_cancel.cli.report import Report
from openai_cancel.cli.run import open_log
from openai_cancel.cli.running import Findings, ask, has_terminal
from openai_cancel.cli.signals import run_until_signalled
from openai_cancel.errors import OpenAICancelError

if TYPE_CHECKING:
    from openai_cancel.finding import Finding
    from openai_cancel.models import Response

GRACE = 60.0
"""Seconds after its creation in which a response may be about to be recorded."""

Reconcile = Callable[..., "AsyncGenerator[Finding, None]"]


@Parameter(name="*", group=Group("Responses that run and that the ledger does not know", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class ReconcileOptions:
    """The options for responses that run and that the ledger does not know. Without --adopt or --stop, they are shown.

    Attributes:
        adopt: Record these responses, so that a sweep stops them after the --ttl, unless they are released first.
        ttl: The time after which a sweep stops adopted responses, such as 15m or 2h.
        label: A label of the responses that are recorded, as NAME=VALUE. Can be repeated.
        stop: Record these responses, and stop them now. It asks first.
        everything: Adopt or stop all of these responses, whoever created them.
        yes: Do not ask.
        dry_run: Change and stop nothing, and only show the differences.
        log: Append a JSON line for each difference to this file.
    """

    adopt: Annotated[bool, Flag] = False
    ttl: Seconds | None = None
    label: Annotated[tuple[str, ...], Flag] = ()
    stop: Annotated[bool, Flag] = False
    everything: Annotated[bool, Flag, Parameter("--all")] = False
    yes: Annotated[bool, Flag] = False
    dry_run: Annotated[bool, Flag] = False
    log: Path | None = None

    @property
    def asks(self) -> bool:
        """Whether to ask before responses are stopped."""
        return self.stop and not (self.yes or self.dry_run)

    def check(self, filters: FilterOptions) -> None:
        """Refuse options that cannot be combined.

        Raises:
            UsageError: they cannot.
        """
        filters.check()
        if self.adopt and self.stop:
            raise UsageError("--adopt cannot be combined with --stop.")
        if self.adopt != (self.ttl is not None):
            one, other = ("--adopt", "--ttl") if self.adopt else ("--ttl", "--adopt")
            raise UsageError(f"{one} requires {other}: adopted responses are stopped by a sweep after that time.")
        if filters.newer_than is not None and filters.newer_than <= GRACE and filters.older_than is None:
            raise UsageError(f"--newer-than must be more than --older-than, which is {GRACE:g} s by default.")
        if self.label and not (self.adopt or self.stop):
            raise UsageError("--label requires --adopt or --stop.")
        if self.yes and not self.stop:
            raise UsageError("--yes requires --stop.")
        self._check_extent(filters)
        if self.asks and not has_terminal():
            raise UsageError("--stop asks before it stops anything: without a terminal, use --yes, or --dry-run first.")

    def _check_extent(self, filters: FilterOptions) -> None:
        if not (self.adopt or self.stop):
            if self.everything:
                raise UsageError("--all requires --adopt or --stop.")
        elif not filters.conditions and not self.everything:
            raise UsageError(
                f"{'--stop' if self.stop else '--adopt'} requires a condition, such as --older-than 1h, or --all for "
                "everybody's."
            )
        elif filters.conditions and self.everything:
            raise UsageError(f"--all cannot be combined with {filters.conditions[0]}.")


DEFAULT_RECONCILE = ReconcileOptions()


def reconcile_ledger(
    what: ReconcileOptions,
    filters: FilterOptions,
    *,
    options: RunOptions,
    where: LedgerOptions,
    account: AccountOptions,
    connection: Connection,
) -> int:
    """Compare a ledger with the list of its server, settle the differences, and return the exit status.

    Raises:
        UsageError: the options are wrong, the log cannot be opened, or there is nobody to ask.
        ConfigurationError: a setting is missing or cannot work.
        LedgerError: the database fails.
    """
    what.check(filters)
    report = Report(as_json=options.as_json, quiet=options.quiet, show_stopped=True)
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
        **{"older_than": GRACE, **filters.keywords()},
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
                found = runner.run(_find(reconcile))
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


async def _find(reconcile: Reconcile) -> Findings:
    """Find the responses about which to ask."""
    found = Findings()
    async with aclosing(reconcile(dry_run=True)) as findings:
        async for finding in findings:
            if finding.outcome is not None or finding.response is None:
                break  # from here on, it is about responses that are tracked
            found.note(finding.response)
    return found


async def _show_all(reconcile: Reconcile, report: Report, log: Log | None) -> int:
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

"""`ledger`: what is written down of responses that run, and the sweep that stops what nobody looks after any more."""

import asyncio
import os
import sys
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import attrs
from cyclopts import App, Group, Parameter
from cyclopts.validators import Number

from openai_cancel.cli.commands import HERE, NOT_STOPPED, OK, Flag, Ids, Seconds, UsageError, until_signalled
from openai_cancel.cli.connection import Connection
from openai_cancel.cli.report import Report, complain, print_line, printable, to_json
from openai_cancel.errors import ConfigurationError, LedgerError

if TYPE_CHECKING:
    from openai_cancel.ledger import Entry, Ledger

ledger: App = App(name="ledger", help="Write down what runs, and stop what nobody looks after any more.")


@Parameter(name="*", group=Group("Ledger", sort_key=5))
@dataclass(frozen=True, kw_only=True)
class Where:
    """Options of every command about a ledger.

    Attributes:
        ledger: Its database, such as sqlite:///ledger.db or postgresql://user@host/database; else
            OPENAI_CANCEL_LEDGER, which is the place for one with a password.
    """

    ledger: str | None = None

    def make(self, lease: float = 60.0) -> "Ledger":
        """The ledger, not open yet.

        Raises:
            ConfigurationError: nothing says where it is, or it cannot be used.
        """
        url = self.ledger or os.environ.get("OPENAI_CANCEL_LEDGER")
        if not url:
            raise ConfigurationError("No ledger: set OPENAI_CANCEL_LEDGER, or pass --ledger.")
        try:
            from openai_cancel.ledger import Ledger  # an extra of its own
        except ModuleNotFoundError as missing:
            raise ConfigurationError(f"{missing}") from None
        return Ledger(url, lease=lease)


@Parameter(name="*", group=Group("Ledger", sort_key=5))
@dataclass(frozen=True, kw_only=True)
class Whose(Where):
    """Options of every command about the responses of one account.

    Attributes:
        account: What the ledger calls the account; else a fingerprint of the key, organization and project.
    """

    account: str | None = None


ANYWHERE = Where()
ANYBODY = Whose()


@ledger.command
def sweep(
    *,
    every: Seconds | None = None,
    once: Annotated[bool, Flag] = False,
    concurrency: Annotated[int, Parameter(validator=Number(gte=1))] = 64,
    deadline: Seconds = 60.0,
    confirm: Seconds | None = None,
    max_attempts: Annotated[int, Parameter(validator=Number(gte=1))] = 12,
    lease: Seconds = 60.0,
    as_json: Annotated[bool, Flag, Parameter("--json")] = False,
    quiet: Annotated[bool, Flag, Parameter(alias="-q")] = False,
    whose: Whose = ANYBODY,
    connection: Connection = HERE,
) -> int:
    """Stop the responses whose lease has lapsed, and write down what became of them.

    Any number of sweeps may run at once, on any hosts.

    ```
    openai-cancel ledger sweep --every 30s
    ```

    Parameters
    ----------
    every
        Go on for ever, and look again after so long: 30s, 5m, 1h.
    once
        Look once, which is what happens without --every.
    concurrency
        How many may be under way at once.
    deadline
        Seconds that each response may take.
    confirm
        Look at a cancelled response again after so many seconds: some servers run on.
    max_attempts
        How often it is tried to stop a response, until it is given up.
    lease
        Seconds after which other sweeps take over if this one dies, and for which a database may fail.
    as_json
        One JSON line for each outcome, also on a terminal.
    quiet
        Show only what goes wrong.
    """
    if once and every is not None:
        raise UsageError("--once and --every do not go together.")
    report = Report(as_json=as_json, quiet=quiet, each=True)
    opened, session = whose.make(lease), connection.session(account=whose.account, at_once=concurrency)
    sweep_once = partial(
        opened.sweep,
        session,
        concurrency=concurrency,
        deadline=deadline,
        confirm=confirm,
        max_attempts=max_attempts,
    )

    async def run() -> int:
        async with opened, session:
            while True:
                try:
                    async with aclosing(sweep_once()) as outcomes:
                        async for outcome in outcomes:
                            report.show(outcome)
                except LedgerError as error:
                    if every is None:
                        raise
                    complain(error)
                if every is None:
                    return OK if report.tally.all_stopped else NOT_STOPPED
                await asyncio.sleep(every)

    status = asyncio.run(until_signalled(run()))
    report.sum_up()
    return status


@ledger.command(name="list")
def list_(
    *,
    ended: Annotated[bool, Flag, Parameter("--all")] = False,
    as_json: Annotated[bool, Flag, Parameter("--json")] = False,
    where: Where = ANYWHERE,
) -> None:
    """Show what is written down, of all accounts.

    Parameters
    ----------
    ended
        Also what is over.
    as_json
        One JSON line for each response, also on a terminal.
    """
    show = _as_json if as_json or not sys.stdout.isatty() else _as_line

    async def run() -> None:
        async with where.make() as opened, aclosing(opened.entries(include_ended=ended)) as entries:
            async for entry in entries:
                print_line(show(entry))

    asyncio.run(run())


@ledger.command
def add(
    ids: Ids,
    /,
    *,
    ttl: Seconds,
    label: Annotated[tuple[str, ...], Flag] = (),
    whose: Whose = ANYBODY,
    connection: Connection = HERE,
) -> None:
    """Have responses stopped by a sweep, unless they are released before.

    ```
    openai-cancel ledger add resp_123 --ttl 15m --label job=7
    ```

    Parameters
    ----------
    ids
        Ids of responses, one or more.
    ttl
        How long they have: 30s, 15m, 2h.
    label
        What to say of them: NAME=VALUE, any number of times.
    """
    if any("=" not in pair for pair in label):
        raise UsageError("A label is written NAME=VALUE.")
    labels = {name: value for name, _, value in (pair.partition("=") for pair in label)}
    session = connection.session(account=whose.account)

    async def run() -> None:
        async with whose.make() as opened:
            for response_id in ids:
                await opened.track(response_id, session=session, ttl=ttl, labels=labels)

    asyncio.run(run())


@ledger.command
def release(ids: Ids, /, *, whose: Whose = ANYBODY, connection: Connection = HERE) -> int:
    """Let responses run on; the exit status is 0 if all were waiting to be stopped.

    Parameters
    ----------
    ids
        Ids of responses, one or more.
    """
    session = connection.session(account=whose.account)

    async def run() -> int:
        status = OK
        async with whose.make() as opened:
            for response_id in ids:
                if not await opened.release(response_id, session=session):
                    complain(f"{response_id!r} is not in the ledger, or over.")
                    status = NOT_STOPPED
        return status

    return asyncio.run(run())


@ledger.command
def purge(*, older_than: Seconds, where: Where = ANYWHERE) -> None:
    """Forget what has been over for long enough, of all accounts.

    Parameters
    ----------
    older_than
        How long: 12h, 7d.
    """

    async def run() -> int:
        async with where.make() as opened:
            return await opened.purge(older_than=older_than)

    print_line(f"{asyncio.run(run()):,} forgotten")


def _as_json(entry: "Entry") -> str:
    document = attrs.asdict(entry)
    for moment in ("created", "changed"):
        document[moment] = document[moment].isoformat(timespec="milliseconds")
    return to_json({"id": document.pop("response_id"), **document})


def _as_line(entry: "Entry") -> str:
    lease = (
        "" if entry.lease_left is None else f", {entry.lease_left:,.0f} s left" if entry.lease_left > 0 else ", lapsed"
    )
    labels = "".join(f"  {name}={value}" for name, value in entry.labels.items())
    return printable(f"{entry.response_id}  {entry.state}{lease}{labels}{f': {entry.error}' if entry.error else ''}")

"""The commands `ledger init`, `stats` and `check`, which are about the whole ledger."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from openai_cancel.cli.durations import format_duration
from openai_cancel.cli.exit_status import ExitStatus, UsageError
from openai_cancel.cli.options import DEFAULT_LEDGER, Flag, JsonOrText, LedgerOptions, Seconds
from openai_cancel.cli.output import complain, print_line, printable, writes_json

if TYPE_CHECKING:
    from openai_cancel.ledger import Ledger, Stats
    from openai_cancel.session import AsyncSession

NEGLECTED = 300.0
"""Seconds after which an overdue response of another account seems neglected. Sweepers sweep more often."""

MOST_PLACES = 3
"""The number of accounts and servers that are named in a message."""


def init(
    *, grant: Annotated[tuple[str, ...], Flag, Parameter(metavar="ROLE")] = (), where: LedgerOptions = DEFAULT_LEDGER
) -> None:
    """Create the tables of the ledger, or bring them to the newest version.

    ```
    openai-cancel ledger init
    openai-cancel ledger init --grant my_service
    ```

    Run it in a migration job, as the role that owns the tables. Then services need no right to create or change them.

    Args:
        grant: Let this role of PostgreSQL use the tables: SELECT, INSERT, UPDATE and DELETE. Can be repeated.
    """
    import asyncio  # slow to import, as below: the help does without

    async def run() -> None:
        async with where.make() as opened:
            for role in grant:
                await opened.grant(role)

    asyncio.run(run())
    print_line("The tables are ready.")
    for role in grant:
        print_line(printable(f"{role} may use them."))


def stats(
    *,
    open_only: Annotated[bool, Flag] = False,
    as_json: JsonOrText = None,
    prometheus: Annotated[bool, Flag] = False,
    where: LedgerOptions = DEFAULT_LEDGER,
) -> None:
    """Count the responses of all accounts: those that are open, overdue, and in each state.

    ```
    openai-cancel ledger stats
    openai-cancel ledger stats --prometheus --open-only > /run/openai_cancel.prom
    ```

    Args:
        open_only: Do not count responses that have ended, for which the whole table is read.
        as_json: Print a JSON document. This is the default if the output is not a terminal. --no-json prints text.
        prometheus: Print the text format of Prometheus.
    """
    if as_json and prometheus:
        raise UsageError("--json cannot be combined with --prometheus.")
    found = _count(where, include_ended=not open_only)
    if prometheus:
        print_line(found.to_prometheus().removesuffix("\n"))
    elif writes_json(as_json):
        from openai_cancel.cli.documents import to_json

        print_line(to_json(found.to_dict()))
    else:
        for line in _lines(found):
            print_line(printable(line))


def check(*, overdue: Seconds = NEGLECTED, where: LedgerOptions = DEFAULT_LEDGER) -> int:
    """Fail if a response of any account has been overdue for longer than --overdue. It needs no key.

    ```
    openai-cancel ledger check
    openai-cancel ledger check --overdue 10m
    ```

    Use it as a health check of the sweepers on all hosts, such as a Kubernetes probe or a Nagios check. If responses
    are overdue for longer, the exit status is 1.

    Args:
        overdue: The maximum time that a response may be overdue.
    """
    found = _count(where, include_ended=False)
    late = found.overdue_longer_than(overdue)
    if late.groups:
        complain(f"{_overdue(late)}: {_places(late)}")
        return ExitStatus.NOT_STOPPED
    print_line(f"ok: {found.open:,} open, {found.overdue:,} overdue")
    return ExitStatus.OK


def existing(where: LedgerOptions) -> "Ledger":
    """Return the ledger of a command that creates none: with a wrong path, an empty one would look fine.

    Raises:
        ConfigurationError: as for `LedgerOptions.make`.
        LedgerError: the file of SQLite does not exist.
    """
    found = where.make()
    found.check_exists()
    return found


def _count(where: LedgerOptions, *, include_ended: bool) -> "Stats":
    import asyncio

    async def run() -> "Stats":
        async with existing(where) as opened:
            return await opened.stats(include_ended=include_ended)

    return asyncio.run(run())


async def find_neglected(opened: "Ledger", session: "AsyncSession", *, overdue_for: float = 0.0) -> "Stats | None":
    """Return the overdue responses that a sweep with a session does not stop; None if there are none.

    Args:
        opened: the ledger.
        session: the session.
        overdue_for: seconds for which some of an account must be overdue.

    Raises:
        LedgerError: the database failed.
    """
    found = await opened.stats(include_ended=False)
    others = found.others(await session.load_account(), session.base_url).overdue_longer_than(overdue_for)
    return others if others.groups else None


def describe_neglected(stats: "Stats") -> str:
    """Return how many responses of others are overdue, for how long, and whose they are."""
    alarm = " Nobody seems to sweep them." if stats.overdue_for > NEGLECTED else ""
    return f"{_overdue(stats, 'of other accounts or servers ')}, and not swept here: {_places(stats)}.{alarm}"


def _overdue(stats: "Stats", whose: str = "") -> str:
    responses = "responses" if stats.overdue != 1 else "response"
    verb = "are" if stats.overdue != 1 else "is"
    return f"{stats.overdue:,} {responses} {whose}{verb} overdue, for {format_duration(stats.overdue_for)} at most"


def _places(stats: "Stats") -> str:
    places = [*dict.fromkeys(f"account {group.account} on {group.base_url}" for group in stats.groups)]
    more = [f"{len(places) - MOST_PLACES:,} more"] if len(places) > MOST_PLACES else []
    return "; ".join(places[:MOST_PLACES] + more)


def _lines(stats: "Stats") -> list[str]:
    late = f", for {format_duration(stats.overdue_for)} at most" if stats.overdue else ""
    oldest = f", the oldest for {format_duration(stats.oldest)}" if stats.open else ""
    states = ", ".join(f"{count:,} {state}" for state, count in stats.by_state.items())
    lines = [f"open     {stats.open:,}{oldest}", f"overdue  {stats.overdue:,}{late}", f"states   {states or 'none'}"]
    for group in stats.groups:
        late = f", {group.overdue:,} overdue" if group.overdue else ""
        lines.append(f"{group.account}  {group.base_url}  {group.state}  {group.count:,}{late}")
    return lines

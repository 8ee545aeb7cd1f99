"""Many rows that one statement writes on PostgreSQL: it does what one statement for each would do, and in one order."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from itertools import product
from typing import Any

import pytest
from ledger_database import connected, locked
from ledger_database import execute as execute_apart
from ledgers import open_session, states
from postgres import Postgres, empty
from sqlalchemy import Connection, Engine, event, insert, select, update

from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.connection import execute
from openai_cancel.ledger.table import RESPONSES, Account, Command, Record, Release, Settlement
from openai_cancel.ledger.writes import renew, write

ACCOUNT = Account("tests", "http://127.0.0.1/v1")
ME, OTHER = "me", "other"
DAY = 86400.0


def record(name: str, owner: str | None = None, **options: Any) -> Record:
    return ACCOUNT.record(name, owner=owner, **{"seconds": DAY, "labels": {}, **options})


def settlement(name: str, owner: str = ME, **options: Any) -> Settlement:
    return Settlement(ACCOUNT.digest(name), name, owner, **{"state": "cancelled", **options})


def release(name: str, owner: str = ME) -> Release:
    return Release(ACCOUNT.digest(name), name, owner)


def existing(number: int, now: float) -> dict[str, Any] | None:
    """Return a row in one of the states that a row can have, or None for no row."""
    choices = [("tracked", None), ("tracked", ME), ("tracked", OTHER), ("stopping", ME), ("cancelled", None)]
    leases, limits = (None, now - DAY, now + 3 * DAY), (None, now + DAY / 2)
    found = [*product(choices, leases, (None, now + 7 * DAY), limits)]
    if number == len(found):
        return None
    (state, owner), lease, tracked_until, expires = found[number]
    name = f"resp_{number}"
    return {
        "digest": ACCOUNT.digest(name), "response_id": name, "base_url": ACCOUNT.base_url, "account": ACCOUNT.name,
        "labels": {"old": "1", "both": "old"}, "state": state, "owner": owner, "attempts": 3, "created": now - DAY,
        "changed": now - DAY, "lease_until": lease, "tracked_until": tracked_until, "expires": expires,
        "error": "error", "request_id": "request", "reason": "lease",
    }  # fmt: skip


COUNT = 61
"""The number of different rows that `existing` returns, with None."""

CHANGES: dict[str, Callable[[str], Any]] = {
    "track": lambda name: record(name, labels={"new": "2", "both": "new “'\\\","}),
    "track with a limit": lambda name: record(name, max_age=DAY * 3 / 2),
    "track twice": lambda name: [record(name, labels={"a": "1", "b": "1"}), record(name, labels={"b": "2"}, seconds=9)],
    "guard": lambda name: record(name, ME, labels={"new": "2", "both": "new"}),
    "guard with a limit": lambda name: record(name, ME, max_age=DAY * 3 / 2),
    "guard twice": lambda name: [record(name, OTHER, max_age=DAY), record(name, ME)],
    "settle": lambda name: settlement(name, request_id=f"of {name}"),
    "settle for later": lambda name: settlement(
        name, state="tracked", again_in=DAY, more_attempts=-1, error="{a,\"b\\',NULL}"
    ),
    "settle twice": lambda name: [settlement(name, OTHER, error="first"), settlement(name, ME)],
    "release": release,
}


def after(core: Connection, changes: Collection[Any], *, in_bulk: bool) -> dict[str, tuple[Any, ...]]:
    """Return what rows have become after changes, with times in hours from now."""
    core.execute(RESPONSES.delete())
    now = time.time()
    core.execute(insert(RESPONSES), [row for number in range(COUNT) if (row := existing(number, now))])
    commands = write(changes, "postgresql")
    execute(core, [commands if in_bulk else [command._replace(bulk=None) for command in commands]])
    return {
        row.digest: tuple(round((value - now) / 3600, 1) if isinstance(value, float) else value for value in row)
        for row in core.execute(select(RESPONSES))
    }


@contextlib.contextmanager
def executions() -> Iterator[list[bool]]:
    """Collect for each statement that is executed in the block whether it takes arrays."""
    found: list[bool] = []

    def note(_core: object, _cursor: object, statement: str, *_: object) -> None:
        found.append("unnest(" in statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture
async def url(postgres: Postgres) -> str:
    await empty(postgres.url)
    async with Ledger(postgres.url):
        return postgres.url


@pytest.mark.parametrize("kind", CHANGES)
async def test_one_statement_does_to_every_row_what_a_statement_for_each_does(url: str, kind: str) -> None:
    made = [CHANGES[kind](f"resp_{number}") for number in range(COUNT)]
    changes = [change for each in made for change in (each if isinstance(each, list) else [each])]
    with connected(url) as core:
        one_by_one = after(core, changes, in_bulk=False)
        with executions() as sent:
            assert after(core, changes, in_bulk=True) == one_by_one
    assert len(one_by_one) == COUNT if isinstance(changes[0], Record) else COUNT - 1
    assert sent[2:-1] == [True] * (1 + kind.endswith("twice"))  # between those of this test


async def test_a_single_row_is_written_by_the_plain_statement(url: str) -> None:
    with connected(url) as core, executions() as sent:
        execute(core, [write([record("resp_1")], "postgresql")])
    assert sent == [False]


async def test_an_id_that_occurs_many_times_is_one_row(url: str, server: Emulator) -> None:
    async with Ledger(url) as ledger, open_session(server, ledger) as session:
        assert await ledger.track_many(["resp_1", "resp_2", "resp_1", "resp_1"], session=session, ttl=60) == 4
        assert await states(ledger) == {"resp_1": "tracked", "resp_2": "tracked"}


NAMES = sorted((f"resp_{number}" for number in range(9)), key=ACCOUNT.digest)

WRITES: dict[str, Callable[[], list[Command]]] = {
    "track": lambda: write([record(name) for name in reversed(NAMES)], "postgresql"),
    "guard": lambda: write([record(name, ME) for name in reversed(NAMES)], "postgresql"),
    "settle": lambda: write([settlement(name) for name in reversed(NAMES)], "postgresql"),
    "release": lambda: write([release(name) for name in reversed(NAMES)], "postgresql"),
}

ENDS = {"settle": [("cancelled", None), ("tracked", None)], "release": [("tracked", None), ("tracked", None)]}
"""The state and the owner of rows after a write that comes last, or first, if they are not `tracked` and `me`."""


def transact(url: str, commands: Collection[Command]) -> None:
    with connected(url) as core:
        execute(core, [commands])


async def waiting(url: str) -> int:
    """Return how many transactions wait for a lock."""
    ((count,),) = await execute_apart(url, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("comes_last", [True, False])
@pytest.mark.parametrize("kind", WRITES)
async def test_transactions_that_write_the_same_rows_in_opposite_orders_do_not_deadlock(
    url: str, kind: str, *, comes_last: bool
) -> None:
    for name in reversed(NAMES):  # so that the table and its indexes have the opposite order, too
        await asyncio.to_thread(transact, url, write([record(name, ME)], "postgresql"))
    pair = [WRITES[kind](), write([record(name) for name in NAMES], "postgresql")]
    if comes_last:
        pair.reverse()
    async with asyncio.TaskGroup() as tasks, locked(url, NAMES[4]):  # each writes the rows before it, and waits
        for number, commands in enumerate(pair, 1):
            tasks.create_task(asyncio.to_thread(transact, url, commands))
            while await waiting(url) < number:
                await asyncio.sleep(0.005)
    found = await execute_apart(url, select(RESPONSES.c.state, RESPONSES.c.owner).distinct())
    last, first = ENDS.get(kind, [("tracked", ME)] * 2)
    assert [tuple(row) for row in found] == [last if comes_last else first]


async def test_a_renewal_skips_what_another_transaction_has_locked(url: str) -> None:
    await asyncio.to_thread(transact, url, write([record(name, ME, seconds=1.0) for name in NAMES], "postgresql"))
    async with locked(url, NAMES[4]):
        await asyncio.to_thread(transact, url, [renew([ME], DAY, "postgresql")])
    renewed = select(RESPONSES.c.response_id).where(RESPONSES.c.lease_until > time.time() + 60)
    assert {name for (name,) in await execute_apart(url, renewed)} == {*NAMES} - {NAMES[4]}


async def test_a_purge_leaves_a_row_that_is_tracked_again_at_the_moment(url: str, server: Emulator) -> None:
    async with Ledger(url) as ledger, open_session(server, ledger) as session:
        await ledger.track_many(["resp_1", "resp_2"], session=session, ttl=60)
        await execute_apart(url, update(RESPONSES).values(state="cancelled", lease_until=None, changed=0.0))
        with connected(url) as core:
            again = update(RESPONSES).where(RESPONSES.c.response_id == "resp_1")
            core.execute(again.values(state="tracked", lease_until=1.0))
            assert await ledger.purge(older_than=60) == 1
        assert await states(ledger) == {"resp_1": "tracked"}

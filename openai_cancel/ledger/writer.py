"""One task that does all that a ledger asks of its database: what waits together is one transaction.

A transaction is what costs, for it waits for the disk or for the network. And no driver ever sees a cancel, for
whoever is cancelled waits in another task.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import attrs
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from openai_cancel.errors import ConfigurationError, LedgerError
from openai_cancel.ledger.schema import migrate

TOGETHER = 100
"""How many pieces of work share a transaction at most."""

MOST_WAITING = 10_000
"""How many pieces of work may wait: there are more only where the database hangs."""

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}

_SQLITE = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "BEGIN IMMEDIATE")
"""What a transaction opens with there: readers wait for nobody, the disk has what is committed, and writers take turns.

See https://www.sqlite.org/wal.html and https://www.sqlite.org/lang_transaction.html.
"""

_CLOSED = "The ledger is closed."

_T = TypeVar("_T")


def read_url(url: str) -> URL:
    """The URL of a database that can hold a ledger. It is not quoted in the error: it may hold a password."""
    like = "like sqlite+aiosqlite:///ledger.db or postgresql+asyncpg://user@host/database"
    if not isinstance(url, str):
        raise ConfigurationError(f"The URL of a ledger must be a string {like}, not {type(url).__name__}.")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise ConfigurationError(f"That is not the URL of a database: write it {like}.") from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ConfigurationError(f"A ledger cannot be kept in {parsed.drivername!r}: write its URL {like}.")
    if driver.startswith("sqlite") and (
        parsed.database in {None, "", ":memory:"} or parsed.query.get("mode") == "memory"
    ):
        raise ConfigurationError(f"A ledger in memory would end with its process: write its URL {like}.")
    return parsed.set(drivername=driver)


@attrs.define(eq=False)
class _Work:
    run: Callable[[AsyncConnection], Awaitable[Any]]
    result: asyncio.Future[Any]


class Writer:
    """The database of a ledger, and the task that talks to it; bound to the event loop that runs when it is made.

    Args:
        url: of the database.
        timeout: seconds that a transaction may take, and that anybody waits for one.
    """

    def __init__(self, url: URL, timeout: float) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._timeout = timeout
        is_sqlite = url.drivername.startswith("sqlite")
        # SQLite's is how long it waits for other writers, and ends before ours, since its words say more; without an
        # isolation level, its driver begins no transactions of its own, too late and without a lock.
        arguments = {"timeout": timeout * 0.8, "isolation_level": None} if is_sqlite else {"timeout": timeout}
        self._opening = _SQLITE if is_sqlite else ()
        self._engine = create_async_engine(
            url, hide_parameters=True, pool_size=1, max_overflow=0, pool_pre_ping=True, connect_args=arguments
        )
        self._migrated = False
        self._waiting: deque[_Work] = deque()
        self._awake = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run())

    def end(self) -> "asyncio.Task[None]":
        """Do what waits, and end; gives the task, which is over then."""
        self._closing = True
        self._awake.set()
        return self._task

    async def do(self, run: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """Do some work in a transaction, perhaps together with other work, in the order in which it comes.

        A cancel ends the wait, and not the work.

        Raises:
            LedgerError: the database failed, or takes too long; then the work may still be done.
        """
        return await self.wait(self.begin(run))

    async def wait(self, result: "asyncio.Future[_T]") -> _T:
        """Wait for what was begun. As `do`."""
        try:
            async with asyncio.timeout(self._timeout):
                return await result
        except TimeoutError:
            raise self._too_late() from None

    def begin(self, run: Callable[[AsyncConnection], Awaitable[_T]]) -> "asyncio.Future[_T]":
        """As `do`, without the wait.

        Raises:
            LedgerError: too much waits already, or this has ended.
        """
        if self._closing or self._task.done():
            raise LedgerError(_CLOSED)
        if len(self._waiting) >= MOST_WAITING:
            raise self._too_late()
        work = _Work(run, self.loop.create_future())
        self._waiting.append(work)
        self._awake.set()
        return work.result

    async def _run(self) -> None:
        try:
            # Some drivers swallow a cancel, or make an error of it.
            while (self._waiting or not self._closing) and not self._task.cancelling():
                await self._awake.wait()
                self._awake.clear()
                while self._waiting and not self._task.cancelling():
                    await self._do_together([self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))])
        finally:
            _fail(self._waiting, LedgerError(_CLOSED))  # its loop is ending, and cancels all tasks
            await self._engine.dispose()

    async def _do_together(self, works: Sequence[_Work]) -> None:
        """Do some works in one transaction, or each in its own where one of them fails."""
        try:
            results = await self._transact(works)
        except TimeoutError:
            _fail(works, self._too_late())
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - drivers let their own through
            if len(works) == 1 or self._task.cancelling():
                _fail(works, _translate(error))
            else:
                for work in works:
                    await self._do_together([work])
        else:
            for work, result in zip(works, results, strict=True):
                if not work.result.done():
                    work.result.set_result(result)

    async def _transact(self, works: Sequence[_Work]) -> list[Any]:
        async with asyncio.timeout(self._timeout), self._engine.begin() as connection:
            for statement in self._opening:
                await connection.exec_driver_sql(statement)
            if not self._migrated:
                await migrate(connection)
            results = [await work.run(connection) for work in works]
        self._migrated = True
        return results

    def _too_late(self) -> LedgerError:
        return LedgerError(f"The ledger's database does not answer within {self._timeout:g} s.")


def _fail(works: Sequence[_Work] | deque[_Work], error: LedgerError) -> None:
    for work in works:
        if not work.result.done():
            work.result.set_exception(error)


def _translate(error: BaseException) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    words = str(getattr(error, "orig", None) or error)  # SQLAlchemy's own go on about the statement
    failure = LedgerError(f"The ledger's database failed: {' '.join(words.split()) or type(error).__name__}.")
    failure.__cause__ = error
    return failure

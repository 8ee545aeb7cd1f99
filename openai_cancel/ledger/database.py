"""`Database`: one task that sends all statements of a ledger, those that wait in one transaction.

A transaction is the expensive part, because it waits for the disk or the network. The drivers never see a
cancellation, because callers wait outside the task that uses them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
from sqlalchemy import URL, Row, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from openai_cancel.errors import ConfigurationError, LedgerError, detached
from openai_cancel.ledger.file import DatabaseFile, file_of
from openai_cancel.ledger.table import Command, is_migrated, migrate

BATCH_SIZE = 100
"""The largest number of jobs that share a transaction."""

MIGRATION_TIMEOUT = 600.0
"""Seconds that a migration of the tables may take."""

MAX_QUEUED = 10_000
"""The largest number of jobs that wait. It is reached only if the database hangs."""

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}

_WRITE_SQLITE = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "BEGIN IMMEDIATE")
"""The statements that begin a transaction that writes: readers do not wait for writers, a commit waits until the data
is on the disk, and writers take turns.

See https://www.sqlite.org/wal.html and https://www.sqlite.org/lang_transaction.html.
"""

_READ_SQLITE = ("BEGIN",)
"""The statement that begins a transaction that only reads, which neither takes the lock of writers nor waits for it."""

_log = logging.getLogger("openai_cancel")

_CLOSED = "The ledger is closed."

Rows = Sequence[Row[Any]]


def read_url(url: str) -> URL:
    """Return the URL of a database, with the driver that is used. Errors do not quote it: it may contain a password.

    Raises:
        ConfigurationError: it is not a URL, or not one of a database that can hold a ledger.
    """
    like = "like sqlite:///ledger.db or postgresql://user@host/database"
    if not isinstance(url, str):
        raise ConfigurationError(f"The URL of a ledger must be a string {like}, not {type(url).__name__}.")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # a ValueError if the port is not a number
        raise ConfigurationError(f"That is not the URL of a database: write it {like}.") from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ConfigurationError(f"A ledger cannot be kept in {parsed.drivername!r}: use a URL {like}.")
    if driver.startswith("sqlite") and (
        parsed.database in {None, "", ":memory:"} or parsed.query.get("mode") == "memory"
    ):
        raise ConfigurationError(f"A ledger cannot be kept in memory, which ends with the process: use a URL {like}.")
    return parsed.set(drivername=driver)


@attrs.define(eq=False)
class _Job:
    commands: Collection[Command]
    result: asyncio.Future[Rows]
    reads_only: bool


class Database:
    """The database of a ledger, and the task that uses it. It belongs to the event loop in which it is created.

    Args:
        url: the URL, from `read_url`.
        timeout: seconds that a transaction may take, and that a caller waits for one.

    Attributes:
        loop: the event loop.
        dialect: `sqlite` or `postgresql`.
    """

    def __init__(self, url: URL, timeout: float) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.dialect: str = url.get_backend_name()
        self._timeout = timeout
        is_sqlite = self.dialect == "sqlite"
        # The time-out of SQLite is for locks. It ends before ours, because its error message says more. Without an
        # isolation level, its driver begins no transactions by itself, which would be too late and without a lock.
        arguments = {"timeout": timeout * 0.8, "isolation_level": None} if is_sqlite else {"timeout": timeout}
        self._begin_to_write = _WRITE_SQLITE if is_sqlite else ()
        self._begin_to_read = _READ_SQLITE if is_sqlite else ()
        self._engine = create_async_engine(
            url, hide_parameters=True, pool_size=1, max_overflow=0, pool_pre_ping=True, connect_args=arguments
        )
        self._migrated = False
        self._connecting: asyncio.Timeout | None = None
        self._file: DatabaseFile | None = None
        self._queue: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run())

    def close(self) -> asyncio.Task[None]:
        """Accept no more jobs, and return the task, which ends when those that wait are done."""
        self._closing = True
        self._wake.set()
        return self._task

    async def connect(self) -> None:
        """Connect, and create the tables if there are none. `execute` would do this, too.

        Raises:
            LedgerError: the database fails or takes too long.
        """
        try:
            async with asyncio.timeout(self._timeout) as self._connecting:
                await self.submit((), reads_only=True)
        except TimeoutError:
            raise self._too_late() from None

    async def execute(self, *commands: Command) -> Rows:
        """Execute commands in one transaction, and return the rows of the last one. Jobs are done in their order.

        A cancellation ends the wait, and not the transaction.

        Raises:
            LedgerError: the database fails or takes too long. If it takes too long, the job may still be done later.
        """
        return await self.wait(self.submit(commands))

    async def read(self, *commands: Command) -> Rows:
        """Execute commands like `execute`, if all of them only read. With SQLite they do not wait for other writers.

        Raises:
            LedgerError: the database fails or takes too long.
        """
        return await self.wait(self.submit(commands, reads_only=True))

    def submit(self, commands: Collection[Command], *, reads_only: bool = False) -> asyncio.Future[Rows]:
        """Start a job like `execute` or `read`, and return its result, for which `wait` waits.

        Raises:
            LedgerError: too many jobs are waiting, or the database is closed.
        """
        if self._closing or self._task.done():
            raise LedgerError(_CLOSED)
        if len(self._queue) >= MAX_QUEUED:
            raise LedgerError(f"The ledger's database is too slow: {len(self._queue):,} transactions wait for it.")
        job = _Job(commands, self.loop.create_future(), reads_only)
        self._queue.append(job)
        self._wake.set()
        return job.result

    async def wait(self, result: asyncio.Future[Rows]) -> Rows:
        """Wait for the result of a job.

        Raises:
            LedgerError: the database fails or takes too long.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await result
        except TimeoutError:
            raise self._too_late() from None

    async def _run(self) -> None:
        try:
            while (self._queue or not self._closing) and not _is_cancelled():
                await self._wake.wait()
                self._wake.clear()
                while self._queue and not _is_cancelled():
                    await self._do([self._queue.popleft() for _ in range(min(BATCH_SIZE, len(self._queue)))])
        finally:
            _fail(self._queue, LedgerError(_CLOSED))  # the event loop ends, and cancels all tasks
            await self._engine.dispose()

    async def _do(self, jobs: Sequence[_Job]) -> None:
        """Do some jobs in one transaction, or each in its own if one of them fails.

        If one fails alone, somebody may have changed the tables: it is done again after a look at them.
        """
        migrated = self._migrated
        try:
            results = await self._transact(jobs)
        except TimeoutError:
            _fail(jobs, self._too_late())
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - drivers raise errors of any class
            self._migrated = False
            if _is_cancelled() or (len(jobs) == 1 and not migrated):
                _fail(jobs, _translate(error))
            else:
                for job in jobs:
                    await self._do([job])
        else:
            for job, rows in zip(jobs, results, strict=True):
                if not job.result.done():
                    job.result.set_result(rows)

    async def _transact(self, jobs: Sequence[_Job]) -> list[Rows]:
        if self._file is not None and self._file.is_replaced():
            _log.error("the ledger's file %s was deleted or replaced: the new one is used from now on", self._file.path)
            self._file, self._migrated = None, False
            await self._engine.dispose()
        async with asyncio.timeout(self._timeout) as limit:
            if not self._migrated:
                await self._migrate(partial(self._begin_migration, limit))
                limit.reschedule(self.loop.time() + self._timeout)
            reads_only = all(job.reads_only for job in jobs)
            async with self._transaction(self._begin_to_read if reads_only else self._begin_to_write) as connection:
                return [await _execute(connection, job.commands) for job in jobs]

    async def _migrate(self, begin: Callable[[], None]) -> None:
        """Bring the tables to the newest version, or see that they have it, which takes no lock."""
        async with self._transaction(self._begin_to_read) as connection:
            is_newest = await is_migrated(connection)
            self._file = await file_of(connection)
        if not is_newest:
            async with self._transaction(self._begin_to_write) as connection:
                await migrate(connection, begin)
        self._migrated = True

    @asynccontextmanager
    async def _transaction(self, begin: Iterable[str]) -> AsyncGenerator[AsyncConnection, None]:
        async with self._engine.begin() as connection:
            for statement in begin:
                await connection.exec_driver_sql(statement)
            yield connection

    def _begin_migration(self, limit: asyncio.Timeout) -> None:
        """Give a migration more time than a transaction, also in the eyes of the one who waits for the connection."""
        until = self.loop.time() + MIGRATION_TIMEOUT
        limit.reschedule(until)
        if self._connecting is not None:
            with suppress(RuntimeError):  # it has ended
                self._connecting.reschedule(until)

    def _too_late(self) -> LedgerError:
        return LedgerError(f"The ledger's database does not answer within {self._timeout:g} s.")


async def _execute(connection: AsyncConnection, commands: Collection[Command]) -> Rows:
    """Execute commands, and return the rows of the last one."""
    rows: Rows = ()
    for statement, parameters in commands:
        result = await connection.execute(statement, parameters or None)
        rows = result.all() if result.returns_rows else ()
    return rows


def _is_cancelled() -> bool:
    """Return whether the current task was cancelled. Some drivers swallow that, or turn it into an error."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _fail(jobs: Collection[_Job], error: LedgerError) -> None:
    for job in jobs:
        if not job.result.done():
            job.result.set_exception(error)


def _translate(error: BaseException) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    words = str(getattr(error, "orig", None) or error)  # the text of SQLAlchemy's own errors quotes the statement
    failure = LedgerError(f"The ledger's database failed: {' '.join(words.split()) or type(error).__name__}.")
    failure.__cause__ = detached(error)  # the frames of a driver hold the password
    return failure

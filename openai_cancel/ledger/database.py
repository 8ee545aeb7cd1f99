"""`Database`: one task that sends all statements of a ledger, those that wait in one transaction.

A transaction is the expensive part, because it waits for the disk or the network. It runs in a `Connection`'s thread.
"""

import asyncio
import math
from collections import deque
from collections.abc import Collection, Sequence
from copy import copy
from typing import Any

import attrs
from sqlalchemy.exc import DBAPIError

from openai_cancel.cancellation import wait_through_cancellation
from openai_cancel.errors import ConfigurationError, LedgerError, detached
from openai_cancel.ledger.connection import MIGRATION_TIMEOUT, Backend, Connection, Rows
from openai_cancel.ledger.postgresql import read_postgresql_url
from openai_cancel.ledger.sqlite import read_sqlite_url
from openai_cancel.ledger.table import Command
from openai_cancel.secret_values import Secret

BATCH_SIZE = 100
"""The maximum number of jobs that share a transaction."""

MAX_QUEUED = 200_000
"""The maximum number of jobs that wait, for the sake of memory: each takes more than 1 kB."""

PROBE_SHARE = 0.2
"""The part of the time of a transaction in which a connection that was idle must answer to its begin.

What stands between this process and the database may have forgotten the connection, without a word to either side.
"""

DRAIN_SHARE = 0.9
"""The part of the timeout in which a database that closes does the jobs that wait."""

CANCELLED_CLOSE_TIME = 0.5
"""Seconds that a close has left when it is cancelled."""

END_TIME = 0.5
"""Seconds that a database which closes waits for its connections to end."""

_CLOSED = "The ledger is closed."

_LOCK_NOT_AVAILABLE = "55P03"
"""See https://www.postgresql.org/docs/current/errcodes-appendix.html."""


def read_url(url: str) -> Backend:
    """Return the database of a URL. Errors do not quote the URL: it may contain a password.

    Raises:
        ConfigurationError: it is not a URL, or not one of a database that can hold a ledger.
    """
    like = "like sqlite:///ledger.db or postgresql://user@host/database"
    if not isinstance(url, str):
        raise ConfigurationError(f"The URL of a ledger must be a string {like}, not {type(url).__name__}.")
    scheme, colon, rest = map(Secret, url.partition("://"))
    kind, _, driver = str.partition(scheme, "+")
    if not colon:
        raise ConfigurationError(f"That is not the URL of a database: write it {like}.")
    if kind == "sqlite" and driver in {"", "pysqlite"}:
        return read_sqlite_url(Secret(f"sqlite://{rest}"))
    if kind in {"postgresql", "postgres"} and driver in {"", "psycopg"}:
        return read_postgresql_url(Secret(f"postgresql://{rest}"))
    if kind in {"sqlite", "postgresql", "postgres"}:
        used = "pysqlite" if kind == "sqlite" else "psycopg"
        raise ConfigurationError(f"A ledger does not use the driver {driver!r} but {used!r}: write {kind}://….")
    raise ConfigurationError(f"A ledger cannot be kept in {str(scheme)!r}: use a URL {like}.")


class ClosedError(LedgerError):
    """The ledger is closed, which is no failure of its database."""


@attrs.define(eq=False)
class _Job:
    commands: Collection[Command]
    result: asyncio.Future[Rows]
    reads_only: bool
    since: float


class Database:
    """The database of a ledger, and the task that uses it. It belongs to the event loop in which it is created.

    Args:
        backend: the database, from `read_url`.
        timeout: seconds that a transaction may take, and that a caller waits for one.

    Attributes:
        loop: the event loop.
        dialect: `sqlite` or `postgresql`.
    """

    def __init__(self, backend: Backend, timeout: float) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.dialect: str = backend.dialect
        self._backend = backend
        self._timeout = timeout
        self._engine = backend.create_engine(timeout)
        self._connection: Connection | None = None  # the one that worked last, while it is idle
        self._active: Connection | None = None  # the newest one
        self._was_open = False  # whether the connection that failed last had opened before
        self._ending: set[asyncio.Task[Any]] = set()  # they wait for threads that nobody else waits for
        self._queue: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Accept no more jobs, do those that wait, and close the connection, all within the timeout.

        If it is cancelled, the jobs that wait have half a second left, and fail then. To close the connection may take
        as long again.
        """
        self._closing = True
        self._wake.set()
        until = self.loop.time() + self._timeout * DRAIN_SHARE
        cancellation: asyncio.CancelledError | None = None
        while not self._task.done() and self.loop.time() < until:
            try:
                await _wait_for(self._task, until - self.loop.time())
            except asyncio.CancelledError as error:
                cancellation = error
                until = min(until, self.loop.time() + CANCELLED_CLOSE_TIME)
        self._task.cancel()
        if cancellation := await wait_through_cancellation(self._task) or cancellation:
            raise cancellation

    async def connect(self) -> None:
        """Connect, and create or change the tables if that is necessary. `execute` would do this, too.

        Raises:
            LedgerError: the database fails or takes too long.
        """
        result = self.submit((), reads_only=True)
        await _wait_for(result, self._timeout)
        if self._active is not None and self._active.is_migrating:
            await _wait_for(result, MIGRATION_TIMEOUT)
        self._check(result)

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
            LedgerError: jobs have waited for too long, or are too many, or the database is closed.
        """
        if self._closing or self._task.done():
            raise ClosedError(_CLOSED)
        if self._is_too_slow():
            raise LedgerError(f"The ledger's database is too slow: {len(self._queue):,} transactions wait for it.")
        job = _Job(commands, self.loop.create_future(), reads_only, self.loop.time())
        self._queue.append(job)
        self._wake.set()
        return job.result

    def _is_too_slow(self) -> bool:
        """Return whether jobs wait in vain. A burst of them alone does not mean that."""
        waiting = len(self._queue)
        if waiting <= BATCH_SIZE:  # the next transaction does all of them
            return False
        return waiting >= MAX_QUEUED or self.loop.time() - self._queue[0].since > self._timeout

    async def wait(self, result: asyncio.Future[Rows]) -> Rows:
        """Wait for the result of a job. A cancellation ends the wait, and not the job.

        Raises:
            LedgerError: the database fails or takes too long.
        """
        await _wait_for(result, self._timeout)
        return self._check(result)

    def _check(self, result: asyncio.Future[Rows]) -> Rows:
        if not result.done():
            raise self._too_late()
        return result.result()

    async def _run(self) -> None:
        try:
            while self._queue or not self._closing:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    jobs = [self._queue.popleft() for _ in range(min(BATCH_SIZE, len(self._queue)))]
                    await self._do(jobs, self.loop.time() + self._timeout)
        finally:
            self._closing = True  # perhaps the event loop ends, and cancels all tasks
            _fail(self._queue, LedgerError(_CLOSED))
            await self._end_connections()

    async def _do(self, jobs: Sequence[_Job], until: float) -> None:
        """Do some jobs in one transaction, or each in its own if one of them fails."""
        try:
            results = await self._transact(jobs, until)
        except TimeoutError:
            _fail(jobs, self._too_late())
        except asyncio.CancelledError:
            _fail(jobs, LedgerError(_CLOSED))
            raise
        except Exception as error:  # noqa: BLE001 - drivers raise errors of any class
            if len(jobs) == 1 or not self._was_open:
                _fail(jobs, _translate(error))
            else:
                await self._do_each(jobs, until)
        else:
            for job, rows in zip(jobs, results, strict=True):
                job.result.set_result(rows)

    async def _do_each(self, jobs: Sequence[_Job], until: float) -> None:
        """Do each job in a transaction of its own. If the database is closed meanwhile, the others fail.

        A transaction waits for a lock for a part of the time that is left, so that many of them leave some to others.
        """
        try:
            for job in jobs:
                await self._do([job], until)
        finally:
            _fail([job for job in jobs if not job.result.done()], LedgerError(_CLOSED))

    async def _transact(self, jobs: Sequence[_Job], until: float) -> list[Rows]:
        """Do some jobs in one transaction. If the connection that was idle fails, a fresh one follows.

        It may have been closed in the meantime, forgotten by the network, or lead to what is a replica by now.
        """
        if self.loop.time() >= until:  # the jobs before have taken all of it
            raise TimeoutError
        if self._connection is not None:
            idle, self._connection = self._connection, None
            try:
                return await self._attempt(idle, jobs, until)
            except Exception as error:
                if not self._can_be_repeated(idle, error, jobs, until):
                    raise
        return await self._attempt(Connection(self._backend, self._engine), jobs, until)

    def _can_be_repeated(self, failed: Connection, error: Exception, jobs: Sequence[_Job], until: float) -> bool:
        """Return whether there is time for jobs that have failed, and they can do no harm if they were done after all.

        A transaction whose commit was not sent was not done. One that waits for a lock would wait again.
        """
        if _is_locked(error):
            return False
        if self.loop.time() > until - self._timeout / 2:
            return False
        return not failed.is_committing or all(command.is_repeatable for job in jobs for command in job.commands)

    async def _attempt(self, connection: Connection, jobs: Sequence[_Job], until: float) -> list[Rows]:
        """Do some jobs in one transaction on a connection, which is of no more use if that fails."""
        self._active = connection
        was_idle = connection.is_open
        reads_only = all(job.reads_only for job in jobs)
        timeout = until - self.loop.time()
        task = connection.transact([job.commands for job in jobs], reads_only=reads_only, timeout=timeout)
        try:
            if was_idle and self._backend.is_remote:
                await _wait_for(task, self._timeout * PROBE_SHARE)
                if not (task.done() or connection.has_begun):
                    raise TimeoutError  # noqa: TRY301 - the handler is for everything
            await _wait_for(task, until - self.loop.time())
            if connection.is_migrating:
                await _wait_for(task, MIGRATION_TIMEOUT)
            if not task.done():
                raise TimeoutError  # noqa: TRY301 - the handler is for everything
            results = task.result()
        except BaseException:
            self._was_open = connection.is_open
            connection.abort()
            self._watch(task)
            raise
        self._connection = connection
        return results

    def _watch(self, task: asyncio.Task[Any]) -> None:
        """Remember a task until it has ended."""
        self._ending.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._ending.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio would log an exception that nobody has looked at

    async def _end_connections(self) -> None:
        if self._connection is not None:
            self._watch(asyncio.create_task(self._connection.close()))
        try:
            if self._ending:
                await asyncio.wait([*self._ending], timeout=min(END_TIME, self._timeout * (1 - DRAIN_SHARE)))
        finally:
            for task in self._ending:  # their threads end when the calls of the drivers return
                task.cancel()
            self._engine.dispose()

    def _too_late(self) -> LedgerError:
        return LedgerError(f"The ledger's database does not answer within {self._timeout:g} s.")


async def _wait_for(future: asyncio.Future[Any], seconds: float) -> None:
    """Wait until a future is done, or the time has passed. A cancellation does not cancel the future."""
    if not future.done():
        await asyncio.wait((future,), timeout=None if seconds == math.inf else seconds)


def _fail(jobs: Collection[_Job], error: LedgerError) -> None:
    for job in jobs:
        job.result.set_exception(error)
        job.result.exception()  # asyncio would log an exception that nobody has looked at


def _is_locked(error: Exception) -> bool:
    """Return whether a statement of PostgreSQL has waited in vain for a lock of another transaction."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def _translate(error: Exception) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    # SQLAlchemy's own errors quote the statement. A copy of psycopg's lacks the connection, which has the password.
    cause = copy(error.orig) if isinstance(error, DBAPIError) else error
    primary: object = getattr(getattr(cause, "diag", None), "message_primary", None)  # without the statement
    words = " ".join(str(primary or cause).split()).rstrip(".?") or type(cause).__name__
    failure = LedgerError(f"The ledger's database failed: {words}.")
    failure.__cause__ = None if cause is None else detached(cause)  # the frames of a driver hold the password
    return failure

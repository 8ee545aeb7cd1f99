"""`Connection`: a connection to the database of a ledger, and the thread that uses it.

The drivers block. In a thread of its own, a connection works with every event loop, a transaction costs one change of
threads and not one for each statement, and whoever waits for it can stop waiting at any time.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from sqlalchemy import Connection as Core
from sqlalchemy import Engine, Row, UpdateBase

from openai_cancel.errors import LedgerError
from openai_cancel.ledger.arrays import arrays
from openai_cancel.ledger.file import DatabaseFile
from openai_cancel.ledger.table import Command, is_migrated, migrate
from openai_cancel.log_events import log_fields
from openai_cancel.threads import HelperThread

MIGRATION_TIMEOUT = 600.0
"""Seconds that a migration of the tables may take."""

LOCK_SHARE = 0.3
"""The part of the time of a transaction in which a statement must get the locks that it needs.

The rest is for the jobs that share the transaction, or wait for it, and do not need the lock.
"""

_log = logging.getLogger("openai_cancel.ledger")

Rows = Sequence[Row[Any]]


class Handle(Protocol):
    """Ends the calls of a driver's connection from another thread."""

    def interrupt(self) -> None:
        """Make the call that is under way fail."""

    def close(self) -> None:
        """Free what this object holds."""


class Backend(Protocol):
    """A kind of database: `openai_cancel.ledger.sqlite.SQLite` or `openai_cancel.ledger.postgresql.PostgreSQL`."""

    @property
    def dialect(self) -> str:
        """The name of the dialect."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether a connection can die without a word, in the network."""
        ...

    @property
    def shown(self) -> str:
        """The URL without a password."""
        ...

    def create_engine(self, timeout: float) -> Engine:
        """Return an engine that opens connections. The timeout is that of a transaction, in seconds."""
        ...

    def set_up(self, connection: Core, is_over: Callable[[], bool]) -> None:
        """Make the settings of a connection that was opened."""

    def begin(
        self, connection: Core, is_over: Callable[[], bool], *, reads_only: bool, timeout: float, lock_timeout: float
    ) -> None:
        """Begin a transaction."""

    def handle(self, driver: Any) -> Handle:
        """Return what ends the calls of a driver's connection from another thread."""
        ...

    def opened_file(self, connection: Core) -> DatabaseFile | None:
        """Return the file that a connection has opened; None for a server."""
        ...

    def explain(self, error: Exception, connection: Core) -> LedgerError | None:
        """Return an error that explains the error of a statement, or None. The transaction has been rolled back."""
        ...


class Connection:
    """A connection, which opens with its first transaction, and closes with the first one that fails.

    Args:
        backend: the kind of database.
        engine: opens the connection.

    Attributes:
        is_open: whether it is open, and the tables have the newest version.
        has_begun: whether the database has answered to the begin of the newest transaction.
        is_migrating: whether the tables are being changed.
        is_committing: whether the newest transaction was left in its commit, so that it is not known whether it counts.
    """

    def __init__(self, backend: Backend, engine: Engine) -> None:
        self.is_open: bool = False
        self.has_begun: bool = False
        self.is_migrating: bool = False
        self.is_committing: bool = False
        self._backend = backend
        self._engine = engine
        self._timeout = 0.0
        self._thread = HelperThread("openai-cancel ledger")
        self._core: Core | None = None
        self._file: DatabaseFile | None = None
        self._handle: Handle | None = None
        self._aborted = False
        self._until = 0.0

    def transact(
        self, jobs: Sequence[Collection[Command]], *, reads_only: bool, timeout: float
    ) -> asyncio.Task[list[Rows]]:
        """Start a transaction, and return the task that waits for the rows of each job's last command.

        Args:
            jobs: the commands of each job.
            reads_only: whether all of them only read.
            timeout: seconds that the transaction may take.
        """
        self.has_begun = self.is_committing = False
        self._timeout = timeout
        # The error message of a lock says more than that of a timeout, and should come first.
        self._until = time.monotonic() + timeout * 0.8
        return asyncio.create_task(self._thread.call(self._transact, jobs, reads_only))

    def abort(self) -> None:
        """Make the transaction that is under way fail, and the thread end, without waiting for either."""
        self._aborted = True
        if self._handle is not None:
            self._handle.interrupt()
        self._thread.finish(self._close)

    async def close(self) -> None:
        """Close the connection and end the thread. A cancellation ends the wait, and not the rest."""
        await asyncio.wrap_future(self._thread.finish(self._close))

    def _transact(self, jobs: Sequence[Collection[Command]], reads_only: bool) -> list[Rows]:  # noqa: FBT001 - in a thread
        try:
            if self._file is not None and self._file.is_replaced():
                _log.error(
                    "the ledger's file %s was deleted or replaced: the new one is used from now on", self._file.path,
                    extra=log_fields("ledger_replaced"),
                )  # fmt: skip
                self._close()
            core = self._core or self._open()
            with self._transaction(core, reads_only=reads_only):
                results = execute(core, jobs)
        except BaseException as error:
            explained = self._explain(error)
            self._close()
            if explained is None:
                raise
        else:
            return results
        raise explained  # outside of the handler, whose error refers to the connection, which has the password

    def _explain(self, error: BaseException) -> LedgerError | None:
        with suppress(Exception):  # nobody can be asked
            if self._core is not None and isinstance(error, Exception):
                return self._backend.explain(error, self._core)
        return None

    def _open(self) -> Core:
        self._core = core = self._engine.connect()
        self._handle = self._backend.handle(core.connection.driver_connection)
        self._check()
        self._backend.set_up(core, self._is_over)
        core.rollback()  # of nothing: SQLAlchemy believes that settings begin a transaction
        with self._transaction(core, reads_only=True):
            migrated = is_migrated(core)
            self._file = self._backend.opened_file(core)
        if not migrated:
            self.is_migrating = True
            with self._transaction(core, reads_only=False):
                migrate(core)
            self.is_migrating = False
        self.is_open = True
        return core

    @contextmanager
    def _transaction(self, core: Core, *, reads_only: bool) -> Generator[None, None, None]:
        # A migration waits for that of another process, which may take all of its time.
        timeout = lock_timeout = MIGRATION_TIMEOUT
        if not self.is_migrating:
            timeout, lock_timeout = self._timeout, self._timeout * LOCK_SHARE
        with core.begin() as transaction:
            self._backend.begin(core, self._is_over, reads_only=reads_only, timeout=timeout, lock_timeout=lock_timeout)
            self.has_begun = True
            yield
            self.is_committing = True  # before the check: who aborts, and then looks at this, does not miss a commit
            self._check()
            transaction.commit()
            self.is_committing = False

    def _check(self) -> None:
        """Stop here if nobody waits for the transaction any more."""
        if self._aborted:
            raise TimeoutError

    def _is_over(self) -> bool:
        return self._aborted or time.monotonic() > self._until

    def _close(self) -> None:
        core, self._core = self._core, None
        if core is not None:
            core.invalidate()  # closes it, without a rollback, which would wait for a server that may not answer
            core.close()
        if self._handle is not None:
            self._handle.close()


def execute(core: Core, jobs: Sequence[Collection[Command]]) -> list[Rows]:
    """Execute the commands of some jobs, and return the rows of the last command of each.

    Neighbours with the same statement, and without rows, are sent to the database together.
    """
    results: list[Rows] = []
    merged: tuple[Command, list[Mapping[str, Any]]] | None = None
    for job in jobs:
        rows: Rows = ()
        for command in job:
            if merged is not None and merged[0].statement is not command.statement:
                _write(core, *merged)
                merged = None
            if _can_be_merged(command):
                merged = merged or (command, [])
                merged[1].extend(command.parameters)
            else:
                result = core.execute(command.statement, command.parameters or None)
                rows = result.all() if result.returns_rows else ()
        results.append(rows)
    if merged is not None:
        _write(core, *merged)
    return results


def _can_be_merged(command: Command) -> bool:
    """Return whether a command has parameters and returns no rows."""
    statement, parameters, *_ = command
    return bool(parameters) and isinstance(statement, UpdateBase) and not statement.returning_column_descriptions


def _write(core: Core, command: Command, rows: Sequence[Mapping[str, Any]]) -> None:
    """Execute a command that returns no rows, with the parameters for some rows."""
    if command.bulk is None or len(rows) == 1:
        core.execute(command.statement, rows)
        return
    for parameters in arrays(rows, command.bulk.key):
        core.execute(command.bulk.statement, parameters)

"""`SQLite`: how a ledger opens a file of SQLite."""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
from sqlalchemy import URL, Connection, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

from openai_cancel.errors import ConfigurationError, LedgerError
from openai_cancel.ledger.file import DatabaseFile

_LIKE = "use a URL like sqlite:///ledger.db"
_NOT_A_FILE = f"That is not the URL of a file of SQLite: {_LIKE}."

_SETTINGS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")
"""Readers do not wait for writers, and a commit waits until the data is on the disk.

See https://www.sqlite.org/wal.html.
"""

_URI_OPTIONS = frozenset({"uri", "mode", "cache", "psow", "nolock", "immutable", "vfs", "modeof"})
"""See https://www.sqlite.org/uri.html."""

_BUSY_TIMEOUT = 0.1
"""Seconds that SQLite waits for a lock before it is asked again, so that waiting can be given up."""


@attrs.frozen
class SQLite:
    """A file of SQLite.

    Attributes:
        url: the URL.
        shown: the URL as a string.
        dialect: the name of the dialect.
        is_remote: see `openai_cancel.ledger.connection.Backend`.
    """

    url: URL
    shown: str
    dialect: str = attrs.field(default="sqlite", init=False)
    is_remote: bool = attrs.field(default=False, init=False)

    def check_exists(self) -> None:
        """Make sure that the file exists.

        Raises:
            LedgerError: it does not, or cannot be found.
        """
        name = self.url.database or ""
        path = Path(unquote(urlsplit(name).path) if "uri" in self.url.query else name)
        try:
            path.stat()
        except OSError as error:
            raise LedgerError(
                f"There is no ledger at {path} ({error.strerror}): check the path, or run `openai-cancel ledger init`."
            ) from None

    def create_engine(self, timeout: float) -> Engine:
        """Return an engine.

        Args:
            timeout: not used; see `begin`.
        """
        del timeout
        # Without an isolation level, the driver begins no transactions by itself, which would be too late and without
        # a lock.
        arguments = {"timeout": _BUSY_TIMEOUT, "isolation_level": None}
        return create_engine(self.url, poolclass=NullPool, hide_parameters=True, connect_args=arguments)

    def set_up(self, connection: Connection, is_over: Callable[[], bool]) -> None:
        """Make the settings of a connection that was opened.

        Args:
            connection: the connection.
            is_over: whether to give up waiting for other processes.
        """
        for statement in _SETTINGS:
            _execute(connection, statement, is_over)

    def begin(
        self,
        connection: Connection,
        is_over: Callable[[], bool],
        *,
        reads_only: bool,
        timeout: float,
        lock_timeout: float,
    ) -> None:
        """Begin a transaction. Writers take turns, and readers do not wait.

        See https://www.sqlite.org/lang_transaction.html.

        Args:
            connection: the connection.
            is_over: whether to give up waiting for other writers.
            reads_only: whether all statements of the transaction only read.
            timeout: not used.
            lock_timeout: not used: there is one lock, which all jobs need.
        """
        del timeout, lock_timeout
        _execute(connection, "BEGIN" if reads_only else "BEGIN IMMEDIATE", is_over)

    def handle(self, driver: Any) -> "Handle":
        """Return what ends the calls of a driver's connection from another thread."""
        return Handle(driver)

    def opened_file(self, connection: Connection) -> DatabaseFile:
        """Return the file that a connection has opened."""
        found = connection.exec_driver_sql("SELECT file FROM pragma_database_list WHERE name = 'main'")
        return DatabaseFile(Path(found.scalar_one()))

    def explain(self, error: Exception, connection: Connection) -> None:
        """Do nothing: the errors of SQLite say what is wrong."""


@attrs.frozen
class Handle:
    """Interrupts the statement of a connection."""

    _driver: sqlite3.Connection

    def interrupt(self) -> None:
        """Make the statement that runs fail."""
        with suppress(sqlite3.ProgrammingError):  # the connection is closed
            self._driver.interrupt()

    def close(self) -> None:
        """Do nothing: this object holds nothing."""


def read_sqlite_url(url: str) -> SQLite:
    """Return the file of a URL.

    Args:
        url: the URL, with the scheme `sqlite://`.

    Raises:
        ConfigurationError: the URL cannot be honoured.
    """
    try:
        url.encode()
        parsed = make_url(url)
        shown = str(parsed)
    except (ArgumentError, ValueError):  # a ValueError if the URL is not UTF-8, or the port is not a number
        raise ConfigurationError(_NOT_A_FILE) from None
    if "\0" in (parsed.database or ""):
        raise ConfigurationError(_NOT_A_FILE)
    in_memory = (parsed.database or "").removeprefix("file:") in {"", ":memory:"}
    if in_memory or parsed.query.get("mode") == "memory" or parsed.query.get("vfs") == "memdb":
        raise ConfigurationError(f"A ledger cannot be kept in memory, which ends with the process: {_LIKE}.")
    if parsed.host or parsed.username:
        raise ConfigurationError("A file of SQLite has no host: write sqlite:/// and a path.")
    names = [pair.partition("=")[0] for pair in str.partition(url, "?")[2].split("&")]  # also of those without a value
    unknown = [name for name in names if name and name not in _URI_OPTIONS]
    if unknown:
        raise ConfigurationError(f"A ledger in SQLite has no option {unknown[0]!r}: remove it from the URL.")
    if parsed.query and parsed.query.get("uri") != "true":
        raise ConfigurationError("Options of SQLite need a URL like sqlite:///file:ledger.db?mode=rw&uri=true.")
    return SQLite(parsed, shown)


def _execute(connection: Connection, statement: str, is_over: Callable[[], bool]) -> None:
    """Execute a statement as soon as other processes allow that."""
    while True:
        try:
            connection.exec_driver_sql(statement)
        except OperationalError as error:
            code: int = getattr(error.orig, "sqlite_errorcode", 0)
            if code & 0xFF != sqlite3.SQLITE_BUSY or is_over():
                raise
        else:
            return

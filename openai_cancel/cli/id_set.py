"""The ids that have occurred, however many: the first ones in memory, all others in a temporary file."""

from typing import TYPE_CHECKING

from openai_cancel.cli.output import complain

if TYPE_CHECKING:
    import sqlite3

IN_MEMORY = 10_000
"""The number of ids that are kept in memory."""


def temporary_database() -> "sqlite3.Connection":
    """Return a database in a temporary file that nobody else sees, and that ends with the connection.

    It takes 4 MB of memory. See https://www.sqlite.org/inmemorydb.html#temporary_databases.
    """
    import sqlite3  # most runs have few ids, and need no file

    database = sqlite3.connect("", isolation_level=None)
    for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-4096"):
        database.execute(f"PRAGMA {setting}").close()
    database.execute("BEGIN").close()  # a single transaction takes half of the time
    return database


class Seen:
    """The ids that have occurred in a run."""

    def __init__(self) -> None:
        self._first: set[str] = set()
        self._others: sqlite3.Connection | None = None
        self._failed = False

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._others is not None:
            self._others.close()

    def add(self, response_id: str) -> bool:
        """Add an id, and return whether it is new. If the temporary file fails, every further id counts as new."""
        if response_id in self._first:
            return False
        if len(self._first) < IN_MEMORY:
            self._first.add(response_id)
            return True
        return self._failed or self._store(response_id)

    def _store(self, response_id: str) -> bool:
        import sqlite3  # as above

        try:
            if self._others is None:
                self._others = temporary_database()
                self._others.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID").close()
            inserted = self._others.execute("INSERT OR IGNORE INTO seen VALUES (?)", (response_id,))
        except sqlite3.Error as error:
            self._failed = True
            complain(f"ids that occur again are not recognized any more: {error}")
            return True
        return inserted.rowcount == 1

"""A set of any number of ids: the first ones in memory, all others in a temporary file."""

from typing import TYPE_CHECKING

from openai_cancel.cli.output import complain
from openai_cancel.cli.temporary_database import temporary_database

if TYPE_CHECKING:
    import sqlite3

IN_MEMORY = 10_000
"""The number of ids that are kept in memory."""


class IdSet:
    """The ids that have occurred in a run. They are never removed."""

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
        import sqlite3  # most runs have few ids, and need no file

        try:
            if self._others is None:
                self._others = temporary_database()
                self._others.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID").close()
            inserted = self._others.execute("INSERT OR IGNORE INTO seen VALUES (?)", (response_id,))
        except sqlite3.Error as error:
            self._failed = True
            complain(f"repeated ids are no longer recognized: {error}")
            return True
        return inserted.rowcount == 1

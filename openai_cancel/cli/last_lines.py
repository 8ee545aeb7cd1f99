"""Values of the last line of a log about each response, for any number of lines in constant memory."""

import errno
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from openai_cancel.cli.temporary_database import temporary_database

if TYPE_CHECKING:
    import sqlite3


class LastLines:
    """Values of the last line about each response, in a temporary file.

    Args:
        database: a new temporary database.
        width: the number of values of a line.
    """

    def __init__(self, database: "sqlite3.Connection", width: int) -> None:
        self._database = database
        self._columns = [f"c{number}" for number in range(width)]
        database.execute(f"CREATE TABLE lines (key TEXT PRIMARY KEY, {', '.join(self._columns)}) WITHOUT ROWID").close()
        self._insert = f"INSERT OR REPLACE INTO lines VALUES (?{', ?' * width})"  # noqa: S608 - question marks

    def put(self, key: str, values: Iterable[object]) -> None:
        """Replace the values of a response."""
        self._database.execute(self._insert, (key, *values)).close()

    def remove(self, key: str) -> int:
        """Remove the values of a response, and return 1 if there were any, else 0."""
        with closing(self._database.execute("DELETE FROM lines WHERE key = ?", (key,))) as removed:
            return removed.rowcount

    def rows(self) -> Iterator[Sequence[Any]]:
        """Yield the values of each response, sorted by them."""
        columns = ", ".join(self._columns)
        with closing(self._database.execute(f"SELECT {columns} FROM lines ORDER BY {columns}")) as rows:  # noqa: S608
            yield from rows

    def groups(self) -> Iterator[Sequence[Any]]:
        """Yield each combination of values and the number of responses that have it, sorted by the values."""
        columns = ", ".join(self._columns)
        query = f"SELECT {columns}, count(*) FROM lines GROUP BY {columns} ORDER BY {columns}"  # noqa: S608 - our names
        with closing(self._database.execute(query)) as rows:
            yield from rows


@contextmanager
def last_lines(width: int) -> Generator[LastLines]:
    """Open a `LastLines`, and remove its file at the end of the block.

    Raises:
        OSError: the file cannot be written, or read.
    """
    import sqlite3  # as for `temporary_database`

    try:
        with closing(temporary_database()) as database:
            yield LastLines(database, width)
    except sqlite3.Error as error:
        raise OSError(errno.EIO, f"a temporary file: {error}") from error

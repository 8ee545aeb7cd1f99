"""The file of a SQLite database, to notice if somebody deletes or replaces it.

SQLite goes on writing to a file that has no name any more, and reports no error.
See https://www.sqlite.org/howtocorrupt.html#_unlinking_or_renaming_a_database_file_while_in_use.
"""

from pathlib import Path


class DatabaseFile:
    """The file that a connection has opened.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _identity(path)

    def is_replaced(self) -> bool:
        """Return whether another file has its path now, or none."""
        return _identity(self.path) != self._identity


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino

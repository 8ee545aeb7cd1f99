"""A database for what a run must remember and has no room for in memory."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3


def temporary_database() -> "sqlite3.Connection":
    """Return a database in a temporary file that nobody else sees, and that ends with the connection.

    It takes 4 MB of memory. See https://www.sqlite.org/inmemorydb.html#temporary_databases.
    """
    import sqlite3  # most runs need none

    database = sqlite3.connect("", isolation_level=None)
    for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-4096"):
        database.execute(f"PRAGMA {setting}").close()
    database.execute("BEGIN").close()  # a single transaction takes half of the time
    return database

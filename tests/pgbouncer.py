"""A real pgbouncer for the tests, in front of a PostgreSQL."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import running_beside

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="needs pgbouncer, a package of most systems")


@contextmanager
def pooled(url: str, folder: Path) -> Iterator[str]:
    """Run pgbouncer in transaction mode with two connections to a server, and yield the URL of its database."""
    socket = url.partition("host=")[2]
    file = folder / "pgbouncer.ini"
    file.write_text(
        f"[databases]\n* = host={socket} user=postgres\n[pgbouncer]\nunix_socket_dir = {folder}\nlisten_port = 6432\n"
        "auth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n"
        f"logfile = {folder}/log\npidfile = {folder}/pid\n"
    )
    command = [PGBOUNCER, str(file)]
    if os.geteuid() == 0:  # it refuses to run as root, but may run as the user who runs the server
        user = Path(socket, ".s.PGSQL.5432").owner()
        shutil.chown(folder, user)
        command[1:1] = ["-u", user]
    with running_beside(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 20
        while not (folder / ".s.PGSQL.6432").exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.01)
        yield f"postgresql://postgres@:6432/postgres?host={folder}"

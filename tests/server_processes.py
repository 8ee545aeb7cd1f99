"""Servers that others have written, each in a process and an environment of its own.

OPENAI_CANCEL_TEST_SERVERS names the folder in which tests/servers/install.py has installed them.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import processes
import pytest

FOLDER = Path(os.environ.get("OPENAI_CANCEL_TEST_SERVERS", "/nonexistent"))
if not FOLDER.is_dir():
    pytest.skip("needs real servers: set OPENAI_CANCEL_TEST_SERVERS to their folder", allow_module_level=True)
SCRIPTS = Path(__file__).parent / "servers"
FILES = {
    "databricks": "bin/python",
    "devui": "bin/python",
    "open_responses_server": "bin/python",
    "ogx": "bin/ogx",
    "portkey": "node_modules/@portkey-ai/gateway/build/start-server.js",
    "smg": "bin/smg",
}
"""By dialect: the file that starts the server."""


def installed(name: str) -> str:
    """Return the path of a server's file, or skip the test."""
    path = FOLDER / name / FILES[name]
    if not path.exists():
        pytest.skip(f"{name} is not installed: run tests/servers/install.py")
    return str(path)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@asynccontextmanager
async def running(folder: Path, *command: str, port: int | None = None, **environment: str) -> AsyncIterator[str]:
    """Run a server in a process; yield its address once it accepts connections. Without a port, read it from a file."""
    environment = {**os.environ, "HOME": str(folder), **environment}
    async with AsyncExitStack() as stack:
        with (folder / "output").open("wb") as log:
            process = await stack.enter_async_context(
                processes.running(*command, cwd=folder, stdout=log, stderr=log, env=environment)
            )
        while True:
            assert process.returncode is None, (folder / "output").read_text()
            found = port or ((folder / "port").exists() and int((folder / "port").read_text()))
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", found or 1)
                break
            except OSError:
                await asyncio.sleep(0.05)
        writer.close()
        yield f"http://127.0.0.1:{found}"

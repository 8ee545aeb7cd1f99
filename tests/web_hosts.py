"""Web services in processes of their own, whose handlers guard the responses of an emulator."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterable
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import attrs
import pytest
from conftest import KEY, until
from processes import running

from openai_cancel.emulator import Emulator

ROOT = Path(__file__).parents[1]


def needs(framework: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(framework) is None, reason=f"needs {framework}")


@attrs.define
class Host:
    """A service that runs.

    Attributes:
        process: its process.
        url: its address.
        lines: the lines that it has printed.
    """

    process: Process
    url: str = ""
    lines: list[str] = attrs.Factory(list)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    async def read(self) -> None:
        async for line in self.process.stdout:
            self.lines.append(line.decode())

    async def terminated(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def host(server: Emulator, command: Iterable[str]) -> AsyncIterator[Host]:
    """Start a service that uses an emulator, and wait until it listens.

    Args:
        server: the emulator.
        command: the arguments for Python.
    """
    paths = [str(ROOT), str(ROOT / "tests" / "hosts"), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": server.base_url,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }
    async with running(sys.executable, *command, env=environment, stdout=PIPE, stderr=STDOUT) as process:
        service = Host(process)
        reading = asyncio.create_task(service.read())
        await until(lambda: reading.done() or re.search(r"unning on http|Listening at: http", service.output))
        found = re.search(r"http://127\.0\.0\.1:\d+", service.output)
        assert found, service.output
        service.url = found[0]
        yield service
    await reading


async def ask(service: Host, server: Emulator, *paths: str) -> "list[asyncio.Task[None]]":
    """Send requests that are not answered while their responses run, and wait until each response is polled."""

    async def get(path: str) -> None:
        async with aiohttp.ClientSession() as client:
            with contextlib.suppress(aiohttp.ClientError):
                async with client.get(f"{service.url}{path}") as answer:
                    await answer.read()

    asking = [asyncio.create_task(get(path)) for path in paths]
    names = {path.rpartition("/")[2] for path in paths}
    await until(lambda: names <= {request.path.rpartition("/")[2] for request in server.received})
    return asking


def left(server: Emulator) -> list[str]:
    """Return the responses that nobody has cancelled, as the emulator knows them."""
    return [name for name, work in server.responses.items() if not work.cancelled]

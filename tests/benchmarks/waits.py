"""Measure how late the end of a response is noticed, and with how many requests: by polling, and by its stream.

    python tests/benchmarks/waits.py            # takes a minute

The servers are the emulator, and Microsoft's server for hosted agents in a process of its own. Each is behind a relay
that counts the requests, and may cut each connection after so many bytes of the answer. A response runs for some
seconds, and streams its text meanwhile. "Late" is the time from its end on the server to the return of the call. The
official client's stream is resumed by hand after each cut, as its documentation shows.
"""

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self, cast

import aiohttp
import openai

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Script

KEY = "sk-benchmark"
RUNS = 5
SECONDS = 6.3
"""How long a response runs. It ends between two polls."""

WORDS = " ".join(map(str, range(120)))
CUTS = (None, 8192, 2048)
AGENT = Path(__file__).parents[1] / "servers" / "azure_agent.py"

Wait = Callable[[str, str], Awaitable[object]]


class CuttingRelay:
    """A TCP relay that closes a connection after so many bytes of the server's answer.

    Attributes:
        base_url: the URL for the client.
        requests: the number of requests so far.
    """

    def __init__(self, server_url: str, cut: int | None) -> None:
        host, _, path = server_url.removeprefix("http://").partition("/")
        self._server = host.split(":")
        self._path = f"/{path}" if path else ""
        self._cut = cut
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}{self._path}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        server_reader, server_writer = await asyncio.open_connection(*self._server)
        ways = [
            asyncio.create_task(self._forward(reader, server_writer)),
            asyncio.create_task(self._back(server_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            return  # asyncio's server would report it
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, server_writer):
                end.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(2**16):
                self.requests += data.count(b" HTTP/1.1\r\n")
                target.write(data)

    async def _back(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        room = self._cut
        streams = False
        with contextlib.suppress(ConnectionError):
            while data := await source.read(2**16):
                streams = streams or b"text/event-stream" in data.lower()
                if room is not None and streams:  # whole documents have to pass
                    data = data[:room]
                    room -= len(data)
                target.write(data)
                await target.drain()
                if room == 0:
                    return


async def polling(base_url: str, name: str) -> object:
    async with AsyncSession(base_url=base_url, api_key=KEY) as session:
        return await session.wait(name, timeout=60)


async def streaming(base_url: str, name: str) -> object:
    async with AsyncSession(base_url=base_url, api_key=KEY) as session:
        return await session.wait(name, stream=True, timeout=60)


async def official_polling(base_url: str, name: str) -> object:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY) as client:
        while (response := await client.responses.retrieve(name)).status in {"queued", "in_progress"}:
            await asyncio.sleep(2)
        return response


async def official_streaming(base_url: str, name: str) -> object:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY) as client:
        last: int | None = None
        until = time.monotonic() + 60
        while time.monotonic() < until:
            after: Any = openai.omit if last is None else last
            with contextlib.suppress(openai.APIError, Exception):  # httpx's errors are not translated within a stream
                async with await client.responses.retrieve(name, stream=True, starting_after=after) as events:
                    async for event in events:
                        last = event.sequence_number
                        if event.type in {"response.completed", "response.failed", "response.incomplete"}:
                            return event.response
        return None


WAYS: dict[str, Wait] = {
    "wait()": polling,
    "wait(stream=True)": streaming,
    "openai, polling every 2 s": official_polling,
    "openai, stream, resumed by hand": official_streaming,
}


async def create(base_url: str, text: str) -> str:
    """Create a response that streams, and return its id."""
    body = {"model": "m", "input": text, "background": True, "stream": True}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        answer = await http.post(f"{base_url}/responses", json=body)
        while not (line := await answer.content.readline()).startswith(b"data:"):
            pass
        answer.close()
        return str(json.loads(line[5:])["response"]["id"])


@contextlib.asynccontextmanager
async def emulator() -> AsyncIterator[tuple[str, Callable[[str], Awaitable[float]]]]:
    """Run the emulator; yield its URL, and a function that returns when a response has ended."""
    async with Emulator(script=Script(runs_for=SECONDS, says=WORDS)) as server:

        async def ended(name: str) -> float:
            return server.responses[name].ends()

        yield server.base_url, ended


@contextlib.asynccontextmanager
async def agent() -> AsyncIterator[tuple[str, Callable[[str], Awaitable[float]]]]:
    """Run Microsoft's server; yield the same. Its agent writes down when it ends."""
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("wb") as log:  # noqa: ASYNC230 - once
        port = Path(folder, "port")
        process = await asyncio.create_subprocess_exec(
            sys.executable, AGENT, port, stdout=log, stderr=log, cwd=folder, env={**os.environ, "HOME": folder}
        )
        try:
            while not await asyncio.to_thread(port.exists):
                await asyncio.sleep(0.05)

            async def ended(name: str) -> float:
                return float(await asyncio.to_thread(Path(folder, f"{name}.ended").read_text))

            base_url = f"http://127.0.0.1:{await asyncio.to_thread(port.read_text)}"
            async with aiohttp.ClientSession() as http:
                while True:  # until it listens
                    with contextlib.suppress(aiohttp.ClientConnectorError):
                        await (await http.get(base_url)).read()
                        break
                    await asyncio.sleep(0.1)
            yield base_url, ended
        finally:
            process.kill()
            await process.wait()


async def measure(server: str, cut: int | None, base_url: str, ended: Callable[[str], Awaitable[float]]) -> None:
    async def run(wait: Wait) -> tuple[float, int]:
        name = await create(base_url, f"talk for {SECONDS} s")
        async with CuttingRelay(base_url, cut) as relay:
            response: Any = await wait(relay.base_url, name)
            now = time.time()
            status = getattr(response, "status", None)
            if status != "completed":
                return float("nan"), relay.requests
            return now - await ended(name), relay.requests

    for way, wait in WAYS.items():
        runs = await asyncio.gather(*[run(wait) for _ in range(RUNS)])
        late = [seconds * 1e3 for seconds, _ in runs]
        requests = statistics.median(number for _, number in runs)
        where = f"{server}, cut after {cut} bytes" if cut else server
        sys.stdout.write(
            f"| {where} | {way} | {statistics.median(late):.0f} ms | {max(late):.0f} ms | {requests:g} |\n"
        )
        sys.stdout.flush()


async def main() -> None:
    sys.stdout.write("| server | call | late, median | late, worst | requests |\n|---|---|---|---|---|\n")
    for (server, running), cut in itertools.product({"emulator": emulator, "agent server": agent}.items(), CUTS):
        async with running() as (base_url, ended):
            await measure(server, cut, base_url, ended)


if __name__ == "__main__":
    asyncio.run(main())

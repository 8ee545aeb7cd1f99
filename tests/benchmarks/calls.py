"""Measure the cost of one call, beside the official client, bare aiohttp and a minimal client.

    python -m pip install --group benchmarks
    python tests/benchmarks/calls.py            # takes some minutes
    python tests/benchmarks/calls.py growth     # a million calls, to see whether memory grows

All clients are measured in turns in one run, against a stub in another process on another core. The figures are
medians, and ratios to this package. `cpu` is the processor time of this process, which other load disturbs less than
real time.
"""

import asyncio
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import orjson
import stub
import urllib3

from openai_cancel import AsyncSession, Session

Call = Callable[[], Any]

KEY = "sk-benchmark"
IDENTIFIERS = map("resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b4{:010x}".format, itertools.count())
"""A new id for each call, as in production, because aiohttp caches URLs."""

HEADERS = {"Authorization": f"Bearer {KEY}"}
ROUNDS = 5
SECONDS = 0.4
"""The time of one client in one round."""


@contextlib.asynccontextmanager
async def ours(base_url: str) -> AsyncIterator[Call]:
    async with AsyncSession(base_url=base_url, api_key=KEY) as session:
        yield lambda: session.cancel(next(IDENTIFIERS))


@contextlib.asynccontextmanager
async def bare_aiohttp(base_url: str, loads: Callable[[bytes], Any]) -> AsyncIterator[Call]:
    async with aiohttp.ClientSession(headers=HEADERS) as session:

        async def call() -> Any:
            async with session.post(f"{base_url}/responses/{next(IDENTIFIERS)}/cancel") as answer:
                return loads(await answer.read())

        yield call


@contextlib.asynccontextmanager
async def official(base_url: str, **options: Any) -> AsyncIterator[Call]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, **options) as client:
        yield lambda: client.responses.cancel(next(IDENTIFIERS))


@contextlib.asynccontextmanager
async def minimal(base_url: str) -> AsyncIterator[Call]:
    """Send the same bytes each time, and read an answer without parsing it."""
    host, port = base_url.split("/")[2].split(":")
    request = f"POST /v1/responses/{next(IDENTIFIERS)}/cancel HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call() -> bytes:
        reader, writer = idle.pop() if idle else await asyncio.open_connection(host, int(port), limit=2**21)
        writer.write(request)
        head = await reader.readuntil(stub.END)
        content = await reader.readexactly(int(head[head.rindex(b" ") : -4]))
        idle.append((reader, writer))
        return content

    yield call
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()


ASYNC = {
    "openai_cancel": ours,
    "aiohttp + json": lambda url: bare_aiohttp(url, json.loads),
    "aiohttp + orjson": lambda url: bare_aiohttp(url, orjson.loads),
    "openai": official,
    "openai on aiohttp": lambda url: official(url, http_client=openai.DefaultAioHttpClient()),
    "minimal": minimal,
}


async def drive(call: Callable[[], Awaitable[Any]], concurrency: int, seconds: float) -> int:
    """Make calls for that many seconds, and return their number."""
    end = time.perf_counter() + seconds
    done = 0

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    await asyncio.gather(*[work() for _ in range(concurrency)])
    return done


Figures = dict[str, tuple[float, float]]
"""Milliseconds of real time and of processor time for one call, by client."""


async def compare_async(base_url: str, concurrency: int) -> Figures:
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    async with contextlib.AsyncExitStack() as opened:
        calls = {name: await opened.enter_async_context(client(base_url)) for name, client in ASYNC.items()}
        for call in calls.values():
            await drive(call, concurrency, 0.1)
        for _, (name, call) in itertools.product(range(ROUNDS), calls.items()):
            wall, cpu = time.perf_counter(), time.process_time()
            done = await drive(call, concurrency, SECONDS)
            times[name].append(((time.perf_counter() - wall) / done * 1e3, (time.process_time() - cpu) / done * 1e3))
    return {name: medians(each) for name, each in times.items()}


@contextlib.contextmanager
def blocking_calls(base_url: str) -> Iterator[dict[str, Call]]:
    url = f"{base_url}/responses/{{}}/cancel".format
    with (
        Session(base_url=base_url, api_key=KEY) as session,
        openai.OpenAI(base_url=base_url, api_key=KEY) as client,
        httpx.Client(headers=HEADERS) as bare,
        urllib3.PoolManager(headers=HEADERS) as pool,
    ):
        yield {
            "openai_cancel": lambda: session.cancel(next(IDENTIFIERS)),
            "openai": lambda: client.responses.cancel(next(IDENTIFIERS)),
            "httpx + json": lambda: json.loads(bare.post(url(next(IDENTIFIERS))).content),
            "urllib3 + json": lambda: json.loads(pool.request("POST", url(next(IDENTIFIERS))).data),
        }


def compare_blocking(base_url: str) -> Figures:
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with blocking_calls(base_url) as calls:
        for _, (name, call) in itertools.product(range(ROUNDS), calls.items()):
            call()
            done = 0
            wall, cpu = time.perf_counter(), time.process_time()
            while time.perf_counter() < wall + SECONDS:
                call()
                done += 1
            times[name].append(((time.perf_counter() - wall) / done * 1e3, (time.process_time() - cpu) / done * 1e3))
    return {name: medians(each) for name, each in times.items()}


def medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(wall for wall, _ in pairs), statistics.median(cpu for _, cpu in pairs)


def show(title: str, figures: Figures) -> None:
    ours_wall, ours_cpu = figures["openai_cancel"]
    print(f"\n{title}\n{'':20}{'calls/s':>9}{'ms':>9}{'ratio':>7}{'cpu ms':>9}{'ratio':>7}")
    for name, (wall, cpu) in figures.items():
        print(f"{name:20}{1e3 / wall:9,.0f}{wall:9.3f}{wall / ours_wall:7.2f}{cpu:9.3f}{cpu / ours_cpu:7.2f}")


FIRST_CANCEL = {
    "openai_cancel": """
import asyncio, sys
from openai_cancel import AsyncSession
async def main():
    async with AsyncSession(base_url=sys.argv[1], api_key="sk-benchmark") as session:
        await session.cancel("resp_1")
asyncio.run(main())
""",
    "openai": """
import asyncio, sys
from openai import AsyncOpenAI
async def main():
    async with AsyncOpenAI(base_url=sys.argv[1], api_key="sk-benchmark") as client:
        await client.responses.cancel("resp_1")
asyncio.run(main())
""",
}
IMPORT = {
    "openai_cancel": "from openai_cancel import AsyncSession",
    "its dependencies": "import aiohttp, attrs, cattrs.preconf.orjson",
    "openai": "from openai import AsyncOpenAI",
}
PEAK = """
import asyncio
{imports}
async def main():
    async with {client}(base_url=sys.argv[1], api_key="sk-benchmark") as client:
        for _ in range(20):
            await asyncio.gather(*[client.{call}("resp_1") for _ in range(100)])
asyncio.run(main())
# The peak of getrusage would include the process that started this one.
print(next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
PEAKS = {
    "openai_cancel": PEAK.format(
        imports="import sys; from openai_cancel import AsyncSession", client="AsyncSession", call="cancel"
    ),
    "openai": PEAK.format(
        imports="import sys; from openai import AsyncOpenAI", client="AsyncOpenAI", call="responses.cancel"
    ),
}


def run_processes(scripts: dict[str, str], *arguments: str, rounds: int = 15) -> dict[str, tuple[float, str]]:
    """Run each script as a process. Return the median of its milliseconds, and its last output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times: dict[str, list[float]] = defaultdict(list)
    printed: dict[str, str] = {}
    for turn, (name, script) in itertools.product(range(rounds + 1), scripts.items()):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True, env=environment
        )
        printed[name] = done.stdout
        if turn:  # the first run may compile
            times[name].append((time.perf_counter() - began) * 1e3)
    return {name: (statistics.median(each), printed[name]) for name, each in times.items()}


def show_processes(title: str, figures: dict[str, float], unit: str) -> None:
    print(f"\n{title}")
    for name, figure in figures.items():
        print(f"{name:20}{figure:9,.0f} {unit}{figure / figures['openai_cancel']:7.2f}")


async def grow(base_url: str, calls: int = 1_000_000) -> None:
    """Make many calls, and print the memory of this process as it goes."""
    async with ours(base_url) as call:
        done = 0

        async def work() -> None:
            nonlocal done
            while done < calls:
                done = number = done + 1
                await call()
                if number % (calls // 10) == 0:
                    print(f"{number:9,} calls  {resident():6.1f} MB  {number / (time.perf_counter() - began):6,.0f}/s")

        began = time.perf_counter()
        await asyncio.gather(*[work() for _ in range(100)])


def resident() -> float:
    """Return the memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    if sys.argv[1:] == ["growth"]:
        with stub.running(1700) as base_url:
            asyncio.run(grow(base_url))
        return
    for size in (1_700, 50_000, 1_000_000):
        with stub.running(size) as base_url:
            for concurrency in (1, 10, 100, 1000) if size < 1_000_000 else (1, 10, 100):
                figures = asyncio.run(compare_async(base_url, concurrency))
                show(f"{size:,} bytes, {concurrency} at once", figures)
            show(f"{size:,} bytes, blocking", compare_blocking(base_url))
    with stub.running(1_700) as base_url:
        for title, scripts in (("a process that makes one cancel", FIRST_CANCEL), ("a process that imports", IMPORT)):
            show_processes(title, {name: t for name, (t, _) in run_processes(scripts, base_url).items()}, "ms")
        peaks = {name: float(out) for name, (_, out) in run_processes(PEAKS, base_url, rounds=1).items()}
        show_processes("peak memory after 2,000 calls, 100 at once", peaks, "MB")


if __name__ == "__main__":
    main()

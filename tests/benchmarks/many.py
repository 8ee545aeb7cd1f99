"""Measure `stop_many` beside `asyncio.gather` over the official client and over aiohttp.

    python -m pip install --group benchmarks
    python tests/benchmarks/many.py             # takes a few minutes

Each client runs in a new process, and prints the ids per second and its peak memory. The server runs in another: first
the emulator, then a stub that answers at once, and last an emulator with a rate limit.
"""

import asyncio
import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import stub

from openai_cancel.emulator import Emulator, Script

GENERATED = "generated"


def identifiers(count: int, source: str) -> Iterator[str]:
    """Return the ids in a file, or if the source is GENERATED, `count` of them that no server has."""
    if source != GENERATED:
        return iter(Path(source).read_text().split())
    return map("resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b4{:010x}".format, range(count))


async def stop_many(base_url: str, ids: Iterator[str]) -> int:
    from openai_cancel import AsyncSession

    async with AsyncSession(base_url=base_url, api_key="any") as session:
        stopped = 0
        async for outcome in session.stop_many(ids):
            stopped += outcome.stopped
        return stopped


async def openai(base_url: str, ids: Iterator[str]) -> int:
    import openai

    async with openai.AsyncOpenAI(base_url=base_url, api_key="any") as client:
        answers = await asyncio.gather(*[client.responses.cancel(name) for name in ids], return_exceptions=True)
    return sum(getattr(answer, "status", "") == "cancelled" for answer in answers)


async def aiohttp(base_url: str, ids: Iterator[str]) -> int:
    import aiohttp

    async with aiohttp.ClientSession(headers={"Authorization": "Bearer any"}) as client:

        async def cancel(name: str) -> dict[str, object]:
            async with client.post(f"{base_url}/responses/{name}/cancel") as answer:
                return await answer.json()

        answers = await asyncio.gather(*map(cancel, ids), return_exceptions=True)
    return sum(isinstance(answer, dict) and answer.get("status") == "cancelled" for answer in answers)


CLIENTS: dict[str, Callable[..., object]] = {"stop_many": stop_many, "openai": openai, "aiohttp": aiohttp}


def measure(client: str, base_url: str, count: int, source: str = GENERATED) -> None:
    """Run a client in a new process, and print what it prints."""
    command = [sys.executable, __file__, client, base_url, str(count), source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"{client:12}{count:10,} ids  {done.stdout.strip() or done.stderr.strip().splitlines()[-1]}", flush=True)


async def run(client: str, base_url: str, count: int, source: str) -> None:
    """Stop the ids with a client, and print the rate and the peak memory."""
    ids = identifiers(count, source)
    began = time.perf_counter()
    stopped = await CLIENTS[client](base_url, ids)
    seconds = time.perf_counter() - began
    print(f"{count / seconds:7,.0f}/s {peak_memory():8.1f} MB  {stopped / count:4.0%} cancelled")


def peak_memory() -> float:
    """Return the peak memory of this process in MB. `getrusage` would count what its parent used before the exec."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@contextlib.contextmanager
def emulator(count: int, rate_limit: float = 0) -> Iterator[list[str]]:
    """Run an emulator with `count` responses in another process; yield its base URL and a file with their ids."""
    command = [sys.executable, __file__, "serve", str(count), str(rate_limit)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()
        process.kill()


async def serve(count: int, rate_limit: float) -> None:
    """Run an emulator until this process is killed; a limit of 0 means none."""
    import tempfile

    async with Emulator(script=Script(runs_for=1e9), rate_limit=rate_limit or None) as server:
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("\n".join(server.add() for _ in range(count)))
            file.flush()
            print(server.base_url, file.name, flush=True)
            await asyncio.Event().wait()


async def obey(rate_limit: float, base_url: str, ids: list[str]) -> None:
    """Run `stop_many` against a rate limit, and print what it wasted and used of it after the first two seconds."""
    from openai_cancel import AsyncSession

    attempts: list[tuple[float, bool]] = []

    class Attempts(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.DEBUG:  # an attempt; outcomes have higher levels
                attempts.append((time.perf_counter(), "429" in record.getMessage()))

    log = logging.getLogger("openai_cancel")
    log.setLevel(logging.DEBUG)
    log.addHandler(Attempts())
    log.propagate = False
    began = time.perf_counter()
    async with AsyncSession(base_url=base_url, api_key="any") as session:
        async for _ in session.stop_many(ids):
            pass
    seconds = time.perf_counter() - began - 2
    late = [refused for at, refused in attempts if at - began > 2]
    wasted, used = late.count(True) / len(late), late.count(False) / (seconds * rate_limit)
    print(f"{rate_limit:4} requests per second: {wasted:5.1%} of the requests refused, {used:4.0%} of the rate used")


def compare() -> None:
    """Measure every client, and `stop_many` against rate limits."""
    print("the emulator:")
    for client in CLIENTS:
        with emulator(10_000) as (base_url, source):
            measure(client, base_url, 10_000, source)
    print("\na stub that answers at once:")
    with stub.running(1_700) as base_url:
        for client, count in (
            ("stop_many", 1_000), ("openai", 1_000), ("aiohttp", 1_000),
            ("stop_many", 100_000), ("openai", 10_000), ("aiohttp", 100_000),
            ("stop_many", 1_000_000),
        ):  # fmt: skip
            measure(client, base_url, count)
    print("\na rate limit:")
    for rate_limit in (5, 20, 100):
        with emulator(rate_limit * 30, rate_limit) as (base_url, source):
            asyncio.run(obey(rate_limit, base_url, list(identifiers(rate_limit * 30, source))))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", count, rate_limit]:
            asyncio.run(serve(int(count), float(rate_limit)))
        case [client, base_url, count, source]:
            asyncio.run(run(client, base_url, int(count), source))
        case _:
            compare()

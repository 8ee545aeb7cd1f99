"""Any number of ids: `stop_many` beside a naive `asyncio.gather` over the official client and over bare aiohttp.

    python -m pip install --group benchmarks
    python tests/benchmarks/many.py             # takes some minutes

Every figure is from a process of its own: ids a second, and the peak of its memory. The server is in another process:
first the emulator, then a stub that answers at once, and last an emulator that allows so many requests a second.
"""

import asyncio
import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import stub

from openai_cancel.emulator import Emulator, Script


def identifiers(count: int) -> Iterator[str]:
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


def measure(client: str, base_url: str, count: int, source: str = "made up") -> None:
    """Run a client in a process of its own."""
    command = [sys.executable, __file__, client, base_url, str(count), source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"{client:12}{count:10,} ids  {done.stdout.strip() or done.stderr.strip().splitlines()[-1]}", flush=True)


async def run(client: str, base_url: str, count: int, source: str) -> None:
    """What the process of a client does."""
    if source == "made up":
        ids = identifiers(count)
    else:
        with open(source) as file:  # noqa: ASYNC230, PTH123 - before anything is measured
            ids = iter(file.read().split())
    began = time.perf_counter()
    stopped = await CLIENTS[client](base_url, ids)
    seconds = time.perf_counter() - began
    with open("/proc/self/status") as status:  # noqa: ASYNC230, PTH123 - getrusage begins with what the parent had
        peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    print(f"{count / seconds:7,.0f}/s {peak:8.1f} MB  {stopped / count:4.0%} cancelled")


@contextlib.contextmanager
def emulator(count: int, allows: float = 0) -> Iterator[list[str]]:
    """An emulator in a process of its own, with so many responses that run; gives its base URL and the file of ids."""
    command = [sys.executable, __file__, "serve", str(count), str(allows)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()
        process.kill()


async def serve(count: int, allows: float) -> None:
    import tempfile

    async with Emulator(script=Script(runs_for=1e9), rate_limit=allows or None) as server:
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("\n".join(server.add() for _ in range(count)))
            file.flush()
            print(server.base_url, file.name, flush=True)
            await asyncio.Event().wait()


async def keep_to(allows: float, base_url: str, ids: list[str]) -> None:
    """How `stop_many` keeps to a limit: what it wasted and what it used, after the first two seconds."""
    from openai_cancel import AsyncSession

    attempts: list[tuple[float, bool]] = []

    class Attempts(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.DEBUG:  # an attempt; above it are outcomes
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
    wasted, used = late.count(True) / len(late), late.count(False) / (seconds * allows)
    print(f"{allows:4} requests a second allowed: {wasted:5.1%} of the requests refused, {used:4.0%} of the rate used")


def main() -> None:
    match sys.argv[1:]:
        case ["serve", count, allows]:
            asyncio.run(serve(int(count), float(allows)))
        case [client, base_url, count, source]:
            asyncio.run(run(client, base_url, int(count), source))
        case _:
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
            print("\na limit:")
            for allows in (5, 20, 100):
                with emulator(allows * 30, allows) as (base_url, source), open(source) as file:  # noqa: PTH123 - short
                    asyncio.run(keep_to(allows, base_url, file.read().split()))


if __name__ == "__main__":
    main()

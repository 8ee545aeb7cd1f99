"""Measure a ledger of a million rows on SQLite and PostgreSQL: list, sweep, purge, `ledger add` and `ledger stop`.

    python -m pip install -e '.[test]'
    python tests/benchmarks/rows.py [ROWS]      # takes some ten minutes

The emulator and PostgreSQL run in their own processes, and share the cores of the machine with the measured process.
"""

import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from itertools import islice
from pathlib import Path

from many import emulator

sys.path.insert(0, str(Path(__file__).parents[1]))
from ledger import databases
from ledger_database import connected, lapse
from postgres import empty
from sqlalchemy import insert

from openai_cancel import AsyncSession
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.table import RESPONSES, Account

ROWS = 1_000_000
SWEPT = 10_000
SECONDS = 15.0
"""The longest time for which a rate is measured."""


def batched(items: Iterable[object], size: int) -> Iterator[list[object]]:
    """Return `itertools.batched` of Python 3.12, in lists."""
    iterator = iter(items)
    return iter(lambda: [*islice(iterator, size)], [])


def row(number: int, base_url: str) -> dict[str, object]:
    """Return a row of a response that has ended, or of every tenth one that has not."""
    name = f"resp_old{number:010x}"
    is_open = number % 10 == 0
    return {
        "digest": Account("any", base_url).digest(name),
        "response_id": name,
        "base_url": base_url,
        "account": "any",
        "labels": {"job": str(number % 1000)},
        "state": "tracked" if is_open else "cancelled",
        "attempts": 0,
        "created": float(number),
        "changed": float(number),
        "lease_until": time.time() + 1e6 if is_open else None,
    }


async def fill(url: str, base_url: str, count: int) -> None:
    async with Ledger(url):
        with connected(url) as connection:
            for numbers in batched(range(count), 10_000):
                connection.execute(insert(RESPONSES), [row(number, base_url) for number in numbers])


async def rate_of_list(url: str, **options: object) -> str:
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    async with Ledger(url, timeout=60) as ledger, aclosing(ledger.entries(**options)) as entries:
        async for _ in entries:
            count += 1
            if time.perf_counter() > began + SECONDS:
                break
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return f"{count:9,} rows in {seconds:6.2f} s, {count / seconds:7,.0f}/s, {cpu / count * 1e6:,.0f} µs of a core each"


async def rate_of_sweep(url: str, base_url: str, ids: list[str], **options: object) -> str:
    """Sweep responses among others, or stop them by a label if there is one."""
    async with (
        Ledger(url, timeout=60) as ledger,
        AsyncSession(base_url=base_url, api_key="any", account="any") as session,
    ):
        for names in batched(ids, 5000):
            await asyncio.gather(*(ledger.track(name, session=session, ttl=3600, **options) for name in names))
        if not options:
            await lapse(url, *ids)
        began = time.perf_counter()
        outcomes = ledger.stop(session, **options) if options else ledger.sweep(session)
        stopped = sum([outcome.stopped async for outcome in outcomes])
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        assert [outcome async for outcome in ledger.sweep(session)] == []
        nothing = time.perf_counter() - began
    return f"{stopped:,} in {seconds:.1f} s, {stopped / seconds:,.0f}/s; a sweep of nothing {nothing:.3f} s"


async def rate_of_purge(url: str) -> str:
    began, total = time.perf_counter(), 0
    async with Ledger(url, timeout=60) as ledger:
        total = await ledger.purge(older_than=1e6)
    seconds = time.perf_counter() - began
    return f"{total:,} in {seconds:.1f} s, {total / seconds:,.0f}/s"


def rate_of_add(url: str, file: Path, count: int) -> str:
    command = [sys.executable, "-m", "openai_cancel", "ledger", "add", "--file", str(file), "--ttl", "1s"]
    began = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run(
        ["/usr/bin/env", "OPENAI_API_KEY=any", *command, "--ledger", url, "--label", "a=b"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    peak = max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, before) / 1024
    return f"{count:,} in {seconds:.1f} s, {count / seconds:,.0f}/s, {peak:.0f} MB at most"


def measure(url: str, count: int) -> None:
    asyncio.run(empty(url))
    with emulator(2 * SWEPT) as (base_url, source):
        ids = Path(source).read_text().split()
        began = time.perf_counter()
        asyncio.run(fill(url, base_url, count))
        print(f"  filled in {time.perf_counter() - began:.0f} s", flush=True)
        print(f"  list             {asyncio.run(rate_of_list(url))}", flush=True)
        print(f"  list --all       {asyncio.run(rate_of_list(url, include_ended=True))}", flush=True)
        print(f"  sweep            {asyncio.run(rate_of_sweep(url, base_url, ids[:SWEPT]))}", flush=True)
        if hasattr(Ledger, "stop"):
            print(f"  list --label     {asyncio.run(rate_of_list(url, labels={'job': '10'}))}", flush=True)
            swept = rate_of_sweep(url, base_url, ids[SWEPT:], labels={"job": "x"})
            print(f"  stop --label     {asyncio.run(swept)}", flush=True)
        print(f"  purge            {asyncio.run(rate_of_purge(url))}", flush=True)
    if hasattr(Ledger, "track_many"):
        asyncio.run(empty(url))
        with tempfile.NamedTemporaryFile("w") as file:
            file.writelines(f"resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b4{number:010x}\n" for number in range(count))
            file.flush()
            print(f"  add --file       {rate_of_add(url, Path(file.name), count)}", flush=True)


def main() -> None:
    count = int(sys.argv[1]) if sys.argv[1:] else ROWS
    with databases() as urls:
        for name, url in urls.items():
            print(f"{name}, {count:,} rows:", flush=True)
            measure(url, count)


if __name__ == "__main__":
    main()

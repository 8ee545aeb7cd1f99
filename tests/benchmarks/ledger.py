"""Measure the cost of a ledger, the speed of sweeps, and what is left after 200 kills, on SQLite and PostgreSQL.

    python -m pip install -e '.[test]'
    python tests/benchmarks/ledger.py            # takes some minutes

The emulator and PostgreSQL run in their own processes, and share the cores of the machine with the measured process.
"""

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from many import emulator

sys.path.insert(0, str(Path(__file__).parents[1]))
from ledger_database import commits, lapse
from postgres import empty, running

from openai_cancel import AsyncSession
from openai_cancel.ledger import Ledger

GUARDS = 1_000
SECONDS = 10.0
LEASE = 3.0
LAPSED = 10_000
KILLS = 200


async def guards(url: str, base_url: str, ids: list[str]) -> None:
    """Measure a thousand guards at the same time: in quick succession, and then held for a while."""
    async with (
        Ledger(url, lease=LEASE, timeout=30) as ledger,
        AsyncSession(base_url=base_url, api_key="any", ledger=ledger) as session,
    ):

        async def one(name: str, holding: float) -> None:
            async with session.guard(name):
                await asyncio.sleep(holding)

        rounds, began, cpu = 0, time.perf_counter(), time.process_time()
        with commits() as committed:
            while time.perf_counter() < began + SECONDS:
                await asyncio.gather(*(one(name, 0) for name in ids))
                rounds += 1
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        done = rounds * len(ids)
        print(f"  begun and ended: {done / wall:6,.0f} guards/s, {cpu / done * 1e6:4.0f} µs of the processor each,"
              f" {len(committed) / done:.3f} transactions each")  # fmt: skip
        cpu = time.process_time()
        with commits() as committed:
            await asyncio.gather(*(one(name, SECONDS) for name in ids))
        held = [at for at in committed if committed[-1] - SECONDS * 0.9 < at < committed[-1] - SECONDS * 0.1]
        print(f"  {len(ids):,} held with a lease of {LEASE:g} s: {len(held) / (SECONDS * 0.8):.2f} writes a second,"
              f" {(time.process_time() - cpu) / SECONDS:.1%} of a core, with their beginning and end")  # fmt: skip


async def one_guard(url: str | None, base_url: str, name: str) -> None:
    """Measure guards with an empty block, one after another."""
    ledger = None if url is None else Ledger(url)
    async with AsyncSession(base_url=base_url, api_key="any", ledger=ledger) as session:
        count, began = 0, time.perf_counter()
        while time.perf_counter() < began + 2:
            async with session.guard(name):
                pass
            count += 1
        print(f"  one after another: {(time.perf_counter() - began) / count * 1e6:6,.0f} µs a guard")


async def fill(url: str, base_url: str, ids: list[str]) -> None:
    """Fill a database with lapsed rows."""
    async with Ledger(url, timeout=60) as ledger:
        session = AsyncSession(base_url=base_url, api_key="any")
        for start in range(0, len(ids), 5000):
            tracking = (ledger.track(name, session=session, ttl=60) for name in ids[start : start + 5000])
            await asyncio.gather(*tracking)
        await lapse(url)


def sweepers(url: str, base_url: str, ids: list[str], count: int) -> None:
    """Measure sweeps of several processes at the same time."""
    asyncio.run(fill(url, base_url, ids))
    command = [sys.executable, __file__, "sweep", url, base_url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    printed = [process.communicate()[0].split() for process in processes]
    wall = max(float(end) for _, end, *_ in printed) - min(float(began) for began, *_ in printed)
    swept = Counter(name for _, _, *names in printed for name in names)
    twice = sum(times - 1 for times in swept.values())
    print(f"  {count} sweepers: {len(swept):,} of {len(ids):,} stopped, {twice} twice, {len(ids) / wall:5,.0f}/s,"
          f" by each {[len(names) - 2 for names in printed]}", flush=True)  # fmt: skip


async def sweep(url: str, base_url: str) -> None:
    async with Ledger(url, timeout=30) as ledger, AsyncSession(base_url=base_url, api_key="any") as session:
        print(time.time(), flush=True)
        names = [outcome.response_id async for outcome in ledger.sweep(session)]
        print(time.time(), *names)


def kills(url: str, base_url: str, ids: list[str]) -> None:
    """Kill processes that guard at random times, and compare what their sweeps stop with what was tracked."""
    chance = random.Random(1)
    script = str(Path(__file__).parents[1] / "guarding.py")
    outcome = Counter[str]()
    share = len(ids) // KILLS

    async def check(names: set[str]) -> None:
        async with Ledger(url, timeout=30) as ledger, AsyncSession(base_url=base_url, api_key="any") as session:
            before = {entry.response_id: entry.state async for entry in ledger.entries(include_ended=True)}
            await lapse(url)
            stopped = {found.response_id async for found in ledger.sweep(session) if found.stopped}
            for name in names & before.keys():
                response = await session.retrieve(name)
                ended = "stopped" if response.status == "cancelled" else "left running"
                outcome[f"{before[name]} and {ended}"] += 1
                assert (name in stopped) == (response.status == "cancelled")

    for number in range(KILLS):
        names = ids[number * share : (number + 1) * share]
        process = subprocess.Popen(
            [sys.executable, script, url, base_url, "any"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        process.stdin.write("\n".join(names))
        process.stdin.close()
        process.stdout.readline()
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
        process.wait()
        asyncio.run(check(set(names)))
    print(f"  {KILLS} kills: {dict(outcome)}", flush=True)


def kill_sweepers(url: str, base_url: str, ids: list[str]) -> None:
    """Kill sweepers at random times until nothing is left to sweep."""
    chance = random.Random(2)
    killed = in_the_middle = 0

    async def left() -> Counter[str]:
        async with Ledger(url, timeout=30) as ledger:
            await lapse(url)
            return Counter([entry.state async for entry in ledger.entries()])

    asyncio.run(fill(url, base_url, ids))
    while states := asyncio.run(left()):
        in_the_middle += "stopping" in states
        process = subprocess.Popen([sys.executable, __file__, "sweep", url, base_url], stdout=subprocess.PIPE)
        process.stdout.readline()  # it begins to sweep
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1 + chance.random() * 0.2)
        killed += process.poll() is None
        process.kill()
        process.communicate()

    async def check() -> None:
        async with AsyncSession(base_url=base_url, api_key="any") as session:
            ends = Counter([(await session.retrieve(name)).status for name in ids])
            print(f"  {killed} sweepers killed, {in_the_middle} of them with claims: {dict(ends)}", flush=True)

    asyncio.run(check())


@contextlib.contextmanager
def databases() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, running() as postgres:  # on a real disk
        yield {"SQLite": f"sqlite:///{folder}/ledger.db", "PostgreSQL": postgres.url}


def main() -> None:
    match sys.argv[1:]:
        case ["sweep", url, base_url]:
            asyncio.run(sweep(url, base_url))
            return
    with databases() as urls:
        with emulator(GUARDS) as (base_url, source):
            ids = Path(source).read_text().split()
            print("without a ledger:")
            asyncio.run(one_guard(None, base_url, ids[0]))
            for name, url in urls.items():
                print(f"{name}:")
                asyncio.run(one_guard(url, base_url, ids[0]))
                asyncio.run(guards(url, base_url, ids))
        for name, url in urls.items():
            print(f"{name}:")
            for count in (1, 2, 4):
                asyncio.run(empty(url))
                with emulator(LAPSED) as (base_url, source):
                    sweepers(url, base_url, Path(source).read_text().split(), count)
            asyncio.run(empty(url))
            with emulator(KILLS * 200) as (base_url, source):
                kills(url, base_url, Path(source).read_text().split())
            asyncio.run(empty(url))
            with emulator(KILLS * 18) as (base_url, source):
                kill_sweepers(url, base_url, Path(source).read_text().split())


if __name__ == "__main__":
    main()

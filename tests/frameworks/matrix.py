"""How many responses are left running, by driver and failure: the emulator knows. `python matrix.py` prints a table.

Names of drivers or failures after it select some of them.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import threading
import traceback
from asyncio.subprocess import PIPE
from collections.abc import Collection, Mapping
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

from drivers import DRIVERS, Driver, Step
from failures import FAILURES, PATIENCE, READ_TIMEOUT, Failure, running, time_out, time_out_of_a_thread, until
from protection import KEY, protecting, protecting_blocking

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Script
from openai_cancel.ledger import Ledger

Cell = tuple[str, str]
"""The names of a driver and of a failure."""

AT_ONCE = 8
# Streams send a word every 0.1 s, for longer than anything waits.
SCRIPT = Script(runs_for=120, says="A woodchuck would chuck " * 300)


def cells(wanted: Collection[str] = ()) -> list[Cell]:
    """Return what can go wrong with whom."""
    everything = [(name, failure) for name in DRIVERS for failure in FAILURES]
    possible = [cell for cell in everything if FAILURES[cell[1]].applies(DRIVERS[cell[0]])]
    return [cell for cell in possible if not wanted or set(cell) & set(wanted)]


async def left_running(cell: Cell, *, protected: bool, folder: Path) -> list[str]:
    """Run a driver, let something go wrong, and return the ids of the responses that run afterwards."""
    driver, failure = DRIVERS[cell[0]], FAILURES[cell[1]]
    async with Emulator(script=SCRIPT) as server:
        server.faults.extend(failure.faults(driver))
        if failure.kills:
            await _kill(cell[0], failure.kills, server, folder, protected=protected)
        elif driver.blocks:
            await _strike_a_thread(driver, failure, server, protected=protected)
        else:
            await _strike(driver, failure, server, protected=protected)
        await _quiet(server)
        assert server.responses, "nothing was created"
        return running(server)


async def _strike(driver: Driver, failure: Failure, server: Emulator, *, protected: bool) -> None:
    client = driver.client(api_key=KEY, base_url=server.base_url)

    async def run(step: Step) -> None:
        async with protecting(driver.guards(client), server.base_url, protected=protected):
            await driver.run(client, step)

    with contextlib.suppress(Exception, asyncio.CancelledError):
        async with asyncio.timeout(PATIENCE):
            await failure.strike(run, client, server)
    await client.close()


async def _strike_a_thread(driver: Driver, failure: Failure, server: Emulator, *, protected: bool) -> None:
    client = driver.client(api_key=KEY, base_url=server.base_url, timeout=READ_TIMEOUT)
    loop = asyncio.get_running_loop()

    async def run(step: Step) -> None:
        done = loop.create_future()

        def main() -> None:
            with contextlib.suppress(Exception):
                with protecting_blocking(driver.guards(client), server.base_url, protected=protected):
                    driver.run(client, step)
            loop.call_soon_threadsafe(done.set_result, None)

        threading.Thread(target=main, daemon=True).start()
        await asyncio.shield(done)

    strike = time_out_of_a_thread if failure.strike is time_out else failure.strike
    with contextlib.suppress(Exception):
        async with asyncio.timeout(PATIENCE):
            await strike(run, client, server)
    client.close()


async def _kill(name: str, number: Signals, server: Emulator, folder: Path, *, protected: bool) -> None:
    """Run a driver in a process, and send it a signal when its code has seen the response."""
    url = f"sqlite:///{folder}/ledger.db" if number is SIGKILL else ""
    with (folder / "stderr").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("process.py")), name, str(protected), server.base_url, url,
            stdout=PIPE, stderr=errors, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    seen = asyncio.ensure_future(process.stdout.readline())
    try:
        async with asyncio.timeout(60):
            await until(lambda: seen.done() or any(request.method == "GET" for request in server.received))
            assert running(server), (folder / "stderr").read_text()
            process.send_signal(number)
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await seen
    if protected and url:
        await _sweep(url, server)


async def _sweep(url: str, server: Emulator) -> None:
    """Stop what a dead process has left, when its leases have lapsed."""
    async with Ledger(url) as ledger, AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger) as session:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while running(server):
                    async for _ in ledger.sweep(session):
                        pass
                    await asyncio.sleep(0.1)


async def _quiet(server: Emulator) -> None:
    """Wait until nobody sends a request any more."""
    seen = -1
    while seen != len(server.received):
        seen = len(server.received)
        await asyncio.sleep(0.7)


async def run_all(chosen: Collection[Cell], *, protected: bool) -> dict[Cell, int | str]:
    """Return how many responses are left running, or the traceback of an error, by cell."""
    limit = asyncio.Semaphore(AT_ONCE)
    found: dict[Cell, int | str] = {}

    async def run(cell: Cell) -> None:
        async with limit:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found[cell] = len(await left_running(cell, protected=protected, folder=Path(folder)))
                except Exception:  # noqa: BLE001 - shown in the table
                    found[cell] = traceback.format_exc()

    async with asyncio.TaskGroup() as group:
        for cell in chosen:
            group.create_task(run(cell))
    return {cell: found[cell] for cell in chosen}


def table(without: Mapping[Cell, Any], guarded: Mapping[Cell, Any]) -> str:
    """Return the runs that have left a response running, by failure, in Markdown."""
    lines = ["| failure | runs | left running without | with |", "|---|---|---|---|"]
    for failure in FAILURES:
        here = [cell for cell in without if cell[1] == failure]
        if here:
            counts = [sum(found[cell] != 0 for cell in here) for found in (without, guarded)]
            lines.append(f"| {failure} | {len(here)} | {counts[0]} | {counts[1]} |")
    counts = [sum(left != 0 for left in found.values()) for found in (without, guarded)]
    return "\n".join([*lines, f"| all | {len(without)} | {counts[0]} | {counts[1]} |"])


def main(*wanted: str) -> int:
    """Print a table, and the cells with a response that is left running in spite of this package."""
    chosen = cells(wanted)
    without, guarded = (asyncio.run(run_all(chosen, protected=protected)) for protected in (False, True))
    print(table(without, guarded))
    for found, name in ((without, "without"), (guarded, "with")):
        for cell, left in found.items():
            if isinstance(left, str) or (left and found is guarded):
                print(f"{name}: {cell[0]}, {cell[1]}: {left}")
    return int(any(guarded.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

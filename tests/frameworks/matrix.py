"""How many responses are left running, by driver and failure: the emulator knows. `python matrix.py` prints a table.

Names of drivers, failures or columns after it select some of them.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import threading
import traceback
from asyncio.subprocess import PIPE
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from operator import itemgetter
from pathlib import Path
from typing import Any

import attrs
from drivers import DRIVERS, HAS_FRAMEWORKS, Driver, Step, import_frameworks
from failures import FAILURES, PATIENCE, Failure, time_out, time_out_of_a_thread, until
from protection import GRACE, KEY, NOTHING, Protection, protecting, protecting_blocking
from truth import Server, emulated

from openai_cancel import AsyncSession
from openai_cancel.ledger import Ledger

Cell = tuple[str, str]
"""The names of a driver and of a failure."""

Serve = Callable[[], AbstractAsyncContextManager[Server]]
"""Runs a server."""

AT_ONCE = 6
PROCESSES = 1  # beside each of the others that run at the same time

PROTECTIONS = {
    "without": NOTHING,
    "guard": Protection.GUARD,
    "watch and sweep": Protection.WATCH,
    "guard, watch and sweep": Protection.GUARD | Protection.WATCH,
}


def cells(wanted: Collection[str] = ()) -> list[Cell]:
    """Return what can go wrong with whom."""
    drivers = [name for name, driver in DRIVERS.items() if HAS_FRAMEWORKS or not driver.framework]
    everything = [(name, failure) for name in drivers for failure in FAILURES]
    possible = [cell for cell in everything if FAILURES[cell[1]].can_strike(DRIVERS[cell[0]])]
    return [cell for cell in possible if not wanted or set(cell) & set(wanted)]


@attrs.frozen
class Experiment:
    """A driver runs, and something goes wrong.

    Attributes:
        name: the name of the driver.
        failure: what goes wrong.
        protection: what protects the run.
        folder: an empty folder.
        serve: runs the server.
    """

    name: str
    failure: Failure
    protection: Protection
    folder: Path
    serve: Serve

    @property
    def driver(self) -> Driver:
        return DRIVERS[self.name]

    @property
    def ledger_url(self) -> str:
        return f"sqlite:///{self.folder}/ledger.db"

    async def run(self) -> int:
        """Return how many responses run afterwards."""
        async with self.serve() as server:
            server.faults.extend(self.failure.faults(self.driver))
            if self.failure.kills:
                await self._kill(server)
            elif self.driver.blocks:
                await self._strike_a_thread(server)
            else:
                await self._strike(server)
            await _quiet(server)
            assert server.created, "nothing was created"
            if self.protection & Protection.WATCH:
                await self._sweep(server)
            return len(await server.running())

    async def _strike(self, server: Server) -> None:
        driver = self.driver
        client = driver.client(api_key=KEY, base_url=server.base_url)

        async def run(step: Step) -> None:
            async with protecting(driver.guards(client), self.protection, server.base_url, self.ledger_url):
                await driver.run(client, step)

        try:
            async with asyncio.timeout(PATIENCE):
                await self.failure.strike(run, client, server)
        except (Exception, asyncio.CancelledError):
            if not server.created:
                raise  # something else went wrong before
        finally:
            await client.close()

    async def _strike_a_thread(self, server: Server) -> None:
        driver = self.driver
        client = driver.client(api_key=KEY, base_url=server.base_url)
        loop = asyncio.get_running_loop()

        async def run(step: Step) -> None:
            done = loop.create_future()

            def main() -> None:
                error = None
                try:
                    with protecting_blocking(driver.guards(client), self.protection, server.base_url, self.ledger_url):
                        driver.run(client, step)
                except Exception as raised:  # noqa: BLE001 - handed on to the event loop
                    error = raised
                loop.call_soon_threadsafe(done.set_result, error)

            threading.Thread(target=main, daemon=True).start()
            if (error := await asyncio.shield(done)) is not None:
                raise error

        strike = time_out_of_a_thread if self.failure.strike is time_out else self.failure.strike
        try:
            async with asyncio.timeout(PATIENCE):
                await strike(run, client, server)
        except Exception:
            if not server.created:
                raise
        finally:
            client.close()

    async def _kill(self, server: Server) -> None:
        """Run the driver in a process, and send it a signal when its code has seen the response."""
        errors = self.folder / "stderr"
        script = str(Path(__file__).with_name("process.py"))
        with errors.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, script, self.name, str(self.protection.value), server.base_url, self.ledger_url,
                stdout=PIPE, stderr=stderr, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        seen = asyncio.ensure_future(process.stdout.readline())
        try:
            async with asyncio.timeout(150):
                await until(lambda: seen.done() or any(request.method == "GET" for request in server.received))
                assert await server.running(), errors.read_text()
                while process.returncode is None:
                    process.send_signal(self.failure.kills)
                    # In a blocking library, the exception of a signal handler may be lost.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), 10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await seen

    async def _sweep(self, server: Server) -> None:
        """Stop what is left when its leases have lapsed."""
        async with (
            Ledger(self.ledger_url, timeout=GRACE) as ledger,
            AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger) as session,
        ):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    while await server.running():
                        async for _ in ledger.sweep(session):
                            pass
                        await asyncio.sleep(0.1)


async def _quiet(server: Server) -> None:
    """Wait until nobody sends a request any more."""
    seen = -1
    while seen != len(server.received):
        seen = len(server.received)
        await asyncio.sleep(0.7)


async def run_all(chosen: Collection[Cell], protection: Protection, serve: Serve = emulated) -> dict[Cell, int | str]:
    """Return how many responses are left running, or the traceback of an error, by cell."""
    await asyncio.to_thread(import_frameworks)  # an import blocks the event loop for seconds
    limits = {True: asyncio.Semaphore(PROCESSES), False: asyncio.Semaphore(AT_ONCE)}
    found: dict[Cell, int | str] = {}

    async def run(cell: Cell) -> None:
        async with limits[FAILURES[cell[1]].kills is not None]:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found[cell] = await Experiment(cell[0], FAILURES[cell[1]], protection, Path(folder), serve).run()
                except Exception:  # noqa: BLE001 - shown in the table
                    found[cell] = traceback.format_exc()

    async with asyncio.TaskGroup() as group:
        for cell in chosen:
            group.create_task(run(cell))
    return {cell: found[cell] for cell in chosen}


def creator(cell: Cell) -> str:
    """Return the name of the package whose code creates and waits."""
    return cell[0].partition(",")[0] if DRIVERS[cell[0]].framework else "the official client"


def table(found: Mapping[str, Mapping[Cell, Any]]) -> str:
    """Return how many runs have left a response running, by failure and by package, in Markdown."""
    return "\n\n".join(
        "\n".join(
            [
                f"| {title} | runs | {' | '.join(found)} |",
                f"|---|---|{'---|' * len(found)}",
                *_rows(found, key),
            ]
        )
        for title, key in (("what goes wrong", itemgetter(1)), ("what creates", creator))
    )


def _rows(found: Mapping[str, Mapping[Cell, Any]], key: Callable[[Cell], str]) -> Iterator[str]:
    everything = [*next(iter(found.values()))]
    for name in (*dict.fromkeys(map(key, everything)), "all"):
        here = [cell for cell in everything if name in {key(cell), "all"}]
        counts = [sum(left[cell] != 0 for cell in here) for left in found.values()]
        yield f"| {name} | {len(here)} | {' | '.join(map(str, counts))} |"


def main(*wanted: str) -> None:
    """Print a table, and the runs that have left a response running in spite of a protection, or failed."""
    chosen = cells([word for word in wanted if word not in PROTECTIONS])
    names = [name for name in PROTECTIONS if name in wanted] or [*PROTECTIONS]
    found = {name: asyncio.run(run_all(chosen, PROTECTIONS[name])) for name in names}
    print(table(found))  # noqa: T201
    for name, left in found.items():
        for cell, count in left.items():
            if isinstance(count, str) or (count and name != "without"):
                print(f"{name}: {cell[0]}, {cell[1]}: {count}")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])

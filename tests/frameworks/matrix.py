"""What goes wrong while a background response runs, and what is left running afterwards: the emulator tells.

`python matrix.py` prints a table. `python matrix.py DRIVER FAILURE…` runs some cells.
"""

import asyncio
import contextlib
import json
import math
import os
from signal import SIGKILL, SIGTERM, Signals
import sys
import tempfile
import threading
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable
from pathlib import Path
from typing import Any

import attrs
from drivers import DRIVERS, Driver, Step
from protection import KEY, protecting, protecting_blocking

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.ledger import Ledger

PATIENCE = 20.0
"""Seconds after which a caller gives up whatever happens."""
READ_TIMEOUT = 1.5
"""The time-out of a blocking client, in seconds: nothing else ends the wait for an event of a stream."""
SOON = 0.2
"""Seconds after the creation in which something goes wrong."""

Run = Callable[[Step], Awaitable[None]]


class SomethingElse(Exception):
    """Something else goes wrong in the code that waits for the response."""


def running(server: Emulator) -> list[str]:
    """Return the ids of the responses that run."""
    now = server.clock()
    return [name for name, work in server.responses.items() if work.is_active(now)]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@attrs.frozen
class Failure:
    """Something that goes wrong.

    Attributes:
        faults: those of the server, by whether the response is streamed.
        strike: runs a driver and lets something happen meanwhile.
        applies: whether it can happen to a driver.
        kills: the signal that is sent to the process instead.
    """

    strike: Callable[[Run, Any, Emulator], Awaitable[None]] | None = None
    faults: Callable[[Driver], Iterable[Fault]] = lambda _: ()
    applies: Callable[[Driver], bool] = lambda _: True
    kills: Signals | None = None


def never() -> bool:
    return False


async def nothing(run: Run, _client: Any, _server: Emulator) -> None:
    await run(never)


async def time_out(run: Run, _client: Any, server: Emulator) -> None:
    loop = asyncio.get_running_loop()
    watcher = asyncio.ensure_future(until(lambda: running(server)))
    async with asyncio.timeout(None) as limit:
        watcher.add_done_callback(lambda _: limit.reschedule(loop.time() + SOON))
        await run(never)


async def time_out_of_a_thread(run: Run, _client: Any, _server: Emulator) -> None:
    """Streams have the client's own time-out."""
    began = time.monotonic()

    def step() -> bool:
        if time.monotonic() > began + READ_TIMEOUT:
            raise TimeoutError
        return False

    await run(step)


async def cancel_the_task(run: Run, _client: Any, server: Emulator) -> None:
    task = asyncio.ensure_future(run(never))
    await until(lambda: running(server) or task.done())
    await asyncio.sleep(SOON)
    task.cancel()
    await task


async def raise_in_the_consumer(run: Run, _client: Any, _server: Emulator) -> None:
    steps = iter(range(4))

    def step() -> bool:
        if next(steps) == 3:
            raise SomethingElse
        return False

    await run(step)


async def raise_in_a_sibling(run: Run, _client: Any, server: Emulator) -> None:
    async def fail() -> None:
        await until(lambda: running(server))
        await asyncio.sleep(SOON)
        raise SomethingElse

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        await run(never)


async def leave(run: Run, _client: Any, _server: Emulator) -> None:
    steps = iter(range(4))
    await run(lambda: next(steps) == 3)


async def close_the_client(run: Run, client: Any, server: Emulator) -> None:
    async def close() -> None:
        await until(lambda: running(server))
        await asyncio.sleep(SOON)
        closed = client.close()
        if isawaitable(closed):
            await closed

    closing = asyncio.ensure_future(close())
    async with asyncio.timeout(5):
        await run(never)
    await closing


def polls(driver: Driver) -> bool:
    return not driver.streams


def is_async(driver: Driver) -> bool:
    return not driver.blocks


def refused_polls(_: Driver) -> Iterable[Fault]:
    error = {"error": {"message": "Bad request.", "type": "invalid_request_error", "param": None, "code": None}}
    return [Fault(on="retrieve", status=400, body=error, headers={"content-type": "application/json"})]


def failing_polls(_: Driver) -> Iterable[Fault]:
    return [Fault(on="retrieve", status=500) for _ in range(1000)]


def failing_cancels(_: Driver) -> Iterable[Fault]:
    return [Fault(on="cancel", status=503) for _ in range(4)]


def cuts(driver: Driver) -> Iterable[Fault]:
    if driver.streams:
        # In the first piece of the text.
        return [Fault(on=on, cut="body", cut_after=4000) for on in ("create", "retrieve")]
    return [Fault(on="retrieve", cut="connection") for _ in range(20)]


FAILURES = {
    "time-out": Failure(time_out),
    "task cancelled": Failure(cancel_the_task, applies=is_async),
    "exception in the consumer": Failure(raise_in_the_consumer, applies=lambda driver: driver.steps),
    "exception in a sibling task": Failure(raise_in_a_sibling, applies=is_async),
    "poll 400": Failure(nothing, refused_polls, applies=polls),
    "poll 500 for ever": Failure(nothing, failing_polls, applies=polls),
    "time-out, cancel 503": Failure(time_out, failing_cancels),
    "connection cut": Failure(nothing, cuts),
    "client closed": Failure(close_the_client),
    "consumer leaves early": Failure(leave, applies=lambda driver: driver.steps),
    "SIGTERM": Failure(kills=SIGTERM),
    "SIGKILL": Failure(kills=SIGKILL),
}


def cells() -> list[tuple[str, str]]:
    return [(driver, failure) for driver in DRIVERS for failure in FAILURES if FAILURES[failure].applies(DRIVERS[driver])]


async def left_running(name: str, failure_name: str, *, protected: bool, folder: Path) -> int:
    """Run a driver, let something go wrong, and return how many responses run afterwards."""
    driver, failure = DRIVERS[name], FAILURES[failure_name]
    async with Emulator(script=Script(runs_for=math.inf)) as server:
        server.faults.extend(failure.faults(driver))
        if failure.kills:
            await _kill(name, failure.kills, server, folder, protected=protected)
        elif driver.blocks:
            await _strike_a_thread(driver, failure, server, protected=protected)
        else:
            await _strike(driver, failure, server, protected=protected)
        await _quiet(server)
        assert server.responses, "nothing was created"
        return len(running(server))


async def _strike(driver: Driver, failure: Failure, server: Emulator, *, protected: bool) -> None:
    client = driver.client(api_key=KEY, base_url=server.base_url)

    async def run(step: Step) -> None:
        async with protecting(driver.guards(client), server.base_url, protected=protected):
            await driver.run(client, step)

    with contextlib.suppress(Exception, asyncio.CancelledError):
        async with asyncio.timeout(PATIENCE):
            await failure.strike(run, client, server)
    with contextlib.suppress(Exception):
        await client.close()


async def _quiet(server: Emulator) -> None:
    """Wait until nobody sends a request any more."""
    seen = -1
    while seen != len(server.received):
        seen = len(server.received)
        await asyncio.sleep(0.7)


async def _strike_a_thread(driver: Driver, failure: Failure, server: Emulator, *, protected: bool) -> None:
    """Run a blocking driver in a thread."""
    client = driver.client(api_key=KEY, base_url=server.base_url, timeout=READ_TIMEOUT)
    loop = asyncio.get_running_loop()

    def run(step: Step) -> None:
        with protecting_blocking(driver.guards(client), server.base_url, protected=protected):
            driver.run(client, step)

    async def run_in_thread(step: Step) -> None:
        done = loop.create_future()

        def main() -> None:
            with contextlib.suppress(Exception):
                run(step)
            loop.call_soon_threadsafe(lambda: done.cancelled() or done.set_result(None))

        threading.Thread(target=main, daemon=True).start()
        await done

    with contextlib.suppress(Exception):
        async with asyncio.timeout(PATIENCE):
            strike = time_out_of_a_thread if failure.strike is time_out else failure.strike
            await strike(run_in_thread, client, server)
    client.close()


async def _kill(name: str, number: Signals, server: Emulator, folder: Path, *, protected: bool) -> None:
    """Run a driver in a process, and send it a signal when its code has seen the response."""
    url = f"sqlite:///{folder}/ledger.db" if number is SIGKILL else ""
    with (folder / "stderr").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("process.py")), name, server.base_url, url, str(protected),
            stdout=PIPE, stderr=errors, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            seen = asyncio.ensure_future(process.stdout.readline())
            await until(lambda: seen.done() or any(request.method == "GET" for request in server.received))
            assert process.returncode is None, (folder / "stderr").read_text()
            process.send_signal(number)
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if protected and url:
        await _sweep(url, server)


async def _sweep(url: str, server: Emulator) -> None:
    """Stop what a dead process has left, when its leases have lapsed."""
    async with Ledger(url) as ledger, AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger) as session:
        async with asyncio.timeout(30):
            while running(server):
                async for _ in ledger.sweep(session):
                    pass
                await asyncio.sleep(0.1)


async def _run_all(chosen: list[tuple[str, str]], *, protected: bool) -> dict[tuple[str, str], int | str]:
    limit = asyncio.Semaphore(6)
    found: dict[tuple[str, str], int | str] = {}

    async def run(name: str, failure: str) -> None:
        async with limit:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found[name, failure] = await left_running(name, failure, protected=protected, folder=Path(folder))
                except Exception as error:
                    found[name, failure] = repr(error)

    async with asyncio.TaskGroup() as group:
        for cell in chosen:
            group.create_task(run(*cell))
    return found


def main(*words: str) -> None:
    """Print a table: how many runs have left a response running, without this package and with it."""
    wanted = {word for word in words if not word.startswith("--")}
    chosen = [cell for cell in cells() if not wanted or set(cell) & wanted]
    without = asyncio.run(_run_all(chosen, protected=False))
    with_us = asyncio.run(_run_all(chosen, protected=True)) if "--without" not in words else {}
    for failure in FAILURES:
        names = [name for name, each in chosen if each == failure]
        print(failure, len(names), "|", sum(without.get((n, failure)) != 0 for n in names), "|", sum(with_us.get((n, failure), 0) != 0 for n in names))
    for cell in chosen:
        if with_us.get(cell, 0) != 0 or isinstance(without[cell], str):
            print(*cell, "without:", without[cell], "with:", with_us.get(cell))
    return without


if __name__ == "__main__":
    print(json.dumps({" / ".join(k): v for k, v in main(*sys.argv[1:]).items()}, indent=0))

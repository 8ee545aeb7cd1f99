"""Failures while a background response runs."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable
from signal import SIGKILL, SIGTERM, Signals
from typing import Any

import attrs
from drivers import Driver, Step
from truth import Server

from openai_cancel.emulator import Fault

PATIENCE = 60.0
"""Seconds after which a caller gives up whatever happens. The machine may be busy."""
A_WHILE = 1.5
"""Seconds after which a thread gives up."""
SOON = 0.2
"""Seconds after the creation in which something goes wrong."""
STEPS = 3
"""The polls or events after which something goes wrong in their consumer."""

Run = Callable[[Step], Awaitable[None]]


class SomethingElseError(Exception):
    """Something else goes wrong in the code that waits for the response."""


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    while not condition():
        await asyncio.sleep(0.01)


async def created(server: Server) -> None:
    """Wait until a response has run for a moment."""
    while not await server.running():
        await asyncio.sleep(0.01)
    await asyncio.sleep(SOON)


@attrs.frozen
class Failure:
    """Something that goes wrong.

    Attributes:
        strike: runs a driver, and lets something go wrong meanwhile. It may raise.
        faults: the faults of the server.
        applies: whether it can happen to a driver.
        kills: the signal that is sent to the process instead.
    """

    strike: Callable[[Run, Any, Server], Awaitable[None]]
    faults: Callable[[Driver], Iterable[Fault]] = lambda _: ()
    applies: Callable[[Driver], bool] = lambda _: True
    kills: Signals | None = None

    def can_strike(self, driver: Driver) -> bool:
        """Return whether it can happen to a driver. Agents with a tool have a failure of their own."""
        return self.applies(driver) and driver.has_tool == (self.applies is has_tool)


def never() -> bool:
    return False


async def nothing(run: Run, _client: Any, _server: Server) -> None:
    await run(never)


async def time_out(run: Run, _client: Any, server: Server) -> None:
    async with asyncio.timeout(None) as limit:

        async def expire() -> None:
            await created(server)
            limit.reschedule(0)

        watcher = asyncio.ensure_future(expire())
        try:
            await run(never)
        finally:
            watcher.cancel()


async def time_out_of_a_thread(run: Run, _client: Any, _server: Server) -> None:
    """A thread cannot be interrupted: its own code looks at the time."""
    end = time.monotonic() + A_WHILE

    def step() -> bool:
        if time.monotonic() > end:
            raise TimeoutError
        return False

    await run(step)


async def cancel_the_task(run: Run, _client: Any, server: Server) -> None:
    task = asyncio.ensure_future(run(never))
    await created(server)
    task.cancel()
    await task


async def raise_in_the_consumer(run: Run, _client: Any, _server: Server) -> None:
    steps = iter(range(STEPS))

    def step() -> bool:
        if next(steps, None) is None:
            raise SomethingElseError
        return False

    await run(step)


async def raise_in_a_sibling(run: Run, _client: Any, server: Server) -> None:
    async def fail() -> None:
        await created(server)
        raise SomethingElseError

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        await run(never)


async def leave(run: Run, _client: Any, _server: Server) -> None:
    steps = iter(range(STEPS))
    await run(lambda: next(steps, None) is None)


async def close_the_client(run: Run, client: Any, server: Server) -> None:
    async def close() -> None:
        await created(server)
        closed = client.close()
        if isawaitable(closed):
            await closed

    closing = asyncio.ensure_future(close())
    try:
        await run(never)
        await closing
    finally:
        closing.cancel()


def polls(driver: Driver) -> bool:
    return not driver.streams


def is_async(driver: Driver) -> bool:
    return not driver.blocks


def dies(driver: Driver) -> bool:
    return driver.dies


def steps(driver: Driver) -> bool:
    return driver.steps


def has_tool(driver: Driver) -> bool:
    return driver.has_tool


def tool_calls(_: Driver) -> Iterable[Fault]:
    """Answer the first creation with a finished response that calls the tool."""
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "measure", "arguments": "{}",
            "status": "completed"}  # fmt: skip
    body = {
        "id": "resp_of_a_tool", "object": "response", "created_at": 1, "status": "completed", "background": True,
        "model": "gpt-5", "output": [call], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "temperature": 1, "top_p": 1,
    }  # fmt: skip
    return [Fault(on="create", status=200, body=body, headers={"content-type": "application/json"})]


def refused_polls(_: Driver) -> Iterable[Fault]:
    error = {"error": {"message": "Bad request.", "type": "invalid_request_error", "param": None, "code": None}}
    return [Fault(on="retrieve", status=400, body=error, headers={"content-type": "application/json"})]


def failing_polls(_: Driver) -> Iterable[Fault]:
    return [Fault(on="retrieve", status=500) for _ in range(1000)]


def failing_cancels(_: Driver) -> Iterable[Fault]:
    """Fail as many times as the official client tries."""
    return [Fault(on="cancel", status=503) for _ in range(3)]


def cuts(driver: Driver) -> Iterable[Fault]:
    if driver.streams:
        # After the first events, which are longer than 1,000 bytes.
        return [Fault(on=on, cut="body", cut_after=4000) for on in ("create", "retrieve")]
    return [Fault(on="retrieve", cut="connection") for _ in range(20)]


FAILURES = {
    "timeout of the caller": Failure(time_out),
    "task cancelled": Failure(cancel_the_task, applies=is_async),
    "exception in a callback": Failure(raise_in_the_consumer, applies=steps),
    "exception in a tool": Failure(raise_in_the_consumer, tool_calls, applies=has_tool),
    "exception in another task of the group": Failure(raise_in_a_sibling, applies=is_async),
    "a poll answered 400": Failure(nothing, refused_polls, applies=polls),
    "every poll answered 500": Failure(nothing, failing_polls, applies=polls),
    "timeout, and cancel answered 503": Failure(time_out, failing_cancels),
    "connection cut": Failure(nothing, cuts),
    "client closed": Failure(close_the_client),
    "consumer leaves early": Failure(leave, applies=steps),
    "SIGTERM": Failure(nothing, applies=dies, kills=SIGTERM),
    "SIGKILL": Failure(nothing, applies=dies, kills=SIGKILL),
}

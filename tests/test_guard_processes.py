"""`guard` and `wait` in processes that a signal ends."""

import asyncio
import math
import signal
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable

import pytest
from conftest import KEY, cancels, until
from processes import StartProcess

from openai_cancel.emulator import Emulator, Fault

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_task_is_left")]

Start = Callable[[str], Awaitable[asyncio.subprocess.Process]]

PREAMBLE = """
import asyncio, signal, sys, time
from openai_cancel import AsyncSession, Session
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
name = sys.argv[1]

def run(main):
    async def cancelled_by_sigterm():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
        await main()
    try:
        asyncio.run(cancelled_by_sigterm())
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
"""
SCRIPTS = {
    "async guard": """
async def main():
    async with AsyncSession() as session, session.guard(name):
        print("ready", flush=True)
        await asyncio.sleep(1000)
run(main)
""",
    "async wait": """
async def main():
    async with AsyncSession() as session:
        print("ready", flush=True)
        await session.wait(name)
run(main)
""",
    "guard": """
with Session() as session, session.guard(name):
    print("ready", flush=True)
    while True:  # a signal just before a sleep is handled after it
        time.sleep(0.05)
""",
    "wait": """
with Session() as session:
    print("ready", flush=True)
    session.wait(name)
""",
}
BUSY_LOOP = """
def key():
    if slow:
        print("ready", flush=True)
        slow.clear()
        time.sleep(1)  # blocks the event loop of the session
    return "sk-12345678"

import threading
slow = [True]
with Session(api_key=key) as session:
    threading.Thread(target=session.retrieve, args=(name,)).start()
    while slow:
        pass
    session.wait(name)
"""
OPEN_GENERATOR = """
def events():
    with Session() as session, session.guard(name):
        yield

generator = events()
next(generator)
print("ready", flush=True)
"""


@pytest.fixture
async def start(
    server: Emulator,
    create: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    python: str,
    start_process: StartProcess,
) -> Start:
    """Start a script on a running response, and wait until it is inside its block or its call."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

    async def start(script: str) -> asyncio.subprocess.Process:
        process = await start_process(
            python, "-X", "dev", "-W", "error", "-c", PREAMBLE + script, create(), stdout=PIPE, stderr=PIPE
        )
        assert await process.stdout.readline() == b"ready\n"
        if ".wait(" in script and script != BUSY_LOOP:
            await until(lambda: server.received)
        return process

    return start


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
async def test_a_signal_stops_the_response_before_the_process_ends(server, start, script, number, status) -> None:
    process = await start(SCRIPTS[script])
    process.send_signal(number)
    _, shown = await process.communicate()
    assert process.returncode == status, shown.decode()
    assert cancels(server) == 1
    assert next(iter(server.responses.values())).cancelled
    assert b"was not stopped" not in shown
    assert b"never" not in shown  # no exception was "never retrieved", no coroutine "never awaited"


@pytest.mark.parametrize("script", ["guard", "wait"])
async def test_a_second_ctrl_c_neither_interrupts_nor_prolongs_the_stop(server, start, script) -> None:
    process = await start(SCRIPTS[script].replace("(name)", "(name, grace=1)"))
    server.faults += [Fault(on="cancel", delay=0.2)] + [Fault(on="retrieve", delay=math.inf)] * 9
    process.send_signal(signal.SIGINT)
    await until(lambda: cancels(server))
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(10):
        await process.communicate()
    assert process.returncode == -signal.SIGINT
    assert next(iter(server.responses.values())).cancelled


async def test_ctrl_c_before_the_call_has_begun_stops_the_response(server, start) -> None:
    """The event loop of the session is busy, so that the call cannot begin."""
    process = await start(BUSY_LOOP)
    await asyncio.sleep(0.3)  # until its main thread is inside `wait`
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(10):
        await process.communicate()
    assert process.returncode == -signal.SIGINT
    assert next(iter(server.responses.values())).cancelled


async def test_a_generator_left_open_does_not_keep_the_process_alive(start) -> None:
    """The thread of the session no longer runs while the interpreter ends, so nothing can be stopped."""
    process = await start(OPEN_GENERATOR)
    async with asyncio.timeout(10):
        await process.communicate()
    assert process.returncode == 0


async def test_a_response_that_was_not_stopped_is_named_in_the_traceback(server, start) -> None:
    process = await start(SCRIPTS["wait"])
    server.faults += [Fault(status=403, body="You may not.")] * 9
    process.send_signal(signal.SIGINT)
    _, shown = await process.communicate()
    assert b"openai-cancel: resp_" in shown
    assert b"was not stopped (forbidden: 403: You may not." in shown

"""Processes of the tests. None outlives its test, whatever fails. This is a plugin of pytest, see conftest.py."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

StartProcess = Callable[..., Awaitable[Process]]

LINUX = sys.platform == "linux"
PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 2.0
"""Seconds in which a process that was told to end, but not waited for, may end by itself."""

_kept: set[int] = set()


def adopt_orphans(*, adopt: bool) -> None:
    """Become the parent of each process below this one whose own parent ends, so that it is found; or no longer."""
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def children() -> set[int]:
    """Return the ids of the processes that this one has started or adopted, also of those that have ended.

    Only Linux lists them. Elsewhere there are none, and nothing is checked.
    """
    if not LINUX:
        return set()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # is quick if there is none
    except ChildProcessError:
        return set()
    mine, found = str(os.getpid()), set()
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):  # it has ended, or is no process
            process = int(folder.name)
            _, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if parent == mine:
                found.add(process)
    return found


@contextmanager
def kept() -> Iterator[None]:
    """Let the processes that start in the block outlive the test: servers that many tests share."""
    before = children()
    adopt_orphans(adopt=False)
    try:
        yield
    finally:
        adopt_orphans(adopt=True)
        _kept.update(children() - before)


def runs(process: int) -> bool:
    """Tell whether a process has not ended, and wait for it if it has."""
    with suppress(ChildProcessError):
        return os.waitpid(process, os.WNOHANG) == (0, 0)
    return False


def end(before: set[int]) -> list[str]:
    """End the processes that have started since then, with their own; return the commands of those that still ran."""
    until = time.monotonic() + PATIENCE
    while (left := [process for process in children() - before - _kept if runs(process)]) and time.monotonic() < until:
        time.sleep(0.01)
    commands = [Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode() for process in left]
    while left:
        for process in left:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        left = [process for process in children() - before - _kept if runs(process)]  # adopted just now
    return commands


@asynccontextmanager
async def running(*command: str, **options: Any) -> AsyncIterator[Process]:
    """Run a command until the block ends, and kill what is left then of it and of the processes that it has started.

    Args:
        command: the program and its arguments.
        options: those of `asyncio.create_subprocess_exec`.
    """
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for number in range(3):  # nobody may have read them to the end
            if pipe := process._transport.get_pipe_transport(number):
                pipe.close()
        await process.wait()


@contextmanager
def running_beside(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command as `running` does, with the options of `subprocess.Popen`, in code that blocks."""
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("numprocesses", None):  # pytest-xdist's own process runs no tests, and waits for no orphans
        adopt_orphans(adopt=True)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """Let the processes of fixtures that several tests share outlive a test."""
    with kept() if fixturedef.scope != "function" else nullcontext():
        return (yield)


@pytest.fixture
async def start_process() -> AsyncIterator[StartProcess]:
    """Start processes as `running` does, until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(*command: str, **options: Any) -> Process:
            return await stack.enter_async_context(running(*command, **options))

        yield start


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Check that a test leaves no process behind, and end those that it leaves."""
    before = children()
    yield
    commands = end(before)
    assert not commands, f"left running: {commands}"

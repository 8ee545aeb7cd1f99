"""A test that leaves a process behind fails, and the process ends."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.skipif(not processes.LINUX, reason="only Linux lists the children of a process")

SLEEP = ["sleep", "1000"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.0)


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_process_and_what_it_has_started_are_ended_and_named() -> None:
    before = processes.children()
    command = "sleep 1000 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True) as shell:
        inner = int(shell.stdout.readline())
        assert processes.end(before) == [f"sh -c {command} "]
    assert gone(shell.pid)
    assert gone(inner)


def test_a_process_whose_parent_has_ended_is_found() -> None:
    before = processes.children()
    done = subprocess.run(["sh", "-c", "sleep 1000 >&2 & echo $!"], stdout=subprocess.PIPE, check=True)
    assert processes.end(before) == ["sleep 1000 "]
    assert gone(int(done.stdout))


def test_a_process_that_ends_by_itself_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 30.0)
    before = processes.children()
    child = subprocess.Popen(["sleep", "0.05"])
    assert processes.end(before) == []
    assert gone(child.pid)
    child.wait()


def test_a_process_that_tests_share_is_kept() -> None:
    before = processes.children()
    with processes.kept():
        shared = subprocess.Popen(SLEEP)
    assert processes.end(before) == []
    assert shared.poll() is None
    shared.kill()
    shared.wait()


async def test_a_block_that_fails_ends_its_process_and_what_that_has_started() -> None:
    with pytest.raises(ZeroDivisionError):
        async with processes.running("sh", "-c", "sleep 1000 & echo $!; wait", stdout=subprocess.PIPE) as shell:
            inner = int(await shell.stdout.readline())
            raise ZeroDivisionError
    assert shell.returncode == -signal.SIGKILL
    async with asyncio.timeout(5):
        while not gone(inner):
            processes.end(set())  # an adopted process is waited for
            await asyncio.sleep(0.001)


async def test_output_that_nobody_reads_keeps_no_process(start_process) -> None:
    process = await start_process(sys.executable, "-c", "print('x' * 10**6)", stdout=subprocess.PIPE)
    assert len(await process.stdout.read(10)) == 10


@pytest.mark.slow
def test_the_database_ends_with_tests_that_are_killed(python: str) -> None:
    script = """
import os, signal
from postgres import running
with running() as server:
    print(server._server.get_pid(), server._server.pgdata, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [python, "-c", script]
    with processes.kept():  # the system waits for the daemon
        done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=False, timeout=50)
    assert done.returncode == -signal.SIGKILL
    process, folder = done.stdout.decode().split()
    while not gone(int(process)) or Path(folder).exists():
        time.sleep(0.02)


def test_a_test_that_leaves_a_process_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import subprocess

        def test_leaves_a_process():
            global process
            process = subprocess.Popen(["sleep", "1000"])

        def test_after_it():
            assert process.wait() is not None
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:asyncio", "-p", "no:openai_cancel", "-p", "processes")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*left running:*sleep 1000*"])

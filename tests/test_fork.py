"""A session belongs to one process, and says so in the child of a fork."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from conftest import KEY
from ledgers import states
from web_hosts import Host, host, needs

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

ADVICE = "open a session in this process, after the fork."
PREAMBLE = """
import asyncio, os, sys, warnings
from openai_cancel import AsyncSession, Session, SessionStateError
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def forked(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)

def attempt(function, *arguments):
    try:
        print(function(*arguments), flush=True)
    except SessionStateError as error:
        print(error, flush=True)
"""


@pytest.fixture
def run_script(python: str, server: Emulator, monkeypatch: pytest.MonkeyPatch):
    """Run a script; return the lines of its output and of its log."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

    async def run_script(script: str, *arguments: str) -> tuple[list[str], list[str]]:
        done = await asyncio.to_thread(
            subprocess.run, [python, "-W", "error", "-c", PREAMBLE + script, *arguments],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr.splitlines()

    return run_script


class TestBlockingSession:
    async def test_the_error_says_what_to_do_and_is_logged_once_in_each_process(
        self, run_script, create: Callable[..., str]
    ) -> None:
        out, log = await run_script(
            """
def work():
    attempt(session.stop, "x")
    attempt(session.guard("x").__enter__)
    attempt(session.open)

with Session() as session:
    forked(work)
    forked(work)
    print(session.stop(sys.argv[1]).verdict)
""",
            create(),
        )
        *refusals, verdict = out
        assert verdict == "cancelled"
        assert len(refusals) == 6
        assert all(ADVICE in line for line in refusals)
        assert log == [refusals[0]] * 2

    async def test_a_session_that_was_not_open_yet_can_be_opened_in_the_child(
        self, run_script, create: Callable[..., str]
    ) -> None:
        out, log = await run_script(
            """
session = Session()
def work():
    with session:
        print(session.stop(sys.argv[1]).verdict)
forked(work)
""",
            create(),
        )
        assert (out, log) == (["cancelled"], [])

    async def test_a_ledger_is_used_in_the_child_through_a_session_of_the_child(
        self, run_script, tmp_path: Path
    ) -> None:
        out, log = await run_script(
            """
from openai_cancel.ledger import Ledger

def work():
    attempt(session.ledger.release, "resp_1")
    with Session(ledger=Ledger(sys.argv[1])) as own:
        own.ledger.track("resp_2", ttl=60)

with Session(ledger=Ledger(sys.argv[1])) as session:
    session.ledger.track("resp_1", ttl=60)
    forked(work)
    print(*sorted(entry.response_id for entry in session.ledger.entries()))
""",
            f"sqlite:///{tmp_path}/ledger.db",
        )
        refusal, ids = out
        assert ADVICE in refusal
        assert (ids, log) == ("resp_1 resp_2", [refusal])

    async def test_a_guard_whose_block_fails_in_the_child_leaves_its_response_to_the_parent(
        self, run_script, server: Emulator, create: Callable[..., str]
    ) -> None:
        out, log = await run_script(
            """
try:
    with Session() as session, session.guard(sys.argv[1]):
        child = os.fork()
        if child == 0:
            raise ValueError("in the child")
        os.waitpid(child, 0)
except ValueError as error:
    print(*error.__notes__, flush=True)
    os._exit(0)
""",
            create(),
        )
        assert len(out) == len(log) == 1
        assert f"could not stop its responses: {log[0]}" in out[0]
        assert ADVICE in log[0]
        assert server.received == []


class TestAsyncSession:
    """In the child, the loop of the parent may run on: the session cannot tell it from its own."""

    async def test_the_error_says_what_to_do_and_is_logged_once(self, run_script, create: Callable[..., str]) -> None:
        out, log = await run_script(
            """
loop = asyncio.new_event_loop()
session = AsyncSession()
loop.run_until_complete(session.open())

async def guarded():
    async with session.guard("x"):
        print("the block ran")

def work():
    for run in (loop.run_until_complete, asyncio.run):
        attempt(run, session.stop("x"))
        attempt(run, guarded())
        attempt(run, session.open())
    print(repr(session))

forked(work)
print(loop.run_until_complete(session.stop(sys.argv[1])).verdict)
loop.run_until_complete(session.close())
loop.close()
""",
            create(),
        )
        *refusals, state, verdict = out
        assert verdict == "cancelled"
        assert state.endswith("open in another process>")
        assert len(refusals) == 6
        assert all(ADVICE in line and "does not copy its event loop" in line for line in refusals)
        assert log == [refusals[0]]

    async def test_closing_it_in_the_child_leaves_the_connections_and_responses_to_the_parent(
        self, run_script, server: Emulator, create: Callable[..., str]
    ) -> None:
        out, log = await run_script(
            """
async def main():
    session = await AsyncSession().open()
    async with session.guard(sys.argv[1]):
        await session.retrieve(sys.argv[1])
        forked(lambda: asyncio.run(session.close()))
        print((await session.retrieve(sys.argv[1])).status)
    await session.close()

asyncio.run(main())
""",
            create(),
        )
        assert (out, log) == (["in_progress"], [])
        assert [request.method for request in server.received] == ["GET", "GET"]

    async def test_closing_it_there_also_leaves_a_ledger_alone(
        self, server: Emulator, create: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process id is as good as a fork here, which would also copy this test."""
        name, url = create(), f"sqlite:///{tmp_path}/ledger.db"
        async with (
            aiohttp.ClientSession() as client,
            Ledger(url) as ledger,
            AsyncSession(api_key=KEY, base_url=server.base_url, client_session=client, ledger=ledger) as session,
            session.guard(name),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(os, "getpid", lambda: 1)
                await session.close()
            assert not client.closed
            assert await states(ledger) == {name: "tracked"}
        assert server.received == []

    async def test_multiprocessing_passes_the_error_on(self, run_script) -> None:
        out, log = await run_script(
            """
import multiprocessing
loop = asyncio.new_event_loop()
session = AsyncSession()
loop.run_until_complete(session.open())

def work(name):
    return asyncio.run(session.cancel(name))

with multiprocessing.get_context("fork").Pool(1) as pool:
    for name in "ab":
        attempt(pool.apply, work, (name,))
loop.run_until_complete(session.close())
loop.close()
"""
        )
        assert len(out) == 2
        assert all(ADVICE in line for line in out)
        assert log == [out[0]]


async def get(service: Host, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as client, client.get(f"{service.url}/{path}") as answer:
        return answer.status, await answer.text()


GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "1", "--preload")


@needs("gunicorn")
@pytest.mark.timeout(120)
class TestGunicorn:
    async def test_the_error_is_in_the_log_although_the_service_hides_it(self, server: Emulator) -> None:
        async with host(server, (*GUNICORN, "preloaded:app")) as service:
            assert [await get(service, "resp_x") for _ in range(2)] == [(500, "Sorry.")] * 2
            await service.terminated()
        assert service.output.count(ADVICE) == 1

    @pytest.mark.parametrize(
        "application", [("--config", "python:gunicorn_hooks", "preloaded:app"), ("lazily_opened:app",)]
    )
    async def test_a_session_that_is_opened_in_the_worker_works(
        self, server: Emulator, create: Callable[..., str], application: tuple[str, ...]
    ) -> None:
        async with host(server, (*GUNICORN, *application)) as service:
            assert await get(service, create()) == (200, "cancelled")
            await service.terminated()
        assert ADVICE not in service.output

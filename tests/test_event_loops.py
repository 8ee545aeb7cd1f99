"""The main calls under every kind of event loop and host that services use."""

import asyncio
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

import pytest
from conftest import KEY

from openai_cancel import AsyncSession, Session, Verdict
from openai_cancel.emulator import Emulator, Script
from openai_cancel.ledger import Ledger


class ProactorLike(asyncio.SelectorEventLoop):
    """A loop that lacks what the loop of Windows lacks for user code.

    Its own transports use `_add_reader` and the like.
    """

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        raise NotImplementedError

    def remove_reader(self, fd: Any) -> bool:
        raise NotImplementedError

    def add_writer(self, fd: Any, callback: Any, *args: Any) -> None:
        raise NotImplementedError

    def remove_writer(self, fd: Any) -> bool:
        raise NotImplementedError

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        raise NotImplementedError

    def remove_signal_handler(self, sig: int) -> bool:
        raise NotImplementedError


@asynccontextmanager
async def served() -> AsyncIterator[Emulator]:
    async with Emulator(script=Script(runs_for=math.inf)) as server:
        yield server


async def all_calls(base_url: str, server: Emulator) -> None:
    """Make each of the main calls once, and check what it says."""
    make = server.add
    base_url = base_url.replace("127.0.0.1", "localhost")  # names are resolved, too
    async with AsyncSession(api_key=KEY, base_url=base_url) as session:
        assert (await session.cancel(make())).status == "cancelled"
        assert (await session.stop(make())).verdict is Verdict.CANCELLED
        assert (await session.wait(make(Script(runs_for=0)))).status == "completed"
        ids = [make() for _ in range(10)]
        verdicts = [outcome.verdict async for outcome in session.stop_many(ids)]
        assert verdicts == [Verdict.CANCELLED] * 10
        with pytest.raises(ZeroDivisionError):
            async with session.guard(make()) as guard:
                _ = 1 / 0
        assert guard.outcome is not None
        assert guard.outcome.verdict is Verdict.CANCELLED
        await _a_cancelled_task(session, make())
    await asyncio.to_thread(blocking_calls, base_url, [make() for _ in range(8)])


async def _a_cancelled_task(session: AsyncSession, name: str) -> None:
    entered = asyncio.Event()
    guards: list[Any] = []

    async def work() -> None:
        async with session.guard(name) as guard:
            guards.append(guard)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert guards[0].outcome.verdict is Verdict.CANCELLED


def blocking_calls(base_url: str, ids: list[str]) -> None:
    """Make the main calls with a blocking session."""
    first, second, third, *rest = ids
    with Session(api_key=lambda: KEY, base_url=base_url) as session:
        assert session.cancel(first).status == "cancelled"
        assert session.stop(second).verdict is Verdict.CANCELLED
        with pytest.raises(ZeroDivisionError), session.guard(third) as guard:
            _ = 1 / 0
        assert guard.outcome is not None
        assert guard.outcome.verdict is Verdict.CANCELLED
        assert [outcome.verdict for outcome in session.stop_many(iter(rest))] == [Verdict.CANCELLED] * len(rest)


async def everything() -> None:
    async with served() as server:
        await all_calls(server.base_url, server)


def run_in(loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
    with asyncio.Runner(loop_factory=loop_factory, debug=loop_factory is None) as runner:
        runner.run(everything())


def test_every_call_works_on_the_loop_of_asyncio() -> None:
    run_in(None)


def test_every_call_works_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop", reason="needs uvloop")
    run_in(uvloop.new_event_loop)


def test_every_call_works_on_a_loop_without_readers_and_signal_handlers() -> None:
    run_in(ProactorLike)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="CPython 3.12 and later")
def test_every_call_works_with_eager_tasks() -> None:
    run_in(eager_loop)


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def uv_loop() -> asyncio.AbstractEventLoop:
    return pytest.importorskip("uvloop", reason="needs uvloop").new_event_loop()


@pytest.mark.parametrize(
    "make",
    [
        ProactorLike,
        uv_loop,
        pytest.param(eager_loop, marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="CPython 3.12 and later")),
    ],
)
async def test_a_ledger_works_in_every_loop(url: str, make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    def run() -> None:
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(with_ledger(url))

    await asyncio.to_thread(run)


async def with_ledger(url: str) -> None:
    async with (
        served() as server,
        Ledger(url) as ledger,
        AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger, ledger_required=True) as session,
    ):
        async with session.guard(server.add()):
            assert [entry.state async for entry in ledger.entries()] == ["tracked"]
        assert [entry.state async for entry in ledger.entries()] == []


@pytest.mark.slow
def test_nest_asyncio(python: str) -> None:
    """It replaces parts of asyncio for the whole process, so it gets a process of its own."""
    nest = next((name for name in ("nest_asyncio2", "nest_asyncio") if _is_installed(name)), None)
    if nest is None:
        pytest.skip("needs nest_asyncio2 or nest_asyncio")
    script = f"""
import asyncio, sys, warnings
sys.path[:0] = {sys.path!r}
import {nest}
from test_event_loops import everything
async def outer():
    {nest}.apply()
    asyncio.get_running_loop().run_until_complete(everything())
    await everything()
asyncio.run(outer())
print("done")
"""
    assert _run(python, script) == "done\n"


def test_asgiref_both_ways() -> None:
    sync = pytest.importorskip("asgiref.sync", reason="needs asgiref")
    sync.async_to_sync(everything)()

    async def outer() -> None:
        async with served() as server:
            ids = [server.add() for _ in range(8)]
            await sync.sync_to_async(blocking_calls)(server.base_url, ids)
            await sync.sync_to_async(blocking_calls, thread_sensitive=False)(
                server.base_url, [server.add() for _ in range(8)]
            )
            await sync.sync_to_async(sync.async_to_sync(everything))()

    asyncio.run(outer())


def test_anyio_and_its_task_groups() -> None:
    anyio = pytest.importorskip("anyio", reason="needs anyio")

    async def outer() -> None:
        await everything()
        async with served() as server, AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            name = server.add()
            guards: list[Any] = []

            async def work() -> None:
                async with session.guard(name) as guard:
                    guards.append(guard)
                    await anyio.sleep_forever()

            async with anyio.create_task_group() as group:
                group.start_soon(work)
                while not guards:
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()
            assert guards[0].outcome.verdict is Verdict.CANCELLED
            ids = [server.add() for _ in range(8)]
            await anyio.to_thread.run_sync(blocking_calls, server.base_url, ids)

    anyio.run(outer)


async def test_a_notebook_like_host_whose_loop_is_running() -> None:
    """A blocking call in a coroutine blocks that loop; the server is elsewhere."""
    async with served() as server:
        ids = [server.add() for _ in range(8)]
        await asyncio.to_thread(lambda: asyncio.run(_in_a_running_loop(server.base_url, ids)))


async def _in_a_running_loop(base_url: str, ids: list[str]) -> None:
    blocking_calls(base_url, ids)


def _is_installed(name: str) -> bool:
    return find_spec(name) is not None


def _run(python: str, script: str) -> str:
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    return done.stdout if not done.stderr else done.stderr

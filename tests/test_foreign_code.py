"""Code of the caller that runs inside a call, such as a key function, cannot stretch the call or break the loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress

import aiohttp
import pytest
from conftest import KEY, hasty_session

from openai_cancel import APITimeoutError, AsyncSession, Session, Verdict
from openai_cancel.emulator import Emulator, Fault


class Swallowing:
    """Waits, and swallows every cancellation, until the test is over."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.started = asyncio.Event()

    async def wait(self) -> None:
        self.started.set()
        while not self.released.is_set():
            with suppress(asyncio.CancelledError):
                await self.released.wait()

    async def key(self) -> str:
        await self.wait()
        return KEY


@pytest.fixture
async def swallowing() -> AsyncIterator[Swallowing]:
    swallowing = Swallowing()
    yield swallowing
    swallowing.released.set()
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.001)


async def timed(call: Awaitable[object]) -> tuple[object, float]:
    """Await a call, and return its result or its error, and the seconds that it took."""
    began = time.monotonic()
    result = (await asyncio.gather(call, return_exceptions=True))[0]
    return result, time.monotonic() - began


class TestCodeThatSwallowsCancellations:
    async def test_a_key_function_does_not_stretch_the_time_out_of_a_call(self, server, swallowing) -> None:
        async with AsyncSession(api_key=swallowing.key, base_url=server.base_url) as session:
            error, seconds = await timed(session.cancel("x", timeout=0.1, deadline=0.2, max_retries=1))
        assert isinstance(error, APITimeoutError)
        assert seconds < 2
        assert server.received == []

    async def test_a_key_function_does_not_stretch_the_grace_of_a_guard(self, server, swallowing) -> None:
        async def work() -> None:
            async with session.guard("resp_x", grace=0.2):
                raise ValueError("mine")

        async with AsyncSession(api_key=swallowing.key, base_url=server.base_url) as session:
            error, seconds = await timed(work())
        assert isinstance(error, ValueError)
        assert "resp_x was not stopped" in error.__notes__[0]
        assert seconds < 2

    async def test_a_key_function_does_not_stretch_the_deadline_of_stop(self, server, swallowing) -> None:
        async with AsyncSession(api_key=swallowing.key, base_url=server.base_url) as session:
            outcome, seconds = await timed(session.stop("x", deadline=0.6))
        assert outcome.verdict is Verdict.UNKNOWN
        assert seconds < 3

    async def test_a_key_function_does_not_swallow_the_cancellation_of_the_callers_task(
        self, server, swallowing
    ) -> None:
        async with AsyncSession(api_key=swallowing.key, base_url=server.base_url) as session:
            task = asyncio.create_task(session.cancel("x"))
            await swallowing.started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert server.received == []

    async def test_a_middleware_of_a_callers_client_does_not_stretch_a_call(self, server, swallowing) -> None:
        async def middleware(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            await swallowing.wait()
            return await handler(request)

        async with (
            aiohttp.ClientSession(middlewares=[middleware]) as client,
            AsyncSession(api_key=KEY, base_url=server.base_url, client_session=client) as session,
        ):
            error, seconds = await timed(session.cancel("x", timeout=0.1, max_retries=0))
            swallowing.released.set()
        assert isinstance(error, APITimeoutError)
        assert seconds < 2

    async def test_a_trace_config_does_not_stretch_a_call(self, server, swallowing) -> None:
        async def hook(*_: object) -> None:
            await swallowing.wait()

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(hook)
        async with AsyncSession(api_key=KEY, base_url=server.base_url, trace_configs=[trace]) as session:
            error, seconds = await timed(session.cancel("x", timeout=0.1, max_retries=0))
            swallowing.released.set()
        assert isinstance(error, APITimeoutError)
        assert seconds < 2


def chained_to_itself() -> str:
    error = OSError("the vault is shut")
    raise error from error


class TestAnErrorThatIsItsOwnCause:
    async def test_a_guard_ends_and_notes_it(self, server: Emulator) -> None:
        async with AsyncSession(api_key=chained_to_itself, base_url=server.base_url) as session:
            with pytest.raises(ValueError, match="mine") as caught:
                async with session.guard("resp_x"):
                    raise ValueError("mine")
        assert caught.value.__notes__ == ["openai-cancel: resp_x was not stopped (OSError)"]

    @pytest.mark.parametrize("call", ["cancel", "stop", "wait"])
    async def test_a_call_raises_it(self, server: Emulator, call: str) -> None:
        async with AsyncSession(api_key=chained_to_itself, base_url=server.base_url) as session:
            with pytest.raises(OSError, match="the vault is shut"):
                await getattr(session, call)("resp_x")

    async def test_a_blocking_call_raises_it(self, server: Emulator) -> None:
        def work() -> None:
            with Session(api_key=chained_to_itself, base_url=server.base_url) as session:
                session.cancel("resp_x")

        with pytest.raises(OSError, match="the vault is shut"):
            await asyncio.to_thread(work)


class TestThePaceOfABulkRun:
    """It slows the requests of the run, and no others."""

    async def test_another_session_that_the_key_function_calls_is_not_slowed(self, server: Emulator, create) -> None:
        server.faults.append(Fault(status=429, headers={"retry-after": "30"}))
        elapsed: list[float] = []

        async def key() -> str:
            began = time.monotonic()
            await other.retrieve(known)
            elapsed.append(time.monotonic() - began)
            return KEY

        known = create()
        async with (
            Emulator() as elsewhere,
            AsyncSession(api_key=KEY, base_url=elsewhere.base_url) as other,
            hasty_session(api_key=key, base_url=server.base_url, max_retries=0) as session,
        ):
            known = elsewhere.add()
            outcomes = [outcome async for outcome in session.stop_many([create() for _ in range(3)], deadline=0.5)]
        assert len(outcomes) == 3
        assert max(elapsed) < 5

    async def test_a_task_that_the_source_starts_is_not_slowed(self, server: Emulator, create) -> None:
        server.faults.append(Fault(on="cancel", status=429, headers={"retry-after": "30"}))
        tasks: list[asyncio.Task[object]] = []

        async def source() -> AsyncIterator[str]:
            yield create()
            tasks.append(asyncio.create_task(session.retrieve(create())))

        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session, asyncio.timeout(5):
            async for _ in session.stop_many(source(), deadline=0.6):
                pass
            await tasks[0]


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with CPython 3.12")
class TestEagerTasks:
    """Every call works in an event loop whose tasks start to run while they are created."""

    @pytest.fixture(autouse=True)
    async def eager(self) -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    async def test_cancel_stop_and_wait(self, server: Emulator, create) -> None:
        async with AsyncSession(api_key=self.provide, base_url=server.base_url) as session:
            assert (await session.cancel(create())).status == "cancelled"
            assert (await session.stop(create())).verdict is Verdict.CANCELLED
            assert (await session.wait(create(runs_for=0))).status == "completed"

    async def test_a_guard_stops_its_responses(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(3)]
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            with pytest.raises(ValueError, match="mine"):
                async with session.guard(*ids) as guard:
                    await asyncio.sleep(0)
                    raise ValueError("mine")
        assert {outcome.verdict for outcome in guard.outcomes.values()} == {Verdict.CANCELLED}

    async def test_a_guard_that_a_cancelled_task_leaves_stops_its_response(self, server: Emulator, create) -> None:
        async def work() -> None:
            async with session.guard(identifier):
                await asyncio.Event().wait()

        identifier = create()
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            task = asyncio.create_task(work())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert server.responses[identifier].cancelled

    async def test_stop_many_stops_all(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(100)]
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            outcomes = [outcome async for outcome in session.stop_many(ids, concurrency=8)]
        assert {outcome.verdict for outcome in outcomes} == {Verdict.CANCELLED}
        assert len(outcomes) == 100

    @pytest.mark.parametrize("fails_at", [0, 1, 5])
    async def test_stop_many_ends_if_the_key_function_fails(self, server: Emulator, create, fails_at: int) -> None:
        asked = 0

        def key() -> str:
            nonlocal asked
            asked += 1
            if asked > fails_at:
                raise OSError("the vault is shut")
            return KEY

        async with AsyncSession(api_key=key, base_url=server.base_url) as session, asyncio.timeout(5):
            with pytest.raises(OSError, match="the vault is shut"):
                async for _ in session.stop_many([create() for _ in range(9)], concurrency=2):
                    pass

    async def test_a_blocking_session_works(self, server: Emulator, create) -> None:
        identifier = create()

        def work() -> str | None:
            with Session(api_key=KEY, base_url=server.base_url) as session:
                return session.cancel(identifier).status

        assert await asyncio.to_thread(work) == "cancelled"

    @staticmethod
    async def provide() -> str:
        return KEY

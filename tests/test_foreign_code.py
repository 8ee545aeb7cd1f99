"""Code of the caller that runs inside a call, such as a key function, cannot stretch the call or break the loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress

import aiohttp
import pytest
from conftest import KEY, hasty_session, until

from openai_cancel import APITimeoutError, AsyncSession, Session, Verdict
from openai_cancel.emulator import Emulator, Fault


class Stubborn:
    """Foreign code that swallows every cancellation until it is released."""

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
async def stubborn() -> AsyncIterator[Stubborn]:
    stubborn = Stubborn()
    yield stubborn
    stubborn.released.set()
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def timed(call: Awaitable[object]) -> tuple[object, float]:
    """Await a call, and return its result or its error, and the seconds that it took."""
    began = time.monotonic()
    result = (await asyncio.gather(call, return_exceptions=True))[0]
    return result, time.monotonic() - began


class TestCodeThatSwallowsCancellations:
    async def test_a_key_function_does_not_stretch_the_time_out_of_a_call(self, server, stubborn) -> None:
        async with AsyncSession(api_key=stubborn.key, base_url=server.base_url) as session:
            error, seconds = await timed(session.cancel("x", timeout=0.1, deadline=0.2, max_retries=1))
        assert isinstance(error, APITimeoutError)
        assert seconds < 2
        assert server.received == []

    async def test_a_key_function_does_not_stretch_the_grace_of_a_guard(self, server, stubborn) -> None:
        async def work() -> None:
            async with session.guard("resp_x", grace=0.2):
                raise ValueError("mine")

        async with AsyncSession(api_key=stubborn.key, base_url=server.base_url) as session:
            error, seconds = await timed(work())
        assert isinstance(error, ValueError)
        assert "resp_x was not stopped" in error.__notes__[0]
        assert seconds < 2

    async def test_a_key_function_does_not_stretch_the_deadline_of_stop(self, server, stubborn) -> None:
        async with AsyncSession(api_key=stubborn.key, base_url=server.base_url) as session:
            outcome, seconds = await timed(session.stop("x", deadline=0.6))
        assert outcome.verdict is Verdict.UNKNOWN
        assert seconds < 3

    async def test_a_key_function_does_not_swallow_the_cancellation_of_the_callers_task(self, server, stubborn) -> None:
        async with AsyncSession(api_key=stubborn.key, base_url=server.base_url) as session:
            task = asyncio.create_task(session.cancel("x"))
            await stubborn.started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert server.received == []

    async def test_a_middleware_of_a_callers_client_does_not_stretch_a_call(self, server, stubborn) -> None:
        async def middleware(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            await stubborn.wait()
            return await handler(request)

        async with (
            aiohttp.ClientSession(middlewares=[middleware]) as client,
            AsyncSession(api_key=KEY, base_url=server.base_url, client_session=client) as session,
        ):
            error, seconds = await timed(session.cancel("x", timeout=0.1, max_retries=0))
            stubborn.released.set()
        assert isinstance(error, APITimeoutError)
        assert seconds < 2

    async def test_a_trace_config_does_not_stretch_a_call(self, server, stubborn) -> None:
        async def hook(*_: object) -> None:
            await stubborn.wait()

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(hook)
        async with AsyncSession(api_key=KEY, base_url=server.base_url, trace_configs=[trace]) as session:
            error, seconds = await timed(session.cancel("x", timeout=0.1, max_retries=0))
            stubborn.released.set()
        assert isinstance(error, APITimeoutError)
        assert seconds < 2


async def provide_key() -> str:
    return KEY


def chained_to_itself() -> str:
    """A key function whose error is its own cause."""
    error = OSError("no key")
    raise error from error


class TestAnErrorThatIsItsOwnCause:
    async def test_a_guard_adds_a_note_about_it(self, server: Emulator) -> None:
        async with AsyncSession(api_key=chained_to_itself, base_url=server.base_url) as session:
            with pytest.raises(ValueError, match="mine") as caught:
                async with session.guard("resp_x"):
                    raise ValueError("mine")
        assert caught.value.__notes__ == ["openai-cancel: resp_x was not stopped (OSError)"]

    @pytest.mark.parametrize("call", ["cancel", "stop", "wait"])
    async def test_a_call_raises_the_error_of_the_key_function(self, server: Emulator, call: str) -> None:
        async with AsyncSession(api_key=chained_to_itself, base_url=server.base_url) as session:
            with pytest.raises(OSError, match="no key"):
                await getattr(session, call)("resp_x")

    async def test_a_blocking_call_raises_the_error_of_the_key_function(self, server: Emulator) -> None:
        def work() -> None:
            with Session(api_key=chained_to_itself, base_url=server.base_url) as session:
                session.cancel("resp_x")

        with pytest.raises(OSError, match="no key"):
            await asyncio.to_thread(work)


class TestPaceOfStopMany:
    """The pace slows the requests of its `stop_many`, and no others."""

    async def test_a_session_that_the_key_function_uses_is_not_slowed(self, server: Emulator, create) -> None:
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

    async def test_cancel_stop_and_wait_work(self, server: Emulator, create) -> None:
        async with AsyncSession(api_key=provide_key, base_url=server.base_url) as session:
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

    async def test_a_guard_in_a_cancelled_task_stops_its_response(self, server: Emulator, create) -> None:
        async def work() -> None:
            async with session.guard(identifier):
                entered.set()
                await asyncio.Event().wait()

        identifier, entered = create(), asyncio.Event()
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            task = asyncio.create_task(work())
            await entered.wait()
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
                raise OSError("no key")
            return KEY

        async with AsyncSession(api_key=key, base_url=server.base_url) as session, asyncio.timeout(5):
            with pytest.raises(OSError, match="no key"):
                async for _ in session.stop_many([create() for _ in range(9)], concurrency=2):
                    pass

    async def test_a_blocking_session_works(self, server: Emulator, create) -> None:
        identifier = create()

        def work() -> str | None:
            with Session(api_key=KEY, base_url=server.base_url) as session:
                return session.cancel(identifier).status

        assert await asyncio.to_thread(work) == "cancelled"

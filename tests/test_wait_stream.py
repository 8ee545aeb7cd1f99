"""`wait(stream=True)`: the end is noticed at once where the server streams, and as by polling where it does not."""

import asyncio
import itertools
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp import web
from conftest import KEY, cancels, reported, until
from manual_clock import ManualClock
from relay import Relay

from openai_cancel import AsyncSession, Response, Session, SessionStateError, WaitTimeoutError
from openai_cancel.emulator import DIALECTS, Emulator, Fault, Script

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class OnStreams:
    """Faults that strike the streams that are asked for, one after the other, but not the looks.

    Attributes:
        on: the operation that a stream is a case of.
    """

    on = "retrieve"

    def __init__(self, server: Emulator, *faults: Fault) -> None:
        self._server = server
        self._faults = [*faults]
        server.faults.append(self)

    async def strike(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self._server.faults.append(self)
        if "stream" in request.query and self._faults:
            return await self._faults.pop(0).strike(request, handler)
        return await handler(request)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def session(server: Emulator, clock: ManualClock) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
        yield session


Streamed = Callable[..., Awaitable[str]]


@pytest.fixture
def streamed(server: Emulator) -> Streamed:
    """Create a response whose events a retrieve can stream; return its id."""

    async def create(**script: Any) -> str:
        server.script = Script(**{"runs_for": math.inf, **script})
        body = {"model": "m", "input": "hi", "background": True, "stream": True}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            answer = await http.post(f"{server.base_url}/responses", json=body)
            await answer.content.readline()
            answer.close()
        server.received.clear()
        return next(reversed(server.responses))

    return create


def looks(server: Emulator) -> list[str]:
    """Return the queries of the retrieves that a server has received."""
    return [request.path.partition("?")[2] for request in server.received if request.method == "GET"]


def is_polled(server: Emulator) -> bool:
    """Return whether a stream was asked for once, and then the response was looked at."""
    first, *others = looks(server)
    return first == "stream=true" and set(others) == {""}


async def size(server: Emulator, name: str, events: float = math.inf) -> int:
    """Return the number of bytes of the first events of a stream."""
    size = 0
    url = f"{server.base_url}/responses/{name}?stream=true"
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http, http.get(url) as answer:
        while events and (line := await answer.content.readline()):
            size += len(line)
            events -= line == b"\n"
    server.received.clear()
    return size


async def moved(clock: ManualClock, seconds: float, condition: Callable[[], object]) -> None:
    """Move a clock when the loop has come to rest, and wait for the effect."""
    await asyncio.sleep(0.03)
    clock.advance(seconds)
    await until(condition)


async def run_to_end(session: AsyncSession, clock: ManualClock, name: str) -> None:
    wait = asyncio.create_task(session.wait(name, stream=True, max_retries=0))
    while not wait.done():
        await asyncio.sleep(0.01)
        clock.advance(0.5)
    assert (await wait).status == "completed"


async def open_stream(server: Emulator, clock: ManualClock) -> None:
    """Wait until a stream has been answered, and something waits for it to tell more."""
    await until(lambda: looks(server) and len(clock.slept) > 1)
    await asyncio.sleep(0.05)


class TestEnd:
    @pytest.mark.parametrize("becomes", ["completed", "failed", "incomplete"])
    async def test_it_is_noticed_at_once_and_looked_at_once(self, session, server, clock, streamed, becomes) -> None:
        name = await streamed(queued_for=5, runs_for=10, becomes=becomes)
        seen: list[str] = []
        wait = asyncio.create_task(session.wait(name, stream=True, on_update=lambda one: seen.append(one.status)))
        await until(lambda: seen)
        await moved(clock, 5, lambda: "in_progress" in seen)
        await moved(clock, 5, lambda: True)
        await moved(clock, 5, wait.done)
        assert (await wait).status == becomes
        assert looks(server) == ["stream=true", ""]
        assert seen == ["queued", "in_progress", becomes]

    async def test_a_response_that_has_ended_before(self, session, server, streamed) -> None:
        name = await streamed(runs_for=0, says="Done.")
        assert (await session.wait(name, stream=True)).output_text == "Done."
        assert looks(server) == ["stream=true", ""]

    @pytest.mark.parametrize("dialect", ["openai", "azure"])
    async def test_a_cancel_elsewhere_ends_the_stream(self, clock, streamed, server, session, dialect: str) -> None:
        server.dialect = attrs.evolve(DIALECTS["openai"], cancelled_stream=DIALECTS[dialect].cancelled_stream)
        name = await streamed()
        wait = asyncio.create_task(session.wait(name, stream=True))
        await open_stream(server, clock)
        server.responses[name].cancel(clock.now)
        async with asyncio.timeout(5):
            assert (await wait).status == "cancelled"
        assert looks(server) == ["stream=true", ""]

    async def test_it_is_not_believed_without_a_look(self, session, server, clock, streamed) -> None:
        name = await streamed(runs_for=0)
        server.faults += [Fault(on="retrieve"), *[reported("in_progress")] * 3]
        await run_to_end(session, clock, name)
        assert looks(server) == ["stream=true", "", "", "", ""]

    async def test_a_blocking_session_streams_too(self, server, streamed) -> None:
        name = await streamed(runs_for=0)

        def run() -> str | None:
            with Session(api_key=KEY, base_url=server.base_url) as session:
                return session.wait(name, stream=True).status

        assert await asyncio.to_thread(run) == "completed"
        assert looks(server) == ["stream=true", ""]


class TestCut:
    async def test_a_stream_that_is_cut_is_resumed_after_the_last_event(self, session, server, clock, streamed) -> None:
        name = await streamed(runs_for=30, says="a b c d e f")  # a piece every 5 s
        first = await size(server, name, 6)
        server.faults.append(Fault(on="retrieve", cut="body", cut_after=2 * first - await size(server, name, 5) + 20))
        wait = asyncio.create_task(session.wait(name, stream=True))
        await open_stream(server, clock)
        await moved(clock, 5, lambda: True)
        await moved(clock, 5, lambda: 0.5 in clock.slept[1:])
        await moved(clock, 0.5, lambda: len(looks(server)) == 2)
        assert looks(server) == ["stream=true", "stream=true&starting_after=6"]
        for _ in range(4):
            await moved(clock, 5, lambda: True)
        await until(wait.done)
        assert (await wait).status == "completed"
        assert looks(server)[2:] == [""]

    async def test_a_stream_that_is_cut_soon_is_looked_at_as_it_may_lag(self, session, server, clock, streamed) -> None:
        name = await streamed(runs_for=5)
        server.faults.append(Fault(on="retrieve", cut="body"))
        wait = asyncio.create_task(session.wait(name, stream=True))
        await until(lambda: len(looks(server)) == 2)
        assert looks(server) == ["stream=true", ""]
        await moved(clock, 0.5, lambda: len(looks(server)) == 3)
        await moved(clock, 4.5, wait.done)
        assert looks(server) == ["stream=true", "", "stream=true&starting_after=0", ""]

    async def test_the_last_event_may_be_too_large_to_pass(self, session, server, streamed) -> None:
        name = await streamed(runs_for=0, says="x" * 10_000)
        server.faults.append(Fault(on="retrieve", cut="body", cut_after=await size(server, name) - 5_000))
        assert (await session.wait(name, stream=True)).status == "completed"
        assert looks(server) == ["stream=true", ""]

    async def test_streams_without_new_events_are_given_up(
        self, session, server, clock, streamed, caplog: pytest.LogCaptureFixture
    ) -> None:
        name = await streamed(runs_for=30)
        OnStreams(server, *[Fault(cut="body", cut_after=0)] * 4)
        with caplog.at_level(logging.DEBUG, "openai_cancel"):
            await run_to_end(session, clock, name)
        assert looks(server).count("stream=true") == 3
        assert caplog.text.count("its stream brings no events; polling") == 1

    async def test_a_server_that_fails_is_asked_again_and_then_polled(self, session, server, clock, streamed) -> None:
        name = await streamed(runs_for=30)
        OnStreams(server, *[Fault(status=503, headers={"retry-after": "2"})] * 4)
        await run_to_end(session, clock, name)
        assert looks(server).count("stream=true") == 3
        assert clock.slept.count(2) >= 2

    async def test_a_server_without_answers_is_asked_again_and_again(self, session, server, clock, streamed) -> None:
        name = await streamed(runs_for=40)
        OnStreams(server, *[Fault(cut="connection")] * 5)
        await run_to_end(session, clock, name)
        assert looks(server).count("stream=true") == 6

    async def test_a_connection_that_died_without_a_sign_does_not_hold_the_wait(self, server, clock, streamed) -> None:
        name = await streamed(runs_for=10)
        async with (
            Relay(server.base_url) as relay,
            AsyncSession(api_key=KEY, base_url=relay.base_url, clock=clock) as session,
        ):
            wait = asyncio.create_task(session.wait(name, stream=True))
            await open_stream(server, clock)
            relay.freeze()
            await moved(clock, 10.1, wait.done)
            assert (await wait).status == "completed"
            assert looks(server) == ["stream=true", ""]

    async def test_looks_at_a_silent_stream_are_never_more_frequent_than_late_polls(
        self, session, server, clock, streamed
    ) -> None:
        name = await streamed(queued_for=1000)
        wait = asyncio.create_task(session.wait(name, stream=True))
        await open_stream(server, clock)
        for number in range(2, 12):
            await moved(clock, 8, lambda number=number: len(looks(server)) == number)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        assert looks(server) == ["stream=true", *[""] * 10]


class TestFallback:
    @pytest.mark.parametrize("status", [301, 400, 401, 404, 405, 422, 501])
    async def test_a_server_that_refuses_the_stream_is_polled(
        self, session, server, clock, streamed, caplog: pytest.LogCaptureFixture, *, status: int
    ) -> None:
        name = await streamed(runs_for=5)
        OnStreams(server, Fault(status=status, headers={"location": "/v1/ok"}))
        with caplog.at_level(logging.DEBUG, "openai_cancel"):
            await run_to_end(session, clock, name)
        assert is_polled(server)
        assert caplog.text.count("; polling") == 1
        assert f"{status}); polling" in caplog.text

    @pytest.mark.parametrize("headers", [{}, {"content-type": "text/html"}, {"content-type": "text/event-streams"}])
    async def test_an_answer_that_is_neither_a_stream_nor_a_response(
        self, session, server, clock, streamed, headers
    ) -> None:
        name = await streamed(runs_for=5)
        OnStreams(server, Fault(status=200, body="data: {}\n\n", headers=headers))
        await run_to_end(session, clock, name)
        assert is_polled(server)

    async def test_a_response_that_its_server_shows_late_is_polled(self, session, server, clock, streamed) -> None:
        server.store_delay = 4
        await run_to_end(session, clock, await streamed(runs_for=10))
        assert is_polled(server)
        assert cancels(server) == 0

    async def test_a_response_that_cannot_be_streamed_is_polled(self, session, server, clock, create) -> None:
        await run_to_end(session, clock, create(runs_for=5))
        assert is_polled(server)

    async def test_a_response_that_is_too_old_to_be_resumed_is_polled(self, session, server, clock, streamed) -> None:
        server.dialect = attrs.evolve(server.dialect, streams_for=1)
        name = await streamed(runs_for=10)
        OnStreams(server, Fault(cut="body"))
        wait = asyncio.create_task(session.wait(name, stream=True))
        await until(lambda: len(looks(server)) == 2)
        await moved(clock, 2, lambda: len(looks(server)) > 3)
        assert looks(server)[2].startswith("stream=true&starting_after=")
        await moved(clock, 8, wait.done)
        assert (await wait).status == "completed"

    async def test_a_server_that_answers_with_the_response_saves_a_look(self, session, server, clock, streamed) -> None:
        server.dialect = attrs.evolve(server.dialect, replays=False)
        seen: list[Response] = []
        assert (await session.wait(await streamed(runs_for=0), stream=True, on_update=seen.append)) is seen[0]
        assert looks(server) == ["stream=true"]
        name = await streamed(runs_for=3)
        await run_to_end(session, clock, name)
        assert is_polled(server)

    async def test_half_of_the_connections_are_for_streams(self, server, clock, streamed) -> None:
        names = [await streamed() for _ in range(3)]
        options = {"api_key": KEY, "base_url": server.base_url, "clock": clock}
        async with AsyncSession(**options, max_connections=4) as session:
            waits = [asyncio.create_task(session.wait(name, stream=True)) for name in names]
            await until(lambda: len(looks(server)) == 3)
            assert sorted(looks(server)) == ["", "stream=true", "stream=true"]
            for name in names:
                assert (await session.cancel(name)).status == "cancelled"
            await moved(clock, 0.5, lambda: all(wait.done() for wait in waits))
        async with AsyncSession(**options, max_connections=1) as session:
            server.received.clear()
            assert (await session.wait(names[0], stream=True)).status == "cancelled"
            assert looks(server) == [""]

    async def test_streams_give_their_connections_back(self, server, streamed) -> None:
        name = await streamed(runs_for=0)
        async with AsyncSession(api_key=KEY, base_url=server.base_url, max_connections=2) as session:
            for _ in range(3):
                await session.wait(name, stream=True)
        assert looks(server) == ["stream=true", ""] * 3


class TestLimits:
    async def test_a_timeout_ends_the_stream_and_stops_the_response(self, session, server, clock, streamed) -> None:
        name = await streamed(queued_for=1000)
        wait = asyncio.create_task(session.wait(name, stream=True, timeout=3))
        await open_stream(server, clock)
        await moved(clock, 3, wait.done)
        with pytest.raises(WaitTimeoutError, match=r"within 3 s: its status was 'queued'\. It was stopped"):
            await wait
        assert looks(server)[:2] == ["stream=true", ""]

    async def test_a_response_that_stays_queued(self, session, server, clock, streamed) -> None:
        name = await streamed(queued_for=1000)
        wait = asyncio.create_task(session.wait(name, stream=True, queued_timeout=3))
        await open_stream(server, clock)
        await moved(clock, 3, wait.done)
        with pytest.raises(WaitTimeoutError) as caught:
            await wait
        assert caught.value.limit == "queued_timeout"

    async def test_events_are_progress(self, session, server, clock, streamed) -> None:
        name = await streamed(queued_for=2, runs_for=20, says="a b c d e f g h i j")  # a piece every 2 s
        wait = asyncio.create_task(session.wait(name, stream=True, stalled_timeout=7, queued_timeout=7))
        await open_stream(server, clock)
        for _ in range(11):
            await moved(clock, 2, lambda: True)
        await until(wait.done)
        assert (await wait).status == "completed"
        assert looks(server) == ["stream=true", ""]

    async def test_a_stream_without_events_is_no_progress(self, session, server, clock, streamed) -> None:
        name = await streamed(runs_for=1000, says="a")
        wait = asyncio.create_task(session.wait(name, stream=True, stalled_timeout=5))
        await open_stream(server, clock)
        await moved(clock, 5, wait.done)
        with pytest.raises(WaitTimeoutError) as caught:
            await wait
        assert (caught.value.limit, caught.value.outcome.stopped) == ("stalled_timeout", True)


class TestLeaving:
    async def test_a_cancellation_stops_the_response(self, session, server, clock, streamed) -> None:
        name = await streamed()
        wait = asyncio.create_task(session.wait(name, stream=True))
        await open_stream(server, clock)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        assert cancels(server) == 1
        assert server.responses[name].cancelled is not None

    @pytest.mark.parametrize("steps", range(6))
    async def test_a_second_cancellation_while_the_stream_is_closed(
        self, session, server, clock, streamed, *, steps: int
    ) -> None:
        name = await streamed()
        wait = asyncio.create_task(session.wait(name, stream=True))
        await open_stream(server, clock)
        wait.cancel()
        for _ in range(steps):
            await asyncio.sleep(0)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        assert server.responses[name].cancelled is not None

    async def test_leave_lets_it_run(self, session, server, clock, streamed) -> None:
        name = await streamed()
        wait = asyncio.create_task(session.wait(name, stream=True, on_abandon="leave"))
        await open_stream(server, clock)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        assert cancels(server) == 0

    async def test_closing_the_session_ends_the_wait(self, session, server, clock, streamed) -> None:
        name = await streamed()
        wait = asyncio.create_task(session.wait(name, stream=True))
        await open_stream(server, clock)
        await session.close()
        with pytest.raises(SessionStateError):
            await wait
        assert server.responses[name].cancelled is not None

    async def test_a_key_function_that_fails_for_the_stream_ends_the_wait_at_once(
        self, server, clock, streamed
    ) -> None:
        calls = itertools.count()

        def key() -> str:
            if next(calls) == 0:
                raise LookupError("no key yet")
            return KEY

        name = await streamed()
        async with AsyncSession(api_key=key, base_url=server.base_url, clock=clock) as session:
            with pytest.raises(LookupError):
                await session.wait(name, stream=True)
        assert server.responses[name].cancelled is not None

    async def test_closing_the_session_ends_a_stream_of_a_response_that_is_left_running(
        self, session, server, clock, streamed
    ) -> None:
        name = await streamed()
        wait = asyncio.create_task(session.wait(name, stream=True, on_abandon="leave"))
        await open_stream(server, clock)
        await session.close()
        with pytest.raises(SessionStateError):
            await wait
        assert server.responses[name].cancelled is None

    async def test_an_error_of_the_key_function_ends_the_wait(self, server, clock, streamed) -> None:
        name = await streamed()
        keys = iter([KEY])
        options = {"base_url": server.base_url, "clock": clock}
        async with AsyncSession(api_key=lambda: next(keys), **options) as session:
            wait = asyncio.create_task(session.wait(name, stream=True, on_abandon="leave"))
            await open_stream(server, clock)
            await moved(clock, 8, wait.done)
            with pytest.raises(RuntimeError):
                await wait
        async with AsyncSession(api_key=lambda: 1 / 0, **options) as session:
            with pytest.raises(ZeroDivisionError):
                await session.wait(name, stream=True, on_abandon="leave")

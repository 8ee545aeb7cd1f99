"""Streams that no well-behaved server sends, over real connections."""

import asyncio
import itertools
import json
import math
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import KEY, until
from exposure import KEY as SECRET
from exposure import leaks
from manual_clock import ManualClock

from openai_cancel import AsyncSession, Response, SessionStateError, WaitTimeoutError
from openai_cancel.emulator import Emulator, Fault, Script

pytestmark = pytest.mark.usefixtures("no_task_is_left")


def event(kind: str, number: object = None, **fields: Any) -> bytes:
    numbered = {} if number is None else {"sequence_number": number}
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **numbered, **fields})}\n\n".encode()


def response(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "status": status, **fields}


DEEP = b"[" * 1015 + b"]" * 1015
"""A value that orjson still reads, and Python neither compares nor shows."""

END = b""
"""The end of a stream in good order."""

DELTA = event("response.output_text.delta", 1, delta="x")
COMPLETED = event("response.completed", 9, response=response("completed"))


class Scripted:
    """A server that sends what it is told, one body for each stream that is asked for.

    Attributes:
        base_url: its URL.
        status: the status that a look reports.
        bodies: the chunks of each stream to come. After the last one the connection stays open. The last body is
            repeated.
        headers: more headers of a stream.
        requests: the requests so far.
        open: the number of streams that are open.
        streams: the streams so far, to write more to.
        finish: ends the streams that are open, in good order.
    """

    def __init__(self) -> None:
        self.status = "in_progress"
        self.bodies: list[Iterable[bytes]] = [[]]
        self.headers: dict[str, str] = {}
        self.requests: list[web.Request] = []
        self.open = 0
        self.finish = asyncio.Event()

        self.streams: list[web.StreamResponse] = []

    @property
    def queries(self) -> list[str]:
        return [request.query_string for request in self.requests]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.method == "POST":
            self.status = "cancelled"
        if request.query.get("stream") != "true":
            return web.json_response(response(self.status))
        body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        stream = web.StreamResponse(headers={"Content-Type": "Text/Event-Stream; charset=utf-8", **self.headers})
        await stream.prepare(request)
        self.open += 1
        self.streams.append(stream)
        try:
            for chunk in body:
                if chunk == END:
                    return stream
                await stream.write(chunk)
            await self.finish.wait()
            return stream
        finally:
            self.open -= 1


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    server = Scripted()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield server
    await runner.cleanup()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def session(scripted: Scripted, clock: ManualClock) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(api_key=KEY, base_url=scripted.base_url, clock=clock) as session:
        yield session


class Chat:
    """A wait on a stream that shows progress again and again."""

    def __init__(self, session: AsyncSession, scripted: Scripted, clock: ManualClock) -> None:
        self._scripted = scripted
        self._clock = clock
        self._sent = 0
        self._told: object = None
        self.wait = asyncio.create_task(session.wait("resp_1", stream=True, on_update=self._note))

    def _note(self, one: Response) -> None:
        self._told = one.to_dict().get("updated_at", self._told)

    async def go_on(self, seconds: float) -> None:
        """Send an event, wait until it was heard, and move the clock."""
        await until(lambda: self._scripted.streams)
        self._sent += 1
        carried = response("in_progress", updated_at=self._sent)
        with suppress(ConnectionError):  # the wait may just end
            await self._scripted.streams[0].write(event("response.in_progress", self._sent, response=carried))
        await until(lambda: self._told == self._sent or self.wait.done())
        self._clock.advance(seconds)


class TestEvents:
    @pytest.mark.parametrize(
        "last",
        [
            COMPLETED,
            b'data: {"type": "response.cancelled"}\n\n',
            b'data: {"type": "anything", "response": {"status": "failed"}}\n\n',
            b"event: response.incomplete\ndata: {",
            b"event: response.failed\ndata: [DONE]\n\n",
            COMPLETED.replace(b"\n", b"\r"),
        ],
    )
    async def test_the_end_is_seen_in_any_form(self, session, scripted, last: bytes) -> None:
        scripted.bodies = [[DELTA, last]]
        scripted.status = "completed"
        assert (await session.wait("resp_1", stream=True)).status == "completed"
        assert scripted.queries == ["stream=true", ""]
        await until(lambda: scripted.open == 0)

    @pytest.mark.parametrize(
        "odd",
        [
            b"data: [DONE]\n\n",
            b'data: ["response.completed"]\n\n',
            b'data: "response.completed"\n\n',
            event("response.output_text.delta", delta="response.completed"),
            event("response.in_progress", response="completed"),
            event("response.in_progress", response={"status": ["completed"]}),
            event("response.in_progress", response={"status": {"a": 1}}, status="completed"),
            b'data: {"type": {"response.completed": 1}}\n\n',
            pytest.param(b'data: {"type": ' + DEEP + b"}\n\n", id="deep"),
            b"data: \xff\xfe\n\n",
            b": response.completed\n\n",
            b"event: response.completed\n\n",
        ],
    )
    async def test_other_events_are_no_end(self, session, scripted, clock, odd: bytes) -> None:
        scripted.bodies = [[odd, DELTA]]
        wait = asyncio.create_task(session.wait("resp_1", stream=True))
        await until(lambda: scripted.open and len(clock.slept) > 1)
        await asyncio.sleep(0.05)
        assert (scripted.queries, wait.done()) == (["stream=true"], False)
        scripted.status = "completed"
        clock.advance(8)
        assert (await wait).status == "completed"

    async def test_responses_in_events_are_told_if_they_have_changed(self, session, scripted) -> None:
        seen: list[Response] = []
        wait = asyncio.create_task(session.wait("resp_1", stream=True, on_update=seen.append))
        await until(lambda: scripted.streams)
        for number, carried in enumerate([
            response("queued", model="m"),
            response("in_progress"),
            response("in_progress", model="m"),
            response("in_progress", output=[{"type": "message"}]),
        ]):  # fmt: skip
            await scripted.streams[0].write(event("response.any", number, response=carried))
            await asyncio.sleep(0.02)
        scripted.status = "completed"
        await scripted.streams[0].write(COMPLETED)
        assert await wait is seen[-1]
        assert [(one.status, len(one.output or [])) for one in seen] == [
            ("queued", 0), ("in_progress", 0), ("in_progress", 1), ("completed", 0),
        ]  # fmt: skip

    async def test_responses_that_are_nested_too_deeply_to_be_compared_are_told_as_if_changed(
        self, session, scripted
    ) -> None:
        seen: list[Response] = []
        wait = asyncio.create_task(session.wait("resp_1", stream=True, on_update=seen.append))
        await until(lambda: scripted.streams)
        for number in (1, 2):
            carried = event("response.any", number, response=response("in_progress", output="DEEP"))
            # Versions of Python differ in how deep they compare. What differs has changed for all of them.
            await scripted.streams[0].write(carried.replace(b'"DEEP"', DEEP.replace(b"[]", b"[%d]" % number)))
            await until(lambda number=number: len(seen) == number)
        scripted.status = "completed"
        await scripted.streams[0].write(COMPLETED)
        assert (await wait).status == "completed"
        assert scripted.queries == ["stream=true", ""]

    async def test_a_slow_function_misses_all_but_the_last(self, session, scripted) -> None:
        seen: list[str | None] = []
        told = asyncio.Event()

        async def note(one: Response) -> None:
            seen.append(one.status)
            await told.wait()

        wait = asyncio.create_task(session.wait("resp_1", stream=True, on_update=note))
        await until(lambda: scripted.streams)
        for number, status in enumerate(["a", "b", "c"]):
            await scripted.streams[0].write(event("response.any", number, response=response(status)))
            await until(lambda: seen)
        await asyncio.sleep(0.02)
        told.set()
        await until(lambda: "c" in seen)
        scripted.status = "completed"
        await scripted.streams[0].write(COMPLETED)
        await wait
        assert seen == ["a", "c", "completed"]

    async def test_a_limit_ends_a_function_that_hangs(self, session, scripted, caplog) -> None:
        async def hang(_: Response) -> None:
            await asyncio.Event().wait()

        scripted.bodies = [[event("response.in_progress", 1, response=response("in_progress"))]]
        wait = asyncio.create_task(session.wait("resp_1", stream=True, timeout=0.2, on_update=hang))
        await until(lambda: "on_update raised TimeoutError" in caplog.text)
        assert scripted.queries == ["stream=true"]
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait

    async def test_a_response_that_ends_while_a_slow_function_runs_is_not_too_late(
        self, session, scripted, clock
    ) -> None:
        def take_long(_: Response) -> None:
            scripted.status = "completed"
            clock.advance(100)

        wait = asyncio.create_task(session.wait("resp_1", stream=True, stalled_timeout=20, on_update=take_long))
        await until(lambda: scripted.streams)
        while not wait.done():
            clock.advance(1)
            await asyncio.sleep(0.005)
        assert (await wait).status == "completed"
        assert scripted.queries == ["stream=true", "", ""]

    @pytest.mark.parametrize(
        ("more", "is_progress"),
        [
            (b": keep-alive\n\n", False),
            (event("keepalive", 5), False),
            (event("ping"), False),
            (event("keep-alive"), False),
            (event("heartbeat", 5), False),
            (event("response.output_text.delta", 1.0, delta="sent again"), False),
            (event("response.output_text.delta", 5.0, delta="new"), True),
            (event("error", 5, message="overloaded"), False),
            (event("response.output_text.delta", 1, delta="sent again"), False),
            (event("response.in_progress", 5, response=response("in_progress")), False),
            (event("response.output_text.delta", 5, delta="new"), True),
            (event("response.output_text.delta", delta="without a number"), True),
            (event("response.in_progress", 5, response=response("in_progress", output=[1])), True),
        ],
    )
    async def test_only_what_is_new_puts_a_look_off(
        self, session, scripted, clock, more: bytes, *, is_progress: bool
    ) -> None:
        started = [DELTA, event("response.in_progress", 2, response=response("in_progress"))]
        scripted.bodies = [started]
        seen: list[Response] = []
        wait = asyncio.create_task(session.wait("resp_1", stream=True, stalled_timeout=20, on_update=seen.append))
        await until(lambda: seen)
        await asyncio.sleep(0.01)
        clock.advance(7)
        await scripted.streams[0].write(more)
        await asyncio.sleep(0.2 if is_progress else 0)
        clock.advance(1)
        if is_progress:
            await asyncio.sleep(0.05)
            assert scripted.queries == ["stream=true"]
            clock.advance(12)  # the twentieth second
            await until(lambda: len(scripted.queries) == 2)
            wait.cancel()
            with pytest.raises(asyncio.CancelledError):
                await wait
        else:
            await until(lambda: len(scripted.queries) == 2)
            await asyncio.sleep(0.1)
            clock.advance(12)
            with pytest.raises(WaitTimeoutError, match="stalled_timeout"):
                await wait

    async def test_events_without_a_number_are_not_new_when_the_stream_is_resumed(
        self, session, scripted, clock
    ) -> None:
        delta = event("response.output_text.delta", delta="x")
        scripted.bodies = [[delta, END], [delta]]
        wait = asyncio.create_task(session.wait("resp_1", stream=True, stalled_timeout=20))
        while not wait.done():
            clock.advance(1)
            await asyncio.sleep(0.005)
            if len(scripted.streams) == 2:
                with suppress(ConnectionError):  # the wait may just end
                    await scripted.streams[1].write(delta)
        assert scripted.queries.count("") > 2
        assert clock.now < 50
        with pytest.raises(WaitTimeoutError, match="stalled_timeout"):
            await wait

    async def test_a_stream_that_goes_on_after_the_end_is_looked_at_each_minute(self, scripted, clock, session) -> None:
        chat = Chat(session, scripted, clock)
        while scripted.queries.count("") < 3:
            await chat.go_on(6)
        assert 180 <= clock.now <= 240
        scripted.status = "completed"
        while not chat.wait.done():
            await chat.go_on(6)
        assert clock.now <= 320
        assert (await chat.wait).status == "completed"

    @pytest.mark.slow
    async def test_eight_hours_of_events_take_at_most_200_looks(self, session, scripted, clock) -> None:
        chat = Chat(session, scripted, clock)
        while clock.now < 8 * 3600:
            await chat.go_on(6 if clock.now < 1800 else 30)
        chat.wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await chat.wait
        assert 100 < scripted.queries.count("") <= 200

    async def test_output_shows_that_a_response_has_left_the_queue(self, session, scripted, clock) -> None:
        scripted.bodies = [[event("response.created", 0, response=response("queued")), DELTA]]
        wait = asyncio.create_task(session.wait("resp_1", stream=True, queued_timeout=5))
        await until(lambda: len(clock.slept) > 1)
        await asyncio.sleep(0.03)
        clock.advance(6)
        await asyncio.sleep(0.03)
        assert not wait.done()
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait


class TestConnections:
    async def test_a_stream_that_ends_without_the_end_of_the_response_is_resumed(
        self, session, scripted, clock
    ) -> None:
        scripted.bodies = [[DELTA, END], [COMPLETED]]
        wait = asyncio.create_task(session.wait("resp_1", stream=True))
        await until(lambda: len(scripted.queries) == 2)
        scripted.status = "completed"
        await asyncio.sleep(0.03)
        clock.advance(0.5)
        assert (await wait).status == "completed"
        assert scripted.queries == ["stream=true", "", "stream=true&starting_after=1", ""]

    async def test_a_stream_that_has_lasted_is_resumed_without_a_look(self, session, scripted, clock) -> None:
        scripted.bodies = [[DELTA], [COMPLETED]]
        wait = asyncio.create_task(session.wait("resp_1", stream=True))
        await until(lambda: len(clock.slept) > 1)
        await asyncio.sleep(0.03)
        clock.advance(1)
        scripted.finish.set()
        await until(lambda: 0.5 in clock.slept[1:])
        scripted.status = "completed"
        clock.advance(0.5)
        assert (await wait).status == "completed"
        assert scripted.queries == ["stream=true", "stream=true&starting_after=1", ""]

    async def test_a_cancellation_while_the_connection_is_closed_takes_precedence(self, scripted, clock) -> None:
        async with (
            aiohttp.ClientSession() as client,
            AsyncSession(api_key=KEY, base_url=scripted.base_url, clock=clock, client_session=client) as session,
        ):
            wait = asyncio.create_task(
                session.wait("resp_1", stream=True, timeout=3, on_update=lambda _: wait.cancel())  # at the last look
            )
            await until(lambda: len(clock.slept) > 1)
            clock.advance(3)
            with pytest.raises(asyncio.CancelledError):
                await wait
        assert scripted.requests[-1].method == "POST"

    @pytest.mark.parametrize(("retry", "seconds"), [(b"3000", 3.0), (b"1", 0.5), (b"999999", 60.0)])
    async def test_the_server_may_ask_for_a_pause(self, session, scripted, clock, retry: bytes, seconds) -> None:
        scripted.bodies = [[b"retry: " + retry + b"\n", DELTA, END], [COMPLETED]]
        wait = asyncio.create_task(session.wait("resp_1", stream=True))
        await until(lambda: seconds in clock.slept)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait

    async def test_a_cancellation_closes_the_connection(self, session, scripted, clock) -> None:
        wait = asyncio.create_task(session.wait("resp_1", stream=True))
        await until(lambda: scripted.open == 1 and clock.slept)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        await until(lambda: scripted.open == 0)
        assert scripted.requests[-1].method == "POST"

    async def test_the_connection_of_a_callers_client_is_closed_too(self, scripted, clock) -> None:
        async with (
            aiohttp.ClientSession(headers={"Authorization": "theirs", "X-Team": "a"}, cookies={"a": "b"}) as client,
            AsyncSession(api_key=KEY, base_url=scripted.base_url, clock=clock, client_session=client) as session,
        ):
            wait = asyncio.create_task(session.wait("resp_1", stream=True))
            await until(lambda: scripted.open == 1 and clock.slept)
            wait.cancel()
            with pytest.raises(asyncio.CancelledError):
                await wait
            await until(lambda: scripted.open == 0)
        headers = scripted.requests[0].headers
        assert (headers["Authorization"], headers["X-Team"]) == (f"Bearer {KEY}", "a")

    async def test_a_stream_is_asked_for_unless_the_caller_has_other_wishes(self, session, scripted) -> None:
        scripted.bodies = [[COMPLETED]]
        scripted.status = "completed"
        await session.wait("resp_1", stream=True, query={"stream": "false", "a": "b"})
        await session.wait("resp_1", stream=True, headers={"Accept": "text/plain"})
        sent = [(request.headers["Accept"], request.query_string) for request in scripted.requests]
        assert sent == [
            ("text/event-stream, application/json", "a=b&stream=true"),
            ("application/json", "stream=false&a=b"),
            ("text/plain", "stream=true"),
            ("text/plain", ""),
        ]

    async def test_a_compressed_stream_is_read(self, session, scripted) -> None:
        compressor = zlib.compressobj(wbits=31)
        scripted.headers = {"Content-Encoding": "gzip"}
        scripted.bodies = [
            [compressor.compress(one) + compressor.flush(zlib.Z_SYNC_FLUSH) for one in (DELTA, COMPLETED)]
        ]
        scripted.status = "completed"
        assert (await session.wait("resp_1", stream=True)).status == "completed"
        assert scripted.queries == ["stream=true", ""]


async def test_a_stream_may_last_longer_than_the_time_out_of_a_request(scripted: Scripted) -> None:
    async with AsyncSession(api_key=KEY, base_url=scripted.base_url, timeout=0.2) as session:
        wait = asyncio.create_task(session.wait("resp_1", stream=True))
        await until(lambda: scripted.streams)
        await asyncio.sleep(0.4)
        scripted.status = "completed"
        await scripted.streams[0].write(COMPLETED)
        await wait
    assert scripted.queries == ["stream=true", ""]


async def test_the_time_out_holds_until_the_stream_begins(server: Emulator, clock: ManualClock) -> None:
    server.faults += [Fault(on="retrieve", delay=math.inf)]
    name = server.add(Script(runs_for=0))
    async with AsyncSession(api_key=KEY, base_url=server.base_url, timeout=0.1, clock=clock) as session:
        assert (await session.wait(name, stream=True)).status == "completed"


async def test_memory_does_not_grow_with_the_length_of_a_stream(session: AsyncSession, scripted: Scripted) -> None:
    delta = b"".join(event("response.output_text.delta", delta="x" * 1000) for _ in range(64))
    scripted.bodies = [itertools.chain(itertools.repeat(delta, 60), [COMPLETED])]
    scripted.status = "completed"
    peaks: list[int] = []
    tracemalloc.start()
    try:
        await session.wait("resp_1", stream=True, on_update=lambda _: peaks.append(tracemalloc.get_traced_memory()[1]))
    finally:
        tracemalloc.stop()
    assert peaks[0] < 2**20  # of 4 MB


async def test_no_traceback_contains_the_key(scripted: Scripted) -> None:
    scripted.bodies = [[DELTA, event("error", message=SECRET), b"data: {"]]
    async with AsyncSession(api_key=SECRET, base_url=scripted.base_url) as session:
        wait = asyncio.create_task(session.wait("resp_1", stream=True, timeout=0.1))
        with pytest.raises(WaitTimeoutError) as caught:
            await wait
        assert leaks(caught.value) == []
        await session.close()
        with pytest.raises(SessionStateError) as refused:
            await session.wait("resp_1", stream=True)
        assert leaks(refused.value) == []

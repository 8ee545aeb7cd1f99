"""Streams that nobody reads to their end. What looks at them adds no generator that could disturb another one."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import httpx2
import openai
import pytest
import trio
from conftest import KEY, until
from openai_clients import REQUEST, TRANSPORTS, async_client, blocking_client, states

from openai_cancel import AsyncSession, Session
from openai_cancel.body_observer import BodyObserver, observed
from openai_cancel.emulator import Emulator, Script

CHUNKS = [
    b'data: {"type": "response.created", "response": {"id": "resp_1", "status": "queued"}}\n\n',
    b'data: {"type": "response.output_text.delta", "delta": "x"}\n\n',
    b'data: {"type": "response.completed", "response": {"id": "resp_1", "status": "completed"}}\n\n',
]


class BrokenError(Exception):
    """A connection breaks."""


class Body:
    """A body that is followed by an error, or by nothing. It counts how often it, and its generator, is closed."""

    def __init__(self, *chunks: bytes, error: Exception | None = None) -> None:
        self.chunks = chunks
        self.error = error
        self.closed = 0
        self.ended = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for chunk in self.chunks:
                await asyncio.sleep(0)
                yield chunk
            if self.error:
                raise self.error
        finally:
            self.ended += 1

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.chunks
            if self.error:
                raise self.error
        finally:
            self.ended += 1

    async def aclose(self) -> None:
        self.closed += 1

    def close(self) -> None:
        self.closed += 1


class AsyncBody(Body, httpx2.AsyncByteStream):
    pass


class BlockingBody(Body, httpx2.SyncByteStream):
    pass


def look(body: Body) -> tuple[Any, BodyObserver, list[str]]:
    """Return a stream that an observer looks at, the observer, and what it says about the end."""
    told: list[str] = []
    response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
    observer = BodyObserver(response, lambda: told.append("ended"))
    return observed(response, observer), observer, told


class TestAsyncStreams:
    async def test_chunks_that_were_read_ahead_come_first(self) -> None:
        body = AsyncBody(*CHUNKS)
        stream, observer, told = look(body)
        await stream.read_ahead()
        assert (observer.response_id, told) == ("resp_1", [])
        assert [chunk async for chunk in stream] == CHUNKS
        assert (told, body.ended) == (["ended"], 1)

    async def test_it_has_ended_after_its_error(self) -> None:
        stream, _, _ = look(AsyncBody(error=BrokenError()))
        await stream.read_ahead()
        chunks = aiter(stream)
        with pytest.raises(BrokenError):
            await anext(chunks)
        assert [chunk async for chunk in chunks] == []

    @pytest.mark.parametrize("read", [0, 1, 2])
    async def test_its_iterator_can_be_closed_twice(self, read: int) -> None:
        body = AsyncBody(*CHUNKS)
        stream, _, told = look(body)
        await stream.read_ahead()
        async with aclosing(aiter(stream)) as chunks:
            for _ in range(read):
                await anext(chunks)
        await chunks.aclose()
        assert [chunk async for chunk in chunks] == []
        assert (body.ended, body.closed, told) == (1, 0, [])

    async def test_it_can_be_closed_twice_and_unread(self) -> None:
        body = AsyncBody(*CHUNKS)
        stream, _, _ = look(body)
        await stream.read_ahead()
        for _ in range(2):
            await stream.aclose()
        assert (body.ended, body.closed) == (1, 2)


class TestBlockingStreams:
    def test_it_has_ended_after_its_error(self) -> None:
        stream, _, _ = look(BlockingBody(error=BrokenError()))
        stream.read_ahead()
        chunks = iter(stream)
        with pytest.raises(BrokenError):
            next(chunks)
        assert list(chunks) == []

    @pytest.mark.parametrize("read", [0, 1, 2])
    def test_one_that_is_dropped_is_closed_at_once(self, read: int) -> None:
        body = BlockingBody(*CHUNKS)
        stream, _, told = look(body)
        stream.read_ahead()
        chunks = iter(stream)
        for _ in range(read):
            next(chunks)
        del chunks
        for _ in range(2):
            stream.close()
        assert (body.ended, body.closed, told) == (1, 2, [])


class Complaints:
    """What the event loop complains about."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._before = {*self._loop._asyncgens}
        self._found: list[str] = []
        self._loop.set_exception_handler(self._note)

    def _note(self, _: Any, context: dict[str, Any]) -> None:
        self._found.append(str(context.get("exception") or context["message"]))

    async def read(self) -> list[str]:
        """Return them when all generators are closed."""
        gc.collect()
        await until(lambda: {*self._loop._asyncgens} <= self._before)
        await asyncio.sleep(0.01)
        gc.collect()  # the tasks that have closed them: of an exception they tell only then
        return self._found


@pytest.fixture(params=TRANSPORTS)
async def client(request: pytest.FixtureRequest, talking: Emulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(talking, request.param) as client:
        yield client


@pytest.fixture
async def talking() -> AsyncIterator[Emulator]:
    async with Emulator(api_key=KEY, script=Script(runs_for=60, says="A woodchuck would chuck " * 1000)) as server:
        yield server


@pytest.fixture
async def talking_session(talking: Emulator) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(api_key=KEY, base_url=talking.base_url) as session:
        yield session


@pytest.mark.filterwarnings("ignore:Unclosed response:ResourceWarning")  # aiohttp's, of one that is dropped
class TestDroppedStreams:
    @pytest.mark.slow
    @pytest.mark.parametrize("read", [0, 1, 3])
    async def test_the_garbage_collector_finds_one_that_was_read_in_part(
        self, client: openai.AsyncOpenAI, talking_session: AsyncSession, read: int
    ) -> None:
        complaints = Complaints()
        async with talking_session.guard(client, on_exit="stop"):
            events = await client.responses.create(**REQUEST, stream=True)
            for _ in range(read):
                await anext(events)
            events.itself = events
            del events
            assert await complaints.read() == []

    @pytest.mark.slow
    async def test_a_reader_that_is_cancelled_at_any_moment_leaves_no_trace(
        self, client: openai.AsyncOpenAI, talking_session: AsyncSession
    ) -> None:
        async def read() -> None:
            async for _ in await client.responses.create(**REQUEST, stream=True):
                pass

        complaints = Complaints()
        for moment in range(0, 60, 6):
            async with talking_session.guard(client, on_exit="stop"):
                task = asyncio.create_task(read())
                for _ in range(moment):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            del task
        assert await complaints.read() == []

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's, of one that httpx does not close
    @pytest.mark.parametrize("read", [0, 1])
    @pytest.mark.parametrize("run", ["blocking", "trio"])
    async def test_another_thread_has_no_trouble_with_one_either(self, talking: Emulator, run: str, read: int) -> None:
        def work() -> None:
            with Session(api_key=KEY, base_url=talking.base_url) as session:
                if run == "trio":
                    trio.run(read_in_trio, session, talking, read)
                else:
                    read_and_drop(session, talking, read)
            gc.collect()

        await asyncio.to_thread(work)
        assert states(talking) == ["cancelled"]


def read_and_drop(session: Session, talking: Emulator, read: int) -> None:
    with blocking_client(talking) as client, session.guard(client, on_exit="stop"):
        events = client.responses.create(**REQUEST, stream=True)
        for _ in range(read):
            next(events)
        events.itself = events
        del events
        gc.collect()


async def read_in_trio(session: Session, talking: Emulator, read: int) -> None:
    async with async_client(talking) as client:
        with session.guard(client, on_exit="stop"):
            events = await client.responses.create(**REQUEST, stream=True)
            for _ in range(read):
                await anext(events)
            await events.close()
            await events.close()

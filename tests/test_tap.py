"""A tap is invisible: a client that is guarded behaves as before, and is as before when nobody listens any more."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web
from conftest import KEY, until
from ledgers import states as ledger_states
from openai_clients import REQUEST, TRANSPORTS, async_client, blocking_client

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger

pytestmark = pytest.mark.usefixtures("no_task_is_left")

CREATED = b'event: response.created\ndata: {"type": "response.created", "response": {"id": "resp_1"}}\n\n'
COMPLETED = b'data: {"type": "response.completed", "response": {"id": "resp_1", "status": "completed"}}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "delta": "x"}\n\n'
EVENTS = {"content-type": "text/event-stream"}


class Server:
    """A server that answers as a test tells it to.

    Attributes:
        answer: answers a request.
        received: the requests so far.
        session: a session for it.
        base_url: its address.
    """

    answer: Callable[[web.Request], Awaitable[web.StreamResponse]]
    session: AsyncSession
    base_url: str

    def __init__(self) -> None:
        self.received: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.received.append(request)
        return await self.answer(request)


@pytest.fixture
async def odd() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    async with AsyncSession(api_key=KEY, base_url=server.base_url, max_retries=0) as server.session:
        yield server
    await runner.cleanup()


@pytest.fixture(params=TRANSPORTS)
async def client(request: pytest.FixtureRequest, odd: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(odd, request.param) as client:
        yield client


def documents(body: bytes, **headers: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"content-type": "application/json", **headers})

    return answer


async def chunks(request: web.Request, headers: dict[str, str]) -> Callable[[bytes], Awaitable[None]]:
    stream = web.StreamResponse(headers=headers)
    await stream.prepare(request)
    return stream.write


@asynccontextmanager
async def raw_stream(client: openai.AsyncOpenAI, **options: Any) -> AsyncIterator[Any]:
    headers = {"authorization": f"Bearer {KEY}", **options}
    url = f"{client.base_url}responses"
    async with client._client.stream("POST", url, json={**REQUEST, "stream": True}, headers=headers) as answer:
        yield answer


class TestBodies:
    async def test_chunks_arrive_one_by_one_and_unchanged(self, odd: Server, client: openai.AsyncOpenAI) -> None:
        more = asyncio.Event()
        seen: list[bytes] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            write = await chunks(request, EVENTS)
            for part in (CREATED[:20], CREATED[20:], DELTA, DELTA):
                more.clear()
                await write(part)
                await more.wait()
            return web.Response()

        odd.answer = answer
        more.set()

        async def let_first_event_come() -> None:
            await until(lambda: odd.received)
            while not seen:
                more.set()
                await asyncio.sleep(0.01)

        async with odd.session.guard(client) as guard:
            helper = asyncio.create_task(let_first_event_come())
            async with raw_stream(client) as answer_:
                assert "resp_1" in repr(guard)
                async for part in answer_.aiter_raw():
                    seen.append(part)
                    if b"".join(seen) == CREATED + DELTA:
                        break  # the second delta was not sent yet
                    more.set()
            await helper
            more.set()
        assert b"".join(seen).startswith(CREATED)

    async def test_a_slow_reader_slows_the_server_down(self, odd: Server, client: openai.AsyncOpenAI) -> None:
        written = 0

        async def answer(request: web.Request) -> web.StreamResponse:
            nonlocal written
            write = await chunks(request, EVENTS)
            await write(CREATED)
            for _ in range(200):
                await write(b"data: " + b"x" * 100_000 + b"\n\n")
                written += 100_000
            return web.Response()

        odd.answer = answer
        async with odd.session.guard(client), raw_stream(client) as stream:
            parts = stream.aiter_raw()
            await anext(parts)
            before = -1
            while written != before:
                before = written
                await asyncio.sleep(0.1)
            assert written < 15_000_000  # what fits in buffers of the operating system
            await parts.aclose()

    async def test_headers_wait_for_the_first_event_and_no_longer(
        self, odd: Server, client: openai.AsyncOpenAI
    ) -> None:
        """Some gateways send events of their own first, and some servers send no id."""

        async def answer(request: web.Request) -> web.StreamResponse:
            write = await chunks(request, EVENTS)
            for _ in range(3):
                await write(b'event: ping\ndata: {"type": "ping"}\n\n')
            await asyncio.Event().wait()
            return web.Response()

        odd.answer = answer
        async with odd.session.guard(client) as guard, raw_stream(client) as stream:
            assert stream.status_code == 200
            assert not guard.armed

    @pytest.mark.parametrize("has_ended", [False, True])
    async def test_an_id_that_comes_late_is_seen_by_then(self, odd: Server, tmp_path: Path, *, has_ended: bool) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            stream = web.StreamResponse(headers=EVENTS)
            await stream.prepare(request)
            await stream.write(b'event: ping\ndata: {"type": "ping"}\n\n' * 4)
            await more.wait()
            await stream.write(CREATED)
            await stream.write(COMPLETED if has_ended else DELTA)
            return stream

        more = asyncio.Event()
        odd.answer = answer
        async with (
            async_client(odd) as client,
            Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
            AsyncSession(api_key=KEY, base_url=odd.base_url, ledger=ledger) as session,
            session.watch(client) as watch,
            raw_stream(client) as stream,
        ):
            assert watch.response_ids == ()
            more.set()
            async for _ in stream.aiter_raw():
                pass
            assert watch.response_ids == (() if has_ended else ("resp_1",))
            if not has_ended:
                await until_recorded(ledger, "resp_1")

    @pytest.mark.parametrize("kind", ["Text/Event-Stream; charset=utf-8", "application/octet-stream", "text/plain"])
    async def test_events_are_told_by_their_look(self, odd: Server, client: openai.AsyncOpenAI, kind: str) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            stream = web.StreamResponse(headers={"content-type": kind})
            await stream.prepare(request)
            for part in (b"\n\n", CREATED, DELTA):
                await stream.write(part)
                await asyncio.sleep(0.001)  # as a chunk of its own
            await asyncio.Event().wait()
            return stream

        odd.answer = answer
        async with odd.session.guard(client) as guard, raw_stream(client) as stream:
            assert repr(guard) == "<Guard resp_1>"
            chunks = stream.aiter_raw()
            while DELTA not in (chunk := await anext(chunks)):
                pass
            assert chunk.endswith(DELTA)

    async def test_compressed_bodies_are_read_and_stay_compressed(
        self, odd: Server, client: openai.AsyncOpenAI
    ) -> None:
        body = json.dumps({"id": "resp_1", "status": "queued", "object": "response"}).encode()
        compressed = gzip.compress(body)
        odd.answer = documents(compressed, **{"content-encoding": "gzip"})
        async with odd.session.guard(client) as guard:
            assert (await client.responses.create(**REQUEST)).id == "resp_1"
            assert guard.armed
            assert odd.received[0].headers["accept-encoding"] in {"gzip", "identity"}
            guard.disarm()
            async with raw_stream(client, **{"accept-encoding": "identity"}) as answer:
                assert b"".join([part async for part in answer.aiter_raw()]) == compressed
            assert odd.received[1].headers["accept-encoding"] == "identity"
            assert guard.armed

    @pytest.mark.parametrize("headers", [{"content-encoding": "odd"}, {"content-encoding": "gzip"}])
    async def test_a_body_that_cannot_be_decoded_changes_nothing(
        self, odd: Server, client: openai.AsyncOpenAI, headers: dict[str, str], caplog: pytest.LogCaptureFixture
    ) -> None:
        odd.answer = documents(b'{"id": "resp_1"}', **headers)
        async with odd.session.guard(client) as guard, raw_stream(client) as answer:
            assert b"".join([part async for part in answer.aiter_raw()]) == b'{"id": "resp_1"}'
            assert not guard.armed
        assert ("could not be read" in caplog.text) == (headers["content-encoding"] == "gzip")

    @pytest.mark.parametrize("encoding", ["deflate", "gzip, gzip"])
    async def test_a_document_in_another_encoding_is_looked_at_after_it_was_decoded(
        self, odd: Server, client: openai.AsyncOpenAI, encoding: str
    ) -> None:
        body = b'{"id": "resp_1", "status": "queued"}'
        packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(gzip.compress(body))
        odd.answer = documents(packed, **{"content-encoding": encoding})
        async with odd.session.guard(client) as guard:
            assert (await client.responses.create(**REQUEST)).id == "resp_1"
            assert guard.armed
            guard.disarm()

    async def test_a_body_that_a_hook_has_read_is_looked_at(self, odd: Server, client: openai.AsyncOpenAI) -> None:
        async def read(answer: Any) -> None:
            await answer.aread()

        odd.answer = documents(b'{"id": "resp_1", "status": "queued"}')
        client._client.event_hooks = {"response": [read]}
        async with odd.session.guard(client) as guard:
            await client.responses.create(**REQUEST)
            assert guard.armed

    async def test_elapsed_and_history_are_as_before(self, odd: Server, client: openai.AsyncOpenAI) -> None:
        odd.answer = documents(b'{"id": "resp_1", "status": "queued"}')
        async with odd.session.guard(client):
            answer = await client.responses.with_raw_response.create(**REQUEST)
            assert answer.elapsed.total_seconds() > 0
            assert answer.http_response.history == []
            assert answer.http_response.is_closed

    async def test_redirects_are_followed(self, odd: Server, client: openai.AsyncOpenAI) -> None:
        async def answer(request: web.Request) -> web.Response:
            if request.path.endswith("moved"):
                return await documents(b'{"id": "resp_1", "status": "queued"}')(request)
            raise web.HTTPTemporaryRedirect("/v1/moved")

        odd.answer = answer
        async with odd.session.guard(client) as guard:
            assert (await client.responses.create(**REQUEST)).id == "resp_1"
            assert guard.armed


async def until_recorded(ledger: Ledger, response_id: str) -> None:
    while response_id not in await ledger_states(ledger):
        await asyncio.sleep(0.01)


async def read_all(events: AsyncIterator[Any]) -> None:
    async for _ in events:
        pass


class TestTimeouts:
    @pytest.mark.slow
    async def test_a_timeout_of_the_client_is_raised_as_without_a_guard(
        self, odd: Server, client: openai.AsyncOpenAI
    ) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            write = await chunks(request, EVENTS)
            await write(CREATED[: 10 if with_id else 0] + (CREATED[10:] if with_id else b""))
            await asyncio.Event().wait()
            return web.Response()

        odd.answer = answer
        impatient = client.with_options(timeout=0.2)
        for with_id in (False, True):
            raised = []
            for listens in (False, True):
                async with odd.session.guard(*[client] * listens) as guard:
                    events = await impatient.responses.create(**REQUEST, stream=True)
                    (error,) = await asyncio.gather(read_all(events), return_exceptions=True)
                    raised.append((type(error), str(error)))
                    assert guard.armed == (listens and with_id)
                    guard.disarm()
            assert raised[0] == raised[1]
            assert "Time" in raised[0][0].__name__


class TestClients:
    async def test_a_send_that_somebody_has_replaced_is_kept(self, odd: Server, client: openai.AsyncOpenAI) -> None:
        inner = client._client
        original, calls = inner.send, []

        async def send(request: Any, **options: Any) -> Any:
            calls.append(request.url.path)
            return await original(request, **options)

        inner.send = send
        odd.answer = documents(b'{"id": "resp_1", "status": "queued"}')
        async with odd.session.guard(client):
            await client.responses.create(**REQUEST)
        assert inner.send is send
        assert calls == ["/v1/responses"]

    async def test_a_send_that_is_replaced_meanwhile_stays(self, odd: Server, client: openai.AsyncOpenAI) -> None:
        inner = client._client
        odd.answer = documents(b'{"id": "resp_1", "status": "queued"}')
        async with odd.session.guard(client):
            ours = inner.send

            async def send(request: Any, **options: Any) -> Any:
                return await ours(request, **options)

            inner.send = send
        assert inner.send is send
        await client.responses.create(**REQUEST)
        async with odd.session.guard(client) as guard:
            await client.responses.create(**REQUEST)
            assert guard.armed
        assert inner.send is send

    async def test_guards_around_a_replacement_end_in_any_order(self, odd: Server, client: openai.AsyncOpenAI) -> None:
        inner = client._client
        odd.answer = documents(b'{"id": "resp_1", "status": "queued"}')
        outer, other = odd.session.guard(client), odd.session.guard(client)
        await outer.__aenter__()
        ours = inner.send

        async def send(request: Any, **options: Any) -> Any:
            return await ours(request, **options)

        inner.send = send
        async with other:
            await client.responses.create(**REQUEST)
            assert outer.armed
            assert other.armed
        await outer.__aexit__(None, None, None)
        assert inner.send is send

    async def test_a_stream_of_another_kind_is_looked_at(self, odd: Server, client: openai.AsyncOpenAI) -> None:
        async def replace(answer: Any) -> None:
            answer.stream = another_stream(answer.stream)

        odd.answer = documents(CREATED + DELTA, **EVENTS)
        async with odd.session.guard(client) as guard:
            client._client.event_hooks["response"].insert(0, replace)  # before ours
            async with await client.responses.create(**REQUEST, stream=True) as events:
                assert [event.type async for event in events] == ["response.created", "response.output_text.delta"]
            async with await client.responses.create(**REQUEST, stream=True):
                assert guard.armed

    async def test_a_failure_of_a_listener_is_logged_and_nothing_else(
        self, odd: Server, client: openai.AsyncOpenAI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        odd.answer = documents(b'{"id": "resp_1", "status": "queued"}')
        async with odd.session.guard(client) as guard:
            monkeypatch.setattr(type(guard.scope), "admit", lambda *_: True)
            monkeypatch.setattr(type(guard.scope), "record", lambda *_: failing())
            assert (await client.responses.create(**REQUEST)).id == "resp_1"
        assert "may run on: ZeroDivisionError" in caplog.text


def another_stream(stream: Any) -> Any:
    """Return a stream whose iterator is no generator."""
    kind = next(kind for kind in type(stream).__mro__ if kind.__name__ in {"AsyncByteStream", "SyncByteStream"})

    class Stream(kind):
        def __aiter__(self) -> Any:
            self.chunks = aiter(stream)
            return self

        def __anext__(self) -> Any:
            return anext(self.chunks)

        async def aclose(self) -> None:
            await stream.aclose()

        def __iter__(self) -> Any:
            self.chunks = iter(stream)
            return self

        def __next__(self) -> Any:
            return next(self.chunks)

        def close(self) -> None:
            stream.close()

    return Stream()


async def failing() -> None:
    raise ZeroDivisionError


@pytest.fixture
def blocking(odd: Server) -> Iterator[openai.OpenAI]:
    with blocking_client(odd) as client:
        yield client


async def test_a_body_that_can_be_read_only_once_is_not_looked_at(odd: Server, client: openai.AsyncOpenAI) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield json.dumps(REQUEST).encode()

    odd.answer = documents(b'{"id": "resp_1", "status": "queued"}')
    async with odd.session.guard(client) as guard:
        await client._client.post(
            f"{odd.base_url}/responses", content=body(), headers={"authorization": f"Bearer {KEY}"}
        )
        assert not guard.armed


async def test_a_blocking_body_that_a_hook_has_read_is_looked_at(odd: Server, blocking: openai.OpenAI) -> None:
    odd.answer = documents(b'{"id": "resp_1", "status": "queued"}')
    blocking._client.event_hooks = {"response": [lambda answer: answer.read()]}
    async with odd.session.guard(blocking) as guard:
        await asyncio.to_thread(blocking.responses.create, **REQUEST)
        assert guard.armed


async def test_a_blocking_document_in_another_encoding_is_looked_at(odd: Server, blocking: openai.OpenAI) -> None:
    odd.answer = documents(zlib.compress(b'{"id": "resp_1", "status": "queued"}'), **{"content-encoding": "deflate"})
    async with odd.session.guard(blocking) as guard:
        assert (await asyncio.to_thread(blocking.responses.create, **REQUEST)).id == "resp_1"
        assert guard.armed
        guard.disarm()


async def test_a_failure_to_send_is_raised_as_without_a_guard(odd: Server, blocking: openai.OpenAI) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        request.transport.close()
        return web.Response()

    odd.answer = answer
    async with odd.session.guard(blocking) as guard:
        with pytest.raises(openai.APIConnectionError):
            await asyncio.to_thread(blocking.responses.create, **REQUEST)
        assert not guard.armed


async def test_a_blocking_stream_of_another_kind_is_looked_at(odd: Server, blocking: openai.OpenAI) -> None:
    def replace(answer: Any) -> None:
        answer.stream = another_stream(answer.stream)

    def read() -> list[str]:
        with blocking.responses.create(**REQUEST, stream=True):
            pass
        with blocking.responses.create(**REQUEST, stream=True) as events:
            return [event.type for event in events]

    odd.answer = documents(CREATED + DELTA, **EVENTS)
    async with odd.session.guard(blocking) as guard:
        blocking._client.event_hooks["response"].insert(0, replace)  # before ours
        assert await asyncio.to_thread(read) == ["response.created", "response.output_text.delta"]
        assert guard.armed


async def test_a_connection_that_fails_as_it_is_closed_does_not_keep_its_response_running(server: Emulator) -> None:
    class Body(httpx2.AsyncByteStream):
        def __init__(self, body: Any) -> None:
            self.body = body

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self.body:
                yield chunk

        async def aclose(self) -> None:
            await self.body.aclose()
            raise httpx2.CloseError("the connection is gone")

    class Transport(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: Any) -> Any:
            response = await super().handle_async_request(request)
            response.stream = Body(response.stream)
            return response

    server.faults.append(Fault(on="create", delay=0.05))
    async with (
        openai.AsyncOpenAI(
            api_key=KEY, base_url=server.base_url, http_client=httpx2.AsyncClient(transport=Transport())
        ) as client,
        AsyncSession(api_key=KEY, base_url=server.base_url) as session,
        session.guard(client),
    ):
        task = asyncio.create_task(client.responses.create(**REQUEST, stream=True))
        await until(lambda: server.received)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: all(work.cancelled for work in server.responses.values()) and server.responses)

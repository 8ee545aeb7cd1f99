"""The emulator streams responses as OpenAI does: the official client reads the events."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import openai
import pytest
from conftest import KEY, QuickClock, until
from test_peers import serving

from openai_cancel.emulator import DIALECTS, Dialect, Emulator, Fault, Reply, Script

BEGINNING = [
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
]
END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
DELTA = "response.output_text.delta"
DONE = Script(runs_for=0)
TEXT = "Forty-two."


@pytest.fixture
async def client(server: Emulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client:
        yield client


@pytest.fixture
async def http(server: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        base_url=f"{server.base_url}/", headers={"Authorization": f"Bearer {KEY}"}
    ) as http:
        yield http


@pytest.fixture
def create(client: openai.AsyncOpenAI) -> Callable[..., Any]:
    def create(*, background: bool = True) -> Any:
        return client.responses.create(model="m", input="hi", background=background, stream=True)

    return create


def work(server: Emulator) -> Any:
    return list(server.responses.values())[-1]


async def take(events: AsyncIterator[Any], until: str) -> list[str]:
    """Read events up to one of a type, and return the types."""
    types: list[str] = []
    while types[-1:] != [until]:
        types.append((await anext(events)).type)
    return types


class TestEvents:
    async def test_a_text_streams_in_pieces(self, server: Emulator, create) -> None:
        server.script = DONE
        events = [event async for event in await create()]
        assert [event.type for event in events] == [*BEGINNING, DELTA, DELTA, DELTA, *END, "response.completed"]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.delta for event in events if event.type == DELTA] == ["Forty", "-two", "."]
        statuses = [event.response.status for event in (*events[:3], events[-1])]
        assert statuses == ["queued", "queued", "in_progress", "completed"]
        final = events[-1].response
        assert (final.id, final.output_text, final.usage.total_tokens) == (work(server).id, TEXT, 123)
        assert final.output[0] == events[-2].item
        for event in events:
            event.model_validate(event.model_dump(), strict=True)

    @pytest.mark.parametrize(
        ("becomes", "end"), [("incomplete", [*END, "response.incomplete"]), ("failed", ["response.failed"])]
    )
    async def test_a_stream_ends_as_its_response_does(self, server: Emulator, create, becomes: str, end) -> None:
        server.script = Script(runs_for=0, becomes=becomes)
        events = [event async for event in await create()]
        assert [event.type for event in events] == [*BEGINNING, DELTA, DELTA, DELTA, *end]
        assert events[-1].response.status == becomes

    @pytest.mark.parametrize("says", ["", "  ", "…\n", "Eins, zwei - drei!\n\nvier"])
    async def test_the_pieces_of_a_text_add_up_to_it(self, server: Emulator, client, says: str) -> None:
        server.script = Script(runs_for=0, says=says)
        async with client.responses.stream(model="m", input="hi") as stream:
            assert "".join([event.delta async for event in stream if event.type == DELTA]) == says
            assert (await stream.get_final_response()).output_text == says

    async def test_the_official_helper_streams_a_background_response(self, server: Emulator, client) -> None:
        server.script = DONE
        async with client.responses.stream(model="m", input="hi", background=True) as stream:
            final = await stream.get_final_response()
        assert (final.id, final.background, final.output_text) == (work(server).id, True, TEXT)

    async def test_events_come_when_they_happen(self, server: Emulator, create, clock: QuickClock) -> None:
        server.script = Script(queued_for=10, runs_for=30)
        events = aiter(await create())
        assert await take(events, "response.queued") == ["response.created", "response.queued"]
        following = asyncio.ensure_future(anext(events))
        for seconds, expected in ((10, "response.in_progress"), (10, DELTA), (10, DELTA), (10, END[0])):
            await asyncio.sleep(0.03)
            assert not following.done()
            clock.now += seconds
            assert (await following).type == expected
            if expected == "response.in_progress":
                await take(events, DELTA)
            following = asyncio.ensure_future(anext(events))
        assert (await following).type == END[1]
        assert await take(events, "response.completed") == [END[2], "response.completed"]

    async def test_a_response_object_shows_the_time_of_its_event(self, server: Emulator, create, clock) -> None:
        server.script = Script(runs_for=5)
        stream = await create()
        clock.now += 5
        events = [event async for event in stream]
        assert (events[0].response.status, events[0].response.completed_at) == ("queued", None)
        final = events[-1].response
        assert (final.created_at, final.completed_at) == (events[0].response.created_at, clock.now)

    async def test_the_headers_are_those_of_an_event_stream(self, server: Emulator, http) -> None:
        server.script = DONE
        async with http.post("responses", json={"model": "m", "stream": True}) as answer:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["x-request-id"].startswith("req_")
            text = await answer.text()
        blocks = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n")]
        types = [json.loads(data.removeprefix("data: "))["type"] for _, data in blocks]
        assert [event for event, _ in blocks] == [f"event: {name}" for name in types]


class TestForeground:
    """Responses that do not run in the background."""

    async def test_its_events_have_no_queue(self, server: Emulator, create) -> None:
        server.script = Script(queued_for=60, runs_for=0)
        events = [event async for event in await create(background=False)]
        expected = [event for event in BEGINNING if event != "response.queued"]
        assert [event.type for event in events] == [*expected, DELTA, DELTA, DELTA, *END, "response.completed"]
        assert (events[0].response.status, events[-1].response.background) == ("in_progress", False)

    async def test_it_runs_while_it_is_streamed(self, server: Emulator, client, create, clock) -> None:
        server.script = Script(runs_for=5)
        async with await create(background=False) as events:
            await take(aiter(events), DELTA)
            name = work(server).id
            assert (await client.responses.retrieve(name)).status == "in_progress"
            with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response."):
                await client.responses.cancel(name)
            clock.now += 5
            assert (await take(aiter(events), "response.completed"))[-1] == "response.completed"
        assert (work(server).cancelled, work(server).status(clock.now)) == (None, "completed")

    async def test_it_is_cancelled_when_its_client_disconnects(self, server: Emulator, create, clock) -> None:
        async with await create(background=False) as events:
            await take(aiter(events), DELTA)
            assert work(server).status(clock.now) == "in_progress"
        await until(lambda: work(server).cancelled)

    async def test_without_a_stream_it_has_ended_when_its_request_is_answered(self, client) -> None:
        created = await client.responses.create(model="m", input="hi", background=False)
        assert (created.status, created.output_text) == ("completed", TEXT)


class TestBackground:
    async def test_it_goes_on_when_its_consumer_leaves(self, server: Emulator, create, client, clock) -> None:
        server.script = Script(runs_for=5)
        async with await create() as events:
            await take(aiter(events), DELTA)
        async with asyncio.timeout(5):
            await until(lambda: len(asyncio.all_tasks()) == 1)  # no handler is left
        assert (await client.responses.retrieve(work(server).id)).status == "in_progress"
        clock.now += 5
        assert (await client.responses.retrieve(work(server).id)).status == "completed"

    async def test_a_stream_is_resumed_after_any_event(self, server: Emulator, create, client) -> None:
        server.script = DONE
        events = [event async for event in await create()]
        for start in (None, -1, *range(len(events) + 1)):
            options = {} if start is None else {"starting_after": start}
            replayed = await client.responses.retrieve(work(server).id, stream=True, **options)
            assert [event async for event in replayed] == events[0 if start is None else start + 1 :]

    async def test_a_stream_is_followed_while_the_response_runs(self, server: Emulator, create, client, clock) -> None:
        server.script = Script(runs_for=5)
        async with await create() as events:
            await take(aiter(events), DELTA)
        async with client.responses.stream(response_id=work(server).id, starting_after=5) as stream:
            clock.now += 5
            assert [event.type async for event in stream] == [DELTA, DELTA, *END, "response.completed"]

    async def test_a_deleted_response_is_not_streamed(self, server: Emulator, create, client) -> None:
        server.script = DONE
        await (await create()).close()
        name = work(server).id
        await client.responses.delete(name)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(name, stream=True)

    @pytest.mark.parametrize(
        ("body", "query", "words"),
        [
            ({"background": True}, "", "it was not created with stream=true or the stream TTL has expired."),
            ({"stream": True}, "", "it was not created with background=true."),
            ({"background": True, "stream": True}, "&starting_after=x", "starting_after must be an integer"),
            ({"background": True, "stream": True}, "&starting_after=", "starting_after must be an integer"),
        ],
    )
    async def test_a_stream_that_cannot_be_replayed_is_refused(
        self, server: Emulator, http: aiohttp.ClientSession, body, query: str, words: str
    ) -> None:
        server.script = DONE
        async with http.post("responses", json={"model": "m", **body}) as answer:
            await answer.read()
        async with http.get(f"responses/{work(server).id}?stream=true{query}") as answer:
            assert (answer.status, words in (await answer.json())["error"]["message"]) == (400, True)

    async def test_a_stream_is_refused_after_five_minutes(self, server: Emulator, create, client, clock) -> None:
        async with await create():
            pass
        clock.now += 300
        await (await client.responses.retrieve(work(server).id, stream=True)).close()
        clock.now += 1
        with pytest.raises(openai.BadRequestError, match="because it is more than 5 minutes old"):
            await client.responses.retrieve(work(server).id, stream=True)

    @pytest.mark.parametrize("stream", ["false", ""])
    async def test_a_retrieve_without_a_stream_reports_the_response(self, server: Emulator, http, stream) -> None:
        async with http.get(f"responses/{server.add()}?stream={stream}") as answer:
            assert (await answer.json())["status"] == "in_progress"


class TestCancel:
    """A response is cancelled in the middle of its stream."""

    async def test_openai_ends_the_stream_without_an_event(self, server: Emulator, create, client) -> None:
        events = aiter(await create())
        await take(events, DELTA)
        assert (await client.responses.cancel(work(server).id)).status == "cancelled"
        assert [event async for event in events] == []
        replayed = await client.responses.retrieve(work(server).id, stream=True)
        assert [event.type async for event in replayed] == [*BEGINNING, DELTA]

    async def test_a_response_that_goes_on_is_streamed_to_its_end(self, server, create, client, clock) -> None:
        server.script = Script(runs_for=5, resumes_after=0)
        events = aiter(await create())
        await take(events, DELTA)
        await client.responses.cancel(work(server).id)
        clock.now += 5
        assert await take(events, "response.completed") == [DELTA, DELTA, *END, "response.completed"]

    async def test_azure_sends_a_failure_that_shows_a_cancelled_response(self) -> None:
        dialect = attrs.evolve(DIALECTS["azure"], cancel_takes=0)
        async with (
            Emulator(dialect=dialect, script=Script(runs_for=math.inf)) as server,
            openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client,
        ):
            events = aiter(await client.responses.create(model="m", input="hi", background=True, stream=True))
            assert "response.queued" not in await take(events, DELTA)
            await client.responses.cancel(work(server).id)
            [last] = [event async for event in events]
            assert (last.type, last.response.status, last.sequence_number) == ("response.failed", "cancelled", 5)
            with pytest.raises(openai.BadRequestError, match="or the stream TTL has expired"):
                await client.responses.retrieve(work(server).id, stream=True)

    async def test_vllm_leaves_the_stream_open(self) -> None:
        async with (
            Emulator(dialect="vllm", script=Script(runs_for=math.inf)) as server,
            openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client,
        ):
            events = aiter(await client.responses.create(model="m", input="hi", background=True, stream=True))
            await take(events, DELTA)
            await client.responses.cancel(work(server).id)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(events)


class TestDialects:
    @pytest.fixture
    async def send(self) -> Callable[..., Any]:
        async def send(dialect: str, *, background: bool = True) -> tuple[int, Any]:
            async with (
                Emulator(dialect=dialect, script=Script(runs_for=0)) as server,
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
            ):
                body = {"model": "m", "background": background, "stream": True}
                async with http.post(f"{server.base_url}/responses", json=body) as answer:
                    streamed = answer.content_type == "text/event-stream"
                    return answer.status, await (answer.text() if streamed else answer.json())

        return send

    @pytest.mark.parametrize(
        ("dialect", "words"),
        [
            ("ogx", "OGX does not yet support 'stream' and 'background' together."),
            ("smg", "Cannot use background mode with streaming"),
            ("smg_http", "Cannot use background mode with streaming"),
            ("smg_openai", "Cannot use background mode with streaming"),
        ],
    )
    async def test_a_server_that_does_not_stream_the_background_refuses(self, send, dialect: str, words: str) -> None:
        status, body = await send(dialect)
        assert (status, words in json.dumps(body)) == (400, True)
        assert "response.completed" in (await send(dialect, background=False))[1]

    @pytest.mark.parametrize("dialect", ["sglang", "sglang_old", "litellm_polling"])
    async def test_a_server_that_ignores_a_stream_of_the_background_reports_the_response(
        self, send, dialect: str
    ) -> None:
        status, body = await send(dialect)
        assert (status, body["object"]) == (200, "response")

    @pytest.mark.parametrize(
        "dialect", [name for name, each in DIALECTS.items() if each.background_stream is None and each.replays]
    )
    async def test_every_other_server_streams_the_background(self, send, dialect: str) -> None:
        status, body = await send(dialect)
        assert (status, body.count("event: "), "response.completed" in body) == (200, body.count("\n\n"), True)

    @pytest.mark.parametrize("dialect", ["sglang", "ogx", "litellm_polling", "smg", "databricks"])
    async def test_a_server_that_cannot_replay_ignores_that_a_stream_was_asked_for(self, dialect: str) -> None:
        async with (
            Emulator(dialect=dialect) as server,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
            http.get(f"{server.base_url}/responses/{server.add()}?stream=true") as answer,
        ):
            assert (answer.status, (await answer.json())["status"]) == (200, "in_progress")

    @pytest.mark.parametrize("dialect", ["azure", "vllm", "smg", "openresponses"])
    async def test_a_foreground_response_is_unknown_until_it_has_ended(self, dialect: str, clock) -> None:
        async with (
            Emulator(dialect=dialect, script=Script(runs_for=5), clock=clock.monotonic) as server,
            openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client,
        ):
            async with await client.responses.create(model="m", input="hi", stream=True) as events:
                await take(aiter(events), DELTA)
                for call in (client.responses.retrieve, client.responses.cancel):
                    with pytest.raises(openai.NotFoundError):
                        await call(work(server).id)
                clock.now += 5
                await take(aiter(events), "response.completed")
            assert (await client.responses.retrieve(work(server).id)).status == "completed"

    async def test_a_dialect_of_ones_own_may_refuse(self) -> None:
        own = Dialect(cancel={}, background_stream=Reply(422, "No streams here."))
        async with (
            Emulator(dialect=own) as server,
            openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client,
        ):
            with pytest.raises(openai.UnprocessableEntityError, match="No streams here."):
                await client.responses.create(model="m", input="hi", background=True, stream=True)
        assert server.responses == {}

    def test_an_end_of_a_cancelled_stream_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'cancelled_stream' must be one of 'ends', 'fails', 'hangs'; got 'stops'"):
            Dialect(cancel={}, cancelled_stream="stops")


class TestFaults:
    async def test_a_stream_is_cut_after_any_byte(self, server: Emulator, http: aiohttp.ClientSession) -> None:
        server.script = DONE
        body = {"model": "m", "background": True, "stream": True}
        async with http.post("responses", json=body) as answer:
            length = len(await answer.read())
        for cut_after in (0, 1, 5, 6, 7, *range(100, length, 211), length - 2, length - 1, length):
            server.faults.append(Fault(on="create", cut="body", cut_after=cut_after))
            received = b""
            with pytest.raises(aiohttp.ClientPayloadError):
                async with http.post("responses", json=body) as answer:
                    async for chunk in answer.content.iter_any():
                        received += chunk
            assert len(received) == cut_after
            assert work(server).cancelled is None
        server.faults.append(Fault(cut="body", cut_after=length + 1))
        async with http.post("responses", json=body) as answer:
            assert len(await answer.read()) == length

    async def test_a_stream_is_cut_after_its_first_event_by_default(self, server: Emulator, create) -> None:
        server.faults.append(Fault(cut="body"))
        seen = []
        with pytest.raises(openai.APIConnectionError):
            async for event in await create():
                seen.append(event.type)  # noqa: PERF401
        assert seen == ["response.created"]

    async def test_a_foreground_response_is_cancelled_when_its_stream_is_cut(self, server, create) -> None:
        server.faults.append(Fault(on="create", cut="body", cut_after=10))
        with pytest.raises(openai.APIConnectionError):
            await anext(aiter(await create(background=False)))
        await until(lambda: work(server).cancelled)

    async def test_a_replay_is_cut_too(self, server: Emulator, client, create) -> None:
        server.script = DONE
        await (await create()).close()
        server.faults.append(Fault(on="retrieve", cut="body", cut_after=3))
        stream = await client.responses.retrieve(work(server).id, stream=True)
        with pytest.raises(openai.APIConnectionError):
            await anext(aiter(stream))

    @pytest.mark.parametrize("fault", [{"cut": "connection"}, {"status": 503}, {"raw": b"?"}])
    async def test_a_response_is_created_although_its_stream_is_lost(self, server, create, fault) -> None:
        server.faults.append(Fault(act=True, **fault))
        with pytest.raises(openai.APIError):
            await create()
        assert (len(server.responses), work(server).cancelled) == (1, None)

    async def test_a_body_is_cut_after_a_number_of_bytes(self, server: Emulator, http: aiohttp.ClientSession) -> None:
        server.faults.append(Fault(status=200, body=b"12345678", cut="body", cut_after=7))
        async with http.get("responses/x") as answer:
            assert await answer.content.readany() == b"1234567"
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()

    @pytest.mark.parametrize("length", [-1, 1.5, True, "1"])
    def test_a_length_that_is_no_number_of_bytes_is_refused(self, length: object) -> None:
        with pytest.raises(ValueError, match="'cut_after' must be a whole number of bytes, 0 or more, or None; got"):
            Fault(cut="body", cut_after=length)

    def test_a_length_without_a_cut_is_refused(self) -> None:
        with pytest.raises(ValueError, match="pass cut='body' as well"):
            Fault(cut_after=1)


@pytest.mark.slow
class TestPeer:
    """The events of Microsoft's server, and those of the emulator that plays it."""

    @staticmethod
    async def read(url: str, then: str | None = None) -> list[dict[str, Any]]:
        """Stream a response that does what its input says. Cancel it after an event of a type."""
        events: list[dict[str, Any]] = []
        body = {
            "model": "m",
            "input": "run" if then else "completed",
            "background": True,
            "stream": True,
            "metadata": {"says": "done", "runs_for": "inf" if then else "0"},
        }
        key = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(headers=key) as http, http.post(f"{url}/responses", json=body) as answer:
            async for line in answer.content:
                if line.startswith(b"data: "):
                    events.append(json.loads(line.removeprefix(b"data: ")))
                    if events[-1]["type"] == then:
                        async with http.post(f"{url}/responses/{events[0]['response']['id']}/cancel") as cancelled:
                            assert cancelled.status == 200
        return events

    @staticmethod
    def outline(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        """Return what the two must have in common."""
        return [
            (
                event["type"],
                event["sequence_number"],
                sorted(event),
                event.get("response", {}).get("status"),
                event.get("part"),
                event.get("delta"),
                event.get("text"),
                event.get("item", {}).get("content"),
                event.get("item", {}).get("status"),
                [item["content"] for item in event.get("response", {}).get("output", [])],
            )
            for event in events
        ]

    async def test_the_events_are_the_same(self, tmp_path: Path) -> None:
        async with (
            serving("azure_agent.py", tmp_path, "readiness", AGENTSERVER_STATE_ROOT=str(tmp_path)) as real,
            Emulator(dialect="azure") as server,
        ):
            assert self.outline(await self.read(real)) == self.outline(await self.read(server.base_url))
            cancelled = self.outline(await self.read(real, then="response.in_progress"))
            emulated = self.outline(await self.read(server.base_url, then="response.in_progress"))
        # This agent says nothing before it is cancelled.
        assert cancelled[:2] == emulated[:2]
        assert (cancelled[-1][0], cancelled[-1][2:]) == (emulated[-1][0], emulated[-1][2:])

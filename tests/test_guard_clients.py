"""Guards of clients: what a client of the openai package creates is stopped with the block."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from conftest import KEY, QuickClock, hasty_session, notes, until
from openai_clients import REQUEST, TRANSPORTS, async_client, blocking_client, inside, states
from pydantic import BaseModel

from openai_cancel import AsyncSession, ConfigurationError, InvalidResponseIdError
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.ledger import Ledger

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class Answer(BaseModel):
    number: int


@pytest.fixture(params=TRANSPORTS)
async def client(request: pytest.FixtureRequest, server: Emulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(server, request.param) as client:
        yield client


@pytest.fixture
async def httpx_client(server: Emulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(server) as client:
        yield client


@pytest.fixture
async def real_session(server: Emulator) -> AsyncIterator[AsyncSession]:
    async with hasty_session(api_key=KEY, base_url=server.base_url) as session:
        yield session


async def create(client: Any) -> Any:
    return (await client.responses.create(**REQUEST)).id


async def create_stream(client: Any) -> Any:
    return await client.responses.create(**REQUEST, stream=True)


async def read_no_event(client: Any) -> Any:
    async with await create_stream(client):
        pass


async def leave_early(client: Any) -> Any:
    async with await client.responses.create(**REQUEST, stream=True) as events:
        async for _ in events:
            break


async def stream_helper(client: Any) -> Any:
    async with client.responses.stream(**REQUEST) as events:
        async for _ in events:
            break


async def parse(client: Any) -> Any:
    return await client.responses.parse(**REQUEST, text_format=Answer)


async def raw(client: Any) -> Any:
    return (await client.responses.with_raw_response.create(**REQUEST)).parse()


async def raw_stream(client: Any) -> Any:
    async with (await client.responses.with_raw_response.create(**REQUEST, stream=True)).parse() as events:
        await anext(aiter(events))


async def streamed(client: Any) -> Any:
    async with client.responses.with_streaming_response.create(**REQUEST) as answer:
        return await answer.parse()


async def streamed_but_unread(client: Any) -> Any:
    async with client.responses.with_streaming_response.create(**REQUEST):
        pass


async def copied(client: Any) -> Any:
    return await client.with_options(timeout=5, max_retries=1).responses.create(**REQUEST)


async def plain_request(client: Any) -> Any:
    headers = {"authorization": f"Bearer {KEY}"}
    return await client._client.post(f"{client.base_url}responses", json=REQUEST, headers=headers)


async def cancel_under_way(task: "asyncio.Task[Any]", server: Emulator) -> None:
    """Cancel a task whose creation the server has received and not answered."""
    await until(lambda: server.received)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


WAYS: list[Callable[[Any], Awaitable[Any]]] = [
    create, read_no_event, leave_early, stream_helper, parse, raw, raw_stream, streamed,
    streamed_but_unread, copied, plain_request,
]  # fmt: skip


class TestWaysToCreate:
    @pytest.mark.parametrize("way", WAYS)
    async def test_a_response_is_stopped_however_it_was_created(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI, way: Any
    ) -> None:
        before = inside(client)
        with pytest.raises(ZeroDivisionError) as caught:
            async with session.guard(client) as guard:
                await way(client)
                raise ZeroDivisionError
        assert states(server) == ["cancelled"]
        assert [outcome.verdict for outcome in guard.outcomes.values()] == ["cancelled"]
        assert notes(caught.value) == []
        assert inside(client) == before

    async def test_a_retried_creation_is_guarded(
        self, session: AsyncSession, server: Emulator, httpx_client: openai.AsyncOpenAI
    ) -> None:
        server.faults = [Fault(on="create", status=500, headers={"retry-after-ms": "1"})]
        with pytest.raises(ZeroDivisionError):
            async with session.guard(httpx_client) as guard:
                await httpx_client.with_options(max_retries=1).responses.create(**REQUEST)
                raise ZeroDivisionError
        assert states(server) == ["cancelled"]
        assert len(guard.outcomes) == 1

    async def test_an_httpx_client_is_guarded_by_itself(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        with pytest.raises(ZeroDivisionError):
            async with session.guard(client._client):
                await create(client)
                raise ZeroDivisionError
        assert states(server) == ["cancelled"]

    async def test_azure_clients_are_guarded(self, server: Emulator) -> None:
        endpoint = server.base_url.removesuffix("/v1")
        options: dict[str, Any] = {"azure_endpoint": endpoint, "api_key": KEY, "api_version": "2025-04-01-preview"}
        async with (
            openai.AsyncAzureOpenAI(**options, azure_deployment="d") as client,
            AsyncSession.azure(endpoint, api_key=KEY) as session,  # its v1 API leads to the same responses
        ):
            with pytest.raises(ZeroDivisionError):
                async with session.guard(client):
                    await create(client)
                    raise ZeroDivisionError
        assert states(server) == ["cancelled"]

    async def test_a_client_and_ids_can_be_added_at_any_time(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        other = await create(client)
        guard = session.guard(other)
        with pytest.raises(ZeroDivisionError):
            async with guard:
                before = await create(client)
                guard.add(client)
                guard.add(client)
                after = await create(client)
                raise ZeroDivisionError
        assert {*guard.outcomes} == {other, after}
        assert states(server)[list(server.responses).index(before)] == "in_progress"

    async def test_a_guard_can_be_entered_again(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        guard = session.guard(client)
        async with guard:
            assert repr(guard) == "<Guard without a response>"
            first = await create(client)
            assert repr(guard) == f"<Guard {first}>"
        guard.disarm()
        with pytest.raises(ZeroDivisionError):
            async with guard:
                await create(client)
                raise ZeroDivisionError
        assert states(server) == ["in_progress", "cancelled"]

    async def test_a_blocking_client_in_a_thread_is_guarded(self, session: AsyncSession, server: Emulator) -> None:
        with blocking_client(server) as client, pytest.raises(ZeroDivisionError):
            async with session.guard(client):
                await asyncio.to_thread(client.responses.create, **REQUEST)
                raise ZeroDivisionError
        assert states(server) == ["cancelled"]


class TestWhatJoins:
    async def test_a_response_that_is_seen_to_end_leaves_the_guard(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        async with session.guard(client) as guard:
            polled, cancelled = await create(client), await create(client)
            await client.responses.retrieve(polled)
            assert repr(guard) == f"<Guard {polled}, {cancelled}>"  # it still runs
            server.responses[polled].cancel(server.clock())
            async with client.responses.with_streaming_response.retrieve(polled) as answer:
                await answer.parse()
            assert repr(guard) == f"<Guard {cancelled}>"
            await client.responses.cancel(cancelled)
            assert not guard.armed

    @pytest.mark.parametrize("becomes", ["completed", "failed", "incomplete"])
    async def test_a_stream_that_is_read_to_its_end_leaves_the_guard(
        self, session: AsyncSession, server: Emulator, clock: QuickClock, client: openai.AsyncOpenAI, becomes: str
    ) -> None:
        server.script = Script(runs_for=5, becomes=becomes)
        async with session.guard(client) as guard:
            events = await create_stream(client)
            assert guard.armed
            clock.now += 10
            types = [event.type async for event in events]
            assert types[-1] == f"response.{becomes}"
            assert not guard.armed
            server.script = Script(runs_for=0)
            types = [event.type async for event in await create_stream(client)]
            assert types[-1] == "response.completed"
            assert not guard.armed

    async def test_a_stream_that_is_taken_up_again_shows_the_end(
        self, session: AsyncSession, server: Emulator, clock: QuickClock, client: openai.AsyncOpenAI
    ) -> None:
        server.script = Script(runs_for=5)
        async with session.guard(client) as guard:
            async with await create_stream(client) as events:
                created = (await anext(aiter(events))).response.id
            async with await client.responses.retrieve(created, stream=True, starting_after=0) as events:
                assert guard.armed
                clock.now += 10
                _ = [event async for event in events]
            assert not guard.armed

    @pytest.mark.parametrize("cut_after", [0, 30, None])
    async def test_a_stream_that_is_cut_stays_guarded(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI, cut_after: int | None
    ) -> None:
        server.faults = [Fault(on="create", cut="body", cut_after=cut_after)]
        with pytest.raises(ZeroDivisionError):
            async with session.guard(client) as guard:
                events = await create_stream(client)  # raises nothing, as without a guard
                with pytest.raises(Exception, match=r"[Cc]onnection|peer closed|payload"):
                    _ = [event async for event in events]
                raise ZeroDivisionError
        assert len(guard.outcomes) == (cut_after is None)  # before the first event, the id is unknown

    async def test_a_document_that_is_cut_after_its_id_is_stopped_at_once(
        self, real_session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        server.faults = [Fault(on="create", cut="body")]
        async with real_session.guard(client) as guard:
            kept = await client.with_options(max_retries=1).responses.create(**REQUEST)
            await until(lambda: states(server)[0] == "cancelled")
            assert kept.id in repr(guard)
        assert states(server) == ["cancelled", "in_progress"]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_response_that_does_not_run_in_the_background_does_not_join(
        self, session: AsyncSession, client: openai.AsyncOpenAI, *, stream: bool
    ) -> None:
        async with session.guard(client) as guard:
            await client.responses.create(model="m", input='"background": true', metadata={"background": "true"})
            answer = await client.responses.create(
                model="m", input="hi", stream=stream, extra_body={"text": {"background": True}, "background": False}
            )
            assert not guard.armed
            if stream:
                await answer.close()

    async def test_other_requests_and_failures_do_not_join(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        async with session.guard(client) as guard:
            with pytest.raises(openai.NotFoundError):
                await client.models.list()
            await client._client.get(f"{client.base_url}responses")
            with pytest.raises(openai.BadRequestError):
                await client.responses.create(**REQUEST, store=False)
            server.faults = [Fault(on="create", status=200, body=body) for body in ([], "{", {"id": 7}, {"id": "\0"})]
            for _ in range(4):
                await client._client.post(
                    f"{client.base_url}responses", json=REQUEST, headers={"authorization": f"Bearer {KEY}"}
                )
            assert not guard.armed


class TestContexts:
    async def test_concurrent_guards_of_a_client_get_their_own_responses(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        before = inside(client)
        started = asyncio.Event()

        async def run(*, fails: bool) -> str:
            async with session.guard(client) as guard:
                async with asyncio.TaskGroup() as group:
                    created = await group.create_task(create(client))
                started.set()
                await asyncio.sleep(0.01)
                assert repr(guard) == f"<Guard {created}>"
                if fails:
                    raise ZeroDivisionError
            return created

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(fails=False)) for _ in range(3)]
            failing = asyncio.gather(*(run(fails=True) for _ in range(3)), return_exceptions=True)
            await started.wait()
            left_alone = await create(client)
            await failing
        running = {task.result() for task in tasks} | {left_alone}
        assert {name for name, work in server.responses.items() if work.status(0.0) != "cancelled"} == running
        assert states(server).count("cancelled") == 3
        assert inside(client) == before

    async def test_nested_guards_both_get_a_response(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        with pytest.raises(ZeroDivisionError):
            async with session.guard(client):
                async with session.guard(client):
                    await create(client)
                raise ZeroDivisionError
        assert states(server) == ["cancelled"]

    async def test_a_response_of_a_task_that_outlives_the_block_is_left_alone(
        self, session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        left = asyncio.Event()

        async def later() -> None:
            await left.wait()
            await create(client)

        async with session.guard(client), session.guard(client._client):
            task = asyncio.create_task(later())
        left.set()
        async with session.guard(client) as other:
            await task
            assert not other.armed
        assert states(server) == ["in_progress"]


async def test_a_block_that_is_entered_in_another_task_is_told(
    session: AsyncSession, client: openai.AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    guard = session.guard(client)
    await asyncio.create_task(guard.__aenter__())
    await guard.__aexit__(None, None, None)
    assert "a guard was exited in a different context" in caplog.text


class TestCreationsUnderWay:
    async def test_a_creation_whose_task_is_cancelled_is_stopped_when_its_answer_comes(
        self, real_session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        server.faults = [Fault(on="create", delay=0.1)]

        async def block() -> None:
            async with real_session.guard(client):
                await create(client)

        await cancel_under_way(asyncio.create_task(block()), server)
        assert states(server) == ["cancelled"]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_creation_that_a_block_gives_up_is_stopped_while_the_block_goes_on(
        self, real_session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI, *, stream: bool
    ) -> None:
        server.faults = [Fault(on="create", delay=0.1)]
        async with real_session.guard(client) as guard:
            task = asyncio.create_task(client.responses.create(**REQUEST, stream=stream))
            await cancel_under_way(task, server)
            assert guard.armed
            await until(lambda: guard.outcomes)
        assert states(server) == ["cancelled"]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_creation_that_a_block_gives_up_is_stopped_before_its_normal_end(
        self, server: Emulator, client: openai.AsyncOpenAI, tmp_path: Path, *, stream: bool
    ) -> None:
        server.faults = [Fault(on="create", delay=0.1)]
        async with (
            Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
            hasty_session(api_key=KEY, base_url=server.base_url, ledger=ledger) as session,
        ):
            async with session.guard(client) as guard:
                task = asyncio.create_task(client.responses.create(**REQUEST, stream=stream))
                await cancel_under_way(task, server)
                other = await create(client)
            assert states(server) == ["in_progress", "cancelled"]
            assert [outcome.stopped for outcome in guard.outcomes.values()] == [True]
            recorded = {entry.response_id: entry.state async for entry in ledger.entries(include_ended=True)}
        assert recorded == {other: "released", [*server.responses][1]: "cancelled"}

    async def test_a_response_that_is_being_stopped_is_not_left_to_the_end_of_the_session(
        self, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        server.faults = [Fault(on="create", cut="body"), Fault(on="cancel", delay=0.1)]
        async with (
            hasty_session(api_key=KEY, base_url=server.base_url) as session,
            session.guard(client),
        ):
            with pytest.raises(openai.APIConnectionError):
                await create(client)
        assert states(server) == ["cancelled"]

    @pytest.mark.parametrize("has_id", [False, True])
    async def test_what_was_given_up_holds_up_a_normal_end_no_longer_than_the_grace(
        self, server: Emulator, client: openai.AsyncOpenAI, tmp_path: Path, *, has_id: bool
    ) -> None:
        server.faults = [Fault(on="create", delay=0 if has_id else math.inf, cut="body" if has_id else None)]
        server.faults += [Fault(on="cancel", delay=math.inf)] * has_id
        async with (
            Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
            hasty_session(api_key=KEY, base_url=server.base_url, ledger=ledger) as session,
        ):
            async with session.guard(client, grace=0.2):
                task = asyncio.create_task(create(client))
                if has_id:
                    with pytest.raises(openai.APIConnectionError):
                        await task
                else:
                    await cancel_under_way(task, server)
            entries = [entry.state async for entry in ledger.entries(include_ended=True)]
            assert "released" not in entries  # a sweep stops it, if nothing else does
            server.faults.clear()

    async def test_a_creation_of_another_task_is_waited_for(
        self, real_session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        server.faults = [Fault(on="create", delay=0.05)]
        with pytest.raises(ZeroDivisionError):
            async with real_session.guard(client):
                task = asyncio.create_task(create(client))
                await until(lambda: server.received)
                raise ZeroDivisionError
        assert states(server) == ["cancelled"]
        assert await task in server.responses

    async def test_a_creation_that_ends_after_the_grace_is_stopped_then(
        self, real_session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        class HeldFault(Fault):
            async def strike(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
                await released.wait()
                return await super().strike(request, handler)

        released = asyncio.Event()
        server.faults = [HeldFault(on="create")]
        with pytest.raises(ZeroDivisionError):
            async with real_session.guard(client, grace=0.1):
                task = asyncio.create_task(create(client))
                await until(lambda: server.received)
                raise ZeroDivisionError
        assert states(server) == []
        released.set()
        assert await task in server.responses
        assert states(server) == ["cancelled"]

    @pytest.mark.parametrize("cancelled", [False, True])
    async def test_a_creation_that_ends_after_a_normal_end_is_left_alone(
        self, real_session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI, *, cancelled: bool
    ) -> None:
        server.faults = [Fault(on="create", delay=0.05)]
        async with real_session.guard(client):
            task = asyncio.create_task(create(client))
            await until(lambda: server.received)
        if cancelled:
            await cancel_under_way(task, server)
        else:
            await task
        await until(lambda: states(server))
        await until(lambda: not any("Tap" in repr(task.get_coro()) for task in asyncio.all_tasks()))
        assert states(server) == ["in_progress"]

    @pytest.mark.parametrize("fault", [Fault(on="create", delay=0.05, status=500), Fault(on="create", delay=math.inf)])
    async def test_a_creation_without_a_response_holds_up_nothing_but_the_grace(
        self, real_session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI, fault: Fault
    ) -> None:
        server.faults = [fault]
        with pytest.raises(ZeroDivisionError) as caught:
            async with real_session.guard(client, grace=0.1):
                task = asyncio.create_task(create(client))
                await until(lambda: server.received)
                raise ZeroDivisionError
        assert notes(caught.value) == []
        task.cancel()
        with pytest.raises((openai.InternalServerError, asyncio.CancelledError)):
            await task

    async def test_a_cancellation_after_the_answer_leaves_no_response_running(
        self, real_session: AsyncSession, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        """The task is cancelled in each of its steps in turn."""
        for steps in range(0, 40, 2):
            with pytest.raises(asyncio.CancelledError):
                async with real_session.guard(client):
                    task = asyncio.create_task(create(client))
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    task.cancel()
                    await task
                    raise asyncio.CancelledError
        assert {*states(server)} <= {"cancelled"}


class TestRefusals:
    async def test_what_is_no_client_is_refused(self, session: AsyncSession, client: openai.AsyncOpenAI) -> None:
        for wrong in (openai, client.responses, openai.AsyncOpenAI, session, object):
            with pytest.raises((ConfigurationError, InvalidResponseIdError), match=r"[Pp]ass|id"):
                session.guard(wrong)
        with pytest.raises(ConfigurationError, match="AsyncOpenAI"):
            session.guard(client.responses)
        with pytest.raises(ConfigurationError, match="the class AsyncOpenAI"):
            session.guard(openai.AsyncOpenAI)

    @pytest.mark.parametrize(
        "options",
        [
            {"base_url": "http://127.0.0.1:9/v1"},
            {"api_key": "sk-another-key"},
            {"organization": "org-other"},
            {"project": "proj"},
            {"default_headers": {"authorization": "Bearer sk-another-key"}},
            {"default_headers": {"api-key": "sk-another-key"}},
        ],
    )
    async def test_a_client_of_another_server_or_account_is_refused(
        self, session: AsyncSession, server: Emulator, options: dict[str, Any]
    ) -> None:
        async with async_client(server, **options) as client:
            with pytest.raises(ConfigurationError, match="from_openai") as caught:
                session.guard(client)
        assert KEY not in str(caught.value)
        assert "another-key" not in str(caught.value)

    async def test_requests_of_another_account_or_server_are_left_alone(
        self, session: AsyncSession, client: openai.AsyncOpenAI, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with session.guard(client) as guard, Emulator() as elsewhere:
            for _ in range(2):
                await create(client.with_options(api_key="sk-another-key"))
            for _ in range(2):
                await create(client.with_options(base_url=elsewhere.base_url))
            assert not guard.armed
        for other in ("another account", "another server"):
            assert len([record for record in caplog.records if other in record.message]) == 1

    @pytest.mark.parametrize("path", ["a%2fb", "a%7Eb", "a|b^c", "%c3%bc", "\u00fc[x]"])
    async def test_a_path_may_be_encoded_in_any_way(self, server: Emulator, path: str) -> None:
        server.faults = [Fault(on=None, status=200, body={"id": "resp_1", "status": "in_progress"})]
        base_url = f"{server.base_url}/{path}"
        async with (
            async_client(server, base_url=base_url) as client,
            AsyncSession(api_key=KEY, base_url=base_url) as session,
            session.guard(client) as guard,
        ):
            await create(client)
            assert guard.armed

    async def test_a_key_in_a_header_of_its_own_is_compared(self, server: Emulator) -> None:
        async with (
            async_client(server, api_key="unused", default_headers={"api-key": KEY}) as client,
            AsyncSession.from_openai(client) as session,
            session.guard(client) as guard,
        ):
            assert await create(client) in repr(guard)

    async def test_a_client_whose_credentials_cannot_be_known_is_looked_at_when_it_creates(
        self, session: AsyncSession, server: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with async_client(server, api_key="workload-identity-auth") as client, session.guard(client) as guard:
            await create(client)
            assert not guard.armed
        assert "another account" in caplog.text

    async def test_a_key_that_a_function_returns_is_not_compared(self, server: Emulator) -> None:
        async def key() -> str:
            return KEY

        async with (
            AsyncSession(api_key=key, base_url=server.base_url) as session,
            async_client(server) as client,
            async_client(server, api_key=key) as asking,
            session.guard(client, asking) as guard,
        ):
            created = {await create(client), await create(asking)}
            assert {*repr(guard).strip("<>").removeprefix("Guard ").split(", ")} == created

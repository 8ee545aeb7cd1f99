"""Blocking guards of clients: which threads they see, and what happens to creations that are under way."""

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import openai
import pytest
import trio
from conftest import KEY, notes
from openai_clients import REQUEST, async_client, blocking_client, inside, states

from openai_cancel import Session, SessionStateError
from openai_cancel.emulator import Emulator, Fault, Script


@pytest.fixture
def server() -> Iterator[Emulator]:
    """An emulator in a thread of its own, since the tests block theirs."""
    emulator = Emulator(script=Script(runs_for=math.inf))
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with emulator:
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    yield emulator
    loop.call_soon_threadsafe(over.set)
    thread.join()
    loop.close()


@pytest.fixture
def client(server: Emulator) -> Iterator[openai.OpenAI]:
    with blocking_client(server) as client:
        yield client


@pytest.fixture
def session(server: Emulator) -> Iterator[Session]:
    with Session(api_key=KEY, base_url=server.base_url) as session:
        yield session


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.001)


def create(client: openai.OpenAI) -> Any:
    return client.responses.create(**REQUEST).id


def leave_stream(client: openai.OpenAI) -> None:
    with client.responses.create(**REQUEST, stream=True) as events:
        next(iter(events))


def leave_stream_unread(client: openai.OpenAI) -> None:
    with client.responses.create(**REQUEST, stream=True):
        pass


def helper(client: openai.OpenAI) -> None:
    with client.responses.stream(**REQUEST) as events:
        next(iter(events))


def raw(client: openai.OpenAI) -> None:
    client.responses.with_raw_response.create(**REQUEST)


def streamed(client: openai.OpenAI) -> None:
    with client.responses.with_streaming_response.create(**REQUEST) as answer:
        answer.parse()


def in_a_thread(client: openai.OpenAI) -> None:
    thread = threading.Thread(target=create, args=(client,))
    thread.start()
    thread.join()


def in_a_pool(client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(create, client).result()


@pytest.mark.parametrize(
    "way", [create, leave_stream, leave_stream_unread, helper, raw, streamed, in_a_thread, in_a_pool]
)
def test_a_response_is_stopped_however_it_was_created(
    session: Session, server: Emulator, client: openai.OpenAI, way: Any
) -> None:
    before = inside(client)
    with pytest.raises(ZeroDivisionError) as caught, session.guard(client) as guard:
        way(client)
        raise ZeroDivisionError
    assert states(server) == ["cancelled"]
    assert len(guard.outcomes) == 1
    assert notes(caught.value) == []
    assert inside(client) == before


def test_a_response_that_ends_leaves_the_guard(session: Session, client: openai.OpenAI, server: Emulator) -> None:
    with session.guard(client) as guard:
        client.responses.cancel(create(client))
        assert not guard.armed
        server.script = Script(runs_for=0.05)
        types = [event.type for event in client.responses.create(**REQUEST, stream=True)]
        assert types[-1] == "response.completed"
        assert not guard.armed


def test_a_stream_that_is_cut_raises_where_it_is_read(
    session: Session, server: Emulator, client: openai.OpenAI
) -> None:
    server.faults = [Fault(on="create", cut="body", cut_after=10)]
    with session.guard(client) as guard:
        events = client.responses.create(**REQUEST, stream=True)
        with pytest.raises(Exception, match=r"[Cc]onnection|peer closed"):
            list(events)
        assert not guard.armed


def test_a_document_that_is_cut_after_its_id_is_stopped_at_once(
    session: Session, server: Emulator, client: openai.OpenAI
) -> None:
    server.faults = [Fault(on="create", cut="body")]
    with session.guard(client):
        with pytest.raises(openai.APIConnectionError):
            create(client)
        wait_until(lambda: states(server) == ["cancelled"])


def test_a_response_that_is_being_stopped_is_not_left_to_the_end_of_the_session(
    server: Emulator, client: openai.OpenAI
) -> None:
    server.faults = [Fault(on="create", cut="body"), Fault(on="cancel", delay=0.1)]
    with (
        Session(api_key=KEY, base_url=server.base_url) as session,
        session.guard(client),
        pytest.raises(openai.APIConnectionError),
    ):
        create(client)
    assert states(server) == ["cancelled"]


def test_an_async_client_is_guarded_in_another_event_loop(session: Session, server: Emulator) -> None:
    async def work() -> None:
        async with async_client(server) as client:
            with session.guard(client):
                await client.responses.create(**REQUEST)
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(work())
    assert states(server) == ["cancelled"]


def test_an_async_client_is_guarded_in_an_event_loop_of_trio(session: Session, server: Emulator) -> None:
    async def work() -> None:
        async with async_client(server) as client:
            with session.guard(client):
                await client.responses.create(**REQUEST)
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trio.run(work)
    assert states(server) == ["cancelled"]


class TestThreads:
    def test_a_thread_that_was_there_before_needs_the_context(
        self, session: Session, server: Emulator, client: openai.OpenAI
    ) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()
            with pytest.raises(ZeroDivisionError), session.guard(client):
                pool.submit(create, client).result()
                pool.submit(contextvars.copy_context().run, create, client).result()
                raise ZeroDivisionError
        assert states(server) == ["in_progress", "cancelled"]

    def test_a_block_of_another_thread_sees_its_own_thread_and_its_context(
        self, session: Session, server: Emulator, client: openai.OpenAI
    ) -> None:
        def block() -> None:
            with session.guard(client), ThreadPoolExecutor(1) as pool:
                create(client)
                pool.submit(create, client).result()
                pool.submit(contextvars.copy_context().run, create, client).result()
                raise ZeroDivisionError

        with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
            pool.submit(block).result()
        assert states(server) == ["cancelled", "in_progress", "cancelled"]

    def test_guards_of_concurrent_threads_get_their_own_responses(
        self, session: Session, server: Emulator, client: openai.OpenAI
    ) -> None:
        barrier = threading.Barrier(4)

        def block(*, fails: bool) -> str:
            with suppress(ZeroDivisionError), session.guard(client) as guard:
                created = create(client)
                barrier.wait()
                assert repr(guard) == f"<Guard {created}>"
                if fails:
                    raise ZeroDivisionError
            return created

        with ThreadPoolExecutor(4) as pool:
            failed = [pool.submit(block, fails=True) for _ in range(2)]
            kept = {task.result() for task in [pool.submit(block, fails=False) for _ in range(2)]}
            _ = [task.result() for task in failed]
        assert {name for name, work in server.responses.items() if not work.cancelled} == kept

    def test_a_thread_belongs_to_all_blocks_around_its_start(
        self, session: Session, server: Emulator, client: openai.OpenAI
    ) -> None:
        with pytest.raises(ZeroDivisionError), session.guard(client), ThreadPoolExecutor(1) as pool:
            with session.guard(client) as inner:
                pool.submit(create, client).result()
            with session.guard(client) as later:
                pool.submit(create, client).result()
                assert not later.armed
            assert len(inner.responses.ids) == 1
            raise ZeroDivisionError
        assert states(server) == ["cancelled", "cancelled"]

    def test_a_block_that_is_entered_in_another_context_is_told(
        self, session: Session, client: openai.OpenAI, server: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A dependency of a web framework that is a plain generator runs in two threads, and the handler in a third."""
        block = session.guard(client)
        contextvars.copy_context().run(block.__enter__)
        create(client)
        block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        assert "a guard was exited in a different context" in caplog.text
        assert states(server) == ["in_progress"]

    def test_a_block_in_a_thread_leaves_it_in_the_block_around_its_start(
        self, session: Session, server: Emulator, client: openai.OpenAI
    ) -> None:
        def block() -> None:
            with session.guard(client):
                create(client)

        with pytest.raises(ZeroDivisionError), session.guard(client), ThreadPoolExecutor(1) as pool:
            for function in (lambda: create(client), block, lambda: create(client)):
                pool.submit(function).result()
            raise ZeroDivisionError
        assert states(server) == ["cancelled"] * 3


class TestCreationsUnderWay:
    def test_a_creation_of_another_thread_is_waited_for(
        self, session: Session, server: Emulator, client: openai.OpenAI
    ) -> None:
        server.faults = [Fault(on="create", delay=0.1)]
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ZeroDivisionError), session.guard(client):
                task = pool.submit(create, client)
                wait_until(lambda: server.received)
                raise ZeroDivisionError
            assert states(server) == ["cancelled"]
            assert task.result() in server.responses

    def test_a_creation_that_ends_after_the_grace_is_stopped_then(
        self, session: Session, server: Emulator, client: openai.OpenAI
    ) -> None:
        server.faults = [Fault(on="create", delay=0.5)]
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ZeroDivisionError), session.guard(client, grace=0.2):
                task = pool.submit(create, client)
                wait_until(lambda: server.received)
                raise ZeroDivisionError
            assert task.result() in server.responses
            assert states(server) == ["cancelled"]

    def test_a_creation_that_ends_after_the_session_is_returned_all_the_same(
        self, server: Emulator, client: openai.OpenAI, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.faults = [Fault(on="create", delay=0.3)]
        session = Session(api_key=KEY, base_url=server.base_url).open()
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ZeroDivisionError), session.guard(client, grace=0.1):
                task = pool.submit(create, client)
                wait_until(lambda: server.received)
                raise ZeroDivisionError
            session.close()
            assert task.result() in server.responses
        assert "may run on: SessionStateError" in caplog.text

    def test_a_session_that_closes_in_the_block_leaves_the_client_as_it_was(
        self, server: Emulator, client: openai.OpenAI
    ) -> None:
        before = inside(client)
        session = Session(api_key=KEY, base_url=server.base_url).open()
        with pytest.raises(SessionStateError), session.guard(client):
            create(client)
            session.close()
            assert states(server) == ["cancelled"]
            create(client)
            session.stop("resp_1")
        assert inside(client) == before

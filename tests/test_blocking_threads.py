"""In which threads a blocking session calls the caller's code: iterables of ids, and key functions."""

import asyncio
import contextvars
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from conftest import KEY

from openai_cancel import ConfigurationError, Session, SessionStateError, Verdict
from openai_cancel.emulator import Emulator, Fault

tenant = contextvars.ContextVar("tenant", default="nobody")


async def in_thread(server: Emulator, function: Callable[[Session], Any], **options: Any) -> Any:
    """Call a function with a blocking session, in a thread, since the emulator needs this one."""

    def work() -> Any:
        with Session(**{"api_key": KEY, "base_url": server.base_url, **options}) as session:
            return function(session)

    return await asyncio.to_thread(work)


class TestIterablesOfStopMany:
    async def test_a_cursor_of_sqlite_is_read_in_its_own_thread(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(200)]

        def work(session: Session) -> list[str]:
            with closing(sqlite3.connect(":memory:")) as database:
                database.execute("create table runs (id text)")
                database.executemany("insert into runs values (?)", [(name,) for name in ids])
                rows = (name for (name,) in database.execute("select id from runs"))
                return [outcome.response_id for outcome in session.stop_many(rows)]

        assert sorted(await in_thread(server, work)) == sorted(ids)

    async def test_no_event_loop_runs_where_it_is_read(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(3)]

        def work(session: Session) -> tuple[int, set[int]]:
            threads: set[int] = set()

            def read() -> Iterator[str]:
                for name in ids:
                    with pytest.raises(RuntimeError):
                        asyncio.get_running_loop()
                    threads.add(threading.get_ident())
                    yield name

            assert all(outcome.stopped for outcome in session.stop_many(read()))
            return threading.get_ident(), threads

        own, threads = await in_thread(server, work)
        assert threads == {own}

    async def test_it_is_read_as_ids_are_needed(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(50)]

        def work(session: Session) -> list[int]:
            read = 0

            def source() -> Iterator[str]:
                nonlocal read
                for name in ids:
                    read += 1
                    yield name

            ahead = []
            for number, _ in enumerate(session.stop_many(source(), concurrency=5)):
                ahead.append(read - number)
            return ahead

        ahead = await in_thread(server, work)
        assert len(ahead) == 50
        assert max(ahead) <= 6

    async def test_a_slow_one_holds_up_neither_requests_nor_outcomes(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(8)]

        def work(session: Session) -> list[int]:
            read = 0

            def source() -> Iterator[str]:
                nonlocal read
                for name in ids:
                    read += 1
                    yield name
                    while len(server.received) < read:  # the request is sent while this waits
                        time.sleep(0.05)

            return [read for _ in session.stop_many(source())]

        seen = await in_thread(server, work)
        assert seen[0] < 8

    async def test_it_may_call_the_session(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(3)]

        def work(session: Session) -> list[Verdict]:
            running = (name for name in ids if not session.retrieve(name).is_terminal)
            return [outcome.verdict for outcome in session.stop_many(running)]

        assert await in_thread(server, work) == [Verdict.CANCELLED] * 3

    async def test_its_error_is_raised_after_the_outcomes_of_what_was_read(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(3)]

        def source() -> Iterator[str]:
            yield from ids
            raise ZeroDivisionError

        def work(session: Session) -> list[str]:
            outcomes = session.stop_many(source())
            seen = [next(outcomes).response_id for _ in ids]
            with pytest.raises(ZeroDivisionError):
                next(outcomes)
            return seen

        assert sorted(await in_thread(server, work)) == sorted(ids)

    async def test_a_key_function_that_fails_while_it_is_read_ends_the_iteration(self, server: Emulator) -> None:
        failing = threading.Event()

        def provide() -> str:
            failing.set()
            raise ZeroDivisionError

        def work(session: Session) -> int:
            read = 0

            def source() -> Iterator[str]:
                nonlocal read
                for number in range(100):
                    yield f"resp_{number}"
                    failing.wait()
                    time.sleep(0.01)
                    read += 1

            with pytest.raises(ZeroDivisionError):
                list(session.stop_many(source()))
            return read

        assert await in_thread(server, work, api_key=provide) < 50

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    async def test_an_interruption_while_it_is_read_ends_the_requests(self, server: Emulator, create, kind) -> None:
        name = create()
        server.faults.append(Fault(delay=1000))

        def work(session: Session) -> None:
            def source() -> Iterator[str]:
                yield name
                while not server.received:
                    time.sleep(0.001)
                raise kind

            with pytest.raises(kind):
                list(session.stop_many(source()))

        await in_thread(server, work)

    async def test_leaving_the_loop_ends_the_requests(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(10)]

        def work(session: Session) -> None:
            outcomes = session.stop_many(iter(ids), concurrency=2)
            next(outcomes)
            server.faults += [Fault(delay=1000)] * 8
            outcomes.close()
            assert list(outcomes) == []

        await in_thread(server, work)

    async def test_closing_the_session_ends_the_iteration(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(10)]

        def work(session: Session) -> None:
            outcomes = session.stop_many(iter(ids), concurrency=2)
            next(outcomes)
            session.close()
            with pytest.raises(SessionStateError):
                next(outcomes)

        await in_thread(server, work)

    async def test_a_call_that_waits_is_ended_as_the_session_closes(self, server: Emulator, create) -> None:
        server.faults += [Fault(delay=1000)] * 2

        def work(session: Session) -> None:
            def close() -> None:
                while not server.received:
                    time.sleep(0.001)
                session.close()

            thread = threading.Thread(target=close)
            thread.start()
            with pytest.raises(SessionStateError, match="closed while the call was under way"):
                list(session.stop_many([create()]))
            thread.join()

        await in_thread(server, work)

    async def test_an_async_iterable_is_read_by_the_session(self, server: Emulator, create) -> None:
        ids = [create() for _ in range(3)]

        async def source():
            for name in ids:
                yield name

        verdicts = await in_thread(server, lambda session: [each.verdict for each in session.stop_many(source())])
        assert verdicts == [Verdict.CANCELLED] * 3

    async def test_what_is_no_iterable_of_ids_is_refused_at_once(self, server: Emulator) -> None:
        for wrong in ("resp_1", b"resp_1", 7):
            with pytest.raises(ConfigurationError, match="stop_many takes an iterable of ids"):
                await in_thread(server, lambda session, wrong=wrong: session.stop_many(wrong))


class TestKeyFunctions:
    @pytest.mark.parametrize("make", ["plain", "partial", "object", "azure", "from_openai"])
    async def test_a_plain_one_is_called_where_no_event_loop_runs(self, server: Emulator, create, make: str) -> None:
        import openai

        threads: list[threading.Thread] = []

        class Provider:
            def __call__(self) -> str:
                with pytest.raises(RuntimeError):
                    asyncio.get_running_loop()
                threads.append(threading.current_thread())
                return KEY

        def create_session() -> Session:
            url = server.base_url
            function: Any = {"plain": Provider().__call__, "partial": partial(Provider())}.get(make, Provider())
            if make == "azure":
                return Session.azure(url.removesuffix("/v1"), token_provider=function)
            if make == "from_openai":
                with openai.OpenAI(api_key=function, base_url=url) as client:
                    return Session.from_openai(client)
            return Session(api_key=function, base_url=url)

        def work() -> None:
            with create_session() as session:
                for name in ids:
                    session.cancel(name)

        ids = [create() for _ in range(3)]
        await asyncio.to_thread(work)
        assert len({*threads}) == 1
        assert len(threads) >= 3
        threads[0].join(5)
        assert not threads[0].is_alive()

    async def test_django_allows_its_database_there(self, server: Emulator, create) -> None:
        pytest.importorskip("django", reason="needs Django")
        from django.utils.asyncio import async_unsafe

        @async_unsafe  # as all queries are
        def query() -> str:
            return KEY

        name = create()
        assert (await in_thread(server, lambda session: session.cancel(name), api_key=query)).status == "cancelled"

    async def test_it_sees_the_context_of_the_call(self, server: Emulator, create) -> None:
        seen: list[str] = []

        def provide() -> str:
            seen.append(tenant.get())
            return KEY

        def work(session: Session) -> None:
            for value in ("a", "b"):
                tenant.set(value)
                session.cancel(create())

        await in_thread(server, work, api_key=provide)
        assert seen == ["a", "b"]

    async def test_a_slow_one_holds_up_no_request_that_is_under_way(self, server: Emulator, create) -> None:
        waits = threading.Event()
        calls: list[int] = []

        def provide() -> str:
            calls.append(1)
            if len(calls) > 1:
                waits.wait(20)
            return KEY

        server.faults.append(Fault(delay=0.2))

        def work(session: Session) -> str:
            first = threading.Thread(target=lambda: done.append(session.cancel(ids[0])))
            first.start()
            while not server.received:
                time.sleep(0.001)
            second = threading.Thread(target=session.cancel, args=(ids[1],))
            second.start()
            first.join(10)
            waits.set()
            second.join()
            return done[0].status

        done: list[Any] = []
        ids = [create() for _ in range(2)]
        assert await in_thread(server, work, api_key=provide) == "cancelled"

    async def test_it_may_return_an_awaitable(self, server: Emulator, create) -> None:
        async def provide() -> str:
            await asyncio.sleep(0)
            return KEY

        for function in (provide, lambda: provide()):  # noqa: PLW0108 - a plain function
            name = create()
            response = await in_thread(server, lambda session, name=name: session.cancel(name), api_key=function)
            assert response.status == "cancelled"

    @pytest.mark.parametrize("kind", [ZeroDivisionError, StopIteration, SystemExit])
    async def test_its_error_is_raised(self, server: Emulator, kind) -> None:
        def provide() -> str:
            raise kind

        def work(session: Session) -> None:
            with pytest.raises(RuntimeError if kind is StopIteration else kind):
                session.cancel("x")

        await in_thread(server, work, api_key=provide)

    async def test_one_that_calls_the_session_is_told_so(self, server: Emulator) -> None:
        sessions: list[Session] = []

        def work(session: Session) -> None:
            sessions.append(session)
            with pytest.raises(SessionStateError, match="this would deadlock"):
                session.cancel("x")

        await in_thread(server, work, api_key=lambda: sessions[0].cancel("y"))

    async def test_where_no_thread_can_be_started_it_is_called_in_the_loop(
        self, server: Emulator, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "openai-cancel-key":
                raise RuntimeError("can't create new thread at interpreter shutdown")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        name = create()
        response = await in_thread(server, lambda session: session.cancel(name), api_key=lambda: KEY)
        assert response.status == "cancelled"

    async def test_one_that_nobody_waits_for_any_more_is_not_called(self, server: Emulator) -> None:
        waits, called = threading.Event(), []

        def provide() -> str:
            called.append(threading.get_ident())
            waits.wait(20)
            return KEY

        def work(session: Session) -> None:
            for _ in range(3):
                with pytest.raises(Exception, match="No complete answer within"):
                    session.cancel("x", timeout=0.05, max_retries=0)
            waits.set()

        await in_thread(server, work, api_key=provide)
        assert len(called) == 1

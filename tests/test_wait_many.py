"""`wait_many`: each response once, whatever ends its wait, and within the rate that the server allows."""

import asyncio
import math
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from conftest import KEY, QuickClock, QuickSession, cancels, hasty_session, notes, until
from crowds import crowd

from openai_cancel import (
    AbandonedError,
    APIConnectionError,
    ConfigurationError,
    InvalidResponseIdError,
    NotFoundError,
    PermissionDeniedError,
    Response,
    Session,
    SessionStateError,
    Verdict,
    WaitResult,
    WaitTimeoutError,
)
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.ledger import Ledger
from openai_cancel.pytest_plugin import _running as running_in_thread

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def async_iterator(names: list[str]) -> AsyncIterator[str]:
    for name in names:
        yield name


async def collect(results: AsyncIterator[WaitResult]) -> dict[str, WaitResult]:
    return {result.response_id: result async for result in results}


class TestResults:
    async def test_every_response_is_returned_at_its_end(self, session: QuickSession, create) -> None:
        ids = [create(runs_for=0, becomes=status) for status in ("completed", "failed", "incomplete") * 5]
        results = [result async for result in session.wait_many(ids)]
        assert sorted(result.response_id for result in results) == sorted(ids)
        assert Counter(result.response.status for result in results) == {"completed": 5, "failed": 5, "incomplete": 5}
        assert all(result.ended and result.error is None for result in results)

    async def test_responses_come_in_the_order_in_which_they_end(self) -> None:
        async with Emulator() as server, hasty_session(api_key=KEY, base_url=server.base_url) as session:
            last, first = server.add(Script(runs_for=0.4)), server.add(Script(runs_for=0))
            assert [result.response_id async for result in session.wait_many([last, first])] == [first, last]

    async def test_an_id_that_is_waited_for_already_is_asked_for_once(self, session, server, create) -> None:
        name = create(runs_for=0)
        results = [result async for result in session.wait_many([name] * 3)]
        assert ([result.response_id for result in results], len(server.received)) == ([name] * 3, 1)

    async def test_an_id_that_cannot_be_sent_has_an_error(self, session, create) -> None:
        good = create(runs_for=0)
        results = await collect(session.wait_many(["", good]))
        assert isinstance(results[""].error, InvalidResponseIdError)
        assert results[good].ended

    async def test_a_refusal_is_the_error_of_its_response(self, session, create) -> None:
        good = create(runs_for=0)
        results = await collect(session.wait_many(["resp_none", good]))
        assert isinstance(results["resp_none"].error, NotFoundError)
        assert results["resp_none"].error.outcome.verdict is Verdict.NOT_FOUND
        assert results[good].ended

    async def test_a_response_that_its_server_shows_late_is_waited_for(self, clock: QuickClock, server, create) -> None:
        server.store_delay = 6
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            results = await collect(session.wait_many([create(runs_for=20)]))
        assert {result.response.status for result in results.values()} == {"completed"}

    async def test_a_refusal_comes_with_the_response_as_it_was_last_seen(self, session, server, create) -> None:
        running = create()
        refusals = [Fault(on="retrieve", status=403)] * 3
        waiting = session.wait_many([running], on_update=lambda _: server.faults.extend(refusals), on_abandon="leave")
        results = [result async for result in waiting]
        assert isinstance(results[0].error, PermissionDeniedError)
        assert results[0].response.status == "in_progress"

    async def test_a_result_is_a_document(self, session, create) -> None:
        name = create(runs_for=0)
        results = await collect(session.wait_many([name, "resp_none"]))
        document = results[name].to_dict()
        assert (document["response_id"], document["ended"], document["error"]) == (name, True, None)
        assert document["response"]["status"] == "completed"
        refused = results["resp_none"].to_dict()
        assert (refused["ended"], refused["response"], refused["error"]["type"]) == (False, None, "NotFoundError")


class TestAbandonedWaits:
    @pytest.mark.parametrize("on_abandon", ["stop", "leave"])
    async def test_a_timeout_stops_the_response_unless_told_otherwise(
        self, session, server, create, on_abandon: str
    ) -> None:
        running, over = create(), create(runs_for=0)
        results = await collect(session.wait_many([running, over], timeout=5, on_abandon=on_abandon))
        error = results[running].error
        assert isinstance(error, WaitTimeoutError)
        assert results[running].response.status == "in_progress"
        assert bool(server.responses[running].cancelled) is (on_abandon == "stop")
        assert results[over].ended

    @pytest.mark.parametrize("on_abandon", ["stop", "leave"])
    async def test_leaving_the_loop_stops_what_is_waited_for_unless_told_otherwise(
        self, server, create, on_abandon: str
    ) -> None:
        running = [create() for _ in range(5)]
        ids = [*running, create(runs_for=0)]
        async with (
            hasty_session(api_key=KEY, base_url=server.base_url) as session,
            aclosing(session.wait_many(ids, on_abandon=on_abandon)) as results,
        ):
            assert (await anext(results)).ended
        assert {bool(server.responses[name].cancelled) for name in running} == {on_abandon == "stop"}

    async def test_cancelling_the_task_stops_what_is_waited_for(self, server, create) -> None:
        running = [create() for _ in range(5)]
        async with hasty_session(api_key=KEY, base_url=server.base_url) as session:
            task = asyncio.create_task(collect(session.wait_many(running)))
            while len(server.received) < 5:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
        assert all(server.responses[name].cancelled for name in running)
        words = "was stopped (cancelled) when the wait ended"
        assert sorted(notes(caught.value)) == sorted(f"openai-cancel: {name} {words}" for name in running)

    @pytest.mark.slow
    async def test_a_cancellation_names_first_what_may_still_be_running(self, server, create) -> None:
        running = [create() for _ in range(30)]
        async with hasty_session(api_key=KEY, base_url=server.base_url) as session:
            task = asyncio.create_task(collect(session.wait_many(running)))
            while len(server.received) < 30:
                await asyncio.sleep(0.01)
            server.faults += [Fault(on="cancel", status=403), Fault(on="retrieve", status=403)]
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
        first, *others, last = notes(caught.value)
        assert "was not stopped (forbidden: 403" in first
        assert all("was stopped" in note for note in others)
        assert (len(others), last) == (19, "openai-cancel: and 10 more, 0 of which may still be running")

    async def test_a_cancellation_tells_the_results_that_nobody_has_consumed(self, server, create) -> None:
        running, over = create(), create(runs_for=0)
        async with hasty_session(api_key=KEY, base_url=server.base_url) as session:

            def source() -> Iterator[str]:
                yield running
                task.cancel()
                yield ".."

            task = asyncio.create_task(collect(session.wait_many(source(), on_abandon="leave")))
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            refused, left = notes(caught.value)
            assert left == f"openai-cancel: {running} was left running"
            assert refused.startswith("openai-cancel: ..: ")
            task = asyncio.create_task(collect(session.wait_many([over], on_update=lambda _: task.cancel())))
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert notes(caught.value) == [f"openai-cancel: {over} has ended (completed)"]

    @pytest.mark.parametrize("source", [list, iter, async_iterator])
    def test_ctrl_c_in_a_blocking_loop_says_what_became_of_each(self, source) -> None:
        with (
            running_in_thread(Emulator(script=Script(runs_for=math.inf))) as server,
            Session(api_key=KEY, base_url=server.base_url) as session,
        ):
            names = [server.add() for _ in range(3)]
            seen: set[str] = set()

            def update(response: Response) -> None:
                seen.add(response.id)
                if len(seen) == len(names):
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

            with pytest.raises(KeyboardInterrupt) as caught:
                list(session.wait_many(source(names), on_update=update))
            assert all(server.responses[name].cancelled for name in names)
        words = "was stopped (cancelled) when the wait ended"
        assert sorted(notes(caught.value)) == sorted(f"openai-cancel: {name} {words}" for name in names)

    @pytest.mark.parametrize("on_abandon", ["stop", "leave"])
    async def test_a_function_can_end_all_waits_and_each_has_a_result(self, server, create, on_abandon: str) -> None:
        running, abandoned = [create() for _ in range(5)], asyncio.Event()
        seen: set[str] = set()

        def note(response: Response) -> None:
            seen.add(response.id)
            if len(seen) == 5:
                abandoned.set()

        async with hasty_session(api_key=KEY, base_url=server.base_url) as session:
            results = await collect(
                session.wait_many(running, abandoned=abandoned.wait, on_update=note, on_abandon=on_abandon)
            )
        assert results.keys() == set(running)
        assert all(isinstance(result.error, AbandonedError) for result in results.values())
        assert {result.response.status for result in results.values()} == {"in_progress"}
        assert {bool(result.error.outcome) for result in results.values()} == {on_abandon == "stop"}
        assert {bool(server.responses[name].cancelled) for name in running} == {on_abandon == "stop"}

    async def test_a_response_that_stays_queued_is_stopped(self, session, create) -> None:
        name = create(queued_for=math.inf)
        results = await collect(session.wait_many([name], queued_timeout=20))
        assert results[name].error.limit == "queued_timeout"


class TestSources:
    async def test_ids_are_read_as_they_are_needed(self, session, create) -> None:
        taken = 0

        def source() -> Iterator[str]:
            nonlocal taken
            for _ in range(30):
                taken += 1
                yield create(runs_for=0)

        seen = 0
        async for _ in session.wait_many(source(), concurrency=4):
            seen += 1
            assert taken <= seen + 4
        assert seen == 30

    async def test_an_async_iterable_is_accepted(self, session, create) -> None:
        async def source() -> AsyncIterator[Response]:
            yield Response(id=create(runs_for=0))

        assert len(await collect(session.wait_many(source()))) == 1

    async def test_an_error_of_the_source_is_raised_after_the_results_before_it(self, session, create) -> None:
        def source() -> Iterator[str]:
            yield create(runs_for=0)
            raise ZeroDivisionError

        results = session.wait_many(source())
        assert (await anext(results)).ended
        with pytest.raises(ZeroDivisionError):
            await anext(results)

    async def test_a_blocking_session_waits_too(self, server, create) -> None:
        ids = [create(runs_for=0) for _ in range(3)]
        updates: list[str | None] = []

        def run() -> list[str]:
            with Session(api_key=KEY, base_url=server.base_url) as session:
                results = session.wait_many(iter(ids), on_update=lambda response: updates.append(response.status))
                return sorted(result.response_id for result in results)

        assert await asyncio.to_thread(run) == sorted(ids)
        assert updates == ["completed"] * 3


class TestRate:
    async def test_the_rate_never_exceeds_the_one_that_is_set(self, clock: QuickClock, server, create) -> None:
        ids = [create(runs_for=0) for _ in range(20)]
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            began = clock.now
            assert len(await collect(session.wait_many(ids, max_rate=2, concurrency=1))) == 20
        assert clock.now - began >= 19 / 2

    @pytest.mark.slow
    async def test_a_server_with_a_rate_limit_refuses_few_requests(self) -> None:
        async with (
            Emulator(rate_limit=100, script=Script(runs_for=0)) as server,
            hasty_session(api_key=KEY, base_url=server.base_url) as session,
        ):
            ids = [server.add() for _ in range(300)]
            assert all(result.ended for result in (await collect(session.wait_many(ids))).values())
            assert len(server.received) <= 300 * 1.02

    async def test_the_stops_after_a_timeout_keep_to_the_rate_and_each_has_its_grace(self) -> None:
        """All at once, they would take as many requests as fit into the grace, most of them refused."""
        async with crowd(100, allows=20) as many:
            results = await collect(many.session.wait_many(many.ids, timeout=6, grace=2, max_rate=20))
            assert many.clock.now >= 6 + 90 / 20
        assert {result.error.outcome.verdict for result in results.values()} == {Verdict.CANCELLED}
        assert cancels(many.server) <= 110

    async def test_the_stops_after_a_cancellation_keep_to_the_rate(self) -> None:
        async with crowd(100, allows=20) as many:
            task = asyncio.create_task(collect(many.session.wait_many(many.ids, grace=4)))
            await until(lambda: len(many.server.received) >= 40)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert all(many.server.responses[name].cancelled for name in many.ids)
        assert cancels(many.server) <= 120

    async def test_stops_that_get_nowhere_do_not_wait_for_each_other(self) -> None:
        async with crowd(100, allows=1000) as many:
            many.server.faults += [Fault(on="cancel", status=500)] * 10_000
            results = await collect(many.session.wait_many(many.ids, timeout=3, grace=2, max_rate=20))
            assert many.clock.now < 3 + 3 * 2
        assert not any(result.error.outcome.stopped for result in results.values())

    async def test_a_server_that_does_not_answer_at_first_ends_the_iteration(self, unused_tcp_port: int) -> None:
        async with hasty_session(api_key=KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}") as session:
            async with asyncio.timeout(5):  # much less than the grace: nothing is stopped
                with pytest.raises(APIConnectionError, match="Cannot connect"):
                    await collect(session.wait_many(["a", "b"], first_answer_timeout=0.2, grace=60))

    async def test_an_iteration_that_a_server_never_answers_stops_what_a_ledger_records(
        self, unused_tcp_port: int, tmp_path: Path
    ) -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        base_url = f"http://127.0.0.1:{unused_tcp_port}"
        async with hasty_session(api_key=KEY, base_url=base_url, ledger=ledger) as session:
            with pytest.raises(APIConnectionError, match="Cannot connect"):
                await collect(session.wait_many(["a"], first_answer_timeout=0.2, grace=0.5))
            assert [entry.response_id async for entry in ledger.entries()] == ["a"]

    async def test_a_server_that_has_answered_may_be_away(self, clock: QuickClock, server, create) -> None:
        name = create(runs_for=1)
        server.faults += [Fault(), *[Fault(on="retrieve", cut="connection")] * 5]
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            results = await collect(session.wait_many([name], first_answer_timeout=0.1))
        assert (results[name].ended, server.faults) == (True, [])

    async def test_a_server_that_cannot_be_reached_ends_the_iteration(self, unused_tcp_port: int) -> None:
        async with hasty_session(api_key=KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}") as session:
            with pytest.raises(APIConnectionError):
                await collect(session.wait_many(["a", "b"], give_up_after=0.2, on_abandon="leave"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number of at least 1"),
        ({"max_rate": 0}, "max_rate must be"),
        ({"max_rate": -1}, "max_rate must be"),
        ({"poll": 0.1}, "poll must be at least"),
        ({"grace": 0}, "grace must be"),
        ({"first_answer_timeout": 0}, "first_answer_timeout must be"),
        ({"max_retries": -1}, "max_retries must be"),
        ({"on_abandon": "kill"}, "on_abandon must be 'stop' or 'leave'"),
        ({"timeout": 1, "queued_timeout": 2}, "must not be longer than timeout"),
    ],
)
def test_an_option_that_cannot_work_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    session = QuickSession(api_key=KEY)
    with pytest.raises(ConfigurationError, match=words):
        session.wait_many(["resp_x"], **options)
    with pytest.raises(ConfigurationError, match=words):
        Session(api_key=KEY).wait_many(["resp_x"], **options)


def test_what_is_no_function_cannot_end_the_waits() -> None:
    with pytest.raises(ConfigurationError, match="abandoned must be a function"):
        QuickSession(api_key=KEY).wait_many(["resp_x"], abandoned=True)


@pytest.mark.parametrize("ids", ["resp_x", b"resp_x", 5, None])
def test_what_is_no_iterable_of_ids_is_refused(ids: object) -> None:
    with pytest.raises(ConfigurationError, match="wait_many takes an iterable of ids, such as a list, not"):
        QuickSession(api_key=KEY).wait_many(ids)


async def test_a_session_that_is_not_open_is_refused() -> None:
    with pytest.raises(SessionStateError):
        await collect(QuickSession(api_key=KEY).wait_many(["resp_x"]))


async def test_a_failing_key_function_ends_the_iteration(server: Emulator, create) -> None:
    def fail() -> str:
        raise LookupError("no key today")

    async with QuickSession(api_key=fail, base_url=server.base_url) as session:
        with pytest.raises(LookupError):
            await collect(session.wait_many([create()], on_abandon="leave"))
    assert cancels(server) == 0


async def test_faults_that_pass_do_not_end_a_wait(session, server, create) -> None:
    server.faults += [Fault(status=503), Fault(cut="connection"), Fault(status=404)]
    assert all(result.ended for result in (await collect(session.wait_many([create(runs_for=0)]))).values())

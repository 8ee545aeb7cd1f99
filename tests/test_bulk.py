"""`stop_many`: each id once, none lost, as fast as the server allows."""

import asyncio
import gc
import itertools
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from typing import Any

import pytest
from aiohttp import web
from conftest import KEY, QuickClock, QuickSession, notes, until

from openai_cancel import (
    APIConnectionError,
    APITimeoutError,
    AsyncSession,
    ConfigurationError,
    InvalidResponseIdError,
    Outcome,
    Response,
    Session,
    SessionStateError,
    Verdict,
)
from openai_cancel.emulator import Emulator, Fault, Script

pytestmark = pytest.mark.usefixtures("no_task_is_left", "garbage_is_collected")


@pytest.fixture
async def garbage_is_collected() -> AsyncIterator[None]:
    """Collect the iterators of loops that were left early, so that their tasks end."""
    yield
    gc.collect()


async def collect(outcomes: AsyncIterator[Outcome]) -> list[Outcome]:
    return [outcome async for outcome in outcomes]


class TestIds:
    @pytest.mark.slow
    async def test_each_id_is_stopped_once_and_none_is_lost(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        running = [create() for _ in range(200)]
        over = [create(runs_for=0) for _ in range(50)]
        outcomes = await collect(session.stop_many([*running, *over, "resp_none"]))
        assert sorted(outcome.response_id for outcome in outcomes) == sorted([*running, *over, "resp_none"])
        assert Counter(outcome.verdict for outcome in outcomes) == {
            Verdict.CANCELLED: 200,
            Verdict.ALREADY_FINISHED: 50,
            Verdict.NOT_FOUND: 1,
        }
        assert all(server.responses[identifier].cancels == 1 for identifier in running)

    async def test_an_empty_source_has_no_outcomes(self, session: QuickSession) -> None:
        assert await collect(session.stop_many([])) == []

    async def test_iterators_sets_and_async_iterators_are_accepted(self, session: QuickSession, create) -> None:
        identifiers = [create() for _ in range(5)]

        async def slowly() -> AsyncIterator[Response]:
            for identifier in identifiers:
                await asyncio.sleep(0.001)
                yield Response(id=identifier)

        for source in (iter(identifiers), set(identifiers), slowly()):
            assert {outcome.response_id for outcome in await collect(session.stop_many(source))} == set(identifiers)

    async def test_the_lines_of_an_open_file_are_accepted(self, session: QuickSession, create, tmp_path) -> None:
        ids = [create() for _ in range(3)]
        (tmp_path / "ids").write_text("\n".join(ids))
        with (tmp_path / "ids").open() as lines:
            outcomes = await collect(session.stop_many(lines))
        assert sorted(outcome.response_id for outcome in outcomes) == sorted(ids)
        assert {outcome.verdict for outcome in outcomes} == {Verdict.CANCELLED}

    async def test_an_outcome_does_not_wait_for_an_async_source(self, session: QuickSession, create) -> None:
        more = asyncio.Event()

        async def source() -> AsyncIterator[str]:
            yield create()
            await more.wait()
            yield create()

        async with aclosing(session.stop_many(source())) as outcomes:
            assert (await anext(outcomes)).verdict is Verdict.CANCELLED
            more.set()
            assert (await anext(outcomes)).verdict is Verdict.CANCELLED

    async def test_an_outcome_does_not_wait_until_a_long_source_is_read(self, session: QuickSession, create) -> None:
        taken = []

        def source() -> Iterator[str]:
            for number in range(50):
                taken.append(number)
                yield create()

        async with aclosing(session.stop_many(source())) as outcomes:
            await anext(outcomes)
            assert len(taken) < 50

    async def test_ids_are_taken_only_as_they_are_needed(self, session: QuickSession, create) -> None:
        taken = 0

        def source() -> Iterator[str]:
            nonlocal taken
            while True:
                taken += 1
                yield create()

        handed_out = 0
        async with aclosing(session.stop_many(source(), concurrency=8)) as outcomes:
            async for _ in outcomes:
                handed_out += 1
                assert taken <= handed_out + 8
                if handed_out == 100:
                    break

    async def test_no_more_than_the_concurrency_are_under_way_at_once(self, server: Emulator, create) -> None:
        server.faults += [Fault(delay=0.05)] * 12
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            outcomes = session.stop_many([create() for _ in range(12)], concurrency=4)
            first = asyncio.create_task(anext(outcomes))
            await until(lambda: len(server.received) == 4)
            assert len(server.faults) == 8
            await first
            assert len(await collect(outcomes)) == 11

    async def test_an_id_that_is_under_way_is_not_sent_again(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        identifier = create()
        outcomes = await collect(session.stop_many([identifier] * 5))
        assert [outcome.verdict for outcome in outcomes] == [Verdict.CANCELLED] * 5
        assert len(server.received) == 1

    async def test_one_failure_does_not_affect_the_other_ids(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        server.faults += [Fault(on="cancel", status=403), Fault(on="retrieve", status=403)]
        outcomes = await collect(session.stop_many([create() for _ in range(10)], concurrency=1))
        assert [outcome.verdict for outcome in outcomes] == [Verdict.FORBIDDEN] + [Verdict.CANCELLED] * 9

    async def test_an_id_that_cannot_be_sent_has_an_outcome_with_the_error(self, session: QuickSession, create) -> None:
        bad: list[Any] = ["", "a\x00", 5, None]
        outcomes = await collect(session.stop_many([*bad, create()]))
        refused = {outcome.response_id: outcome for outcome in outcomes if outcome.verdict is Verdict.UNKNOWN}
        assert list(refused) == ["", "a\x00", "5", "None"]
        for outcome in refused.values():
            assert isinstance(outcome.error, InvalidResponseIdError)
            assert (outcome.attempts, outcome.stopped) == (0, False)
        assert len(outcomes) == 5

    async def test_the_error_of_an_id_that_cannot_be_sent_keeps_no_frames(self, session: QuickSession) -> None:
        (outcome,) = await collect(session.stop_many([""]))
        assert outcome.error.__traceback__ is None

    @pytest.mark.parametrize(
        ("source", "options", "words"),
        [
            ("resp_123", {}, "takes an iterable of ids, such as a list, not str"),
            (5, {}, "not int"),
            ([], {"concurrency": 0}, "concurrency must be a whole number of at least 1"),
            ([], {"deadline": 0}, "deadline must be"),
            ([], {"confirm": 0}, "confirm must be"),
            ([], {"give_up_after": 0}, "give_up_after must be"),
            ([], {"timeout": -1}, "timeout must be"),
            ([], {"max_retries": -1}, "max_retries must be"),
        ],
    )
    async def test_an_invalid_argument_is_refused(
        self, session: QuickSession, source: Any, options: Any, words: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=words):
            session.stop_many(source, **options)


class TestPace:
    @pytest.mark.slow
    async def test_a_rate_limit_is_respected_with_few_refusals(self) -> None:
        """The server and the session use real sockets and the same clock."""
        clock = QuickClock()
        async with (
            Emulator(script=Script(runs_for=math.inf), rate_limit=50, clock=clock.monotonic) as server,
            QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session,
        ):
            outcomes = await collect(session.stop_many([server.add() for _ in range(300)], concurrency=16))
        assert Counter(outcome.verdict for outcome in outcomes) == {Verdict.CANCELLED: 300}
        assert len(server.received) < 300 * 1.2

    async def test_all_requests_pause_after_one_refusal(self, server: Emulator, create) -> None:
        """No request is sent until the pause is over."""
        server.faults.append(Fault(status=429, headers={"retry-after": "5"}))
        async with QuickSession(api_key=KEY, base_url=server.base_url) as session:
            outcomes = await collect(session.stop_many([create() for _ in range(20)], concurrency=2))
            assert session.clock.slept[0] == 5
            assert len(session.clock.slept) > 2
        assert {outcome.verdict for outcome in outcomes} == {Verdict.CANCELLED}

    async def test_a_request_without_a_turn_before_the_deadline_is_not_an_attempt(
        self, server: Emulator, create
    ) -> None:
        """A response that was cancelled elsewhere had already finished, if no request of this run was sent."""
        server.faults += [Fault(status=429, headers={"retry-after": "50"})] * 2
        ids = [create() for _ in range(6)]
        async with QuickSession(api_key=KEY, base_url=server.base_url) as session:
            outcomes = await collect(session.stop_many(ids, concurrency=2, deadline=40))
        assert sum(outcome.attempts for outcome in outcomes) == len(server.received)
        assert any(isinstance(outcome.error, APITimeoutError) for outcome in outcomes)

    async def test_a_503_of_one_response_does_not_delay_the_others(self) -> None:
        """A 503 may be about one response alone. Only a 503 with `retry-after` pauses all requests."""

        async def answer(request: web.BaseRequest) -> web.Response:
            name = request.path.split("/")[3]
            if name.endswith("0"):
                return web.Response(status=503)
            return web.json_response({"id": name, "status": "cancelled"})

        runner = web.ServerRunner(web.Server(answer, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        async with QuickSession(api_key=KEY, base_url=base_url, max_retries=0) as session:
            outcomes = await collect(session.stop_many(map("resp_{}".format, range(60)), concurrency=1, deadline=5))
        await runner.cleanup()
        assert Counter(outcome.verdict for outcome in outcomes) == {Verdict.CANCELLED: 54, Verdict.UNKNOWN: 6}

    async def test_a_used_up_quota_is_not_waited_for(self, server: Emulator, create) -> None:
        server.faults += [Fault(status=429, body={"error": {"code": "insufficient_quota", "message": "no"}})] * 2
        async with QuickSession(api_key=KEY, base_url=server.base_url) as session:
            outcomes = await collect(session.stop_many([create() for _ in range(20)], concurrency=1))
            assert Counter(outcome.verdict for outcome in outcomes) == {Verdict.CANCELLED: 19, Verdict.UNKNOWN: 1}
            assert session.clock.slept == []


class TestLeavingTheLoop:
    async def test_requests_under_way_are_ended(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [Fault()] + [Fault(delay=math.inf)] * 9
        async with aclosing(session.stop_many([create() for _ in range(10)])) as outcomes:
            async for _ in outcomes:
                break
        assert len(server.received) <= 10

    async def test_a_loop_that_is_left_without_closing_ends_when_it_is_collected(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        server.faults += [Fault()] + [Fault(delay=math.inf)] * 9
        async for _ in session.stop_many([create() for _ in range(10)]):
            break

    async def test_a_task_that_is_cancelled_twice_ends(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [Fault(delay=math.inf)] * 3
        collecting = collect(session.stop_many([create() for _ in range(3)]))
        task = asyncio.create_task(collecting)
        await until(lambda: len(server.received) == 3)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_requests_without_an_answer_are_ended(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [Fault(), *[Fault(delay=math.inf)] * 9]
        source = (create() for _ in itertools.count())
        async with asyncio.timeout(5), aclosing(session.stop_many(source, concurrency=4)) as outcomes:
            await anext(outcomes)
            await until(lambda: len(server.received) == 4)

    async def test_a_source_that_swallows_the_cancellation_is_ended(self, session: QuickSession, create) -> None:
        async def source() -> AsyncIterator[str]:
            yield create()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            yield create()

        async with aclosing(session.stop_many(source())) as outcomes:
            await anext(outcomes)

    async def test_an_id_that_the_source_yields_afterwards_is_not_sent(
        self, session: QuickSession, server, create
    ) -> None:
        async def source() -> AsyncIterator[str]:
            yield create()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            yield create()

        async with aclosing(session.stop_many(source())) as outcomes:
            await anext(outcomes)
        assert len(server.received) == 1

    async def test_a_cancellation_while_the_source_cleans_up_is_not_swallowed(
        self, session: QuickSession, create
    ) -> None:
        closing = asyncio.Event()

        async def source() -> AsyncIterator[str]:
            try:
                yield create()
                yield create()
                await asyncio.Event().wait()
            finally:
                closing.set()
                await asyncio.sleep(0.02)

        async def work() -> None:
            async with aclosing(session.stop_many(source())) as outcomes:
                await anext(outcomes)
            pytest.fail("the cancel was swallowed")

        task = asyncio.create_task(work())
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestFailures:
    async def test_an_error_of_the_source_is_raised_after_the_outcomes_of_earlier_ids(
        self, session: QuickSession, create
    ) -> None:

        def source() -> Iterator[str]:
            yield create()
            yield create()
            raise OSError("the disk is gone")

        outcomes = session.stop_many(source())
        assert [(await anext(outcomes)).verdict for _ in range(2)] == [Verdict.CANCELLED] * 2
        with pytest.raises(OSError, match="the disk is gone"):
            await anext(outcomes)

    async def test_a_cancelled_error_of_the_source_is_raised(self, session: QuickSession, create) -> None:
        async def source() -> AsyncIterator[str]:
            yield create()
            raise asyncio.CancelledError

        outcomes = session.stop_many(source())
        assert (await anext(outcomes)).verdict is Verdict.CANCELLED
        with pytest.raises(asyncio.CancelledError):
            await anext(outcomes)
        assert asyncio.current_task().cancelling() == 0

    async def test_an_error_of_the_key_function_is_raised(self, server: Emulator, create) -> None:
        def key() -> str:
            raise OSError("the vault is shut")

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            with pytest.raises(OSError, match="the vault is shut"):
                await collect(session.stop_many((create() for _ in itertools.count()), concurrency=3))

    @pytest.mark.parametrize("concurrency", [2, 64])
    @pytest.mark.parametrize("kind", [asyncio.CancelledError, SystemExit])
    async def test_a_cancelled_error_or_a_system_exit_of_the_key_function_is_raised(
        self, server: Emulator, create, kind, concurrency: int
    ) -> None:
        """A refresh of the key that others share may be cancelled elsewhere. No outcome is lost without an error."""
        calls = itertools.count()

        async def key() -> str:
            if next(calls) == 5:
                raise kind
            return KEY

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            with pytest.raises(kind):
                await collect(session.stop_many([create() for _ in range(20)], concurrency=concurrency))
            assert (await session.stop(create())).verdict is Verdict.CANCELLED

    async def test_an_error_of_the_key_function_is_raised_while_the_source_waits(self, server: Emulator) -> None:
        async def source() -> AsyncIterator[str]:
            yield "resp_1"
            await asyncio.Event().wait()

        def key() -> str:
            raise OSError("shut")

        async with AsyncSession(api_key=key, base_url=server.base_url) as session, asyncio.timeout(5):
            with pytest.raises(OSError, match="shut"):
                await collect(session.stop_many(source()))

    async def test_an_id_that_the_source_yields_after_a_failure_is_not_sent(self, server: Emulator) -> None:

        async def source() -> AsyncIterator[str]:
            yield "resp_1"
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            yield "resp_2"

        asked = 0

        def key() -> str:
            nonlocal asked
            asked += 1
            raise OSError("shut")

        async with AsyncSession(api_key=key, base_url=server.base_url) as session, asyncio.timeout(5):
            with pytest.raises(OSError, match="shut"):
                await collect(session.stop_many(source()))
        assert asked == 1

    async def test_the_first_of_several_failures_is_raised(self, server: Emulator) -> None:
        failures = itertools.count(1)

        def key() -> str:
            raise OSError(next(failures))

        async with AsyncSession(api_key=key, base_url=server.base_url) as session:
            with pytest.raises(OSError, match="^1$"):
                await collect(session.stop_many([f"resp_{number}" for number in range(9)]))

    async def test_closing_the_session_raises_an_error(self, session: QuickSession, create) -> None:
        outcomes = session.stop_many(create() for _ in itertools.count())
        assert (await anext(outcomes)).verdict is Verdict.CANCELLED
        await session.close()
        with pytest.raises(SessionStateError):
            await collect(outcomes)


class TestUnreachableServer:
    @pytest.fixture
    async def unreachable(self, session: QuickSession, server: Emulator) -> QuickSession:
        await server.__aexit__(None, None, None)
        return session

    async def test_the_run_ends_with_the_error_after_the_time_to_give_up(self, unreachable: QuickSession) -> None:
        began = unreachable.clock.now
        ids = (f"resp_{number}" for number in itertools.count())
        with pytest.raises(APIConnectionError):
            await collect(unreachable.stop_many(ids, give_up_after=5))
        assert 5 <= unreachable.clock.now - began < 60

    async def test_the_run_ends_while_requests_have_no_answer(self, session: QuickSession, server: Emulator) -> None:
        server.faults += [Fault(delay=math.inf)] * 5
        async with asyncio.timeout(5):
            with pytest.raises(APITimeoutError, match="No answer within 0.2 s"):
                await collect(session.stop_many(["resp_1", "resp_2"], give_up_after=0.2))

    async def test_the_run_ends_while_the_source_waits(self, unreachable: QuickSession) -> None:
        async def source() -> AsyncIterator[str]:
            yield "resp_1"
            await asyncio.Event().wait()

        async with asyncio.timeout(5):
            with pytest.raises(APIConnectionError):
                await collect(unreachable.stop_many(source(), give_up_after=5))

    async def test_every_id_has_an_outcome_if_no_time_to_give_up_is_set(self, unreachable: QuickSession) -> None:
        outcomes = await collect(unreachable.stop_many(["resp_1", "resp_2"], deadline=10))
        assert [outcome.verdict for outcome in outcomes] == [Verdict.UNKNOWN] * 2


class TestBlocking:
    @pytest.fixture
    def blocking(self, server: Emulator) -> Iterator[Session]:
        with Session(api_key=KEY, base_url=server.base_url) as session:
            yield session

    async def test_a_blocking_session_yields_every_outcome(self, blocking: Session, create) -> None:
        identifiers = [create() for _ in range(50)]
        outcomes = await asyncio.to_thread(lambda: list(blocking.stop_many(identifiers)))
        assert {outcome.response_id for outcome in outcomes} == set(identifiers)
        assert all(outcome.stopped for outcome in outcomes)

    async def test_requests_under_way_are_ended_when_the_loop_is_left(
        self, blocking: Session, server: Emulator, create
    ) -> None:
        server.faults += [Fault()] + [Fault(delay=math.inf)] * 9

        def work() -> Outcome:
            return next(iter(blocking.stop_many([create() for _ in range(10)])))

        assert (await asyncio.to_thread(work)).verdict is Verdict.CANCELLED

    async def test_closing_the_session_inside_the_loop_raises_an_error(self, blocking: Session, create) -> None:
        def work() -> None:
            for _ in blocking.stop_many([create() for _ in range(10)]):
                blocking.close()

        with pytest.raises(SessionStateError, match="The session is closed"):
            await asyncio.to_thread(work)


async def test_a_cancellation_says_which_responses_may_still_be_running(server: Emulator, create) -> None:
    running, over = create(), create()
    server.faults.append(Fault(delay=math.inf))
    async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:

        def source() -> Iterator[str]:
            yield running
            yield over

        outcomes = session.stop_many(source(), on_update=lambda _: task.cancel())
        task = asyncio.create_task(collect(outcomes))
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
    assert notes(caught.value) == [
        f"openai-cancel: {running} may still be running: its stop was interrupted",
        f"openai-cancel: {over}: cancelled",
    ]

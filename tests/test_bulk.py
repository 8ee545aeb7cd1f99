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
from conftest import KEY, QuickClock, QuickSession, until

from openai_cancel import (
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
from openai_cancel.errors import APIConnectionError, APITimeoutError, InternalServerError, RateLimitError
from openai_cancel.pace import LEAST_GROWTH, LEAST_RATE, Pace


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    gc.collect()  # a loop that was left early is ended when its iterator is
    async with asyncio.timeout(5):
        await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


async def collect(outcomes: AsyncIterator[Outcome]) -> list[Outcome]:
    return [outcome async for outcome in outcomes]


async def test_every_one_once(session: QuickSession, server: Emulator, create) -> None:
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


async def test_nothing_to_do(session: QuickSession) -> None:
    assert await collect(session.stop_many([])) == []


async def test_other_sources(session: QuickSession, create) -> None:
    identifiers = [create() for _ in range(5)]

    async def slowly() -> AsyncIterator[Response]:
        for identifier in identifiers:
            await asyncio.sleep(0.001)
            yield Response(id=identifier)

    for source in (iter(identifiers), set(identifiers), slowly()):
        assert {outcome.response_id for outcome in await collect(session.stop_many(source))} == set(identifiers)


async def test_an_outcome_does_not_wait_for_a_source_that_is_slow(session: QuickSession, create) -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        yield create()
        await more.wait()
        yield create()

    async with aclosing(session.stop_many(source())) as outcomes:
        assert (await anext(outcomes)).verdict is Verdict.CANCELLED
        more.set()
        assert (await anext(outcomes)).verdict is Verdict.CANCELLED


async def test_ids_are_taken_as_they_are_needed(session: QuickSession, create) -> None:
    taken = 0

    def source() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):  # noqa: B007 - for ever
            yield create()

    handed_out = 0
    async with aclosing(session.stop_many(source(), concurrency=8)) as outcomes:
        async for _ in outcomes:
            handed_out += 1
            assert taken <= handed_out + 8
            if handed_out == 100:
                break


async def test_so_many_at_once(server: Emulator, create) -> None:
    server.faults += [Fault(delay=0.05)] * 12
    async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
        outcomes = session.stop_many([create() for _ in range(12)], concurrency=4)
        first = asyncio.create_task(anext(outcomes))
        await until(lambda: len(server.received) == 4)
        assert len(server.faults) == 8
        await first
        assert len(await collect(outcomes)) == 11


async def test_duplicates_in_flight_are_sent_once(session: QuickSession, server: Emulator, create) -> None:
    identifier = create()
    outcomes = await collect(session.stop_many([identifier] * 5))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.CANCELLED] * 5
    assert len(server.received) == 1


async def test_one_failure_touches_no_other(session: QuickSession, server: Emulator, create) -> None:
    server.faults += [Fault(on="cancel", status=403), Fault(on="retrieve", status=403)]
    outcomes = await collect(session.stop_many([create() for _ in range(10)], concurrency=1))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.FORBIDDEN] + [Verdict.CANCELLED] * 9


async def test_ids_that_cannot_be_sent(session: QuickSession, create) -> None:
    bad: list[Any] = ["", "a\x00", 5, None]
    outcomes = await collect(session.stop_many([*bad, create()]))
    refused = {outcome.response_id: outcome for outcome in outcomes if outcome.verdict is Verdict.UNKNOWN}
    assert list(refused) == ["", "a\x00", "5", "None"]
    for outcome in refused.values():
        assert isinstance(outcome.error, InvalidResponseIdError)
        assert (outcome.attempts, outcome.stopped) == (0, False)
    assert len(outcomes) == 5


class TestEnd:
    async def test_leaving_the_loop_early(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [Fault()] + [Fault(delay=math.inf)] * 9
        async with aclosing(session.stop_many([create() for _ in range(10)])) as outcomes:
            async for _ in outcomes:
                break
        assert len(server.received) <= 10

    async def test_leaving_it_without_a_word(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [Fault()] + [Fault(delay=math.inf)] * 9
        async for _ in session.stop_many([create() for _ in range(10)]):
            break

    async def test_a_task_that_is_cancelled(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [Fault(delay=math.inf)] * 3
        collecting = collect(session.stop_many([create() for _ in range(3)]))
        task = asyncio.create_task(collecting)
        await until(lambda: len(server.received) == 3)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_source_that_fails(self, session: QuickSession, create) -> None:
        """What was begun is handed out first."""

        def source() -> Iterator[str]:
            yield create()
            yield create()
            raise OSError("the file ends in the middle")

        outcomes = session.stop_many(source())
        assert [(await anext(outcomes)).verdict for _ in range(2)] == [Verdict.CANCELLED] * 2
        with pytest.raises(OSError, match="in the middle"):
            await anext(outcomes)

    async def test_a_key_function_that_fails(self, server: Emulator, create) -> None:
        def key() -> str:
            raise OSError("the vault is shut")

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            with pytest.raises(OSError, match="the vault is shut"):
                await collect(session.stop_many((create() for _ in itertools.count()), concurrency=3))

    @pytest.mark.parametrize("concurrency", [2, 64])
    @pytest.mark.parametrize("kind", [asyncio.CancelledError, SystemExit])
    async def test_what_nobody_sent_ends_it_too(self, server: Emulator, create, kind, concurrency: int) -> None:
        """A shared refresh of the key that was cancelled elsewhere, say: no outcome is missing in silence."""
        calls = itertools.count()

        async def key() -> str:
            if next(calls) == 5:
                raise kind
            return KEY

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            with pytest.raises(kind):
                await collect(session.stop_many([create() for _ in range(20)], concurrency=concurrency))
            assert (await session.stop(create())).verdict is Verdict.CANCELLED

    async def test_a_source_that_says_it_was_cancelled(self, session: QuickSession, create) -> None:
        async def source() -> AsyncIterator[str]:
            yield create()
            raise asyncio.CancelledError

        outcomes = session.stop_many(source())
        assert (await anext(outcomes)).verdict is Verdict.CANCELLED
        with pytest.raises(asyncio.CancelledError):
            await anext(outcomes)
        assert asyncio.current_task().cancelling() == 0

    async def test_a_source_that_swallows_the_end(self, session: QuickSession, create) -> None:
        async def source() -> AsyncIterator[str]:
            yield create()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            yield create()

        async with aclosing(session.stop_many(source())) as outcomes:
            await anext(outcomes)

    async def test_a_slow_source_holds_nothing_up(self, session: QuickSession, create) -> None:
        taken = []

        def source() -> Iterator[str]:
            for number in range(50):
                taken.append(number)
                yield create()

        async with aclosing(session.stop_many(source())) as outcomes:
            await anext(outcomes)
            assert len(taken) < 50

    async def test_a_session_that_is_closed(self, session: QuickSession, create) -> None:
        outcomes = session.stop_many(create() for _ in itertools.count())
        assert (await anext(outcomes)).verdict is Verdict.CANCELLED
        await session.close()
        with pytest.raises(SessionStateError):
            await collect(outcomes)

    @pytest.mark.parametrize(
        ("source", "options", "words"),
        [
            ("resp_123", {}, "takes an iterable of ids, such as a list, not str"),
            (5, {}, "not int"),
            ([], {"concurrency": 0}, "concurrency must be a whole number of at least 1"),
            ([], {"deadline": 0}, "deadline must be"),
            ([], {"confirm": 0}, "confirm must be"),
            ([], {"timeout": -1}, "timeout must be"),
            ([], {"max_retries": -1}, "max_retries must be"),
        ],
    )
    async def test_bad_input(self, session: QuickSession, source: Any, options: Any, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            session.stop_many(source, **options)


class Server:
    """One that allows so many requests a second, in time that is counted and not waited for."""

    def __init__(self, allows: float, *, latency: float = 0.005, burst: float | None = None) -> None:
        self.clock = QuickClock()
        self.began = self.clock.now
        self.allows = allows
        self.latency = latency
        self.bucket = self.size = allows if burst is None else burst
        self.filled = self.clock.now
        self.answers: list[tuple[float, bool]] = []

    def answer(self) -> RateLimitError | None:
        now = self.clock.now
        self.bucket = min(self.size, self.bucket + (now - self.filled) * self.allows)
        self.filled = now
        self.answers.append((now - self.began, allowed := self.bucket >= 1))
        self.clock.now += self.latency
        if not allowed:
            return RateLimitError("slow down", status=429, headers={}, body=b"", retry_after=1.0)
        self.bucket -= 1
        return None


class TestPace:
    def pace(self, server: Server, concurrency: int = 64) -> Pace:
        server.clock.drawn = 0.5
        return Pace(concurrency, server.clock)

    @pytest.mark.parametrize("allows", [5, 20, 100])
    async def test_it_uses_what_is_allowed_and_wastes_little(self, allows: float) -> None:
        server = Server(allows)
        pace = self.pace(server)
        while server.clock.now < server.began + 60:
            sent = await pace.turn()
            pace.note(sent, server.answer())
        late = [allowed for at, allowed in server.answers if at > 2]
        assert late.count(False) <= 0.05 * len(late)
        assert late.count(True) >= 0.9 * allows * 58

    async def test_no_limit_no_wait(self) -> None:
        server = Server(math.inf, latency=0)
        pace = self.pace(server)
        for _ in range(1000):
            pace.note(await pace.turn(), None)
        assert (server.clock.now, pace.rate, pace.limit) == (server.began, math.inf, 64)

    async def test_one_refusal_pauses_all(self) -> None:
        server = Server(1, burst=0)
        pace = self.pace(server)
        sent = [await pace.turn() for _ in range(10)]
        pace.note(sent[0], server.answer())
        assert pace.limit == 1
        before = server.clock.now
        assert await pace.turn() == pytest.approx(before + 1.0)

    async def test_no_turn_before_the_deadline(self) -> None:
        server = Server(1, burst=0)
        pace = self.pace(server)
        pace.note(await pace.turn(), server.answer())
        now = server.clock.now
        with pytest.raises(APITimeoutError, match="no time for a request before the deadline"):
            await pace.turn(now + 0.5)
        assert server.clock.now == now
        assert await pace.turn(now + 5) == pytest.approx(now + 1)

    async def test_it_recovers_from_a_cut_that_was_too_deep(self) -> None:
        server = Server(1000)
        pace = self.pace(server, concurrency=1)
        pace.note(await pace.turn(), RateLimitError("no", status=429, headers={}, body=b""))
        assert pace.rate < 1
        while server.clock.now < server.began + 45:
            pace.note(await pace.turn(), server.answer())
        assert pace.rate > 100

    async def test_a_wave_of_refusals_cuts_once(self) -> None:
        server = Server(100, latency=0)
        pace = self.pace(server)
        sent = [await pace.turn() for _ in range(164)]
        answers = [(at, server.answer()) for at in sent]
        for at, error in answers:
            pace.note(at, error)
        assert pace.rate == pytest.approx(90, rel=0.5)

    async def test_what_got_through_beside_it_counts(self) -> None:
        """Answers may come in any order: the first of them may be the refusals."""
        server = Server(20)
        pace = self.pace(server)
        sent = [await pace.turn() for _ in range(64)]
        answers = [(at, server.answer()) for at in sent]
        for at, error in reversed(answers):
            pace.note(at, error)
        assert pace.rate >= 15

    async def test_a_refusal_while_others_wait_makes_them_wait_on(self) -> None:
        server = Server(1, burst=0)
        pace = self.pace(server)
        sleeps: list[float] = []

        async def sleep(seconds: float) -> None:
            sleeps.append(seconds)
            server.clock.now += seconds
            if len(sleeps) == 1:
                pace.note(server.clock.now, server.answer())

        server.clock.sleep = sleep
        pace.note(await pace.turn(), server.answer())
        await pace.turn()
        assert sleeps == pytest.approx([1.995, 1.0], abs=1)
        assert len(sleeps) == 2

    async def test_other_failures_are_not_its_business(self) -> None:
        server = Server(1)
        pace = self.pace(server)
        pace.note(await pace.turn(), APIConnectionError("reset"))
        assert pace.rate == math.inf


async def test_a_server_with_a_limit() -> None:
    """Over real sockets; the clock of the server and that of the session are the same."""
    clock = QuickClock()
    async with (
        Emulator(script=Script(runs_for=math.inf), rate_limit=50, clock=clock.monotonic) as server,
        QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session,
    ):
        outcomes = await collect(session.stop_many([server.add() for _ in range(300)], concurrency=16))
    assert Counter(outcome.verdict for outcome in outcomes) == {Verdict.CANCELLED: 300}
    assert len(server.received) < 300 * 1.2


class TestBlocking:
    @pytest.fixture
    def blocking(self, server: Emulator):
        with Session(api_key=KEY, base_url=server.base_url) as session:
            yield session

    async def test_the_same(self, blocking: Session, create) -> None:
        identifiers = [create() for _ in range(50)]
        outcomes = await asyncio.to_thread(lambda: list(blocking.stop_many(identifiers)))
        assert {outcome.response_id for outcome in outcomes} == set(identifiers)
        assert all(outcome.stopped for outcome in outcomes)

    async def test_leaving_the_loop_early(self, blocking: Session, server: Emulator, create) -> None:
        server.faults += [Fault()] + [Fault(delay=math.inf)] * 9

        def work() -> Outcome:
            return next(iter(blocking.stop_many([create() for _ in range(10)])))

        assert (await asyncio.to_thread(work)).verdict is Verdict.CANCELLED

    async def test_a_session_that_is_closed_meanwhile(self, blocking: Session, create) -> None:
        def work() -> None:
            for _ in blocking.stop_many([create() for _ in range(10)]):
                blocking.close()

        with pytest.raises(SessionStateError, match="The session is closed"):
            await asyncio.to_thread(work)


async def test_one_that_always_fails_holds_up_no_other() -> None:
    """A 503 may be about one response alone: only one that asks for a pause pauses all."""

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


async def test_a_used_up_quota_is_not_waited_for(server: Emulator, create) -> None:
    server.faults += [Fault(status=429, body={"error": {"code": "insufficient_quota", "message": "no"}})] * 2
    async with QuickSession(api_key=KEY, base_url=server.base_url) as session:
        outcomes = await collect(session.stop_many([create() for _ in range(20)], concurrency=1))
        assert Counter(outcome.verdict for outcome in outcomes) == {Verdict.CANCELLED: 19, Verdict.UNKNOWN: 1}
        assert session.clock.slept == []


async def test_all_requests_keep_one_pace(server: Emulator, create) -> None:
    """After a refusal, none is sent until the pause is over."""
    server.faults.append(Fault(status=429, headers={"retry-after": "5"}))
    async with QuickSession(api_key=KEY, base_url=server.base_url) as session:
        outcomes = await collect(session.stop_many([create() for _ in range(20)], concurrency=2))
        assert session.clock.slept[0] == 5
        assert len(session.clock.slept) > 2
    assert {outcome.verdict for outcome in outcomes} == {Verdict.CANCELLED}


async def test_a_request_that_got_no_turn_is_no_attempt(server: Emulator, create) -> None:
    """What somebody else has cancelled was over before, if nothing was sent."""
    server.faults += [Fault(status=429, headers={"retry-after": "50"})] * 2
    ids = [create() for _ in range(6)]
    async with QuickSession(api_key=KEY, base_url=server.base_url) as session:
        outcomes = await collect(session.stop_many(ids, concurrency=2, deadline=40))
    assert sum(outcome.attempts for outcome in outcomes) == len(server.received)
    assert any(isinstance(outcome.error, APITimeoutError) for outcome in outcomes)


async def test_a_file_that_is_open(session: QuickSession, create, tmp_path) -> None:
    ids = [create() for _ in range(3)]
    (tmp_path / "ids").write_text("\n".join(ids))
    with (tmp_path / "ids").open() as lines:
        outcomes = await collect(session.stop_many(lines))
    assert sorted(outcome.response_id for outcome in outcomes) == sorted(ids)
    assert {outcome.verdict for outcome in outcomes} == {Verdict.CANCELLED}


class TestPaceAtTheEdge:
    """Each holds a rule that a change could break unseen."""

    NO = RateLimitError("no", status=429, headers={}, body=b"", retry_after=0.25)

    def pace(self, server: Server) -> Pace:
        server.clock.drawn = 0.5
        return Pace(64, server.clock)

    @pytest.mark.parametrize(("status", "asked"), [(503, 1.0), (529, None)])
    async def test_other_words_for_too_much(self, status: int, asked: float | None) -> None:
        pace = self.pace(Server(1))
        pace.note(await pace.turn(), InternalServerError("no", status=status, headers={}, body=b"", retry_after=asked))
        assert pace.rate < math.inf

    async def test_a_shorter_wish_does_not_shorten_the_pause(self) -> None:
        server = Server(1, burst=0, latency=0)
        pace = self.pace(server)
        sent = await pace.turn()
        for wish in (30.0, 1.0):
            pace.note(sent, RateLimitError("no", status=429, headers={}, body=b"", retry_after=wish))
        now = server.clock.now
        assert await pace.turn() - now == pytest.approx(30)

    async def test_a_refusal_never_makes_it_faster(self) -> None:
        server = Server(1000, latency=0)
        pace = self.pace(server)
        pace.note(server.clock.now, self.NO)
        server.clock.now += 1
        for _ in range(100):
            pace.note(server.clock.now, None)
        server.clock.now += 0.01
        before = pace.rate
        pace.note(server.clock.now, self.NO)
        assert pace.rate <= before

    async def test_a_late_answer_does_not_make_it_slower(self) -> None:
        server = Server(1000, latency=0)
        pace = self.pace(server)
        at = server.clock.now
        for _ in range(100):
            pace.note(at, None)
        pace.note(at, self.NO)
        rate = pace.rate
        server.clock.now += 5
        pace.note(at, None)
        assert pace.rate >= rate

    async def test_what_was_long_ago_is_not_measured(self) -> None:
        server = Server(1000, latency=0)
        pace = self.pace(server)
        for _ in range(100):
            pace.note(server.clock.now, None)
        server.clock.now += 10
        pace.note(server.clock.now, self.NO)
        assert pace.rate == LEAST_RATE

    @pytest.mark.parametrize("idle", [1, 10])
    async def test_it_grows_for_a_second_at_most_and_by_so_much_at_least(self, idle: float) -> None:
        server = Server(1000, latency=0)
        pace = self.pace(server)
        pace.note(server.clock.now, self.NO)
        server.clock.now += idle
        pace.note(server.clock.now, None)
        assert pace.rate == pytest.approx(LEAST_RATE + LEAST_GROWTH)


class TestEndAtTheEdge:
    async def test_leaving_while_more_wait_for_an_answer(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [Fault(), *[Fault(delay=math.inf)] * 9]
        source = (create() for _ in itertools.count())
        async with asyncio.timeout(5), aclosing(session.stop_many(source, concurrency=4)) as outcomes:
            await anext(outcomes)
            await until(lambda: len(server.received) == 4)

    async def test_what_a_source_gives_after_its_end_is_not_sent(self, session: QuickSession, server, create) -> None:
        async def source() -> AsyncIterator[str]:
            yield create()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            yield create()

        async with aclosing(session.stop_many(source())) as outcomes:
            await anext(outcomes)
        assert len(server.received) == 1

    async def test_a_cancel_while_it_is_left(self, session: QuickSession, create) -> None:
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

    async def test_a_failure_is_told_while_the_source_waits(self, server: Emulator) -> None:
        async def source() -> AsyncIterator[str]:
            yield "resp_1"
            await asyncio.Event().wait()

        def key() -> str:
            raise OSError("shut")

        async with AsyncSession(api_key=key, base_url=server.base_url) as session, asyncio.timeout(5):
            with pytest.raises(OSError, match="shut"):
                await collect(session.stop_many(source()))

    async def test_a_source_that_goes_on_after_a_failure(self, server: Emulator) -> None:
        """Nothing more is sent."""

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

    async def test_the_first_failure_is_told(self, server: Emulator) -> None:
        failures = itertools.count(1)

        def key() -> str:
            raise OSError(next(failures))

        async with AsyncSession(api_key=key, base_url=server.base_url) as session:
            with pytest.raises(OSError, match="^1$"):
                await collect(session.stop_many([f"resp_{number}" for number in range(9)]))

    async def test_a_refused_id_keeps_no_frames(self, session: QuickSession) -> None:
        (outcome,) = await collect(session.stop_many([""]))
        assert outcome.error.__traceback__ is None

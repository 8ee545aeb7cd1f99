"""`RateLimiter`: the rate follows what the server allows."""

import asyncio
import itertools
import math

import pytest
from conftest import QuickClock
from manual_clock import ManualClock

from openai_cancel.errors import APIConnectionError, APITimeoutError, InternalServerError, RateLimitError
from openai_cancel.rate_limiter import MIN_GROWTH, MIN_RATE, STOP_PAUSE, RateLimiter


class LimitedServer:
    """A server that allows a number of requests a second, on a clock whose time passes without waiting.

    Attributes:
        answers: the time of each answer since the start, and whether the request was allowed.
    """

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
            return refusal(retry_after=1.0)
        self.bucket -= 1
        return None


def paced(server: LimitedServer, concurrency: int = 64) -> RateLimiter:
    """Return a pace on the clock of a server, with delays without jitter."""
    server.clock.drawn = 0.5
    return RateLimiter(concurrency, server.clock)


def refusal(retry_after: float | None = 0.25) -> RateLimitError:
    return RateLimitError("no", status=429, headers={}, body=b"", retry_after=retry_after)


class TestSlowStart:
    async def test_requests_that_wait_are_sent_earlier_when_the_rate_grows(self) -> None:
        clock = ManualClock()
        limiter = RateLimiter(64, clock, rate=10)
        turns = asyncio.gather(*(limiter.acquire() for _ in range(50)))  # at this rate, the last one is after 4.9 s
        await asyncio.sleep(0)
        limiter.rate = 100
        while not turns.done():
            clock.advance(0.1)
            for _ in range(3):
                await asyncio.sleep(0)
        assert clock.now < 2
        assert max(await turns) < 2

    async def test_nobody_looks_for_a_turn_during_a_pause(self) -> None:
        clock = ManualClock()
        limiter = RateLimiter(64, clock, rate=10)
        limiter.note(0.0, refusal(retry_after=30.0))
        acquire = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        assert clock.slept == [30.0]
        clock.advance(30.0)
        assert await acquire == 30.0

    async def test_the_rate_doubles_each_second_until_the_server_refuses_a_request(self) -> None:
        server = LimitedServer(40, burst=1)
        limiter = RateLimiter(64, server.clock, rate=10)
        refused = None
        while refused is None:
            sent = await limiter.acquire()
            refused = server.answer()
            limiter.note(sent, refused)
        assert 1.5 < server.clock.now - server.began < 3.5  # from 10 to 40 requests a second
        assert limiter.rate <= 40
        before = limiter.rate
        for _ in range(40):
            limiter.note(await limiter.acquire(), server.answer())
        assert limiter.rate < 1.2 * before

    async def test_the_rate_stays_below_its_maximum(self) -> None:
        server = LimitedServer(math.inf)
        limiter = RateLimiter(64, server.clock, rate=10, max_rate=25)
        for _ in range(200):
            limiter.note(await limiter.acquire(), server.answer())
        assert limiter.rate == 25


class TestTurn:
    async def test_no_request_waits_before_the_server_refuses_one(self) -> None:
        server = LimitedServer(math.inf, latency=0)
        limiter = paced(server)
        for _ in range(1000):
            limiter.note(await limiter.acquire(), None)
        assert (server.clock.now, limiter.rate, limiter.limit) == (server.began, math.inf, 64)

    async def test_one_refusal_pauses_all_requests(self) -> None:
        server = LimitedServer(1, burst=0)
        limiter = paced(server)
        sent = [await limiter.acquire() for _ in range(10)]
        limiter.note(sent[0], server.answer())
        assert limiter.limit == 1
        before = server.clock.now
        assert await limiter.acquire() == pytest.approx(before + 1.0)

    async def test_a_turn_after_the_deadline_is_refused_at_once(self) -> None:
        server = LimitedServer(1, burst=0)
        limiter = paced(server)
        limiter.note(await limiter.acquire(), server.answer())
        now = server.clock.now
        with pytest.raises(APITimeoutError, match="no time for a request before the deadline"):
            await limiter.acquire(now + 0.5)
        assert server.clock.now == now
        assert await limiter.acquire(now + 5) == pytest.approx(now + 1)

    async def test_a_refusal_prolongs_the_wait_of_other_requests(self) -> None:
        server = LimitedServer(1, burst=0)
        limiter = paced(server)
        sleeps: list[float] = []

        async def sleep(seconds: float) -> None:
            sleeps.append(seconds)
            server.clock.now += seconds
            if len(sleeps) == 1:
                limiter.note(server.clock.now, server.answer())

        server.clock.sleep = sleep
        limiter.note(await limiter.acquire(), server.answer())
        await limiter.acquire()
        # The pause, in which another one begins, and then the time that the turn which was lost would have taken.
        assert sum(sleeps) == pytest.approx(1 + 1 / MIN_RATE, abs=0.01)

    async def test_a_request_that_stops_a_response_goes_before_all_others(self) -> None:
        clock = ManualClock()
        limiter = RateLimiter(64, clock, rate=1)
        turns: list[str] = []

        async def take(name: str, *, is_urgent: bool) -> None:
            await limiter.acquire(is_urgent=is_urgent)
            turns.append(name)

        names = ["look"] * 5 + ["stop"] * 5
        tasks = [asyncio.create_task(take(name, is_urgent=name == "stop")) for name in names]
        while not all(task.done() for task in tasks):
            for _ in range(3):
                await asyncio.sleep(0)
            clock.advance(0.5)
        # The first two looks had their turns before the first stop was there.
        assert turns == ["look"] * 2 + ["stop"] * 5 + ["look"] * 3

    async def test_the_turns_of_cancelled_requests_go_to_others(self) -> None:
        clock = ManualClock()
        limiter = RateLimiter(64, clock, rate=10)
        tasks = [asyncio.create_task(limiter.acquire()) for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        acquire = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        clock.advance(0.11)  # the first of them did not wait, and has used its turn
        await asyncio.sleep(0)
        assert await acquire == 0.11

    async def test_a_request_that_stops_a_response_waits_for_a_part_of_a_long_pause(self) -> None:
        server = LimitedServer(1, burst=0, latency=0)
        limiter = paced(server)
        limiter.note(await limiter.acquire(), refusal(retry_after=30.0))
        now = server.clock.now
        assert await limiter.acquire(now + 10, is_urgent=True) - now == pytest.approx(STOP_PAUSE)

    async def test_a_shorter_retry_after_does_not_shorten_the_pause(self) -> None:
        server = LimitedServer(1, burst=0, latency=0)
        limiter = paced(server)
        sent = await limiter.acquire()
        for seconds in (30.0, 1.0):
            limiter.note(sent, refusal(retry_after=seconds))
        now = server.clock.now
        assert await limiter.acquire() - now == pytest.approx(30)


class TestRate:
    @pytest.mark.parametrize("allows", [5, 20, 100])
    async def test_the_allowed_rate_is_used_with_few_refusals(self, allows: float) -> None:
        server = LimitedServer(allows)
        limiter = paced(server)
        while server.clock.now < server.began + 60:
            sent = await limiter.acquire()
            limiter.note(sent, server.answer())
        late = [allowed for at, allowed in server.answers if at > 2]
        assert late.count(False) <= 0.05 * len(late)
        assert late.count(True) >= 0.9 * allows * 58

    async def test_the_rate_recovers_from_a_cut_that_was_too_deep(self) -> None:
        server = LimitedServer(1000)
        limiter = paced(server, concurrency=1)
        limiter.note(await limiter.acquire(), refusal(retry_after=None))
        assert limiter.rate < 1
        while server.clock.now < server.began + 45:
            limiter.note(await limiter.acquire(), server.answer())
        assert limiter.rate > 100

    async def test_a_wave_of_refusals_cuts_the_rate_once(self) -> None:
        server = LimitedServer(100, latency=0)
        limiter = paced(server)
        sent = [await limiter.acquire() for _ in range(164)]
        answers = [(at, server.answer()) for at in sent]
        for at, error in answers:
            limiter.note(at, error)
        assert limiter.rate == pytest.approx(90, rel=0.5)

    async def test_requests_that_got_through_beside_refusals_limit_the_cut(self) -> None:
        """The refusals may arrive before the answers of the requests that got through."""
        server = LimitedServer(20)
        limiter = paced(server)
        sent = [await limiter.acquire() for _ in range(64)]
        answers = [(at, server.answer()) for at in sent]
        for at, error in reversed(answers):
            limiter.note(at, error)
        assert limiter.rate >= 15

    async def test_other_errors_do_not_change_the_rate(self) -> None:
        server = LimitedServer(1)
        limiter = paced(server)
        limiter.note(await limiter.acquire(), APIConnectionError("reset"))
        assert limiter.rate == math.inf

    @pytest.mark.parametrize(("status", "asked"), [(503, 1.0), (529, None)])
    async def test_a_529_and_a_503_with_retry_after_cut_the_rate(self, status: int, asked: float | None) -> None:
        limiter = paced(LimitedServer(1))
        limiter.note(
            await limiter.acquire(), InternalServerError("no", status=status, headers={}, body=b"", retry_after=asked)
        )
        assert limiter.rate < math.inf

    async def test_a_refusal_never_raises_the_rate(self) -> None:
        server = LimitedServer(1000, latency=0)
        limiter = paced(server)
        limiter.note(server.clock.now, refusal())
        server.clock.now += 1
        for _ in range(100):
            limiter.note(server.clock.now, None)
        server.clock.now += 0.01
        before = limiter.rate
        limiter.note(server.clock.now, refusal())
        assert limiter.rate <= before

    async def test_a_late_answer_does_not_lower_the_rate(self) -> None:
        server = LimitedServer(1000, latency=0)
        limiter = paced(server)
        at = server.clock.now
        for _ in range(100):
            limiter.note(at, None)
        limiter.note(at, refusal())
        rate = limiter.rate
        server.clock.now += 5
        limiter.note(at, None)
        assert limiter.rate >= rate

    @pytest.mark.parametrize("asked", [0.25, 30.0])
    async def test_a_refusal_does_not_raise_the_rate_above_its_maximum(self, asked: float) -> None:
        clock = QuickClock()
        limiter = RateLimiter(64, clock, rate=0.1, max_rate=0.1)
        times: list[float] = []
        for number in range(10):
            times.append(await limiter.acquire())
            limiter.note(times[-1], refusal(asked) if number == 3 else None)
        assert min(after - before for before, after in itertools.pairwise(times)) >= 10 - 1e-6
        assert limiter.rate == 0.1

    async def test_a_cut_that_was_too_deep_is_undone_up_to_the_maximum(self) -> None:
        server = LimitedServer(1000, latency=0)
        limiter = RateLimiter(64, server.clock, rate=2, max_rate=2)
        for error in (refusal(), *[None] * 9):  # they were all sent before the refusal
            limiter.note(server.clock.now, error)
        assert limiter.rate == 2

    async def test_requests_of_long_ago_are_not_measured(self) -> None:
        server = LimitedServer(1000, latency=0)
        limiter = paced(server)
        for _ in range(100):
            limiter.note(server.clock.now, None)
        server.clock.now += 10
        limiter.note(server.clock.now, refusal())
        assert limiter.rate == MIN_RATE

    @pytest.mark.parametrize("idle", [1, 10])
    async def test_the_rate_grows_by_the_least_growth_for_at_most_one_second(self, idle: float) -> None:
        server = LimitedServer(1000, latency=0)
        limiter = paced(server)
        limiter.note(server.clock.now, refusal())
        server.clock.now += idle
        limiter.note(server.clock.now, None)
        assert limiter.rate == pytest.approx(MIN_RATE + MIN_GROWTH)

"""`wait`: how often it looks, when it gives up, and what it tells."""

import asyncio
import itertools
import logging
import math
import random
from typing import Any

import pytest
from conftest import KEY, QuickClock, QuickSession, cancels, reported
from ledger_database import execute as execute_sql
from ledger_database import without_table
from sqlalchemy import update

from openai_cancel import AsyncSession, ConfigurationError, Response, Session, Verdict, WaitTimeoutError
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.table import RESPONSES
from openai_cancel.ledger_protocols import History

pytestmark = pytest.mark.usefixtures("no_task_is_left")

HOUR = 3600.0


class Jittery(QuickClock):
    """A clock that draws from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.source = random.Random(seed)

    def random(self) -> float:
        return self.source.random()


class Sleepy(QuickClock):
    """A clock with which the machine sleeps for an hour, once, as it waits for the third time."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        if len(self.slept) == 3:
            self.now += HOUR


def known(status: str, **more: Any) -> Fault:
    return Fault(on="retrieve", status=200, body={"id": "resp_x", "status": status, **more})


class TestIntervals:
    @pytest.mark.slow
    @pytest.mark.parametrize("drawn", [0.0, 1.0, None])
    async def test_eight_hours_take_at_most_600_looks(self, drawn: float | None) -> None:
        clock = Jittery(1) if drawn is None else QuickClock()
        clock.drawn = drawn
        async with (
            Emulator(clock=clock.monotonic) as server,
            QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session,
        ):
            began = clock.now
            response = await session.wait(_added(server, 8 * HOUR))
            assert response.status == "completed"
            assert len(server.received) <= 600
            assert clock.now - began - 8 * HOUR <= 60
        age = 0.0
        for delay in clock.slept:
            assert delay <= max(8.0, 0.02 * age) + 1e-6
            age += delay

    async def test_the_longest_interval_can_be_set(self, clock: QuickClock, server, create) -> None:
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            await session.wait(create(runs_for=60), poll=2)
            assert set(clock.slept) == {0.5, 1, 2}

    async def test_the_longest_interval_of_a_stop_and_of_a_guard_can_be_set(self, session, create) -> None:
        await session.stop(create(resumes_after=0, resumes=100), deadline=10, poll=1)
        assert set(session.clock.slept[:6]) == {0.5, 1}
        session.clock.slept.clear()
        with pytest.raises(ZeroDivisionError):
            async with session.guard(create(resumes_after=0, resumes=100), poll=0.5):
                _ = 1 / 0
        assert max(session.clock.slept) == 0.5

    async def test_a_bulk_run_has_the_same_option(self, session, create) -> None:
        outcomes = session.stop_many([create(resumes_after=0, resumes=100)], deadline=10, poll=1)
        assert [outcome.verdict async for outcome in outcomes] == [Verdict.STILL_RUNNING]
        assert max(session.clock.slept) == 1

    @pytest.mark.parametrize("header", ["retry-after", "retry-after-ms", "openai-poll-after-ms"])
    @pytest.mark.parametrize(("asked", "delay"), [(20.0, 20.0), (7200.0, 60.0), (0.0, 0.25)])
    async def test_the_server_may_ask_for_an_interval_within_bounds(
        self, session, server, create, *, header: str, asked: float, delay: float
    ) -> None:
        value = asked if header == "retry-after" else 1000 * asked
        server.faults.append(reported("queued", **{header: f"{value:.0f}"}))
        await session.wait(create(runs_for=0))
        assert session.clock.slept == [delay]

    async def test_the_header_for_polls_takes_precedence(self, session, server, create) -> None:
        server.faults.append(reported("queued", **{"retry-after": "9", "openai-poll-after-ms": "1500"}))
        await session.wait(create(runs_for=0))
        assert session.clock.slept == [1.5]


def _added(server: Emulator, seconds: float) -> str:
    return server.add(server.script.amended({"runs_for": str(seconds)}))


class TestQueuedTimeout:
    async def test_a_response_that_stays_queued_is_stopped(self, clock: QuickClock, server, create) -> None:
        name = create(queued_for=math.inf)
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            with pytest.raises(WaitTimeoutError) as caught:
                await session.wait(name, queued_timeout=30)
        error = caught.value
        assert str(error) == f"{name} was still queued after 30 s (queued_timeout). It was stopped (cancelled)."
        assert (error.limit, error.outcome.verdict, error.response.status) == ("queued_timeout", "cancelled", "queued")
        assert sum(clock.slept) == 30

    async def test_a_response_that_has_left_the_queue_may_take_its_time(
        self, clock: QuickClock, server, create
    ) -> None:
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            response = await session.wait(create(queued_for=20, runs_for=500), queued_timeout=30)
        assert (response.status, cancels(server)) == ("completed", 0)

    async def test_a_response_that_is_queued_again_has_the_whole_time_again(self, session, server, create) -> None:
        server.faults += [known("queued")] * 4 + [known("in_progress")] + [known("queued")] * 3
        await session.wait(create(runs_for=0), queued_timeout=20)
        assert sum(session.clock.slept) > 30

    async def test_a_failing_server_does_not_show_that_a_response_is_queued(self, session, server, create) -> None:
        server.faults += [known("queued")] + [Fault(on="retrieve", status=503)] * 20
        assert (await session.wait(create(runs_for=0), queued_timeout=30, max_retries=0)).status == "completed"


class TestQueuedTimeoutWithALedger:
    async def test_it_counts_from_the_first_record_also_after_a_restart(self, server, create, tmp_path) -> None:
        name, url = create(queued_for=math.inf), f"sqlite:///{tmp_path}/ledger.db"
        async with Ledger(url) as ledger:
            await ledger.track(name, session=AsyncSession(api_key=KEY, base_url=server.base_url), ttl=HOUR)
        await execute_sql(url, update(RESPONSES).values(created=RESPONSES.c.created - 100))
        clock = QuickClock()
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock, ledger=Ledger(url)) as session:
            with pytest.raises(WaitTimeoutError, match="was still queued after 120 s"):
                await session.wait(name, queued_timeout=120)
        assert 10 < sum(clock.slept) < 21

    async def test_without_a_record_or_with_a_failing_database_it_counts_from_now(self, server, tmp_path) -> None:
        url = f"sqlite:///{tmp_path}/ledger.db"
        async with (
            Ledger(url) as ledger,
            QuickSession(api_key=KEY, base_url=server.base_url, ledger=ledger) as session,
        ):
            guard = session.guard()
            assert await guard.responses.history("resp_unknown") == History()
            async with without_table(url):
                assert await guard.responses.history("resp_unknown") == History()


class TestStalledTimeout:
    async def test_a_response_without_progress_is_stopped(self, clock: QuickClock, server, create) -> None:
        name = create()
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            with pytest.raises(WaitTimeoutError) as caught:
                await session.wait(name, stalled_timeout=60)
        error = caught.value
        assert str(error) == (
            f"{name} made no progress for 60 s (stalled_timeout): its status was 'in_progress'. "
            "It was stopped (cancelled)."
        )
        assert (error.limit, bool(server.responses[name].cancelled)) == ("stalled_timeout", True)

    @pytest.mark.parametrize(
        "steps",
        [
            [{"status": "queued"}, {"status": "in_progress"}],
            [{"output": [{"type": "message", "id": f"msg_{number}"}]} for number in range(2)],
            [{"updated_at": number} for number in range(2)],
            [{"last_updated": str(number)} for number in range(2)],
        ],
        ids=["status", "output", "updated_at", "last_updated"],
    )
    async def test_a_change_of_status_output_or_updates_is_progress(self, session, server, create, steps) -> None:
        server.faults += [known(**{"status": "in_progress", **step}) for step in steps * 6]
        assert (await session.wait(create(runs_for=0), stalled_timeout=10)).status == "completed"
        assert sum(session.clock.slept) > 60

    async def test_a_response_that_is_left_alone_runs_on(self, session, server, create) -> None:
        with pytest.raises(WaitTimeoutError, match=r"stalled_timeout.* It was left running\."):
            await session.wait(create(), stalled_timeout=10, on_abandon="leave")
        assert cancels(server) == 0


class TestFrozenProcess:
    async def test_a_wait_looks_before_it_gives_up(self, server, create) -> None:
        clock = Sleepy()
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            server.faults += [known("in_progress")] * 3
            assert (await session.wait(create(runs_for=0), timeout=60)).status == "completed"
        assert (clock.now - 1_700_000_000.0 > HOUR, cancels(server)) == (True, 0)

    async def test_a_wait_whose_response_still_runs_gives_up_and_stops_it(self, server, create) -> None:
        name = create()
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=Sleepy()) as session:
            with pytest.raises(WaitTimeoutError) as caught:
                await session.wait(name, timeout=60)
        assert (len(caught.value.response.id) > 0, caught.value.outcome.verdict) == (True, Verdict.CANCELLED)

    async def test_a_stop_looks_before_it_gives_up(self, server, create) -> None:
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=Sleepy()) as session:
            server.faults += [Fault(on="cancel", status=200, body={"id": "x", "status": "in_progress"})]
            server.faults += [known("in_progress")] * 2 + [known("cancelled")]
            outcome = await session.stop(create(), deadline=60)
        assert (outcome.verdict, outcome.stopped) == (Verdict.CANCELLED, True)


class TestOnUpdate:
    async def test_it_is_called_with_every_response(self, clock: QuickClock, server, create) -> None:
        seen: list[str | None] = []
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            last = await session.wait(
                create(queued_for=1, runs_for=1), on_update=lambda response: seen.append(response.status)
            )
        assert (seen[0], seen[-1], len(seen)) == ("queued", last.status, len(server.received))

    async def test_it_may_be_async(self, session, create) -> None:
        seen: list[Response] = []

        async def note(response: Response) -> None:
            await asyncio.sleep(0)
            seen.append(response)

        assert [await session.wait(create(runs_for=0), on_update=note)] == seen

    @pytest.mark.parametrize("kind", [ZeroDivisionError, asyncio.CancelledError])
    async def test_its_failure_is_logged_and_does_not_end_the_wait(
        self, session, create, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
    ) -> None:
        def fail(_: Response) -> None:
            raise kind

        with caplog.at_level(logging.WARNING):
            assert (await session.wait(create(runs_for=0), on_update=fail)).status == "completed"
        assert f"on_update raised {kind.__name__}, which is ignored" in caplog.text

    @pytest.mark.parametrize("limit", ["timeout", "queued_timeout", "stalled_timeout"])
    async def test_a_limit_ends_one_that_hangs(self, server, create, caplog, limit: str) -> None:
        calls = itertools.count()

        async def hang(_: Response) -> None:
            if next(calls) == 0:
                await asyncio.Event().wait()

        name = create(queued_for=math.inf)
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session, asyncio.timeout(20):
            with pytest.raises(WaitTimeoutError) as caught:
                await session.wait(name, on_update=hang, **{limit: 0.2})
        assert caught.value.limit == limit
        assert server.responses[name].cancelled
        assert "on_update raised TimeoutError, which is ignored" in caplog.text

    @pytest.mark.slow
    async def test_a_deadline_ends_one_that_hangs(self, server, create, caplog) -> None:
        async def hang(_: Response) -> None:
            await asyncio.Event().wait()

        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session, asyncio.timeout(20):
            assert (await session.stop(create(), deadline=1, on_update=hang)).stopped
        assert "on_update raised TimeoutError, which is ignored" in caplog.text

    async def test_it_has_time_for_the_last_response_even_if_a_limit_is_near(self, session, create) -> None:
        seen: list[str | None] = []

        async def note(response: Response) -> None:
            await asyncio.sleep(0.05)
            seen.append(response.status)

        await session.wait(create(runs_for=0), timeout=0.001, on_update=note)
        assert seen == ["completed"]

    @pytest.mark.parametrize("limit", ["timeout", "queued_timeout", "stalled_timeout"])
    async def test_a_response_that_ends_while_it_runs_is_not_too_late(
        self, clock: QuickClock, server, create, limit: str
    ) -> None:
        def take_long(_: Response) -> None:
            clock.now += 100

        name = create(queued_for=40, runs_for=40)
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            assert (await session.wait(name, on_update=take_long, **{limit: 20})).status == "completed"
        assert len(server.received) == 2

    async def test_a_cancellation_while_it_runs_ends_the_wait(self, server, create) -> None:
        entered = asyncio.Event()

        async def linger(_: Response) -> None:
            entered.set()
            await asyncio.Event().wait()

        name = create()
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            task = asyncio.create_task(session.wait(name, on_update=linger))
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert server.responses[name].cancelled

    async def test_a_blocking_session_calls_it_too(self, server, create) -> None:
        seen: list[str | None] = []

        def note(response: Response) -> None:
            seen.append(response.status)

        def run() -> None:
            with Session(api_key=KEY, base_url=server.base_url) as session:
                session.wait(create(runs_for=0), on_update=note)
                session.stop(create(), on_update=note)
                list(session.stop_many([create()], on_update=note))

        await asyncio.to_thread(run)
        assert seen == ["completed", "cancelled", "cancelled"]

    async def test_a_stop_calls_it_with_every_response(self, session, server, create) -> None:
        seen: list[str | None] = []

        def note(response: Response) -> None:
            seen.append(response.status)
            raise ZeroDivisionError

        server.faults += [Fault(on="cancel", status=200, body={"id": "x", "status": "cancelling"}), known("cancelled")]
        assert (await session.stop(create(), on_update=note)).stopped
        server.faults += [Fault(on="cancel", status=400), known("completed")]
        assert [outcome.stopped async for outcome in session.stop_many([create()], on_update=note)] == [True]
        assert seen == ["cancelling", "cancelled", "completed"]

    @pytest.mark.parametrize("call", ["stop", "wait"])
    async def test_what_is_no_function_is_refused(self, session, call: str) -> None:
        with pytest.raises(ConfigurationError, match="on_update must be a function, not int"):
            await getattr(session, call)("resp_x", on_update=5)
        with pytest.raises(ConfigurationError, match="on_update must be a function, not int"):
            getattr(session, f"{call}_many")(["resp_x"], on_update=5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"poll": 0.2}, "poll must be at least 0.25 s, not 0.2"),
        ({"poll": 0}, "poll must be a number of seconds greater than 0"),
        ({"poll": math.inf}, "poll must be finite"),
        ({"poll": math.nan}, "poll must be a number of seconds"),
        ({"poll": None}, "poll must be a number of seconds"),
        ({"queued_timeout": -1}, "queued_timeout must be a number of seconds"),
        ({"queued_timeout": math.inf}, "queued_timeout must be finite; leave it out for no limit"),
        ({"queued_timeout": math.nan}, "queued_timeout must be a number of seconds"),
        ({"stalled_timeout": 0}, "stalled_timeout must be a number of seconds"),
        ({"stalled_timeout": math.inf}, "stalled_timeout must be finite"),
        ({"timeout": math.nan}, "timeout must be a number of seconds"),
        ({"timeout": 10, "queued_timeout": 11}, r"queued_timeout \(11 s\) must not be longer than timeout \(10 s\)"),
        ({"timeout": 10, "stalled_timeout": 11}, "stalled_timeout .* must not be longer than timeout"),
        ({"on_update": 5}, "on_update must be a function, not int"),
    ],
)
async def test_a_limit_that_cannot_work_is_refused_before_anything_is_sent(session, server, options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        await session.wait("resp_x", **options)
    assert server.received == []


@pytest.mark.parametrize("call", ["stop", "guard", "stop_many"])
async def test_the_interval_is_checked_everywhere(session, call: str) -> None:
    with pytest.raises(ConfigurationError, match="poll must be at least"):
        result = getattr(session, call)(["resp_x"] if call == "stop_many" else "resp_x", poll=0.1)
        await result

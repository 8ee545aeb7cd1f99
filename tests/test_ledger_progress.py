"""`stalled_timeout` with a ledger: it outlives the process, and takes few writes. On SQLite and on PostgreSQL."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import KEY, QuickSession, until
from ledger_database import commits, execute, without_table
from manual_clock import ManualClock
from sqlalchemy import select, update

from openai_cancel import AsyncSession, WaitTimeoutError
from openai_cancel.converter import response_hook
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.table import RESPONSES
from openai_cancel.ledger_protocols import History
from openai_cancel.models import Response
from openai_cancel.progress import Progress

HOUR = 3600.0

progress, progressed = RESPONSES.c.progress, RESPONSES.c.progressed


@asynccontextmanager
async def process(url: str, server: Emulator, **options: Any) -> AsyncIterator[AsyncSession]:
    """Stand for a process: a session with a ledger of its own."""
    options = {"api_key": KEY, "base_url": server.base_url, "account": "tests", "max_retries": 0, **options}
    async with QuickSession(ledger=Ledger(url), **options) as session:
        yield session


async def track(url: str, server: Emulator, *names: str) -> None:
    async with Ledger(url) as ledger:
        session = AsyncSession(api_key=KEY, base_url=server.base_url, account="tests")
        await ledger.track_many(names, session=session, ttl=24 * HOUR)


async def wait_and_die(session: AsyncSession, name: str, **options: Any) -> float:
    """Wait for a minute, and leave the response running, as a process does that is killed. Return the seconds."""
    with pytest.raises(WaitTimeoutError, match="left running"):
        await session.wait(name, timeout=60, on_abandon="leave", **{"stalled_timeout": 60, **options})
    return sum(session.clock.slept)


async def stall(session: AsyncSession, name: str, seconds: float) -> float:
    """Wait until a response is given up because it stalls, and return after how many seconds."""
    with pytest.raises(WaitTimeoutError) as caught:
        await session.wait(name, stalled_timeout=seconds)
    assert caught.value.limit == "stalled_timeout"
    return sum(session.clock.slept)


async def pass_by(url: str, seconds: float) -> None:
    """Let time pass between two processes."""
    await execute(url, update(RESPONSES).values(progressed=progressed - seconds))


class TestRestart:
    async def test_the_time_without_progress_counts_also_before_a_restart(self, url: str, server, create) -> None:
        name = create()
        await track(url, server, name)
        async with process(url, server) as first:
            await wait_and_die(first, name)
        await pass_by(url, 100)
        async with process(url, server) as second:
            assert 10 < await stall(second, name, 120) < 21
        assert server.responses[name].cancelled

    async def test_a_limit_that_is_over_when_a_process_starts_is_noticed_with_the_first_look(
        self, url: str, server, create
    ) -> None:
        name = create()
        await track(url, server, name)
        for elapsed in (0.0, 50.0, 5000.0):  # two processes die
            async with process(url, server) as session:
                await pass_by(url, elapsed)
                if elapsed < 100:
                    await wait_and_die(session, name)
                else:
                    server.received.clear()
                    assert await stall(session, name, 120) == 0.0
        assert [request.method for request in server.received] == ["GET", "POST"]

    async def test_progress_while_no_process_waits_is_progress(self, url: str, server, create) -> None:
        name = create()
        await track(url, server, name)
        server.faults += [Fault(on="retrieve", status=200, body={"id": name, "status": "queued"})] * 20
        async with process(url, server) as first:
            await wait_and_die(first, name)
        server.faults.clear()
        (before,) = await execute(url, select(progress, progressed))
        await pass_by(url, 5000)
        async with process(url, server) as second:
            assert await stall(second, name, 120) == 120
        (after,) = await execute(url, select(progress, progressed))
        assert (after.progress != before.progress, after.progressed >= before.progressed) == (True, True)

    async def test_another_response_and_another_account_are_not_mixed_up(self, url: str, server, create) -> None:
        name, other = create(), create()
        await track(url, server, name, other)
        async with process(url, server) as first:
            await wait_and_die(first, name)
        await pass_by(url, 5000)
        async with process(url, server) as second, process(url, server, account="theirs") as third:
            assert await stall(second, other, 120) == 120
            assert await stall(third, name, 120) == 120

    async def test_a_clock_that_goes_back_lets_the_time_begin_anew(self, url: str, server, create) -> None:
        name = create()
        await track(url, server, name)
        async with process(url, server) as first:
            await wait_and_die(first, name)
        await pass_by(url, -5000)
        async with process(url, server) as second:
            assert await stall(second, name, 120) == 120

    async def test_a_guarded_response_is_remembered_too(self, url: str, server, create) -> None:
        name = create()
        clock = ManualClock()
        async with process(url, server, clock=clock) as first:
            waiting = asyncio.create_task(first.wait(name, stalled_timeout=HOUR))
            await until(lambda: clock.slept.count(0.5))
            await pass_by(url, 100)
            async with process(url, server) as second:
                assert 10 < await stall(second, name, 120) < 21
            clock.advance(0.5)
            assert (await waiting).status == "cancelled"


class TestWrites:
    @pytest.mark.slow
    async def test_a_response_that_makes_no_progress_is_written_once(self, url: str, server, create) -> None:
        name = create()
        await track(url, server, name)
        async with process(url, server) as session:
            with commits() as committed:
                await stall(session, name, 8 * HOUR)
            assert len(server.received) > 500
        assert len(committed) <= 6  # the row, its history, its mark, and its end

    @pytest.mark.slow
    async def test_progress_with_each_look_takes_ten_writes_for_each_limit(self, url: str, server, create) -> None:
        name = create()
        steps = [
            Fault(on="retrieve", status=200, body={"id": name, "status": "in_progress", "output": [{"n": number}]})
            for number in range(700)
        ]
        server.faults += steps
        async with process(url, server) as session:
            with commits() as committed, pytest.raises(WaitTimeoutError, match="within 28800 s"):
                await session.wait(name, timeout=8 * HOUR, stalled_timeout=HOUR)
        assert 70 < len(committed) <= 86

    async def test_without_the_limit_nothing_is_written(self, url: str, server, create) -> None:
        name = create()
        await track(url, server, name)
        async with process(url, server) as session:
            await wait_and_die(session, name, stalled_timeout=None, queued_timeout=60)
        assert await execute(url, select(progress, progressed)) == [(None, None)]

    async def test_the_last_change_is_written_even_if_it_follows_another_one(self, url: str, server, create) -> None:
        name = create()
        await track(url, server, name)
        server.faults += [Fault(on="retrieve", status=200, body={"id": name, "status": "queued"})]
        async with process(url, server) as first:
            await wait_and_die(first, name)
        await pass_by(url, 100)
        async with process(url, server) as second:
            assert await stall(second, name, 120) < 21

    async def test_a_write_that_fails_is_made_later(self, url: str, server, create) -> None:
        name = create()
        await track(url, server, name)
        marks: list[Any] = []
        away = without_table(url)

        class TakeTheTable:
            on = "retrieve"

            async def strike(self, request: web.Request, handler: Any) -> web.StreamResponse:
                await away.__aenter__()
                return await handler(request)

        async def look(_: Response) -> None:
            if not marks:
                await away.__aexit__(None, None, None)
            marks.extend(await execute(url, select(progress)))

        server.faults.append(TakeTheTable())
        async with process(url, server) as session:
            with pytest.raises(WaitTimeoutError, match="stalled_timeout"):
                await session.wait(name, stalled_timeout=60, on_update=look)
        assert (marks[0], marks[-1] != marks[0]) == ((None,), True)


class TestStreams:
    @pytest.fixture
    async def streamed(self, server: Emulator) -> str:
        url, body = f"{server.base_url}/responses", {"model": "m", "input": "hi", "background": True, "stream": True}
        server.script = Script(runs_for=math.inf)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=body) as answer:
            await answer.content.readline()
        server.received.clear()
        return next(reversed(server.responses))

    @pytest.mark.slow
    async def test_events_that_an_earlier_process_has_heard_are_no_progress(
        self, url: str, server, streamed: str
    ) -> None:
        await track(url, server, streamed)
        async with process(url, server, clock=ManualClock()) as first:
            waiting = asyncio.create_task(first.wait(streamed, stream=True, stalled_timeout=120, on_abandon="leave"))
            while not (await execute(url, select(progress)))[0].progress:
                await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
        ((mark,),) = await execute(url, select(progress))
        assert mark.endswith("@5")
        await pass_by(url, 100 + 12)  # a tenth of the limit is written in advance for events
        clock = ManualClock()
        async with process(url, server, clock=clock) as second:
            waiting = asyncio.create_task(second.wait(streamed, stream=True, stalled_timeout=120))
            await until(lambda: "starting_after=5" in server.received[-1].path)
            for _ in range(40):
                await asyncio.sleep(0.02)
                clock.advance(0.5)
                if waiting.done():
                    break
            with pytest.raises(WaitTimeoutError, match="made no progress for 120 s"):
                await waiting


class TestProgress:
    """What no emulated server does."""

    @staticmethod
    def make(**history: Any) -> tuple[Progress, list[tuple[str, float]]]:
        written: list[tuple[str, float]] = []

        class Ledgered:
            async def note_progress(self, _: str, mark: str, ago: float) -> bool:
                written.append((mark, ago))
                return True

        return Progress(Ledgered(), "resp_1", now=0.0, history=History(**history), limit=100.0), written

    async def test_events_without_numbers_are_written_in_advance(self) -> None:
        progress, written = self.make()
        progress.hear(-math.inf, None, is_running=False)
        await progress.write(0.0)
        assert written == []
        progress.see(response_hook()({"id": "resp_1", "status": "in_progress"}), 1.0)
        await progress.write(1.0)
        for now in range(2, 14):
            progress.hear(float(now), None, is_running=True)
            await progress.write(float(now))
        assert [round(ago, 3) for _, ago in written] == [0.0, -10.0]
        assert progress.changed == 13.0
        assert "@" not in written[1][0]

    async def test_what_was_heard_before_the_first_look_counts(self) -> None:
        response = response_hook()({"id": "resp_1", "status": "in_progress"})
        earlier, written = self.make()
        earlier.see(response, 0.0)
        await earlier.write(0.0)
        progress, _ = self.make(age=90.0, mark=f"{written[0][0]}@7", unchanged_for=80.0)
        assert progress.last_event == 7
        progress.hear(3.0, 8, is_running=True)
        progress.see(response, 5.0)
        assert progress.changed == 3.0

    async def test_a_response_was_seen_if_an_event_of_it_was_heard(self) -> None:
        progress, _ = self.make()
        progress.hear(-math.inf, None, is_running=False)
        assert not progress.was_seen
        progress.hear(3.0, 8, is_running=True)
        assert progress.was_seen

    async def test_a_document_that_is_nested_too_deeply_is_not_compared_with_that_of_another_process(self) -> None:
        progress, written = self.make(mark="", unchanged_for=50.0)
        for now in (1.0, 2.0):
            nested: Any = []
            for _ in range(200_000):  # CPython 3.15 goes deeper than others
                nested = [nested]
            progress.see(response_hook()({"id": "resp_1", "status": "queued", "output": nested}), now)
        await progress.write(2.0)
        assert (progress.changed, written) == (2.0, [("", 0.0)])

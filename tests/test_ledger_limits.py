"""`max_age`, and guards whose responses another process stops, on SQLite and on PostgreSQL."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import KEY
from ledger_database import execute, lapse
from ledgers import beat, cancelled_ids, entries, open_session, states, sweep
from manual_clock import ManualClock
from sqlalchemy import update

from openai_cancel import AsyncSession, ConfigurationError, LeaseTakenError, Session, Verdict
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Entry, Ledger
from openai_cancel.ledger.table import RESPONSES


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


async def change(url: str, **values: Any) -> None:
    """Change all rows, as another process does."""
    await execute(url, update(RESPONSES).values(values))


def limit(entry: Entry) -> float:
    """Return the seconds from the creation of a row to its limit."""
    return (entry.expires - entry.created).total_seconds()


class TestLimits:
    async def test_a_sweep_stops_a_response_whose_limit_is_over_although_its_guard_lives(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, create
    ) -> None:
        old, young, free = create(), create(), create()
        async with session.guard(old, max_age=3600) as guard, session.guard(young, max_age=3600), session.guard(free):
            await execute(url, update(RESPONSES).where(RESPONSES.c.response_id == old).values(expires=1.0))
            assert await sweep(ledger, session) == {}
            await beat(ledger_clock)  # it does not renew the lease beyond the limit
            assert await sweep(ledger, session) == {old: Verdict.CANCELLED}
            await beat(ledger_clock)
            assert guard.outcome.verdict is Verdict.CANCELLED
            assert "Another process has stopped it, because its max_age is over." in str(guard.outcome.error)
        assert await states(ledger) == {old: "cancelled", young: "released", free: "released"}

    async def test_the_last_lease_before_a_limit_ends_with_it(
        self, session, ledger: Ledger, ledger_clock: ManualClock, create
    ) -> None:
        short, long = create(), create()
        async with session.guard(short, max_age=5), session.guard(long, max_age=3600):
            for _ in range(2):
                found = await entries(ledger)
                assert found[short].lease_left <= 5
                assert 5 < found[long].lease_left <= 60
                await beat(ledger_clock)
            assert limit(found[short]) == pytest.approx(5, abs=0.01)
            assert limit(found[long]) == pytest.approx(3600, abs=0.01)

    async def test_the_earliest_limit_counts_whoever_sets_it(self, url: str, server: Emulator, create) -> None:
        name, limits = create(), []
        # Each of them stands for a process, which is started again.
        for of_ledger, of_guard in ((None, None), (7200, 3600), (None, 1800), (600, math.inf), (None, 9000)):
            async with (
                Ledger(url, max_age=of_ledger) as ledger,
                open_session(server, ledger) as session,
                session.guard(name, max_age=of_guard),
            ):
                entry = (await entries(ledger))[name]
                limits.append(entry.expires and round(limit(entry)))
        assert limits == [None, 3600, 1800, 600, 600]

    async def test_a_limit_counts_from_the_first_record(self, session, ledger: Ledger, url: str, create) -> None:
        name = create()
        await ledger.track(name, session=session, ttl=9000)
        await execute(url, update(RESPONSES).values(created=RESPONSES.c.created - 3500))
        async with session.guard(name, max_age=3600):
            assert limit((await entries(ledger))[name]) == pytest.approx(3600, abs=0.01)
        assert 50 < (await entries(ledger))[name].lease_left <= 100  # and for the time of the track, too

    async def test_a_limit_of_the_ledger_holds_for_tracked_responses(self, url: str, server: Emulator, create) -> None:
        name = create()
        async with Ledger(url, max_age=5) as ledger, open_session(server, ledger) as session:
            await ledger.track(name, session=session, ttl=900)
            assert (await entries(ledger))[name].lease_left <= 5

    @pytest.mark.parametrize("longest", [1e12, 1e300, math.inf])
    async def test_a_limit_of_more_than_a_century_is_none(
        self, url: str, server: Emulator, create, longest: float
    ) -> None:
        names = [create() for _ in range(3)]
        async with Ledger(url, max_age=longest) as ledger, open_session(server, ledger) as session:
            await ledger.track(names[0], session=session, ttl=60)
            async with session.guard(names[1], max_age=longest), session.guard(names[2], max_age=99 * 365 * 86_400):
                found = await entries(ledger)
        assert [found[name].expires is None for name in names] == [True, True, False]

    @pytest.mark.parametrize("expires", [1e12, 1e300])
    async def test_a_row_with_a_limit_that_is_no_date_can_be_read(
        self, session, ledger: Ledger, url: str, create, expires: float
    ) -> None:
        name = create()
        await ledger.track(name, session=session, ttl=60)
        await change(url, expires=expires)
        assert (await entries(ledger))[name].expires is None

    async def test_a_release_by_hand_ends_a_limit(self, session, ledger: Ledger, create) -> None:
        name = create()
        async with session.guard(name, max_age=3600):
            await ledger.release(name, session=session)
        async with session.guard(name):
            assert (await entries(ledger))[name].expires is None

    async def test_a_wait_returns_the_response_that_a_sweep_has_stopped(self, session, ledger: Ledger, create) -> None:
        name = create()
        waiting = asyncio.create_task(session.wait(name, max_age=0.01))
        while not await sweep(ledger, session):
            await asyncio.sleep(0.01)
        assert (await waiting).status == "cancelled"
        assert await states(ledger) == {name: "cancelled"}

    async def test_a_blocking_session_has_limits_too(self, url: str, server: Emulator, create) -> None:
        guarded, over = create(), create(runs_for=0)

        def work() -> None:
            with Session(api_key=KEY, base_url=server.base_url, ledger=Ledger(url)) as session:
                session.wait(over, max_age=1800)
                with session.guard(guarded, max_age=3600):
                    pass

        await asyncio.to_thread(work)
        async with Ledger(url) as ledger:
            found = await entries(ledger)
        assert [round(limit(found[name])) for name in (guarded, over)] == [3600, 1800]


class TestRefusals:
    async def test_a_limit_needs_a_ledger(self, server: Emulator, create) -> None:
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            with pytest.raises(ConfigurationError, match="max_age needs a ledger, whose sweeps stop the response"):
                session.guard(create(), max_age=60)
            with pytest.raises(ConfigurationError, match="max_age needs a ledger"):
                await session.wait(create(), max_age=60)

    async def test_limits_that_cannot_work_are_refused(self, session, create) -> None:
        for wrong in (0, -1, math.nan, "5", True):
            with pytest.raises(ConfigurationError, match="max_age must be a number of seconds greater than 0"):
                session.guard(create(), max_age=wrong)
            with pytest.raises(ConfigurationError, match="max_age must be a number of seconds greater than 0"):
                Ledger("sqlite:///x", max_age=wrong)
        with pytest.raises(ConfigurationError, match="cannot be combined with on_abandon='leave'"):
            await session.wait(create(), max_age=60, on_abandon="leave")


class TestGuardsWhoseResponsesAreTaken:
    async def test_a_guard_learns_of_each_step_and_does_not_overwrite_the_row(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, create, *, caplog: pytest.LogCaptureFixture
    ) -> None:
        name = create()
        steps = []
        async with session.guard(name) as guard:
            for values in (
                {"state": "stopping", "owner": "other:sweep", "attempts": 1, "reason": "stop"},
                {"state": "tracked", "owner": None, "error": "503: down."},
                {"state": "tracked", "owner": None, "attempts": 0},  # given back
                {"state": "stopping", "owner": "other:sweep", "attempts": 1},
                {"state": "cancelled", "owner": None, "lease_until": None, "error": None, "request_id": "req_1"},
            ):
                await change(url, **values)
                await beat(ledger_clock)
                steps.append((guard.outcome.verdict, guard.outcome.stopped, str(guard.outcome.error)))
            assert guard.outcome.request_id == "req_1"
            assert isinstance(guard.outcome.error, LeaseTakenError)
            row = (await entries(ledger))[name]
        assert steps == [
            (Verdict.STILL_RUNNING, False, "Another process is stopping it, because it was asked to."),
            (Verdict.STILL_RUNNING, False, "Another process is stopping it, because it was asked to. 503: down."),
            (Verdict.STILL_RUNNING, False, "Another process is stopping it, because it was asked to. 503: down."),
            (Verdict.STILL_RUNNING, False, "Another process is stopping it, because it was asked to. 503: down."),
            (Verdict.CANCELLED, True, "Another process has stopped it, because it was asked to."),
        ]
        assert (await entries(ledger))[name] == row
        assert caplog.messages.count(f"{name} was taken from its guard (still_running)") == 1
        assert caplog.messages.count(f"{name} was taken from its guard (cancelled)") == 1

    async def test_an_exception_does_not_stop_a_response_again_that_a_sweep_has_stopped(
        self, session, ledger: Ledger, url: str, server: Emulator, ledger_clock: ManualClock, *, create
    ) -> None:
        name, added = create(), create()
        with pytest.raises(ZeroDivisionError) as caught:
            async with session.guard(name) as guard:
                guard.add(added)
                await states(ledger)
                await lapse(url)
                assert set(await sweep(ledger, session)) == {name, added}
                await beat(ledger_clock)
                assert {found.verdict for found in guard.outcomes.values()} == {Verdict.CANCELLED}
                assert "because its lease had expired" in str(guard.outcome.error)
                raise ZeroDivisionError
        assert not hasattr(caught.value, "__notes__")
        assert sorted(cancelled_ids(server)) == sorted([name, added])
        assert set((await states(ledger)).values()) == {"cancelled"}

    async def test_an_exception_stops_a_response_that_another_process_could_not_stop(
        self, session, ledger: Ledger, url: str, server: Emulator, ledger_clock: ManualClock, *, create
    ) -> None:
        name = create()
        with pytest.raises(ZeroDivisionError):
            async with session.guard(name) as guard:
                await change(url, state="forbidden", owner=None, lease_until=None, error="403: no.", attempts=12)
                await beat(ledger_clock)
                assert guard.outcome.verdict is Verdict.FORBIDDEN
                assert str(guard.outcome.error) == "Another process could not stop it. 403: no."
                raise ZeroDivisionError
        assert guard.outcome.verdict is Verdict.CANCELLED
        assert server.responses[name].cancelled
        assert (await states(ledger)) == {name: "forbidden"}

    async def test_what_a_guard_did_not_notice_yet_is_not_overwritten(
        self, session, ledger: Ledger, url: str, create
    ) -> None:
        stopped, ended = create(), create()
        with pytest.raises(ZeroDivisionError):
            async with session.guard(stopped), session.guard(ended):
                await lapse(url)
                await sweep(ledger, session)
                raise ZeroDivisionError
        assert await states(ledger) == {stopped: "cancelled", ended: "cancelled"}

    async def test_a_guard_that_begins_after_its_response_was_taken_learns_of_it(
        self, session, url: str, ledger: Ledger, ledger_clock: ManualClock, create
    ) -> None:
        name = create()
        async with session.guard(name) as first:
            await change(url, state="stopping", owner="other:sweep", attempts=1)
            async with session.guard(name) as second:
                await beat(ledger_clock)
                assert first.outcome.error.args == second.outcome.error.args
                await execute(url, RESPONSES.delete())
                await beat(ledger_clock)
                assert await states(ledger) == {}  # a row that was being stopped is not made anew

    async def test_a_guard_that_is_used_again_forgets_what_was_taken_from_it(
        self, session, url: str, ledger_clock: ManualClock, create
    ) -> None:
        name = create()
        guard = session.guard(name)
        async with guard:
            await change(url, state="stopping", owner="other:sweep", attempts=1)
            await beat(ledger_clock)
            assert guard.outcome
        async with guard:
            assert guard.outcome is None

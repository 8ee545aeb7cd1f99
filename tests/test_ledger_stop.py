"""Stopping responses by their labels, state or age, whoever holds their leases, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from conftest import until
from ledger_database import execute, lapse, locked
from ledgers import Calls, beat, cancelled_ids, entries, open_calls, open_session, states, sweep
from manual_clock import ManualClock
from sqlalchemy import update

from openai_cancel import AsyncSession, ConfigurationError, LeaseTakenError, LedgerError, Verdict
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger, claims
from openai_cancel.ledger.table import RESPONSES

JOB = {"job": "7"}


@pytest.fixture(params=["async", "blocking"])
async def calls(request: pytest.FixtureRequest, url: str, server: Emulator) -> AsyncIterator[Calls]:
    """Another host, which stops what the others hold."""
    async with open_calls(request.param, url, server) as opened:
        yield opened


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    """The session of a host whose ledger has the label `service=tests`."""
    async with open_session(server, ledger) as opened:
        yield opened


async def stop(ledger: Ledger, session: AsyncSession, **options: object) -> dict[str, Verdict]:
    return {outcome.response_id: outcome.verdict async for outcome in ledger.stop(session, **options)}


class TestSelections:
    async def test_responses_with_the_labels_are_stopped_whoever_holds_their_leases(
        self, calls: Calls, ledger: Ledger, url: str, server: Emulator, create
    ) -> None:
        tracked, lapsed, other, released = (create() for _ in range(4))
        for name in (tracked, lapsed, released):
            await calls.track(name, ttl=900, labels=JOB)
        await calls.track(other, ttl=900, labels={"job": "8"})
        await calls.release(released)
        await lapse(url, lapsed)
        assert await calls.stop(labels=JOB, batch=1) == dict.fromkeys((tracked, lapsed), Verdict.CANCELLED)
        assert sorted(cancelled_ids(server)) == sorted([tracked, lapsed])
        assert await states(ledger) == {
            tracked: "cancelled", lapsed: "cancelled", other: "tracked", released: "released"
        }  # fmt: skip
        assert await calls.stop(labels=JOB) == {}

    async def test_a_response_whose_guard_renews_its_lease_is_stopped_and_not_renewed(
        self, calls: Calls, session, ledger: Ledger, ledger_clock: ManualClock, create
    ) -> None:
        held = create()
        async with session.guard(held) as guard:
            await beat(ledger_clock)
            assert guard.outcome is None
            assert await calls.stop(labels={"service": "tests"}) == {held: Verdict.CANCELLED}
            await beat(ledger_clock)
            entry = (await entries(ledger))[held]
            assert (entry.state, entry.lease_left) == ("cancelled", None)
            assert (guard.outcome.verdict, guard.outcome.stopped) == (Verdict.CANCELLED, True)
            assert isinstance(guard.outcome.error, LeaseTakenError)
        assert (await states(ledger)) == {held: "cancelled"}

    async def test_a_state_and_an_age_can_be_conditions(self, calls: Calls, url: str, server: Emulator, create) -> None:
        old, new, claimed = create(), create(), create()
        for name in (old, new, claimed):
            await calls.track(name, ttl=900)
        await execute(url, update(RESPONSES).where(RESPONSES.c.response_id == old).values(created=0.0))
        await execute(url, update(RESPONSES).where(RESPONSES.c.response_id == claimed).values(state="stopping"))
        assert await calls.stop(state="stopping") == {}  # a sweep is stopping it
        assert await calls.stop(older_than=3600) == {old: Verdict.CANCELLED}
        await lapse(url, claimed)
        assert await calls.stop(state="stopping") == {claimed: Verdict.CANCELLED}
        assert await calls.stop() == {new: Verdict.CANCELLED}
        assert sorted(cancelled_ids(server)) == sorted([old, claimed, new])

    async def test_responses_of_other_accounts_and_servers_are_left_alone(
        self, calls: Calls, ledger: Ledger, server: Emulator, create
    ) -> None:
        async with open_session(server, ledger, account="theirs") as theirs, Emulator() as elsewhere:
            await ledger.track(create(), session=theirs, ttl=60, labels=JOB)
            async with open_session(elsewhere, ledger) as other:
                await ledger.track(elsewhere.add(), session=other, ttl=60, labels=JOB)
                assert await calls.stop(labels=JOB) == {}
        assert set((await states(ledger)).values()) == {"tracked"}

    async def test_a_dry_run_looks_and_changes_nothing(
        self, calls: Calls, session, ledger: Ledger, server: Emulator, create
    ) -> None:
        running, over, other = create(), create(runs_for=0), create()
        for name in (running, over):
            await ledger.track(name, session=session, ttl=60, labels=JOB)
        await ledger.track(other, session=session, ttl=60)
        before = await entries(ledger)
        assert await calls.stop(labels=JOB, dry_run=True, batch=1) == {
            running: Verdict.STILL_RUNNING, over: Verdict.ALREADY_FINISHED
        }  # fmt: skip
        assert cancelled_ids(server) == []
        assert {entry.changed for entry in before.values()} == {e.changed for e in (await entries(ledger)).values()}

    async def test_conditions_that_cannot_work_are_refused(self, calls: Calls) -> None:
        for options, words in (
            ({"state": "released"}, "state must be tracked or stopping, as others have ended, not 'released'"),
            ({"labels": {"a": 1}}, "labels must be a mapping"),
            ({"older_than": 0}, "older_than must be"),
            ({"batch": 0}, "batch"),
            ({"dry_run": True, "concurrency": 0}, "concurrency"),
        ):
            with pytest.raises(ConfigurationError, match=words):
                await calls.stop(**options)


class TestWhatIsNotStopped:
    async def test_a_response_that_could_not_be_stopped_is_tried_once_and_left_to_sweeps(
        self, calls: Calls, ledger: Ledger, server: Emulator, create
    ) -> None:
        running = create()
        await calls.track(running, ttl=900, labels=JOB)
        server.faults += [Fault(status=403)] * 2
        assert await calls.stop(labels=JOB) == {running: Verdict.FORBIDDEN}
        entry = (await entries(ledger))[running]
        assert (entry.state, entry.attempts, round(entry.lease_left)) == ("tracked", 1, 30)
        assert await calls.sweep() == {}
        assert await calls.stop(labels=JOB) == {running: Verdict.CANCELLED}  # another stop tries again at once

    async def test_a_stop_that_is_cancelled_gives_its_claims_to_sweeps(
        self, session, ledger: Ledger, server: Emulator, create
    ) -> None:
        running = create()
        await ledger.track(running, session=session, ttl=900)
        server.faults.append(Fault(delay=float("inf")))
        stopping = asyncio.create_task(stop(ledger, session))
        await until(lambda: server.received)
        stopping.cancel()
        await asyncio.wait([stopping])
        assert await states(ledger) == {running: "tracked"}
        assert await sweep(ledger, session) == {running: Verdict.CANCELLED}

    @pytest.mark.slow
    async def test_several_stops_and_a_sweep_at_once_stop_each_response_once(
        self, session, ledger: Ledger, url: str, server: Emulator, create
    ) -> None:
        names = [create() for _ in range(60)]
        await ledger.track_many(names, session=session, ttl=900)
        await lapse(url, *names[::2])
        async with Ledger(url) as other:
            found = await asyncio.gather(
                stop(ledger, session, batch=7), stop(other, session, batch=7), sweep(other, session, batch=7)
            )
        assert sorted(name for each in found for name in each) == sorted(names)
        assert sorted(cancelled_ids(server)) == sorted(names)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
class TestRowsThatAreLocked:
    """A heartbeat locks all rows of its process for a moment. SQLite has one lock, for which a stop waits anyway."""

    async def test_a_stop_waits_for_rows_that_another_transaction_has_locked(
        self, session, ledger: Ledger, ledger_clock: ManualClock, url: str, create
    ) -> None:
        first, second = create(), create()
        await ledger.track_many([first, second], session=session, ttl=900)
        async with locked(url, first):
            stopping = asyncio.create_task(stop(ledger, session))
            await until(lambda: 0.5 in ledger_clock.slept)
            assert await states(ledger) == {first: "tracked", second: "cancelled"}
        ledger_clock.advance(0.5)
        assert await stopping == dict.fromkeys((first, second), Verdict.CANCELLED)

    async def test_a_stop_does_not_wait_for_ever(
        self, session, ledger: Ledger, url: str, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims, "MAX_LOCKED", 0)
        name = create()
        await ledger.track(name, session=session, ttl=900)
        async with locked(url, name):
            with pytest.raises(LedgerError, match="locked by another transaction, which does not end"):
                await stop(ledger, session)

"""Sweeps: they stop the responses whose lease has lapsed, on SQLite and on PostgreSQL."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from functools import partial

import pytest
from conftest import QuickClock, reported, until
from ledger_database import connected, execute, lapse, without_table
from ledgers import beat, cancelled_ids, entries, open_session, settings, states, sweep, troubles
from manual_clock import ManualClock
from sqlalchemy import update

from openai_cancel import APIConnectionError, AsyncSession, LedgerError, Session, Verdict
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger
from openai_cancel.ledger import sweep as sweep_module
from openai_cancel.ledger.table import RESPONSES


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


@pytest.fixture
def track_lapsed(session: AsyncSession, ledger: Ledger, url: str, create):
    """Create responses, track them, and let their leases expire."""

    async def track_lapsed(count: int) -> list[str]:
        names = [create() for _ in range(count)]
        for name in names:
            await ledger.track(name, session=session, ttl=1)
        await lapse(url, *names)
        return names

    return track_lapsed


class TestClaims:
    async def test_a_sweep_stops_lapsed_responses_and_no_others(
        self, session, ledger: Ledger, server: Emulator, create, track_lapsed
    ) -> None:
        lapsed, held, released = await track_lapsed(5), create(), create()
        async with session.guard(released):
            pass
        async with session.guard(held):
            assert await sweep(ledger, session, batch=2) == dict.fromkeys(lapsed, Verdict.CANCELLED)
            assert sorted(cancelled_ids(server)) == sorted(lapsed)
            assert await sweep(ledger, session) == {}
        assert set((await states(ledger)).values()) == {"cancelled", "released"}

    async def test_a_sweep_leaves_other_accounts_and_servers_alone(
        self, ledger: Ledger, url: str, server: Emulator, create
    ) -> None:
        mine, theirs = create(), create()
        async with open_session(server, ledger, account="mine") as session:
            await ledger.track(mine, session=session, ttl=1)
            async with open_session(server, ledger, account="theirs") as other:
                await ledger.track(theirs, session=other, ttl=1)
            async with Emulator() as elsewhere, open_session(elsewhere, ledger, account="mine") as other:
                await ledger.track(mine, session=other, ttl=1)
                await lapse(url)
                assert await sweep(ledger, session) == {mine: Verdict.CANCELLED}
                assert elsewhere.received == []
            assert not server.responses[theirs].cancelled
            assert len([entry async for entry in ledger.entries()]) == 2

    async def test_a_sweep_renews_its_claims_and_another_sweep_takes_them_when_they_lapse(
        self, url: str, server: Emulator, create
    ) -> None:
        name, clock = create(), ManualClock()
        async with Ledger(url, clock=clock) as ledger, open_session(server, ledger) as session:
            await ledger.track(name, session=session, ttl=1)
            await lapse(url)
            server.faults.append(Fault(delay=math.inf))
            sweeping = asyncio.create_task(sweep(ledger, session))
            await until(lambda: server.received)
            await lapse(url)
            await beat(clock)
            assert await sweep(ledger, session) == {}
            await lapse(url)  # as if the process of the first sweep had died
            assert await sweep(ledger, session) == {name: Verdict.CANCELLED}
            sweeping.cancel()
            await asyncio.wait([sweeping])
            assert await states(ledger) == {name: "cancelled"}  # the first sweep no longer owns the row

    async def test_a_sweep_that_has_ended_leaves_no_lease_to_renew(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert await sweep(ledger, session) == {}
        async with without_table(url):
            await beat(ledger_clock)  # it would fail if it had something to renew
        assert not [record for record in caplog.records if record.name == "openai_cancel"]

    @pytest.mark.slow
    async def test_several_sweeps_at_once_share_the_responses(self, url: str, server: Emulator, create) -> None:
        names = [create() for _ in range(200)]
        async with AsyncExitStack() as opened:
            # No heartbeat renews what has lapsed, however slow the machine is.
            new = [Ledger(url, timeout=30, clock=ManualClock()) for _ in range(4)]
            ledgers = [await opened.enter_async_context(ledger) for ledger in new]
            sessions = [await opened.enter_async_context(open_session(server, ledger)) for ledger in ledgers]
            async with sessions[0].guard(*names) as guard:
                await lapse(url)
                sweeps = await asyncio.gather(*map(partial(sweep, batch=7), ledgers, sessions))
                guard.disarm()
            assert sum(map(len, sweeps)) == 200
            assert sorted(cancelled_ids(server)) == sorted(names)
            assert set((await states(ledgers[0])).values()) == {"cancelled"}

    async def test_the_clock_of_the_host_does_not_matter(
        self, session, ledger: Ledger, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = time.time
        async with session.guard(create()):
            monkeypatch.setattr(time, "time", lambda: now() + 3600)
            assert await sweep(ledger, session) == {}
            await ledger.track("resp_1", session=session, ttl=60)
            monkeypatch.setattr(time, "time", lambda: now() - 3600)
            assert await sweep(ledger, session) == {}
            assert 50 < (await entries(ledger))["resp_1"].lease_left <= 60


class TestResponsesThatAreNotStopped:
    async def test_the_back_off_doubles_until_the_response_is_given_up(
        self, session, ledger: Ledger, url: str, server: Emulator, track_lapsed
    ) -> None:
        (name,) = await track_lapsed(1)
        waits = []
        for _ in range(9):
            await lapse(url)
            server.faults += [Fault(status=403)] * 2
            assert await sweep(ledger, session, max_attempts=9) == {name: Verdict.FORBIDDEN}
            entry = (await entries(ledger))[name]
            waits.append(entry.lease_left and round(entry.lease_left))
        assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, None]
        assert (entry.state, entry.attempts) == ("forbidden", 9)
        assert entry.error.startswith("Given up after 9 attempts: 403")

    async def test_a_response_that_is_not_found_is_tried_again_while_it_is_young(
        self, session, ledger: Ledger, url: str
    ) -> None:
        for number in range(2):
            await ledger.track("resp_none", session=session, ttl=1)
            await execute(url, update(RESPONSES).values(lease_until=0, created=RESPONSES.c.created - 150 * number))
            assert await sweep(ledger, session) == {"resp_none": Verdict.NOT_FOUND}
            entry = (await entries(ledger))["resp_none"]
            assert (entry.state, entry.lease_left is None) == (("tracked", False), ("not_found", True))[number]
            assert entry.error.startswith("404")

    @pytest.mark.parametrize(
        "look", [Fault(on="retrieve", status=404), reported("not_found")], ids=["404", "not_found in a 200"]
    )
    async def test_what_is_not_found_while_cancels_fail_is_tried_again_and_given_up_with_a_reason(
        self, session, ledger: Ledger, url: str, server: Emulator, look: Fault
    ) -> None:
        await ledger.track("resp_1", session=session, ttl=1)
        await execute(url, update(RESPONSES).values(created=RESPONSES.c.created - 1000))
        for attempt in range(1, 3):
            server.faults[:] = [Fault(on="cancel", status=503), look] * 20
            await lapse(url)
            assert await sweep(ledger, session, max_attempts=2, max_retries=0) == {"resp_1": Verdict.UNKNOWN}
            entry = (await entries(ledger))["resp_1"]
            assert entry.state == {1: "tracked", 2: "unknown"}[attempt]
        assert entry.error.startswith("Given up after 2 attempts: 503")

    async def test_a_response_that_only_keeps_running_is_given_up_with_its_status_as_the_reason(
        self, ledger: Ledger, server: Emulator, track_lapsed
    ) -> None:
        (name,) = await track_lapsed(1)
        running = {"id": name, "status": "in_progress"}
        server.faults += [Fault(on=call, status=200, body=running) for call in ("cancel", "retrieve")] * 100
        async with open_session(server, ledger, clock=QuickClock()) as quick:
            assert await sweep(ledger, quick, max_attempts=1) == {name: Verdict.STILL_RUNNING}
        assert (await entries(ledger))[name].error == (
            "Given up after 1 attempt: The server reports the status 'in_progress'."
        )

    async def test_a_refused_key_ends_the_sweep(self, session, ledger: Ledger, server: Emulator, track_lapsed) -> None:
        await track_lapsed(20)
        for _ in range(2):
            server.faults[:] = [Fault(status=401)] * 40
            tried = await sweep(ledger, session, batch=5, concurrency=1, max_attempts=1)
            assert set(tried.values()) == {Verdict.FORBIDDEN}
            assert len(tried) == 5
            found = (await entries(ledger)).values()
            assert {(entry.state, entry.owner, entry.attempts) for entry in found} == {("tracked", None, 0)}
            assert sum((entry.error or "").startswith("401") for entry in found) >= 5
            # They stay overdue since their leases have lapsed, which `ledger check` notices.
            assert all(entry.lease_left < -1e9 for entry in found)

    async def test_a_stop_with_a_refused_key_tries_each_response_once(
        self, session, ledger: Ledger, server: Emulator, create
    ) -> None:
        name = create()
        await ledger.track(name, session=session, ttl=3600)
        server.faults[:] = [Fault(status=401)] * 4
        assert [outcome.verdict async for outcome in ledger.stop(session)] == [Verdict.FORBIDDEN]
        assert (await entries(ledger))[name].attempts == 1

    @pytest.mark.parametrize("call", ["sweep", "stop"])
    async def test_a_server_that_cannot_be_reached_ends_it_and_uses_up_no_attempt(
        self, ledger: Ledger, server: Emulator, track_lapsed, call: str
    ) -> None:
        await track_lapsed(20)
        await server.__aexit__(None, None, None)
        async with open_session(server, ledger, clock=QuickClock()) as quick:
            with pytest.raises(APIConnectionError):
                await anext(getattr(ledger, call)(quick, batch=5, give_up_after=5))
        found = (await entries(ledger)).values()
        assert {(entry.state, entry.owner, entry.attempts) for entry in found} == {("tracked", None, 0)}
        assert sum((entry.error or "").endswith("Connection refused.") for entry in found) >= 5
        assert all(entry.lease_left < 0 for entry in found)

    async def test_a_sweep_that_is_left_early_gives_its_claims_back(
        self, session, ledger: Ledger, track_lapsed
    ) -> None:
        await track_lapsed(20)
        async with aclosing(ledger.sweep(session, concurrency=1)) as outcomes:
            outcome = await anext(outcomes)
        found = await entries(ledger)
        assert found.pop(outcome.response_id).state == "cancelled"
        assert {(entry.state, entry.owner, entry.attempts) for entry in found.values()} == {("tracked", None, 0)}
        assert len(await sweep(ledger, session)) == 19

    async def test_a_claim_that_is_under_way_when_a_sweep_is_left_is_given_back(
        self, session, ledger: Ledger, track_lapsed
    ) -> None:
        await track_lapsed(40)
        async with aclosing(ledger.sweep(session, batch=1)) as outcomes:
            await anext(outcomes)
        found = [(entry.state, entry.owner, entry.attempts) for entry in (await entries(ledger)).values()]
        assert {one for one in found if one[0] != "cancelled"} <= {("tracked", None, 0)}
        assert {state for state, _, _ in found} == {"cancelled", "tracked"}

    async def test_outcomes_that_nobody_has_taken_are_recorded_and_not_told_again(
        self, server: Emulator, ledger: Ledger, track_lapsed
    ) -> None:
        told: list[str] = []
        names = await track_lapsed(20)
        async with open_session(server, ledger, on_outcome=lambda outcome: told.append(outcome.response_id)) as session:
            async with aclosing(ledger.sweep(session, concurrency=20)) as outcomes:
                await anext(outcomes)
                await until(lambda: len(told) == 20)
            assert set((await states(ledger)).values()) == {"cancelled"}
            assert await sweep(ledger, session) == {}
        assert sorted(told) == sorted(names)

    async def test_a_cancelled_sweep_gives_its_claims_back(
        self, session, ledger: Ledger, server: Emulator, track_lapsed
    ) -> None:
        await track_lapsed(1)
        server.faults.append(Fault(delay=math.inf))
        sweeping = asyncio.create_task(sweep(ledger, session))
        await until(lambda: server.received)
        assert set((await states(ledger)).values()) == {"stopping"}
        sweeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sweeping
        assert [(entry.state, entry.attempts) for entry in (await entries(ledger)).values()] == [("tracked", 0)]


class TestASlowOrFailingDatabase:
    async def test_a_sweep_waits_for_a_database_that_falls_behind(
        self, session, ledger: Ledger, track_lapsed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweep_module, "MAX_UNWRITTEN", 1)
        await track_lapsed(10)
        assert len(await sweep(ledger, session)) == 10
        assert set((await states(ledger)).values()) == {"cancelled"}

    async def test_a_sweep_tries_again_while_the_database_fails(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, track_lapsed
    ) -> None:
        (name,) = await track_lapsed(1)
        async with without_table(url):
            sweeping = asyncio.create_task(sweep(ledger, session))
            await until(lambda: 0.5 in ledger_clock.slept)
            ledger_clock.advance(0.5)
            await until(lambda: 1.0 in ledger_clock.slept)
        ledger_clock.advance(1.0)
        assert await sweeping == {name: Verdict.CANCELLED}

    async def test_a_sweep_raises_if_the_database_fails_for_longer_than_a_lease(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock
    ) -> None:
        async with without_table(url):
            sweeping = asyncio.create_task(sweep(ledger, session))
            await until(lambda: 0.5 in ledger_clock.slept)
            ledger_clock.advance(60)
            with pytest.raises(LedgerError, match="database failed"):
                await sweeping


class TestSweepsWhoseLedgerIsClosed:
    @pytest.fixture
    async def lapsed(self, url: str, server: Emulator, create) -> list[str]:
        async with Ledger(url) as ledger, open_session(server, ledger) as session:
            names = [create() for _ in range(20)]
            await ledger.track_many(names, session=session, ttl=1)
        await lapse(url)
        return names

    @staticmethod
    async def assert_given_back(url: str, *, of: int) -> None:
        async with Ledger(url) as ledger:
            found = [entry for entry in (await entries(ledger)).values() if entry.state != "cancelled"]
        assert len(found) == of
        assert {(entry.state, entry.owner, entry.attempts) for entry in found} == {("tracked", None, 0)}
        assert all(entry.lease_left < 0 for entry in found)

    @pytest.mark.parametrize("iterator", ["held", "dropped"])
    async def test_claims_are_given_back_if_a_loop_is_left(
        self, url: str, server: Emulator, lapsed: list[str], iterator: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        ledger = Ledger(url)
        async with open_session(server, ledger) as session:
            outcomes = ledger.sweep(session, concurrency=1)
            async for outcome in outcomes:
                assert outcome.verdict is Verdict.CANCELLED
                break
            if iterator == "dropped":
                del outcomes
        await self.assert_given_back(url, of=len(lapsed) - len(cancelled_ids(server)))
        assert troubles(caplog) == []

    async def test_claims_are_given_back_if_a_loop_in_a_blocking_session_is_left(
        self, url: str, server: Emulator, lapsed: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        def work() -> None:
            with Session(ledger=Ledger(url), **settings(server)) as session:
                for outcome in (outcomes := session.ledger.sweep(concurrency=1)):
                    assert outcome.verdict is Verdict.CANCELLED
                    break
            outcomes.close()

        await asyncio.to_thread(work)
        await self.assert_given_back(url, of=len(lapsed) - len(cancelled_ids(server)))
        assert troubles(caplog) == []

    async def test_a_claim_that_is_under_way_is_given_back(self, url: str, server: Emulator, lapsed: list[str]) -> None:
        ledger = await Ledger(url).open()
        async with open_session(server, ledger) as session:
            outcomes = ledger.sweep(session)
            sweeping = asyncio.create_task(anext(outcomes))
            with connected(url) as connection:
                connection.execute(update(RESPONSES).values(labels={}))  # which locks all rows
                await asyncio.sleep(0.05)  # it waits for the lock
                closing = asyncio.create_task(ledger.close())
                await asyncio.sleep(0)
            await closing
            await asyncio.wait([sweeping])
            await outcomes.aclose()
        await self.assert_given_back(url, of=len(lapsed))

    @pytest.mark.usefixtures("lapsed")
    async def test_a_sweep_that_goes_on_fails_at_once(
        self, url: str, server: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        ledger = await Ledger(url).open()
        async with open_session(server, ledger) as session:
            outcomes = ledger.sweep(session, batch=1, concurrency=1)
            await anext(outcomes)
            await ledger.close()
            with pytest.raises(LedgerError, match="The ledger is closed"):
                async with asyncio.timeout(5):
                    assert [outcome async for outcome in outcomes]
        assert troubles(caplog) == []
        async with Ledger(url) as again:
            assert "stopping" not in (await states(again)).values()

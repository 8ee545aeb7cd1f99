"""Several sessions, guards and calls that share a ledger and its rows, on SQLite and on PostgreSQL."""

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from conftest import KEY, until
from ledger_database import commits, execute, lapse, without_table
from ledgers import beat, entries, open_session, states, sweep, troubles
from manual_clock import ManualClock
from sqlalchemy import update

from openai_cancel import AsyncSession, LedgerError, SessionStateError, Verdict
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.table import RESPONSES


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


class TestSessionsThatShareALedger:
    async def test_the_last_session_closes_a_ledger_that_a_session_has_opened(
        self, url: str, server: Emulator, create
    ) -> None:
        ledger, name = Ledger(url), create()
        first, second = (
            AsyncSession(api_key=KEY, base_url=server.base_url, account="tests", ledger=ledger) for _ in range(2)
        )
        await first.open()
        await second.open()
        async with second.guard(name):
            await first.close()
            await first.close()
            assert await states(ledger) == {name: "tracked"}
        assert await states(ledger) == {name: "released"}
        await second.close()
        with pytest.raises(SessionStateError, match="not open"):
            await states(ledger)

    async def test_a_session_leaves_a_ledger_open_that_it_has_not_opened(
        self, server: Emulator, ledger: Ledger
    ) -> None:
        for _ in range(2):
            async with open_session(server, ledger):
                pass
        assert await states(ledger) == {}

    async def test_a_required_ledger_is_checked_by_each_session(self, tmp_path, server: Emulator) -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/none/ledger.db")
        async with open_session(server, ledger):
            with pytest.raises(LedgerError, match="unable to open"):
                async with open_session(server, ledger, ledger_required=True):
                    pass
            with pytest.raises(LedgerError, match="unable to open"):  # it is still open
                await states(ledger)


class TestGuardsOfOneResponse:
    async def test_each_guard_of_a_required_ledger_waits_until_its_row_is_written(
        self, server: Emulator, ledger: Ledger, url: str, create
    ) -> None:
        name = create()
        async with open_session(server, ledger, ledger_required=True) as session:

            async def guard() -> None:
                async with session.guard(name):
                    pytest.fail("there is no row")

            async with without_table(url):
                ended = await asyncio.gather(guard(), guard(), return_exceptions=True)
        assert [type(error) for error in ended] == [LedgerError, LedgerError]
        assert server.responses[name].cancelled

    async def test_a_guard_after_a_release_records_the_response_again(self, session, ledger: Ledger, create) -> None:
        name = create()
        async with session.guard(name):
            await ledger.release(name, session=session)
            assert await states(ledger) == {name: "released"}
            async with session.guard(name):
                entry = (await entries(ledger))[name]
                assert (entry.state, 50 < entry.lease_left <= 60) == ("tracked", True)
            assert await states(ledger) == {name: "tracked"}
        assert await states(ledger) == {name: "released"}

    async def test_a_response_that_was_released_by_hand_stays_released(
        self, session, ledger: Ledger, ledger_clock: ManualClock, create
    ) -> None:
        name = create()
        async with session.guard(name) as guard:
            await ledger.release(name, session=session)
            for _ in range(2):
                await beat(ledger_clock)
            assert await states(ledger) == {name: "released"}
        assert await states(ledger) == {name: "released"}
        assert guard.outcome is None

    async def test_a_guard_holds_the_lease_after_another_process_has_ended_its_own(
        self,
        session,
        ledger: Ledger,
        ledger_clock: ManualClock,
        url: str,
        server: Emulator,
        *,
        create,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        name = create()
        async with session.guard(name) as guard:
            owner = (await entries(ledger))[name].owner
            async with Ledger(url) as other, open_session(server, other) as theirs, theirs.guard(name):
                for _ in range(2):
                    await beat(ledger_clock)
                    assert (await entries(ledger))[name].owner != owner
            entry = (await entries(ledger))[name]
            assert (entry.state, entry.owner, 50 < entry.lease_left <= 60) == ("tracked", None, True)
            await beat(ledger_clock)
            entry = (await entries(ledger))[name]
            assert (entry.state, entry.owner) == ("tracked", owner)
        assert await states(ledger) == {name: "released"}
        assert guard.outcome is None
        assert troubles(caplog) == []  # it was never missing

    async def test_a_sweep_stops_what_is_still_guarded_by_a_process_that_has_died(
        self, session, ledger: Ledger, ledger_clock: ManualClock, url: str, server: Emulator, *, create
    ) -> None:
        short, long = create(), create()
        async with (
            Ledger(url, clock=ManualClock()) as other, open_session(server, other) as theirs,
            session.guard(short), session.guard(long),
        ):  # fmt: skip
            async with theirs.guard(short):
                pass
            async with theirs.guard(long):
                await execute(url, update(RESPONSES).values(shared_until=0.0))  # a lease goes by
                await beat(ledger_clock)
            assert set((await states(ledger)).values()) == {"tracked"}
            assert await sweep(other, theirs) == {}
            await lapse(url)  # as if the first process had died
            assert await sweep(other, theirs) == dict.fromkeys([short, long], Verdict.CANCELLED)

    async def test_a_guard_holds_the_lease_of_another_process_that_has_died(
        self, session, ledger: Ledger, ledger_clock: ManualClock, url: str, server: Emulator, *, create
    ) -> None:
        name, limited = create(), create()
        async with (
            session.guard(name), session.guard(limited, max_age=300),
            Ledger(url, lease=1, clock=ManualClock()) as other, open_session(server, other) as theirs,
            theirs.guard(name, limited),
        ):  # fmt: skip
            await execute(url, update(RESPONSES).where(RESPONSES.c.response_id == limited).values(expires=0.0))
            assert (await entries(ledger))[name].lease_left <= 1
            await beat(ledger_clock)
            found = await entries(ledger)
            assert (50 < found[name].lease_left <= 60, found[limited].lease_left <= 1) == (True, True)

    @pytest.mark.parametrize("first", ["owner", "sharer", "sharer that has noticed"])
    async def test_a_response_is_released_when_the_guards_of_both_processes_have_ended(
        self, session, ledger: Ledger, ledger_clock: ManualClock, url: str, server: Emulator, *, create, first: str
    ) -> None:
        names = [create() for _ in range(3)]  # many, which PostgreSQL writes at once
        async with Ledger(url) as other, open_session(server, other) as theirs:
            sharer, owner = session.guard(*names), theirs.guard(*names)
            await ledger.track(names[0], session=session, ttl=900)
            await sharer.__aenter__()
            await owner.__aenter__()
            if first == "sharer that has noticed":
                await beat(ledger_clock)
            for guard in (owner, sharer) if first == "owner" else (sharer, owner):
                assert set((await states(ledger)).values()) == {"tracked"}
                await guard.__aexit__(None, None, None)
        assert await states(ledger) == {names[0]: "tracked", names[1]: "released", names[2]: "released"}
        assert 890 < (await entries(ledger))[names[0]].lease_left <= 900

    async def test_a_guard_within_one_of_the_same_process_keeps_what_both_share_with_another(
        self, session, ledger: Ledger, url: str, server: Emulator, create
    ) -> None:
        name = create()
        async with Ledger(url) as other, open_session(server, other) as theirs:
            async with session.guard(name):
                async with theirs.guard(name), theirs.guard(name):
                    pass
                assert await states(ledger) == {name: "tracked"}
            assert await states(ledger) == {name: "released"}
            async with theirs.guard(name):
                pass
            assert await states(ledger) == {name: "released"}

    async def test_what_a_sweep_has_tried_is_not_released_by_a_guard_that_had_shared_it(
        self, session, ledger: Ledger, url: str, server: Emulator, create
    ) -> None:
        name = create()
        async with Ledger(url) as other, open_session(server, other) as theirs, session.guard(name):
            async with theirs.guard(name):
                pass
            await lapse(url)
            server.faults += [Fault(status=403)] * 2
            assert await sweep(other, theirs) == {name: Verdict.FORBIDDEN}
        assert await states(ledger) == {name: "tracked"}

    async def test_a_guard_holds_the_lease_after_another_process_has_died(
        self, session, ledger: Ledger, ledger_clock: ManualClock, url: str, server: Emulator, *, create
    ) -> None:
        name = create()
        async with session.guard(name):
            owner = (await entries(ledger))[name].owner
            async with Ledger(url) as other, open_session(server, other) as theirs, theirs.guard(name):
                await beat(ledger_clock)
                await lapse(url)  # as if the other process had died
                await beat(ledger_clock)
                assert (await entries(ledger))[name].owner == owner
            assert await states(ledger) == {name: "tracked"}


class TestGuardsOfTrackedResponses:
    async def test_the_time_and_the_labels_of_a_track_outlive_a_guard(
        self, session, ledger: Ledger, url: str, create
    ) -> None:
        name = create()
        await ledger.track(name, session=session, ttl=900, labels={"job": "7", "service": "tracks"})
        async with session.guard(name):
            async with session.guard(name):
                entry = (await entries(ledger))[name]
                assert (entry.state, 50 < entry.lease_left <= 60) == ("tracked", True)
                assert entry.labels == {"job": "7", "service": "tracks"}
            assert (await entries(ledger))[name].owner
        entry = (await entries(ledger))[name]
        assert (entry.state, entry.owner, entry.labels["job"]) == ("tracked", None, "7")
        assert 890 < entry.lease_left <= 900
        await lapse(url)
        assert await sweep(ledger, session) == {name: Verdict.CANCELLED}

    async def test_labels_of_any_printable_text_are_merged(self, session, ledger: Ledger, create) -> None:
        name, odd = create(), {"key's": "“words”", '"': "\\", "": "", "service": "😀"}
        await ledger.track(name, session=session, ttl=60, labels=odd)
        await ledger.track(name, session=session, ttl=60, labels={"key's": "'"})
        async with session.guard(name):
            assert (await entries(ledger))[name].labels == {**odd, "service": "tests", "key's": "'"}

    async def test_tracking_a_guarded_response_counts_when_its_guard_has_ended(
        self, session, ledger: Ledger, ledger_clock: ManualClock, create
    ) -> None:
        name = create()
        async with session.guard(name) as guard:
            await ledger.track(name, session=session, ttl=900, labels={"job": "7"})
            entry = (await entries(ledger))[name]
            assert entry.owner is not None
            assert entry.labels == {"service": "tests", "job": "7"}
            assert 50 < entry.lease_left <= 60
            await beat(ledger_clock)
            assert guard.outcome is None
        assert 890 < (await entries(ledger))[name].lease_left <= 900
        await ledger.track(name, session=session, ttl=9)
        assert (await entries(ledger))[name].lease_left <= 9

    async def test_the_time_of_a_track_ends_with_the_response(self, session, ledger: Ledger, create) -> None:
        stopped, released = create(), create()
        for name in (stopped, released):
            await ledger.track(name, session=session, ttl=900)
        with pytest.raises(ZeroDivisionError):
            async with session.guard(stopped):
                raise ZeroDivisionError
        await ledger.release(released, session=session)
        for name in (stopped, released):
            async with session.guard(name):
                pass
        assert set((await states(ledger)).values()) == {"released"}

    async def test_a_row_that_1_0_has_released_is_released_after_another_guard(
        self, session, ledger: Ledger, url: str, create
    ) -> None:
        name = create()
        await ledger.track(name, session=session, ttl=900)
        await execute(url, update(RESPONSES).values(state="released", owner=None, lease_until=None))
        async with session.guard(name):
            pass
        assert await states(ledger) == {name: "released"}

    async def test_a_response_that_a_sweep_is_stopping_is_not_taken_from_it(
        self, session, ledger: Ledger, url: str, server: Emulator, create
    ) -> None:
        name = create()
        await ledger.track(name, session=session, ttl=1)
        await lapse(url)
        server.faults.append(Fault(delay=math.inf))
        sweeping = asyncio.create_task(sweep(ledger, session))
        await until(lambda: server.received)
        claimed = (await entries(ledger))[name]
        await ledger.track(name, session=session, ttl=900)
        async with session.guard(name):
            assert (await entries(ledger))[name].owner == claimed.owner
        assert (await states(ledger)) == {name: "stopping"}
        sweeping.cancel()
        await asyncio.wait([sweeping])


class TestHeartbeatsOfManyGuards:
    async def test_a_heartbeat_of_many_guards_is_one_transaction(
        self, session, ledger_clock: ManualClock, create
    ) -> None:
        async with session.guard(*(create() for _ in range(20))), session.guard(create()):
            with commits() as committed:
                await beat(ledger_clock)
            assert len(committed) == 1


class TestTrackersWithoutGuards:
    """A tracker is used by whatever holds responses, not only by guards."""

    async def test_a_tracker_that_nobody_listens_to_records_and_releases_once(
        self, session, ledger: Ledger, url: str, ledger_clock: ManualClock, create
    ) -> None:
        taken, over = create(), create()
        tracker = ledger.tracker(account=session.account, base_url=session.base_url, required=False)
        await tracker.begin([taken, over])
        await lapse(url, taken)
        assert await sweep(ledger, session) == {taken: Verdict.CANCELLED}
        await beat(ledger_clock)
        for _ in range(2):
            await tracker.release([taken, over])
        assert await states(ledger) == {taken: "cancelled", over: "released"}

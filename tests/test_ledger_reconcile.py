"""Comparing a ledger with the list of its server, on SQLite and on PostgreSQL."""

import asyncio
import math
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import attrs
import pytest
from aged import add_aged
from conftest import QuickClock, until
from ledger_database import execute, lapse, locked, without_table
from ledgers import AsyncCalls, Calls, beat, cancelled_ids, entries, open_calls, open_session, states, sweep
from manual_clock import ManualClock
from sqlalchemy import update

from openai_cancel import (
    AsyncSession,
    AuthenticationError,
    ConfigurationError,
    LedgerError,
    ListingError,
    Response,
    UnsupportedError,
    Verdict,
)
from openai_cancel.emulator import DIALECTS, Emulator, Fault, Script
from openai_cancel.ledger import Finding, Ledger, reconcile
from openai_cancel.ledger.bloom_filter import BloomFilter
from openai_cancel.ledger.selection import Place
from openai_cancel.ledger.table import RESPONSES, Account

Add = Callable[..., str]


@pytest.fixture
async def server(request: pytest.FixtureRequest, clock: QuickClock) -> AsyncIterator[Emulator]:
    """An emulator that lists, with a clock that stands still."""
    script = Script(runs_for=math.inf)
    dialect = attrs.evolve(DIALECTS[getattr(request, "param", "ogx")], cancel_takes=0)
    async with Emulator(script=script, clock=clock.monotonic, dialect=dialect) as emulator:
        yield emulator


both_lists = pytest.mark.parametrize("server", ["ogx", "azure"], indirect=True)


@pytest.fixture
def add(server: Emulator, clock: QuickClock) -> Add:
    """Put a response into the emulator that was created two minutes ago, or earlier or later; gives its id."""

    def add(age: float = 120.0, **options: Any) -> str:
        return add_aged(server, clock, age, **options)

    return add


@pytest.fixture(params=["async", "blocking"])
async def calls(request: pytest.FixtureRequest, url: str, server: Emulator, clock: QuickClock) -> AsyncIterator[Calls]:
    async with open_calls(request.param, url, server, clock=clock) as opened:
        yield opened


@pytest.fixture
async def session(server: Emulator, ledger: Ledger, clock: QuickClock) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger, clock=clock) as opened:
        yield opened


async def age_rows(url: str, seconds: float = 1000.0, **values: Any) -> None:
    """Let the rows be older than they are."""
    created, changed = RESPONSES.c.created - seconds, RESPONSES.c.changed - seconds
    await execute(url, update(RESPONSES).values(created=created, changed=changed, **values))


async def versions(ledger: Ledger) -> dict[str, tuple[object, ...]]:
    """Return what changes in a row when it is written."""
    found = await entries(ledger)
    return {name: (entry.state, entry.owner, entry.attempts, entry.changed) for name, entry in found.items()}


def briefly(findings: list[Finding]) -> dict[str, tuple[str, str | None, bool]]:
    """Return the kind of each finding, what was done, and whether it is settled, by id."""
    assert len({finding.response_id for finding in findings}) == len(findings)
    return {finding.response_id: (finding.kind, finding.action, finding.settled) for finding in findings}


async def reconciled(ledger: Ledger, session: AsyncSession, **options: Any) -> dict[str, tuple[str, str | None, bool]]:
    return briefly(await AsyncCalls(ledger, session).reconcile(**options))


class TestUnknown:
    @both_lists
    async def test_responses_that_nobody_has_recorded_are_reported(
        self, calls: Calls, ledger: Ledger, server: Emulator, add: Add
    ) -> None:
        lost, tracked, released = add(), add(), add()
        add(30)  # somebody may be about to record it
        add(runs_for=0)
        add(background=False)
        await calls.track_many([tracked, released], ttl=900)
        await calls.release(released)
        before = await versions(ledger)
        (finding,) = await calls.reconcile()
        assert briefly([finding]) == {lost: ("unknown", None, False)}
        assert (finding.response.status, finding.response.age, finding.outcome) == ("in_progress", 120, None)
        assert finding.to_dict()["response"]["id"] == lost
        assert (await versions(ledger), cancelled_ids(server)) == (before, [])

    async def test_they_are_adopted_so_that_a_sweep_stops_them_later(
        self, calls: Calls, ledger: Ledger, url: str, add: Add
    ) -> None:
        lost, tracked = add(), add()
        await calls.track(tracked, ttl=60)
        found = await calls.reconcile(unknown="adopt", ttl=900, labels={"found": "today"})
        assert briefly(found) == {lost: ("unknown", "adopt", True)}
        entry = (await entries(ledger))[lost]
        assert (entry.state, entry.owner, entry.attempts) == ("tracked", None, 0)
        assert entry.labels == {"service": "tests", "found": "today"}
        assert 890 < entry.lease_left <= 900
        assert await calls.reconcile(unknown="adopt", ttl=900) == []
        await lapse(url, lost)
        assert await calls.sweep() == {lost: Verdict.CANCELLED}

    @both_lists
    async def test_they_are_stopped_and_recorded(
        self, calls: Calls, ledger: Ledger, server: Emulator, add: Add
    ) -> None:
        lost, tracked, new = add(), add(), add(30)
        await calls.track(tracked, ttl=900)
        (finding,) = await calls.reconcile(unknown="stop")
        assert briefly([finding]) == {lost: ("unknown", "stop", True)}
        assert (finding.outcome.verdict, finding.response.status) == (Verdict.CANCELLED, "cancelled")
        assert (await states(ledger), cancelled_ids(server)) == ({lost: "cancelled", tracked: "tracked"}, [lost])
        assert server.responses[new].cancelled is None

    async def test_a_dry_run_changes_nothing(self, calls: Calls, ledger: Ledger, server: Emulator, add: Add) -> None:
        lost, over = add(), add(runs_for=0)
        await calls.track(over, ttl=900)
        for options in ({}, {"unknown": "stop"}, {"unknown": "adopt", "ttl": 5}):
            found = await calls.reconcile(dry_run=True, **options)
            assert briefly(found) == {lost: ("unknown", None, False), over: ("ended", None, True)}
        assert (await states(ledger), cancelled_ids(server)) == ({over: "tracked"}, [])

    async def test_what_cannot_be_stopped_is_left_to_sweeps(
        self, calls: Calls, ledger: Ledger, server: Emulator, add: Add
    ) -> None:
        lost = add()
        server.faults += [Fault(on=on, status=403) for on in ("cancel", "retrieve")]
        (finding,) = await calls.reconcile(unknown="stop")
        assert (finding.settled, finding.outcome.verdict, finding.response.status) == (
            False, Verdict.FORBIDDEN, "in_progress"
        )  # fmt: skip
        entry = (await entries(ledger))[lost]
        assert (entry.state, entry.attempts, round(entry.lease_left)) == ("tracked", 1, 30)

    async def test_conditions_choose_among_them(self, calls: Calls, add: Add) -> None:
        old, young = add(7200), add(120)
        assert [*briefly(await calls.reconcile(older_than=3600))] == [old]
        assert [*briefly(await calls.reconcile(newer_than=3600))] == [young]
        assert [*briefly(await calls.reconcile(limit=1))] == [young]
        assert [*briefly(await calls.reconcile(select=lambda response: response.id == old))] == [old]
        for none in ({"model": "other"}, {"metadata": {"a": "b"}}, {"statuses": ["queued"]}, {"older_than": 9000}):
            assert await calls.reconcile(**none) == []

    async def test_an_async_function_selects_nothing(self, calls: Calls, server: Emulator, add: Add) -> None:
        async def select(_: Response) -> bool:
            return False

        def later(response: Response) -> asyncio.Future[bool]:
            return asyncio.ensure_future(select(response))

        add()
        for function in (select, later):
            with pytest.raises(ConfigurationError, match="select must be an ordinary function, not an async one"):
                await calls.reconcile(unknown="stop", select=function)
        assert cancelled_ids(server) == []

    async def test_only_those_that_are_selected_are_stopped(self, calls: Calls, server: Emulator, add: Add) -> None:
        names = [add(100 + number) for number in range(5)]
        found = await calls.reconcile(unknown="stop", select=lambda response: response.id in names[1:3])
        assert sorted(briefly(found)) == sorted(names[1:3]) == sorted(cancelled_ids(server))

    @pytest.mark.slow
    async def test_several_at_once_adopt_and_stop_each_response_once(
        self, session, ledger: Ledger, url: str, server: Emulator, add: Add
    ) -> None:
        names = [add(100 + number) for number in range(150)]
        async with Ledger(url) as other:
            for options in ({"unknown": "stop", "older_than": 149}, {"unknown": "adopt", "ttl": 900}):
                found = await asyncio.gather(*(reconciled(one, session, **options) for one in (ledger, other)))
                assert not found[0].keys() & found[1].keys()
        assert sorted(cancelled_ids(server)) == sorted(names[50:])
        assert sorted((await states(ledger)).values()) == ["cancelled"] * 100 + ["tracked"] * 50


class TestOthers:
    async def test_responses_of_another_account_in_the_ledger_are_known(
        self, session, ledger: Ledger, server: Emulator, ledger_clock: ManualClock, add: Add
    ) -> None:
        async with open_session(server, ledger, account="theirs") as theirs:
            await ledger.track(add(), session=theirs, ttl=900)
            assert await reconciled(ledger, session, unknown="stop") == {}
            name = add()
            async with open_session(server, ledger, account="new") as new:
                await ledger.track(name, session=new, ttl=900)
            ledger_clock.now += reconcile.ACCOUNTS_FOR + 1
            assert await reconciled(ledger, session, unknown="stop") == {}
        assert cancelled_ids(server) == []

    async def test_a_response_of_an_account_that_begins_meanwhile_is_known(
        self, session, ledger: Ledger, server: Emulator, ledger_clock: ManualClock, add: Add
    ) -> None:
        names = [add(100 + number) for number in range(201)]
        async with open_session(server, ledger, account="new") as new, aclosing(ledger.reconcile(session)) as found:
            first = await anext(found)
            assert first.response_id == names[0]
            await ledger.track(names[150], session=new, ttl=900)
            ledger_clock.now += reconcile.ACCOUNTS_FOR + 1
            assert names[150] not in [finding.response_id async for finding in found]

    async def test_what_a_living_guard_or_a_sweep_holds_is_left_alone(
        self, session, ledger: Ledger, url: str, server: Emulator, add: Add
    ) -> None:
        running, over, claimed = add(), add(runs_for=0), add(runs_for=0)
        await ledger.track(claimed, session=session, ttl=900)
        await execute(url, update(RESPONSES).values(state="stopping", owner="other:sweep"))
        async with Ledger(url) as other, session.guard(running, over):
            before = await versions(ledger)
            async with open_session(server, other) as host:
                assert await reconciled(other, host, unknown="stop") == {}
            assert await versions(ledger) == before
            await lapse(url)
            async with open_session(server, other) as host:
                assert await reconciled(other, host) == {
                    over: ("ended", "strike_off", True), claimed: ("ended", "strike_off", True)
                }  # fmt: skip
        assert cancelled_ids(server) == []

    async def test_a_guard_whose_row_could_not_be_written_is_not_robbed(
        self, session, ledger: Ledger, url: str, add: Add
    ) -> None:
        name = add()
        async with without_table(url):
            guard = session.guard(name)
            await guard.__aenter__()
        assert await reconciled(ledger, session, unknown="stop") == {}
        await guard.__aexit__(None, None, None)
        assert await reconciled(ledger, session) == {name: ("unknown", None, False)}

    @pytest.mark.parametrize("url", ["postgresql"], indirect=True)
    async def test_a_row_that_another_transaction_changes_is_left_to_it(
        self, session, ledger: Ledger, url: str, add: Add
    ) -> None:
        name = add(runs_for=0)
        await ledger.track(name, session=session, ttl=900)
        async with locked(url, name):
            assert await reconciled(ledger, session) == {}
        assert await reconciled(ledger, session) == {name: ("ended", "strike_off", True)}


class TestForgotten:
    @pytest.mark.parametrize("state", ["cancelled", "still_running", "not_found"])
    async def test_a_response_that_runs_after_its_recorded_end_is_stopped_but_not_adopted(
        self, session, ledger: Ledger, url: str, server: Emulator, *, add: Add, state: str
    ) -> None:
        name = add()
        await ledger.track(name, session=session, ttl=900)
        await execute(url, update(RESPONSES).values(state=state, lease_until=None, attempts=12))
        assert await reconciled(ledger, session, unknown="stop") == {}  # the list may be older than the row
        await age_rows(url)
        for options in ({}, {"unknown": "adopt", "ttl": 900}):
            assert await reconciled(ledger, session, **options) == {name: ("forgotten", None, False)}
        assert await reconciled(ledger, session, unknown="stop") == {name: ("forgotten", "stop", True)}
        assert (await states(ledger), cancelled_ids(server)) == ({name: "cancelled"}, [name])

    async def test_one_of_another_account_is_recorded_for_this_one(
        self, session, ledger: Ledger, url: str, server: Emulator, add: Add
    ) -> None:
        name = add()
        async with open_session(server, ledger, account="theirs") as theirs:
            await ledger.track(name, session=theirs, ttl=900)
        await age_rows(url, state="cancelled", lease_until=None)
        assert await reconciled(ledger, session, unknown="stop") == {name: ("forgotten", "stop", True)}
        async with Ledger(url) as other:
            found = [entry.account async for entry in other.entries(include_ended=True)]
        assert sorted(found) == ["tests", "theirs"]
        # A row of any account that lets it run, or that cannot be stopped, counts.
        await execute(url, update(RESPONSES).where(RESPONSES.c.account == "theirs").values(state="released"))
        server.responses[name].cancelled = None
        await age_rows(url)
        assert await reconciled(ledger, session, unknown="stop") == {}


class TestEnded:
    @both_lists
    async def test_responses_that_are_tracked_and_over_are_struck_off(
        self, calls: Calls, ledger: Ledger, server: Emulator, add: Add
    ) -> None:
        over, running, new = add(runs_for=0), add(), add(5)
        await calls.track_many([over, running, new], ttl=900)
        server.received.clear()
        (finding,) = await calls.reconcile()
        assert briefly([finding]) == {over: ("ended", "strike_off", True)}
        assert (finding.response.status, finding.outcome.verdict) == ("completed", Verdict.ALREADY_FINISHED)
        looked_at = [request.path for request in server.received if over in request.path]
        assert (len(looked_at), len(server.received)) == (1, 2)  # the list, and one look
        found = await entries(ledger)
        assert {name: entry.state for name, entry in found.items()} == {
            over: "already_finished", running: "tracked", new: "tracked"
        }  # fmt: skip
        assert found[over].lease_left is None
        assert await calls.reconcile() == []

    async def test_a_404_is_believed_of_an_old_row_only(self, calls: Calls, ledger: Ledger, url: str) -> None:
        await calls.track("resp_none", ttl=9000)
        assert briefly(await calls.reconcile()) == {"resp_none": ("unclear", None, False)}
        await age_rows(url)
        assert briefly(await calls.reconcile()) == {"resp_none": ("ended", "strike_off", True)}
        assert await states(ledger) == {"resp_none": "not_found"}

    async def test_a_response_that_is_missing_on_the_list_and_runs_stays(
        self, session, ledger: Ledger, server: Emulator, add: Add
    ) -> None:
        name = add()
        await ledger.track(name, session=session, ttl=900)
        empty = {"object": "list", "data": [], "has_more": False, "first_id": "", "last_id": ""}
        server.faults.append(Fault(on="list", status=200, body=empty))
        assert await reconciled(ledger, session) == {}
        assert await states(ledger) == {name: "tracked"}

    async def test_a_look_that_fails_is_unclear_and_a_key_that_is_refused_ends_the_looks(
        self, session, ledger: Ledger, server: Emulator, add: Add
    ) -> None:
        names = [add(runs_for=0) for _ in range(3)]
        await ledger.track_many(names, session=session, ttl=900)
        server.faults.append(Fault(on="retrieve", status=500))
        found = await reconciled(ledger, session, concurrency=1)
        assert sorted(found.values()) == [("ended", "strike_off", True)] * 2 + [("unclear", None, False)]
        await ledger.track_many(names, session=session, ttl=900)
        server.received.clear()
        server.faults.append(Fault(on="retrieve", status=401))
        (finding,) = await AsyncCalls(ledger, session).reconcile(concurrency=1)
        assert (finding.kind, type(finding.outcome.error)) == ("unclear", AuthenticationError)
        assert len(server.received) < 4

    async def test_a_row_that_a_guard_takes_meanwhile_is_left_to_it(
        self, session, ledger: Ledger, server: Emulator, ledger_clock: ManualClock, add: Add
    ) -> None:
        name = add(runs_for=0)
        await ledger.track(name, session=session, ttl=900)
        server.faults.append(Fault(on="retrieve", delay=0.2, status=None))
        reconciling = asyncio.create_task(reconciled(ledger, session))
        await until(lambda: len(server.received) == 2)
        async with session.guard(name):
            assert await reconciling == {}
            await beat(ledger_clock)
        assert await states(ledger) == {name: "tracked"}

    async def test_many_rows_are_read_in_pages_and_struck_off_in_batches(
        self, session, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, add: Add
    ) -> None:
        monkeypatch.setattr(reconcile, "PAGE_SIZE", 7)
        monkeypatch.setattr(reconcile, "BATCH", 5)
        names = [add(runs_for=0) for _ in range(33)]
        await ledger.track_many(names, session=session, ttl=900)
        found = await reconciled(ledger, session)
        assert found == dict.fromkeys(names, ("ended", "strike_off", True))
        assert set((await states(ledger)).values()) == {"already_finished"}

    async def test_a_row_that_is_recorded_again_meanwhile_is_looked_at_once(
        self, session, ledger: Ledger, server: Emulator, monkeypatch: pytest.MonkeyPatch, add: Add
    ) -> None:
        pages = [Place(), Place()]  # the second one has the rows of the first one, too
        real = reconcile.free_rows
        monkeypatch.setattr(reconcile, "PAGE_SIZE", 1)
        monkeypatch.setattr(
            reconcile,
            "free_rows",
            lambda account, after, **limit: real(account, pages.pop() if pages else after, **limit),
        )
        name = add(runs_for=0)
        await ledger.track(name, session=session, ttl=900)
        server.faults.append(Fault(on="retrieve", delay=0.2, status=None))
        assert await reconciled(ledger, session) == {name: ("ended", "strike_off", True)}


class TestFailures:
    async def test_a_server_without_a_list_says_what_else_to_do(self, url: str, clock: QuickClock) -> None:
        async with Emulator(clock=clock.monotonic) as server, open_calls("async", url, server) as calls:
            with pytest.raises(UnsupportedError, match="no list of responses.*A ledger keeps them"):
                await calls.reconcile()

    async def test_a_list_that_breaks_off_ends_it_after_what_was_found(
        self, session, ledger: Ledger, server: Emulator, add: Add
    ) -> None:
        names = [add(100 + number) for number in range(150)]
        server.faults += [Fault(on="list", delay=0.001), *[Fault(on="list", status=404)] * 9]
        found: list[str] = []
        with pytest.raises(ListingError, match="lost its place"):
            async for finding in ledger.reconcile(session, unknown="adopt", ttl=900):
                found.append(finding.response_id)  # noqa: PERF401 - it raises
        assert found == names[:100][: len(found)]

    async def test_a_failing_database_ends_it_before_anything_is_stopped(
        self, session, ledger: Ledger, url: str, server: Emulator, add: Add
    ) -> None:
        add()
        async with without_table(url):
            for options in ({}, {"unknown": "stop"}, {"unknown": "adopt", "ttl": 5}):
                with pytest.raises(LedgerError, match="database failed"):
                    await reconciled(ledger, session, **options)
        assert cancelled_ids(server) == []

    async def test_a_cancellation_leaves_what_it_was_stopping_to_sweeps(
        self, session, ledger: Ledger, server: Emulator, add: Add
    ) -> None:
        name = add()
        server.faults.append(Fault(on="cancel", delay=math.inf))
        stopping = asyncio.create_task(reconciled(ledger, session, unknown="stop"))
        await until(lambda: cancelled_ids(server))
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert await states(ledger) == {name: "tracked"}
        assert await sweep(ledger, session) == {name: Verdict.CANCELLED}

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"unknown": "kill"}, "unknown must be 'report', 'adopt', 'stop', not 'kill'"),
            ({"unknown": "adopt"}, "unknown='adopt' requires ttl"),
            ({"unknown": "stop", "ttl": 5}, "use it with unknown='adopt'"),
            ({"unknown": "adopt", "ttl": 0}, "ttl must be"),
            ({"labels": {"a": 1}}, "labels must be"),
            ({"older_than": 0}, "older_than must be"),
            ({"newer_than": 60}, "older_than must be less than newer_than"),
            ({"limit": 0}, "limit"),
            ({"select": 5}, "select must be a function, not int"),
            ({"concurrency": 0}, "concurrency"),
            ({"max_attempts": 0}, "max_attempts"),
            ({"max_retries": -1}, "max_retries"),
            ({"confirm": 0}, "confirm"),
        ],
    )
    @pytest.mark.parametrize("url", ["sqlite"], indirect=True)
    async def test_options_that_cannot_work_are_refused(self, session, ledger: Ledger, server, options, words) -> None:
        with pytest.raises(ConfigurationError, match=words):
            ledger.reconcile(session, **options)
        assert server.received == []

    @pytest.mark.parametrize("url", ["sqlite"], indirect=True)
    async def test_an_error_of_the_caller_s_function_ends_it(self, session, ledger: Ledger, add: Add) -> None:
        def fail(_: Response) -> bool:
            raise ZeroDivisionError

        add()
        for options in ({}, {"unknown": "stop"}):
            with pytest.raises(ZeroDivisionError):
                await reconciled(ledger, session, select=fail, **options)
        assert await states(ledger) == {}


class TestSeen:
    def test_it_never_loses_a_digest_and_is_rarely_wrong(self) -> None:
        seen, account = BloomFilter(), Account("tests", "http://127.0.0.1/v1")
        digests = [account.digest(str(number)) for number in range(20_000)]
        tracemalloc.start()
        for digest in digests[::2]:
            seen.add(digest)
        assert tracemalloc.get_traced_memory()[0] < 10_000
        tracemalloc.stop()
        assert all(digest in seen for digest in digests[::2])
        assert sum(digest in seen for digest in digests[1::2]) < 5
        assert sum(digest in BloomFilter() for digest in digests) == 0

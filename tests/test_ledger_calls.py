"""The calls of a ledger, from asyncio services and from blocking scripts, on SQLite and on PostgreSQL."""

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator

import pytest
from conftest import KEY
from ledger_database import commits, execute, lapse
from ledgers import AsyncCalls, Calls, open_calls
from sqlalchemy import update

from openai_cancel import AsyncSession, ConfigurationError, InvalidResponseIdError, Session, SessionStateError, Verdict
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import BlockingLedger, Ledger
from openai_cancel.ledger import ledger as ledger_module
from openai_cancel.ledger.table import RESPONSES


@pytest.fixture(params=["async", "blocking"])
async def calls(request: pytest.FixtureRequest, url: str, server: Emulator) -> AsyncIterator[Calls]:
    async with open_calls(request.param, url, server) as opened:
        yield opened


async def states(calls: Calls) -> dict[str, str]:
    return {entry.response_id: entry.state for entry in await calls.entries(include_ended=True)}


class TestTracking:
    async def test_a_tracked_response_is_stopped_after_its_time_unless_it_is_released(
        self, calls: Calls, url: str, create
    ) -> None:
        running, other = create(), create()
        await calls.track(running, ttl=900, labels={"job": "7"})
        await calls.track(other, ttl=900)
        entry = next(entry for entry in await calls.entries() if entry.response_id == running)
        assert (entry.state, entry.owner, entry.labels) == ("tracked", None, {"service": "tests", "job": "7"})
        assert 890 < entry.lease_left <= 900
        assert await calls.sweep() == {}
        await lapse(url, running)
        assert await calls.sweep(batch=1, confirm=0.01) == {running: Verdict.CANCELLED}
        assert await calls.release(other)
        assert not await calls.release(other)
        assert not await calls.release("resp_none")
        assert await states(calls) == {running: "cancelled", other: "released"}

    async def test_a_response_that_was_stopped_can_be_tracked_again(self, calls: Calls, url: str, create) -> None:
        running = create()
        await calls.track(running, ttl=1)
        await lapse(url)
        assert await calls.sweep() == {running: Verdict.CANCELLED}
        await calls.track(running, ttl=60)
        (entry,) = await calls.entries()
        assert (entry.state, entry.attempts, entry.request_id) == ("tracked", 0, None)

    async def test_ids_and_labels_may_contain_any_printable_text(self, calls: Calls) -> None:
        name = "résp/+=%2F'\";--" + "😀" * 2000
        await calls.track(name, ttl=60, labels={"key's": "“words”"})
        (entry,) = await calls.entries()
        assert (entry.response_id, entry.labels["key's"]) == (name, "“words”")


class TestTrackingMany:
    async def test_ids_of_any_iterable_are_recorded_in_few_transactions(
        self, calls: Calls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ledger_module, "BATCH_SIZE", 100)
        names = [f"resp_{number}" for number in range(250)]

        async def read(count: int) -> AsyncIterator[str]:
            for name in names[:count]:
                yield name

        assert await calls.entries() == []  # the tables are created now
        lines = (f"{name}\n" for name in names)
        for ids, count in ((names, 250), (iter(names), 250), (read(250), 250), (read(200), 200), (lines, 250)):
            with commits() as committed:
                assert await calls.track_many(ids, ttl=900, labels={"job": "7"}) == count
            assert len(committed) == -(-count // 100)
        found = await calls.entries(labels={"job": "7"})
        assert sorted(entry.response_id for entry in found) == sorted(names)
        assert all(890 < entry.lease_left <= 900 for entry in found)

    async def test_ids_are_read_only_as_they_are_needed(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger_module, "BATCH_SIZE", 2)
        with pytest.raises(InvalidResponseIdError):
            await calls.track_many((".." if number == 5 else f"resp_{number}" for number in itertools.count()), ttl=1)
        assert sorted(await states(calls)) == ["resp_0", "resp_1", "resp_2", "resp_3"]

    async def test_what_cannot_be_ids_is_refused(self, calls: Calls) -> None:
        for ids in ("resp_1", b"resp_1", 5):
            with pytest.raises(ConfigurationError, match="track_many takes an iterable of ids"):
                await calls.track_many(ids, ttl=60)
        for options in ({"ttl": 0}, {"ttl": 1, "labels": {"a": 1}}):
            with pytest.raises(ConfigurationError):
                await calls.track_many([], **options)
        assert await calls.track_many([], ttl=60) == 0


class TestReading:
    async def test_entries_are_read_in_pages(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger_module, "PAGE_SIZE", 3)
        names = [f"resp_{number}" for number in range(7)]
        await calls.track_many(names, ttl=60)
        assert sorted(entry.response_id for entry in await calls.entries()) == names
        for name in names[:4]:
            await calls.release(name)
        assert sorted(entry.response_id for entry in await calls.entries()) == names[4:]
        assert len(await calls.entries(include_ended=True)) == 7

    async def test_entries_are_selected_by_labels_state_and_age(self, calls: Calls, url: str) -> None:
        awkward = {'a "b"': "c'd", "$.x[0]": "1%"}
        await calls.track("resp_1", ttl=60, labels={"job": "7", "step": "1"})
        await calls.track("resp_2", ttl=60, labels={"job": "7", **awkward})
        await calls.track("resp_3", ttl=60, labels={"job": "8"})
        await calls.release("resp_3")
        await execute(url, update(RESPONSES).where(RESPONSES.c.response_id == "resp_1").values(created=0.0))

        async def found(**options: object) -> list[str]:
            return sorted(entry.response_id for entry in await calls.entries(**options))

        assert await found(labels={"job": "7"}) == ["resp_1", "resp_2"]
        assert await found(labels={"job": "7", "step": "1"}) == ["resp_1"]
        assert await found(labels=awkward) == ["resp_2"]
        assert await found(labels={"job": "8"}) == []
        assert await found(labels={"job": "8"}, include_ended=True) == ["resp_3"]
        assert await found(labels={"service": "tests"}, include_ended=True) == ["resp_1", "resp_2", "resp_3"]
        assert await found(labels={"none": ""}, include_ended=True) == []
        assert await found(state="released") == ["resp_3"]
        assert await found(state="tracked", include_ended=True) == ["resp_1", "resp_2"]
        assert await found(older_than=3600) == ["resp_1"]
        assert await found(older_than=3600, labels={"job": "8"}, include_ended=True) == []

    async def test_conditions_that_cannot_work_are_refused(self, calls: Calls) -> None:
        for options, words in (
            ({"state": "gone"}, "state must be one of tracked, stopping, released, cancelled"),
            ({"labels": {"a": 1}}, "labels must be a mapping"),
            ({"older_than": 0}, "older_than must be"),
        ):
            with pytest.raises(ConfigurationError, match=words):
                await calls.entries(**options)
            with pytest.raises(ConfigurationError, match=words):
                await calls.purge(**{"older_than": 60, **options})

    async def test_purge_deletes_old_rows_of_responses_that_ended(
        self, calls: Calls, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ledger_module, "PAGE_SIZE", 3)
        names = [f"resp_{number}" for number in range(9)]
        await calls.track_many(names[:7], ttl=60)
        await calls.track_many(names[7:], ttl=60, labels={"job": "7"})
        for name in names:
            await calls.release(name)
        await calls.track("resp_open", ttl=60)
        assert await calls.purge(older_than=60) == 0
        await execute(url, update(RESPONSES).values(changed=0.0))
        assert await calls.purge(older_than=60, state="cancelled") == 0
        assert await calls.purge(older_than=60, state="released", labels={"job": "7"}) == 2
        assert await calls.purge(older_than=60) == 7
        assert await states(calls) == {"resp_open": "tracked"}


class TestArguments:
    async def test_arguments_that_cannot_work_are_refused(self, calls: Calls) -> None:
        with pytest.raises(ConfigurationError, match="ttl must be"):
            await calls.track("resp_1", ttl=0)
        with pytest.raises(ConfigurationError, match="response id"):
            await calls.track("..", ttl=1)
        for labels in ({"a": 1}, {1: "a"}, {"a": "b\n"}, "ab", {"a\0": "b"}):
            with pytest.raises(ConfigurationError, match="labels must be"):
                await calls.track("resp_1", ttl=1, labels=labels)
        for name in ("batch", "max_attempts", "concurrency", "deadline", "confirm"):
            with pytest.raises(ConfigurationError, match=name):
                await calls.sweep(**{name: 0})
        with pytest.raises(ConfigurationError, match="max_retries"):
            await calls.sweep(max_retries=-1)
        with pytest.raises(ConfigurationError, match="older_than"):
            await calls.purge(older_than=-1)


class TestBlockingLedgers:
    @pytest.mark.parametrize("name", [name for name in vars(BlockingLedger) if not name.startswith("_")])
    def test_a_method_has_the_arguments_of_the_async_one_without_the_session(self, name: str) -> None:
        theirs, ours = (inspect.signature(getattr(kind, name)) for kind in (Ledger, BlockingLedger))
        assert [*ours.parameters.values()] == [
            parameter for parameter in theirs.parameters.values() if parameter.name != "session"
        ]

    def test_every_method_that_a_script_needs_exists(self) -> None:
        internal = {"open", "close", "attach", "detach", "tracker", "pages", "check_exists"}
        public = {name for name in vars(Ledger) if not name.startswith("_")}
        assert public - internal == {name for name in vars(BlockingLedger) if not name.startswith("_")}

    def test_a_session_without_a_ledger_says_how_to_get_one(self) -> None:
        class Other:
            def attach(self) -> None: ...

            close = detach = tracker = attach

        for ledger in (None, Other()):
            with pytest.raises(ConfigurationError, match="The session has no ledger: create it with `ledger=Ledger"):
                _ = Session(api_key=KEY, ledger=ledger).ledger

    def test_a_session_that_is_not_open_says_so(self) -> None:
        session = Session(api_key=KEY, ledger=Ledger("sqlite:///ledger.db"))
        assert repr(session.ledger) == "<BlockingLedger sqlite:///ledger.db>"
        for call in (
            lambda: session.ledger.track("resp_1", ttl=60),
            session.ledger.sweep,
            lambda: [*session.ledger.entries()],
        ):
            with pytest.raises(SessionStateError, match="The session is not open"):
                call()

    async def test_a_ledger_keeps_its_session_open_as_long_as_it_is_used(
        self, url: str, server: Emulator, create
    ) -> None:
        def work() -> list[str]:
            options = {"api_key": KEY, "base_url": server.base_url, "account": "tests"}
            ledger = Session(ledger=Ledger(url), **options).open().ledger
            ledger.track(create(), ttl=60)
            session = ledger.owner
            try:
                return [entry.state for entry in ledger.entries()]
            finally:
                session.close()

        assert await asyncio.to_thread(work) == ["tracked"]

    async def test_a_ledger_of_two_sessions_is_refused_with_the_way_out(self, url: str, server: Emulator) -> None:
        ledger = Ledger(url)

        def work() -> None:
            options = {"api_key": KEY, "base_url": server.base_url, "account": "tests"}
            with Session(ledger=ledger, **options), pytest.raises(SessionStateError, match="and for each Session"):
                Session(ledger=ledger, **options).open()

        await asyncio.to_thread(work)

    async def test_a_blocking_session_is_refused_by_the_methods_of_the_ledger_itself(self, url: str) -> None:
        blocking = Session(api_key=KEY)
        async with Ledger(url) as ledger:
            for call in (
                lambda: ledger.track("resp_1", session=blocking, ttl=1),
                lambda: ledger.track_many(["resp_1"], session=blocking, ttl=1),
                lambda: ledger.release("resp_1", session=blocking),
                lambda: anext(ledger.sweep(blocking)),
            ):
                with pytest.raises(ConfigurationError, match="an AsyncSession, not Session.*`session.ledger`"):
                    await call()
            assert await AsyncCalls(ledger, AsyncSession(api_key=KEY, account="a")).entries() == []

"""A ledger, on SQLite and on PostgreSQL alike: one suite for both."""

import asyncio
import contextlib
import logging
import math
import subprocess
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import KEY, until
from sqlalchemy import event, select, text, update

from openai_cancel import AsyncSession, ConfigurationError, LedgerError, Session, SessionStateError, Verdict
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Entry, Ledger, schema, sweep, writer
from openai_cancel.ledger.schema import RESPONSES, VERSIONS
from openai_cancel.ledger.statements import Change


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    async with Ledger(url, labels={"service": "tests"}) as opened:
        yield opened


@asynccontextmanager
async def client(server: Emulator, ledger: Ledger, **options) -> AsyncIterator[AsyncSession]:
    # With a name for the account: a fingerprint takes its time on purpose.
    options = {"api_key": KEY, "base_url": server.base_url, "max_retries": 0, "account": "tests", **options}
    async with AsyncSession(ledger=ledger, **options) as opened:
        yield opened


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with client(server, ledger) as opened:
        yield opened


async def rows(ledger: Ledger) -> dict[str, Entry]:
    """All that it holds, by id."""
    return {entry.response_id: entry async for entry in ledger.entries(include_ended=True)}


async def states(ledger: Ledger) -> dict[str, str]:
    return {name: entry.state for name, entry in (await rows(ledger)).items()}


async def lapse(ledger: Ledger, *names: str) -> None:
    """Let time pass, for some leases or for all."""
    statement = update(RESPONSES).where(RESPONSES.c.lease_until.is_not(None)).values(lease_until=0.0)
    if names:
        statement = statement.where(RESPONSES.c.response_id.in_(names))
    await ledger._open_book.do(lambda connection: connection.execute(statement))


def cancels(server: Emulator) -> list[str]:
    return [request.path.split("/")[3] for request in server.received if request.method == "POST"]


async def swept(ledger: Ledger, session: AsyncSession, **options) -> dict[str, Verdict]:
    return {outcome.response_id: outcome.verdict async for outcome in ledger.sweep(session, **options)}


@asynccontextmanager
async def failing(ledger: Ledger) -> AsyncIterator[None]:
    """A database whose tables are gone, until the block is left."""
    away = [f"ALTER TABLE {RESPONSES.name} RENAME TO away", f"ALTER TABLE away RENAME TO {RESPONSES.name}"]
    await ledger._open_book.do(lambda connection: connection.execute(text(away[0])))
    try:
        yield
    finally:
        await ledger._open_book.do(lambda connection: connection.execute(text(away[1])))


class TestGuard:
    async def test_a_row_before_the_block_and_its_end_after_it(self, session, ledger: Ledger, create) -> None:
        running = create()
        async with session.guard(running):
            (entry,) = [entry async for entry in ledger.entries()]
            assert (entry.response_id, entry.state, entry.attempts) == (running, "tracked", 0)
            assert (entry.base_url, entry.account) == (session.base_url, session.account)
            assert entry.labels == {"service": "tests"}
            assert 50 < entry.lease_left <= 60
            assert abs(entry.created.timestamp() - time.time()) < 60
        entry = (await rows(ledger))[running]
        assert (entry.state, entry.lease_left, entry.owner) == ("released", None, None)

    async def test_one_write_each(self, session, ledger: Ledger, create) -> None:
        written: list[object] = []
        event.listen(ledger._open_book._writer._engine.sync_engine, "commit", written.append)
        async with session.guard(create(), create(), create()):
            assert len(written) == 1
        assert len(written) == 2

    async def test_what_was_stopped(self, session, ledger: Ledger, create) -> None:
        running, over = create(), create(runs_for=0)
        with pytest.raises(ZeroDivisionError):
            async with session.guard(running, over, "resp_none"):
                raise ZeroDivisionError
        entries = await rows(ledger)
        assert {name: entry.state for name, entry in entries.items()} == {
            running: "cancelled", over: "already_finished", "resp_none": "not_found"
        }  # fmt: skip
        assert all(entry.lease_left is None and entry.attempts == 1 and entry.request_id for entry in entries.values())
        assert "not found" in entries["resp_none"].error

    async def test_what_could_not_be_stopped_is_left_to_a_sweep_at_once(
        self, session, ledger: Ledger, server: Emulator, create
    ) -> None:
        running = create()
        server.faults += [Fault(status=403, body={"error": {"message": "no\0pe \ud800"}})] * 2
        with pytest.raises(ZeroDivisionError):
            async with session.guard(running):
                raise ZeroDivisionError
        entry = (await rows(ledger))[running]
        assert (entry.state, entry.attempts, entry.owner) == ("tracked", 1, None)
        assert entry.lease_left <= 0
        assert entry.error.startswith("403: nope ?.")
        assert await swept(ledger, session) == {running: Verdict.CANCELLED}

    async def test_no_answer_within_its_grace(self, session, ledger: Ledger, server: Emulator, create) -> None:
        running = create()
        server.faults += [Fault(delay=math.inf)] * 5
        with pytest.raises(ZeroDivisionError) as caught:
            async with session.guard(running, grace=0.2):
                raise ZeroDivisionError
        assert "was not stopped" in caught.value.__notes__[0]
        assert (await states(ledger)) == {running: "tracked"}
        server.faults.clear()
        assert await swept(ledger, session) == {running: Verdict.CANCELLED}

    async def test_a_stop_that_cannot_even_begin(self, session, ledger: Ledger, create) -> None:
        running = create()
        with pytest.raises(ZeroDivisionError) as caught:
            async with session.guard(running):
                await session.close()
                raise ZeroDivisionError
        assert "The session is closed" in caught.value.__notes__[0]
        entry = (await rows(ledger))[running]
        assert (entry.state, entry.attempts, entry.error) == ("tracked", 1, None)
        assert entry.lease_left <= 0

    async def test_a_cancel_before_the_block_has_begun(self, session, ledger: Ledger, server, create) -> None:
        running = create()

        async def work() -> None:
            async with session.guard(running):
                pytest.fail("there is no block")

        task = asyncio.create_task(work())
        await asyncio.sleep(0)  # it waits for the database
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.responses[running].cancelled
        assert await states(ledger) == {running: "cancelled"}

    async def test_guards_of_the_same_response(self, session, ledger: Ledger, create) -> None:
        running = create()
        async with session.guard(running):
            async with session.guard(running):
                pass
            assert await states(ledger) == {running: "tracked"}
        assert await states(ledger) == {running: "released"}
        with pytest.raises(ZeroDivisionError):
            async with session.guard(running), session.guard(running):
                raise ZeroDivisionError
        assert await states(ledger) == {running: "cancelled"}

    async def test_more_and_fewer_inside_the_block(self, session, ledger: Ledger, create) -> None:
        first, second, third = create(), create(), create()
        guard = session.guard(first)
        guard.add(second)
        async with guard:
            guard.add(third)
            guard.add(third)
            assert await states(ledger) == dict.fromkeys((first, second, third), "tracked")
            guard.disarm()
            assert await states(ledger) == dict.fromkeys((first, second, third), "released")
            guard.add(third)
        assert await states(ledger) == dict.fromkeys((first, second, third), "released")

    async def test_a_guard_that_is_used_again(self, session, ledger: Ledger, create) -> None:
        first, second = create(), create()
        guard = session.guard(first)
        async with guard:
            pass
        guard.add(second)  # for the next block
        assert await states(ledger) == {first: "released"}
        async with guard:
            assert await states(ledger) == {first: "tracked", second: "tracked"}
        assert await states(ledger) == {first: "released", second: "released"}
        assert not ledger._open_book._held

    async def test_nothing_to_guard(self, session, ledger: Ledger) -> None:
        async with session.guard():
            pass
        assert await states(ledger) == {}

    async def test_wait(self, session, ledger: Ledger, create) -> None:
        over, running = create(runs_for=0), create()
        await session.wait(over)
        with pytest.raises(TimeoutError):
            await session.wait(running, timeout=0.01)
        left = create()
        with pytest.raises(TimeoutError):
            await session.wait(left, timeout=0.01, on_abandon="leave")
        assert await states(ledger) == {over: "released", running: "cancelled"}

    async def test_blocking(self, url: str, server: Emulator, create) -> None:
        """A session opens a ledger that nobody has opened, in its own event loop."""
        running, over, added, left = create(), create(), create(), create()

        def work() -> None:
            with Session(api_key=KEY, base_url=server.base_url, ledger=Ledger(url)) as session:
                with session.guard(over):
                    pass
                with pytest.raises(ZeroDivisionError), session.guard(running) as guard:
                    guard.add(added)
                    raise ZeroDivisionError
                with session.guard(left) as guard:
                    guard.disarm()

        await asyncio.to_thread(work)
        async with Ledger(url) as ledger:
            assert await states(ledger) == {
                over: "released", running: "cancelled", added: "cancelled", left: "released"
            }  # fmt: skip

    async def test_blocking_in_a_session_that_is_closed_inside(self, url: str, server: Emulator, create) -> None:
        running = create()

        def work() -> None:
            with Session(api_key=KEY, base_url=server.base_url, ledger=Ledger(url)) as session:
                guard = session.guard(running)
                with pytest.raises(SessionStateError, match="closed"), guard as inside:
                    session.close()
                    inside.add("resp_2")  # its loop has ended

        await asyncio.to_thread(work)
        async with Ledger(url) as ledger:
            assert await states(ledger) == {running: "tracked"}


class TestHeartbeat:
    async def test_it_renews_what_is_held_and_nothing_else(self, session, ledger: Ledger, create) -> None:
        held, by_hand, over = create(), create(), create()
        await ledger.track(by_hand, session=session, ttl=5)
        async with session.guard(over):
            pass
        async with session.guard(held):
            await lapse(ledger)
            await ledger._open_book.renew()
            entries = await rows(ledger)
            assert 50 < entries[held].lease_left <= 60
            assert entries[by_hand].lease_left < 0
            assert entries[over].lease_left is None

    async def test_it_beats(self, url: str, server: Emulator, create) -> None:
        running = create()
        async with Ledger(url, lease=0.2) as ledger, client(server, ledger) as session, session.guard(running):
            before = await ledger._open_book.do(lambda connection: connection.scalar(select(RESPONSES.c.lease_until)))
            while before == await ledger._open_book.do(
                lambda connection: connection.scalar(select(RESPONSES.c.lease_until))
            ):
                await asyncio.sleep(0.01)

    async def test_without_anything_to_hold_it_asks_nothing(self, ledger: Ledger, caplog) -> None:
        async with failing(ledger):
            await ledger._open_book.renew()
        assert not caplog.records


class TestADatabaseThatFails:
    async def test_the_block_goes_on_and_it_is_said_once(
        self, session, ledger: Ledger, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with failing(ledger), session.guard(create()), session.guard(create()):
            await ledger._open_book.renew()
        complaints = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(complaints) == 1
        assert "responses run without the ledger" in complaints[0].getMessage()
        async with session.guard(create()):
            pass
        async with failing(ledger), session.guard(create()):
            pass
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2

    async def test_what_was_missed_is_written_later_if_it_matters_still(self, session, ledger: Ledger, create) -> None:
        begun, ended, both = create(), create(), create()
        async with session.guard(ended):
            before = session.guard(begun)
            async with failing(ledger):
                await before.__aenter__()
                async with session.guard(both):
                    pass
            await ledger._open_book.renew()
            assert await states(ledger) == {begun: "tracked", ended: "tracked"}
            failing_end = failing(ledger)
            await failing_end.__aenter__()
        assert (await asyncio.gather(ledger._open_book.renew(), return_exceptions=True)) == [None]
        await failing_end.__aexit__(None, None, None)
        assert (await states(ledger))[ended] == "tracked"
        await ledger._open_book.renew()
        assert await states(ledger) == {begun: "tracked", ended: "released"}
        await before.__aexit__(None, None, None)

    async def test_it_misses_no_more_than_it_can_hold(
        self, session, ledger: Ledger, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("openai_cancel.ledger.book.MOST_MISSED", 2)
        async with failing(ledger), session.guard(*(create() for _ in range(5))):
            assert len(ledger._open_book._missed) == 2

    async def test_required(self, server: Emulator, ledger: Ledger, create) -> None:
        running, over = create(), create()
        async with client(server, ledger, ledger_required=True) as session:
            async with failing(ledger):
                with pytest.raises(LedgerError, match="database failed"):
                    async with session.guard(running):
                        pytest.fail("there is no block")
            assert server.responses[running].cancelled
            with pytest.raises(LedgerError):
                async with session.guard(over):
                    gone = failing(ledger)
                    await gone.__aenter__()
            await gone.__aexit__(None, None, None)
            assert not server.responses[over].cancelled

    async def test_one_that_cannot_be_reached(
        self, server: Emulator, create, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        nowhere = f"sqlite:///{tmp_path}/none/ledger.db"
        running = create()
        with pytest.raises(LedgerError, match="unable to open database file"):
            await Ledger(nowhere).open()
        with pytest.raises(LedgerError):
            async with client(server, Ledger(nowhere), ledger_required=True):
                pass
        async with client(server, Ledger(nowhere)) as session:
            with pytest.raises(ZeroDivisionError):
                async with session.guard(running):
                    raise ZeroDivisionError
        assert server.responses[running].cancelled
        assert "unable to open database file" in caplog.text
        with pytest.raises(LedgerError, match="Connect call failed"):
            await Ledger("postgresql://u:secret@127.0.0.1:1/d").open()

    async def test_one_that_hangs(self, server: Emulator, create, caplog: pytest.LogCaptureFixture) -> None:
        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        listener = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        hung = Ledger(f"postgresql://127.0.0.1:{port}/d", timeout=0.1)
        async with listener, client(server, hung) as session, session.guard(create()):
            assert "does not answer within 0.1 s" in caplog.text

    async def test_a_file_that_cannot_be_written(self, server: Emulator, create, tmp_path: Path, caplog) -> None:
        file = tmp_path / "ledger.db"
        async with Ledger(f"sqlite:///{file}"):
            pass
        read_only = Ledger(f"sqlite:///file:{file}?mode=ro&uri=true")
        async with client(server, read_only) as session, session.guard(create()):
            assert "attempt to write a readonly database" in caplog.text

    async def test_a_disk_that_is_full(self, server: Emulator, create, tmp_path: Path, caplog) -> None:
        async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger, client(server, ledger) as session:
            await ledger._open_book.do(lambda connection: connection.execute(text("PRAGMA max_page_count = 1")))
            async with session.guard(*(f"{create()}{'x' * 5000}" for _ in range(20))):
                assert "database or disk is full" in caplog.text
            with pytest.raises(LedgerError, match="database or disk is full"):
                await ledger.track("resp_" + "x" * 100_000, session=session, ttl=60)


class TestByHand:
    async def test_a_deadline(self, session, ledger: Ledger, create) -> None:
        running, other = create(), create()
        await ledger.track(running, session=session, ttl=900, labels={"job": "7"})
        await ledger.track(other, session=session, ttl=900)
        entry = (await rows(ledger))[running]
        assert (entry.state, entry.owner, entry.labels) == ("tracked", None, {"service": "tests", "job": "7"})
        assert 890 < entry.lease_left <= 900
        assert await swept(ledger, session) == {}
        await lapse(ledger, running)
        assert await swept(ledger, session) == {running: Verdict.CANCELLED}
        assert await ledger.release(other, session=session)
        assert not await ledger.release(other, session=session)
        assert not await ledger.release("resp_none", session=session)
        assert await states(ledger) == {running: "cancelled", other: "released"}

    async def test_it_can_be_tracked_again(self, session, ledger: Ledger, create) -> None:
        running = create()
        await ledger.track(running, session=session, ttl=1)
        await lapse(ledger)
        assert await swept(ledger, session) == {running: Verdict.CANCELLED}
        await ledger.track(running, session=session, ttl=60)
        entry = (await rows(ledger))[running]
        assert (entry.state, entry.attempts, entry.request_id) == ("tracked", 0, None)

    async def test_ids_and_labels_of_any_form(self, session, ledger: Ledger) -> None:
        name = "résp/+=%2F'\";--" + "😀" * 2000
        await ledger.track(name, session=session, ttl=60, labels={"key's": "“words”"})
        (entry,) = [entry async for entry in ledger.entries()]
        assert (entry.response_id, entry.labels["key's"]) == (name, "“words”")

    async def test_entries_are_read_in_pages(self, session, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("openai_cancel.ledger.ledger.PAGE", 3)
        names = [f"resp_{number}" for number in range(7)]
        async with session.guard(*names[:4]):
            for name in names[4:]:
                await ledger.track(name, session=session, ttl=60)
            assert sorted([entry.response_id async for entry in ledger.entries()]) == names
        assert sorted([entry.response_id async for entry in ledger.entries()]) == names[4:]
        assert len([entry async for entry in ledger.entries(include_ended=True)]) == 7

    async def test_purge(self, session, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("openai_cancel.ledger.ledger.PAGE", 3)
        async with session.guard(*(f"resp_{number}" for number in range(7))):
            pass
        await ledger.track("resp_open", session=session, ttl=60)
        assert await ledger.purge(older_than=60) == 0
        await ledger._open_book.do(lambda connection: connection.execute(update(RESPONSES).values(changed=0.0)))
        assert await ledger.purge(older_than=60) == 7
        assert await states(ledger) == {"resp_open": "tracked"}

    async def test_refused(self, session, ledger: Ledger) -> None:
        with pytest.raises(ConfigurationError, match="ttl must be"):
            await ledger.track("resp_1", session=session, ttl=0)
        with pytest.raises(ConfigurationError, match="response id"):
            await ledger.track("..", session=session, ttl=1)
        for labels in ({"a": 1}, {1: "a"}, {"a": "b\n"}, "ab", {"a\0": "b"}):
            with pytest.raises(ConfigurationError, match="labels must be"):
                await ledger.track("resp_1", session=session, ttl=1, labels=labels)
        for name, options in (("batch", {"batch": 0}), ("max_attempts", {"max_attempts": 0})):
            with pytest.raises(ConfigurationError, match=name):
                ledger.sweep(session, **options)
        with pytest.raises(ConfigurationError, match="older_than"):
            await ledger.purge(older_than=-1)
        blocking = Session(api_key="sk-1", base_url=session.base_url)
        for call in (
            lambda: ledger.track("resp_1", session=blocking, ttl=1),
            lambda: ledger.release("resp_1", session=blocking),
            lambda: anext(ledger.sweep(blocking)),
        ):
            with pytest.raises(ConfigurationError, match="session must be an AsyncSession, not Session"):
                await call()


class TestSweep:
    async def test_what_has_lapsed_and_nothing_else(self, session, ledger: Ledger, server: Emulator, create) -> None:
        lapsed, held, released = [create() for _ in range(5)], create(), create()
        for name in lapsed:
            await ledger.track(name, session=session, ttl=60)
        await lapse(ledger)
        async with session.guard(released):
            pass
        async with session.guard(held):
            assert await swept(ledger, session, batch=2) == dict.fromkeys(lapsed, Verdict.CANCELLED)
            assert sorted(cancels(server)) == sorted(lapsed)
            assert await swept(ledger, session) == {}
        assert set((await states(ledger)).values()) == {"cancelled", "released"}

    async def test_other_accounts_and_servers(self, ledger: Ledger, server: Emulator, create) -> None:
        mine, theirs = create(), create()
        async with client(server, ledger, account="mine") as session:
            await ledger.track(mine, session=session, ttl=1)
            async with client(server, ledger, account="theirs") as other:
                await ledger.track(theirs, session=other, ttl=1)
            async with Emulator() as elsewhere, client(elsewhere, ledger, account="mine") as other:
                await ledger.track(mine, session=other, ttl=1)
                await lapse(ledger)
                assert await swept(ledger, session) == {mine: Verdict.CANCELLED}
                assert elsewhere.received == []
            assert not server.responses[theirs].cancelled
            assert len([entry async for entry in ledger.entries()]) == 2

    async def test_what_cannot_be_stopped_waits_longer_each_time_and_is_given_up(
        self, session, ledger: Ledger, server: Emulator, create
    ) -> None:
        name = create()
        await ledger.track(name, session=session, ttl=1)
        waits = []
        for _ in range(9):
            await lapse(ledger)
            server.faults += [Fault(status=403)] * 2
            assert await swept(ledger, session, max_attempts=9) == {name: Verdict.FORBIDDEN}
            entry = (await rows(ledger))[name]
            waits.append(entry.lease_left and round(entry.lease_left))
        assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, None]
        assert (entry.state, entry.attempts, entry.error[:3]) == ("forbidden", 9, "403")

    async def test_a_key_that_is_refused_ends_it(self, session, ledger: Ledger, server: Emulator, create) -> None:
        names = [create() for _ in range(20)]
        for name in names:
            await ledger.track(name, session=session, ttl=1)
        await lapse(ledger)
        server.faults += [Fault(status=401)] * 40
        tried = await swept(ledger, session, batch=5, concurrency=1)
        assert set(tried.values()) == {Verdict.FORBIDDEN}
        assert len(tried) == 5
        assert {entry.attempts for entry in (await rows(ledger)).values()} == {0, 1}

    async def test_leaving_it_early_gives_back(self, session, ledger: Ledger, create) -> None:
        names = [create() for _ in range(20)]
        for name in names:
            await ledger.track(name, session=session, ttl=1)
        await lapse(ledger)
        async with aclosing(ledger.sweep(session, concurrency=1)) as outcomes:
            outcome = await anext(outcomes)
        entries = await rows(ledger)
        assert entries.pop(outcome.response_id).state == "cancelled"
        assert {(entry.state, entry.owner, entry.attempts) for entry in entries.values()} == {("tracked", None, 0)}
        assert not ledger._open_book.sweeps
        assert len(await swept(ledger, session)) == 19

    async def test_a_cancel_gives_back(self, session, ledger: Ledger, server: Emulator, create) -> None:
        await ledger.track(create(), session=session, ttl=1)
        await lapse(ledger)
        server.faults.append(Fault(delay=math.inf))
        sweeping = asyncio.create_task(swept(ledger, session))
        await until(lambda: server.received)
        assert set((await states(ledger)).values()) == {"stopping"}
        sweeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sweeping
        assert [(entry.state, entry.attempts) for entry in (await rows(ledger)).values()] == [("tracked", 0)]

    async def test_its_claims_are_leases(self, session, ledger: Ledger, server: Emulator, create) -> None:
        """Renewed as long as it lives; claimed by others when it has died."""
        name = create()
        await ledger.track(name, session=session, ttl=1)
        await lapse(ledger)
        server.faults.append(Fault(delay=math.inf))
        sweeping = asyncio.create_task(swept(ledger, session))
        await until(lambda: server.received)
        await lapse(ledger)
        await ledger._open_book.renew()
        assert await swept(ledger, session) == {}
        await lapse(ledger)  # as if its process had died
        assert await swept(ledger, session) == {name: Verdict.CANCELLED}
        sweeping.cancel()
        await asyncio.wait([sweeping])
        assert await states(ledger) == {name: "cancelled"}  # it has nothing to say any more

    async def test_several_at_once(self, url: str, server: Emulator, create) -> None:
        names = [create() for _ in range(200)]
        async with contextlib.AsyncExitStack() as opened:
            ledgers = [await opened.enter_async_context(Ledger(url)) for _ in range(4)]
            sessions = [await opened.enter_async_context(client(server, ledger)) for ledger in ledgers]
            async with sessions[0].guard(*names) as guard:
                await lapse(ledgers[0])
                sweeps = await asyncio.gather(*map(partial(swept, batch=7), ledgers, sessions))
                guard.disarm()
            assert sum(map(len, sweeps)) == 200
            assert sorted(cancels(server)) == sorted(names)
            assert set((await states(ledgers[0])).values()) == {"cancelled"}

    async def test_records_that_the_database_falls_behind_with(
        self, session, ledger: Ledger, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweep, "BEHIND", 1)
        names = [create() for _ in range(10)]
        for name in names:
            await ledger.track(name, session=session, ttl=1)
        await lapse(ledger)
        assert len(await swept(ledger, session)) == 10
        assert set((await states(ledger)).values()) == {"cancelled"}

    async def test_a_database_that_fails_for_a_while(self, session, ledger: Ledger, create) -> None:
        name = create()
        await ledger.track(name, session=session, ttl=1)
        await lapse(ledger)
        async with failing(ledger):
            sweeping = asyncio.create_task(swept(ledger, session))
            await until(lambda: ledger._open_book._writer._waiting or ledger._open_book.sweeps)
        assert await sweeping == {name: Verdict.CANCELLED}

    async def test_a_database_that_fails_for_longer(self, url: str, server: Emulator) -> None:
        async with Ledger(url, lease=0.1) as ledger, client(server, ledger) as session, failing(ledger):
            with pytest.raises(LedgerError):
                await swept(ledger, session)

    async def test_clocks_of_hosts_do_not_matter(
        self, session, ledger: Ledger, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = time.time
        async with session.guard(create()):
            monkeypatch.setattr(time, "time", lambda: now() + 3600)
            assert await swept(ledger, session) == {}
            await ledger.track("resp_1", session=session, ttl=60)
            monkeypatch.setattr(time, "time", lambda: now() - 3600)
            assert await swept(ledger, session) == {}
            assert 50 < (await rows(ledger))["resp_1"].lease_left <= 60


class TestWriter:
    """What waits together is written together, and no cancel reaches the database."""

    async def test_one_transaction_for_all_that_waits(self, session, ledger: Ledger) -> None:
        committed: list[object] = []
        event.listen(ledger._open_book._writer._engine.sync_engine, "commit", committed.append)
        tracking = (ledger.track(f"resp_{number}", session=session, ttl=60) for number in range(250))
        await asyncio.gather(*tracking)
        assert len(await rows(ledger)) == 250
        assert len(committed) == 4  # one was under way, and 100 are the most

    async def test_one_that_fails_harms_no_other(self, session, ledger: Ledger) -> None:
        wrong = ledger._open_book.do(lambda connection: connection.execute(text("SELECT nothing FROM nowhere")))
        results = await asyncio.gather(
            ledger.track("resp_1", session=session, ttl=60),
            wrong,
            ledger.track("resp_2", session=session, ttl=60),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), LedgerError, type(None)]
        assert await states(ledger) == {"resp_1": "tracked", "resp_2": "tracked"}

    async def test_a_cancel_ends_the_wait_and_not_the_work(self, session, ledger: Ledger) -> None:
        tracking = asyncio.create_task(ledger.track("resp_1", session=session, ttl=60))
        await asyncio.sleep(0)
        tracking.cancel()
        await asyncio.wait([tracking])
        assert tracking.cancelled()
        assert await states(ledger) == {"resp_1": "tracked"}

    async def test_no_more_than_so_many_wait(self, session, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writer, "MOST_WAITING", 3)
        tracking = (ledger.track(f"resp_{number}", session=session, ttl=60) for number in range(5))
        results = await asyncio.gather(*tracking, return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 3 + [LedgerError] * 2

    async def test_a_close_that_is_cancelled_writes_all_the_same(self, url: str, server: Emulator) -> None:
        ledger = await Ledger(url).open()
        async with client(server, ledger) as session:
            tracking = asyncio.create_task(ledger.track("resp_1", session=session, ttl=60))
            await asyncio.sleep(0)
            closing = asyncio.create_task(ledger.close())
            for _ in range(3):
                await asyncio.sleep(0)
                closing.cancel()
            await asyncio.wait([closing])
            assert closing.cancelled()
            await tracking
        async with Ledger(url) as again:
            assert await states(again) == {"resp_1": "tracked"}

    async def test_a_loop_that_ends(self, url: str, server: Emulator, create) -> None:
        """It cancels all tasks at once: the response is stopped, and left to its lease in the ledger."""
        running = create()

        async def guard(ledger: Ledger) -> None:
            async with client(server, ledger) as session, session.guard(running):
                await asyncio.Event().wait()

        async def main() -> asyncio.Task[None]:
            ledger = await Ledger(url).open()
            guarding = asyncio.create_task(guard(ledger))
            while "tracked" not in (await states(ledger)).values():
                await asyncio.sleep(0.001)
            ledger._open_book.write(Change.settled("none", "nobody", "released"))  # which is under way
            await asyncio.sleep(0)
            ledger._open_book.write(Change.settled("none", "nobody", "released"))  # which waits
            return guarding

        guarding = await asyncio.to_thread(asyncio.run, main())
        assert guarding.cancelled()
        assert server.responses[running].cancelled
        async with Ledger(url) as ledger:
            assert await states(ledger) == {running: "tracked"}


class TestSchema:
    async def test_the_tables_are_made_once(self, url: str) -> None:
        async with contextlib.AsyncExitStack() as opened:
            opening = (opened.enter_async_context(Ledger(url)) for _ in range(8))
            ledgers = await asyncio.gather(*opening)
            versions = await ledgers[0]._open_book.do(lambda connection: connection.scalars(select(VERSIONS.c.version)))
            assert versions.all() == [len(schema.MIGRATIONS)]

    async def test_older_tables_are_brought_forward(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Ledger(url):
            pass

        async def add(connection) -> None:
            await connection.execute(text(f"ALTER TABLE {RESPONSES.name} ADD COLUMN new TEXT"))

        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add))
        select_new = text(f"SELECT new FROM {RESPONSES.name}")
        for _ in range(2):
            async with Ledger(url) as ledger:
                assert (await ledger._open_book.do(lambda connection: connection.execute(select_new))).all() == []
        monkeypatch.undo()
        with pytest.raises(LedgerError, match="tables of version 2, and this openai-cancel knows 1: upgrade"):
            await Ledger(url).open()


class TestMisuse:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (5, "must be a string"),
            ("", "not the URL"),
            ("ledger.db", "not the URL"),
            ("postgresql://u:secret@h:port/d", "not the URL"),
            ("mysql://h/d", "cannot be kept in 'mysql'"),
            ("sqlite://", "in memory"),
            ("sqlite:///:memory:", "in memory"),
            ("sqlite+aiosqlite:///file:x?mode=memory&uri=true", "in memory"),
        ],
    )
    def test_urls(self, bad: object, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words) as caught:
            Ledger(bad)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("options", [{"lease": 0}, {"timeout": math.nan}, {"labels": {"a": 1}}])
    def test_options(self, options: dict[str, object]) -> None:
        with pytest.raises(ConfigurationError):
            Ledger("sqlite:///ledger.db", **options)

    async def test_what_a_session_takes(self) -> None:
        with pytest.raises(ConfigurationError, match="ledger must be an openai_cancel.ledger.Ledger, not str"):
            AsyncSession(api_key=KEY, ledger="sqlite:///ledger.db")
        for account in ("", 5, "a\nb"):
            with pytest.raises(ConfigurationError, match="account must be a name"):
                AsyncSession(api_key=KEY, account=account)

    async def test_its_password_does_not_show(self) -> None:
        assert repr(Ledger("postgresql://u:secret@h/d")) == "<Ledger postgresql+asyncpg://u:***@h/d>"

    async def test_not_open(self, server: Emulator, tmp_path: Path) -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        unopened = AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger)
        with pytest.raises(SessionStateError, match="The ledger is not open"):
            unopened.guard("resp_1")
        with pytest.raises(SessionStateError, match="The ledger is not open"):
            ledger.sweep(unopened)
        async with ledger:
            with pytest.raises(SessionStateError, match="opened once"):
                await ledger.open()
        with pytest.raises(SessionStateError, match="opened once"):
            await ledger.open()
        await ledger.close()

    async def test_another_loop(self, ledger: Ledger) -> None:
        async def work() -> None:
            with pytest.raises(SessionStateError, match="another event loop"):
                await ledger.release("resp_1", session=AsyncSession(api_key=KEY))
            with pytest.raises(SessionStateError, match="another event loop"):
                async with AsyncSession(api_key=KEY, ledger=ledger):
                    pass
            with pytest.raises(SessionStateError, match="another event loop"):
                await ledger.close()

        await asyncio.to_thread(asyncio.run, work())

    async def test_closed_under_a_guard(
        self, session, ledger: Ledger, server: Emulator, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        running = create()
        with pytest.raises(ZeroDivisionError):
            async with session.guard(running):
                await ledger.close()
                raise ZeroDivisionError
        assert server.responses[running].cancelled
        assert "The ledger is closed" in caplog.text


def test_without_its_extra(python: str) -> None:
    script = "import sys; sys.modules['sqlalchemy'] = None; import openai_cancel.ledger"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: sqlalchemy is not installed: pip install 'openai-cancel[ledger]'"
    )


class TestSecrets:
    async def test_no_row_has_the_key(self, server: Emulator, ledger: Ledger, create) -> None:
        """Whatever a server says."""
        echo = Fault(status=403, headers={"x-request-id": KEY}, body={"error": {"message": f"Bad key {KEY}"}})
        server.faults += [echo] * 2
        async with client(server, ledger, headers={"X-More": KEY}) as session:
            with pytest.raises(ZeroDivisionError):
                async with session.guard(create()):
                    raise ZeroDivisionError
        everything = text(f"SELECT * FROM {RESPONSES.name}")
        (row,) = (await ledger._open_book.do(lambda connection: connection.execute(everything))).all()
        assert "Bad key ***" in repr(row)
        assert KEY not in repr(row)

    async def test_no_error_has_the_password(self, caplog: pytest.LogCaptureFixture) -> None:
        password = "pass-of-u"
        with pytest.raises(LedgerError) as caught:
            await Ledger(f"postgresql://u:{password}@127.0.0.1:1/d").open()
        shown = traceback.TracebackException.from_exception(caught.value)
        assert password not in "".join(shown.format()) + caplog.text


class TestAccount:
    def test_a_fingerprint_tells_accounts_apart_and_not_their_keys(self) -> None:
        def account(**options: object) -> str:
            return AsyncSession(**{"api_key": KEY, **options}).account

        accounts = [
            account(),
            account(api_key="another"),
            account(organization="o"),
            account(project="o"),
            account(api_key=lambda: KEY),
            account(api_key=lambda: KEY, organization="o"),
        ]
        assert len(set(accounts)) == len(accounts)
        assert account() == accounts[0]
        assert account(api_key=lambda: "another") == accounts[4]
        assert not any(KEY in found or len(found) != 32 for found in accounts)
        assert account(account="team") == "team"

    def test_a_key_in_a_header(self) -> None:
        one = AsyncSession(headers={"Authorization": "Bearer one"}).account
        assert one != AsyncSession(headers={"Authorization": "Bearer two"}).account

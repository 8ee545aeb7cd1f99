"""`on_outcome`: a function of the caller is told of every outcome, once, and can break nothing."""

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import KEY, until
from openai import AsyncOpenAI, OpenAI

from openai_cancel import (
    AsyncSession,
    ConfigurationError,
    Outcome,
    Session,
    SessionStateError,
    Verdict,
    WaitTimeoutError,
    outcome_hook,
)
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger
from openai_cancel.testing import make_outcome

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class Told(list[Outcome]):
    """The outcomes that a hook was told of."""

    def sync(self, outcome: Outcome) -> None:
        self.append(outcome)

    async def later(self, outcome: Outcome) -> None:
        await asyncio.sleep(0)
        self.append(outcome)

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdicts by id, after a check that none was told twice."""
        found = {outcome.response_id: str(outcome.verdict) for outcome in self}
        assert len(found) == len(self)
        return found


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(params=["sync", "later"])
async def session(request: pytest.FixtureRequest, server: Emulator, told: Told) -> AsyncIterator[AsyncSession]:
    hook = getattr(told, request.param)
    async with AsyncSession(api_key=KEY, base_url=server.base_url, max_retries=0, on_outcome=hook) as opened:
        yield opened


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of the package."""
    return [record.getMessage() for record in caplog.records if record.name == "openai_cancel"]


async def generate(outcome: Outcome) -> AsyncIterator[Outcome]:
    """A hook that would never run."""
    yield outcome


class TestEveryOutcomeIsTold:
    async def test_the_hook_gets_the_outcome_that_a_stop_returns(self, session, create, told: Told) -> None:
        outcome = await session.stop(create())
        assert [id(outcome)] == [id(one) for one in told]

    async def test_a_bulk_run_calls_the_hook_once_for_an_id_that_comes_twice(self, session, create, told: Told) -> None:
        running = create()
        outcomes = [outcome async for outcome in session.stop_many([running, running, "resp_none", "..", 7])]
        assert len(outcomes) == 5
        await until(lambda: len(told) == 4)
        assert told.verdicts == {running: "cancelled", "resp_none": "not_found", "..": "unknown", "7": "unknown"}

    async def test_a_dry_run_does_not_call_the_hook(self, session, create, told: Told) -> None:
        await session.stop(create(), dry_run=True)
        assert len([outcome async for outcome in session.stop_many([create(), ".."], dry_run=True)]) == 2
        assert told == []

    async def test_a_guard_calls_the_hook_once_for_each_response(self, session, create, told: Told) -> None:
        first, second, third = create(), create(), create()
        with pytest.raises(ZeroDivisionError):
            async with session.guard(first, second):
                _ = 1 / 0
        async with session.guard(third, on_exit="stop"):
            pass
        assert told.verdicts == dict.fromkeys([first, second, third], "cancelled")

    async def test_a_guard_whose_session_closes_calls_the_hook(self, server: Emulator, create, told: Told) -> None:
        name = create()
        session = await AsyncSession(api_key=KEY, base_url=server.base_url, on_outcome=told.later).open()
        async with session.guard(name):
            await session.close()
        assert told.verdicts == {name: "cancelled"}

    async def test_a_wait_that_times_out_calls_the_hook(self, session, create, told: Told) -> None:
        name = create()
        with pytest.raises(WaitTimeoutError):
            await session.wait(name, timeout=0.01)
        assert told.verdicts == {name: "cancelled"}

    async def test_a_wait_that_asyncio_times_out_calls_the_hook(self, session, create, told: Told) -> None:
        name = create()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await session.wait(name)
        assert told.verdicts == {name: "cancelled"}

    async def test_a_wait_whose_response_ends_has_no_outcome(self, session, create, told: Told) -> None:
        await session.wait(create(runs_for=0))
        assert told == []

    async def test_many_waits_call_the_hook_for_what_they_stop(self, session, create, told: Told) -> None:
        names = [create() for _ in range(3)]
        results = [result async for result in session.wait_many(names, timeout=0.01)]
        assert told.verdicts == dict.fromkeys(names, "cancelled")
        assert {id(result.error.outcome) for result in results} == {id(outcome) for outcome in told}

    async def test_sweeps_and_stops_of_a_ledger_call_the_hook(self, session, create, told: Told, tmp_path) -> None:
        swept, stopped, looked_at = create(), create(), create()
        async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
            await ledger.track(swept, session=session, ttl=0.001)
            assert len([outcome async for outcome in ledger.sweep(session)]) == 1
            await ledger.track(stopped, session=session, ttl=60)
            assert len([outcome async for outcome in ledger.stop(session)]) == 1
            await ledger.track(looked_at, session=session, ttl=60)
            assert len([outcome async for outcome in ledger.stop(session, dry_run=True)]) == 1
        assert told.verdicts == {swept: "cancelled", stopped: "cancelled"}

    async def test_a_watch_whose_creator_is_cancelled_calls_the_hook(
        self, server: Emulator, told: Told, tmp_path
    ) -> None:
        server.faults = [Fault(on="create", delay=0.05)]
        options = {"ledger": Ledger(f"sqlite:///{tmp_path}/ledger.db"), "account": "a", "on_outcome": told.later}
        async with (
            AsyncOpenAI(api_key=KEY, base_url=server.base_url) as client,
            AsyncSession(api_key=KEY, base_url=server.base_url, **options) as session,
        ):
            session.watch(client)
            creating = asyncio.create_task(client.responses.create(model="m", input="x", background=True))
            await until(lambda: server.received)
            creating.cancel()
            await asyncio.wait([creating])
            await until(lambda: told)
        assert told.verdicts == dict.fromkeys(server.responses, "cancelled")

    @pytest.mark.parametrize("kind", [AsyncSession, Session])
    def test_every_constructor_takes_the_hook(self, kind: Any, told: Told) -> None:
        client = OpenAI(api_key=KEY, base_url="https://h.example/v1")
        for make in (kind, lambda **options: kind.azure("https://h.example", **options)):
            assert make(api_key=KEY, on_outcome=told.later)
            with pytest.raises(ConfigurationError, match="on_outcome must be a function, not list"):
                make(api_key=KEY, on_outcome=[])
        with pytest.raises(ConfigurationError, match="on_outcome must be a function without `yield`"):
            kind(api_key=KEY, on_outcome=generate)
        assert kind.from_openai(client, on_outcome=told.later)
        with pytest.raises(ConfigurationError, match="on_outcome must be a function, not str"):
            kind.from_openai(client, on_outcome="x")
        client.close()


class TestHooksThatFail:
    @pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
    async def test_the_error_of_a_sync_hook_is_logged(self, server: Emulator, create, caplog, error: type) -> None:
        def hook(_: Outcome) -> None:
            raise error

        name = create()
        async with AsyncSession(api_key=KEY, base_url=server.base_url, on_outcome=hook) as session:
            assert (await session.stop(name)).verdict is Verdict.CANCELLED
        assert f"{name}: on_outcome raised {error.__name__}, which is ignored" in said(caplog)

    @pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, TimeoutError, SystemExit])
    async def test_the_error_of_an_async_hook_is_logged(self, server: Emulator, create, caplog, error: type) -> None:
        async def hook(_: Outcome) -> None:
            await asyncio.sleep(0)
            raise error

        name = create()
        async with AsyncSession(api_key=KEY, base_url=server.base_url, on_outcome=hook) as session:
            with pytest.raises(LookupError):
                async with session.guard(name) as guard:
                    raise LookupError
        assert guard.outcome.verdict is Verdict.CANCELLED
        assert f"{name}: on_outcome raised {error.__name__}, which is ignored" in said(caplog)


class TestHooksThatHang:
    @pytest.fixture(autouse=True)
    def short_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outcome_hook, "HOOK_WAIT", 0.05)

    async def test_a_stop_waits_for_a_moment_and_the_close_of_the_session_cancels_them(
        self, server: Emulator, create, caplog
    ) -> None:
        async def hook(outcome: Outcome) -> None:
            begun.append(outcome.response_id)
            await asyncio.Event().wait()

        begun: list[str] = []
        names = [create(), create()]
        async with AsyncSession(api_key=KEY, base_url=server.base_url, on_outcome=hook) as session:
            assert (await session.stop(names[0])).stopped
            began = time.monotonic()
            assert (await session.stop(names[1])).stopped  # it does not wait while another one is late
            await asyncio.sleep(0)
            assert time.monotonic() - began < 5
        assert begun == names
        lines = [f"{name}: on_outcome raised CancelledError, which is ignored" for name in names]
        assert sorted(said(caplog)) == sorted(lines)

    async def test_a_call_that_takes_too_long_is_cancelled(
        self, server: Emulator, create, caplog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outcome_hook, "HOOK_WAIT", 20.0)
        monkeypatch.setattr(outcome_hook, "MAX_TIME", 0.05)
        name = create()
        async with AsyncSession(
            api_key=KEY, base_url=server.base_url, on_outcome=lambda _: asyncio.Event().wait()
        ) as session:
            assert (await session.stop(name)).stopped
        assert said(caplog) == [f"{name}: on_outcome raised TimeoutError after 0.05 s, which is ignored"]

    async def test_a_stop_that_is_cancelled_meanwhile_leaves_the_hook_alone(
        self, server: Emulator, create, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def hook(outcome: Outcome) -> None:
            begun.set()
            await released.wait()
            told.append(outcome)

        monkeypatch.setattr(outcome_hook, "HOOK_WAIT", 20.0)
        begun, released = asyncio.Event(), asyncio.Event()
        async with AsyncSession(api_key=KEY, base_url=server.base_url, on_outcome=hook) as session:
            stopping = asyncio.create_task(session.stop(create()))
            await begun.wait()
            stopping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stopping
            released.set()
        assert len(told) == 1

    async def test_a_close_that_is_cancelled_meanwhile_ends_as_planned(self, server: Emulator, create) -> None:
        async def hook(_: Outcome) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        ended = asyncio.Event()
        session = await AsyncSession(api_key=KEY, base_url=server.base_url, on_outcome=hook).open()
        await session.stop(create())
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert ended.is_set()
        assert "closed" in repr(session)


class TestOutcomesAreKeptWhileAHookIsWaitedFor:
    @pytest.fixture
    def begun(self) -> asyncio.Event:
        return asyncio.Event()

    @pytest.fixture
    async def session(self, server: Emulator, told: Told, begun, monkeypatch) -> AsyncIterator[AsyncSession]:
        async def hook(outcome: Outcome) -> None:
            told.append(outcome)
            begun.set()
            await asyncio.sleep(0.1)

        monkeypatch.setattr(outcome_hook, "HOOK_WAIT", 20.0)
        async with AsyncSession(api_key=KEY, base_url=server.base_url, on_outcome=hook) as opened:
            yield opened

    async def test_a_guard_does_not_stop_again_what_a_loop_that_shuts_down_interrupts(
        self, session, create, told: Told, begun: asyncio.Event
    ) -> None:
        async def work() -> None:
            with pytest.raises(LookupError):
                async with session.guard(name) as guard:
                    raise LookupError
            assert guard.outcome.verdict is Verdict.CANCELLED

        name = create()
        working = asyncio.create_task(work())
        await begun.wait()
        for task in asyncio.all_tasks():
            if task.get_coro().__qualname__ == "Stops._stop_one":
                task.cancel()
        await working
        assert told.verdicts == {name: "cancelled"}

    async def test_the_notes_of_a_bulk_run_that_is_cancelled_have_the_verdict(
        self, session, create, begun: asyncio.Event
    ) -> None:
        async def work() -> None:
            async for _ in session.stop_many([name]):
                pass

        name = create()
        working = asyncio.create_task(work())
        await begun.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await working
        assert caught.value.__notes__ == [f"openai-cancel: {name}: cancelled"]

    async def test_a_ledger_has_the_outcome_of_a_watch_that_a_loop_interrupts(
        self, server: Emulator, told: Told, begun: asyncio.Event, tmp_path, caplog
    ) -> None:
        async def hook(outcome: Outcome) -> None:
            told.append(outcome)
            begun.set()
            await asyncio.sleep(0.1)

        server.faults = [Fault(on="create", delay=0.05)]
        async with (
            Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
            AsyncOpenAI(api_key=KEY, base_url=server.base_url) as client,
            AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger, on_outcome=hook) as session,
        ):
            session.watch(client)
            creating = asyncio.create_task(client.responses.create(model="m", input="x", background=True))
            await until(lambda: server.received)
            creating.cancel()
            await begun.wait()
            for task in asyncio.all_tasks():
                if task.get_coro().__qualname__ == "Watch._stop":
                    task.cancel()
            await asyncio.wait([creating])
            await session.close()
            assert [entry.state async for entry in ledger.entries(include_ended=True)] == ["cancelled"]
        assert len(told) == 1
        assert "was not stopped" not in caplog.text

    async def test_what_a_guard_stops_for_its_creator_is_not_stopped_again_at_its_end(
        self, server: Emulator, session, told: Told
    ) -> None:
        server.faults = [Fault(on="create", delay=0.05), Fault(on="cancel", delay=0.1)]
        async with AsyncOpenAI(api_key=KEY, base_url=server.base_url) as client:
            with pytest.raises(LookupError):
                async with session.guard(client) as guard:
                    creating = asyncio.create_task(client.responses.create(model="m", input="x", background=True))
                    await until(lambda: server.received)
                    creating.cancel()
                    await until(lambda: server.received[-1].path.endswith("/cancel"))
                    raise LookupError
        assert guard.outcome.verdict is Verdict.CANCELLED
        assert [request.path.endswith("/cancel") for request in server.received] == [False, True]
        assert told.verdicts == dict.fromkeys(server.responses, "cancelled")

    async def test_a_call_that_a_loop_cancels_before_its_first_step_causes_no_warning(self, told: Told) -> None:
        function = told.later
        calls = []

        def hook(outcome: Outcome) -> object:
            calls.append(function(outcome))
            return calls[-1]

        task = outcome_hook.OutcomeHook(hook).tell(make_outcome())
        task.cancel()
        await asyncio.wait([task])
        assert inspect.getcoroutinestate(calls[0]) == inspect.CORO_CLOSED
        assert told == []


class TestBlockingSession:
    async def test_a_sync_hook_is_called_in_a_thread_without_an_event_loop(
        self, server: Emulator, create, told: Told
    ) -> None:
        def hook(outcome: Outcome) -> None:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            threads.append(threading.current_thread().name)
            told.append(outcome)

        def work() -> None:
            with Session(api_key=KEY, base_url=server.base_url, on_outcome=hook) as session:
                outcomes.append(session.stop(names[0]))
                outcomes.extend(session.stop_many(names[1:]))
                with pytest.raises(LookupError), session.guard(last):
                    raise LookupError

        names, last, threads, outcomes = [create(), create()], create(), [], []
        await asyncio.to_thread(work)
        assert told.verdicts == dict.fromkeys([*names, last], "cancelled")
        assert told[:1] == outcomes[:1]
        assert set(threads) == {"openai-cancel-outcomes"}

    async def test_an_async_hook_runs_in_the_event_loop_of_the_session(self, server: Emulator, create) -> None:
        async def note() -> None:
            loops.append(asyncio.get_running_loop())

        async def hook(_: Outcome) -> None:
            await note()

        def work() -> None:
            for function in (hook, lambda _: note()):
                with Session(api_key=KEY, base_url=server.base_url, on_outcome=function) as session:
                    session.stop(create())

        loops: list[asyncio.AbstractEventLoop] = []
        await asyncio.to_thread(work)
        assert len(set(loops)) == 2

    @pytest.mark.slow
    async def test_no_outcome_is_lost_for_a_hook_that_is_slower_than_the_stops(
        self, server: Emulator, create, told: Told, caplog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def hook(outcome: Outcome) -> None:
            time.sleep(0.15)
            told.append(outcome)

        def work() -> None:
            with Session(api_key=KEY, base_url=server.base_url, on_outcome=hook) as session:
                assert len([*session.stop_many(names, concurrency=20)]) == len(names)

        # All calls together take longer than either, and a single one far less, also on a busy machine.
        monkeypatch.setattr(outcome_hook, "HOOK_WAIT", 2.0)
        monkeypatch.setattr(outcome_hook, "MAX_TIME", 2.0)
        names = [create() for _ in range(20)]
        await asyncio.to_thread(work)
        assert told.verdicts == dict.fromkeys(names, "cancelled")
        assert said(caplog) == []

    async def test_not_any_number_of_calls_wait_for_a_hook_that_hangs(
        self, server: Emulator, create, caplog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def work() -> None:
            with Session(api_key=KEY, base_url=server.base_url, on_outcome=lambda _: released.wait(20)) as session:
                for name in names:
                    assert session.stop(name).stopped

        monkeypatch.setattr(outcome_hook, "HOOK_WAIT", 0.05)
        monkeypatch.setattr(outcome_hook, "MAX_WAITING", 1)
        released = threading.Event()
        names = [create() for _ in range(3)]
        await asyncio.to_thread(work)
        released.set()
        assert said(caplog)[0] == f"{names[2]}: on_outcome raised TimeoutError before its turn, which is ignored"
        assert [line.partition(": ")[2] for line in said(caplog)[1:]] == [
            "on_outcome raised CancelledError, which is ignored"
        ] * 2

    async def test_a_hook_that_calls_the_session_or_blocks_holds_up_nothing(
        self, server: Emulator, create, caplog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def hook(outcome: Outcome) -> None:
            try:
                session.stop(outcome.response_id)
            except SessionStateError as error:
                errors.append(str(error))
            released.wait(20)

        def work() -> None:
            with session:
                session.stop(create())
                session.stop(create())

        monkeypatch.setattr(outcome_hook, "HOOK_WAIT", 0.05)
        errors: list[str] = []
        released = threading.Event()
        session = Session(api_key=KEY, base_url=server.base_url, on_outcome=hook)
        await asyncio.to_thread(work)
        assert "cannot call the session: this would deadlock" in errors[0]
        assert len(said(caplog)) == 2
        released.set()


async def test_a_stop_that_is_cancelled_has_no_outcome_to_tell(server: Emulator, create, told: Told) -> None:
    server.faults.append(Fault(delay=float("inf")))
    async with AsyncSession(api_key=KEY, base_url=server.base_url, on_outcome=told.sync) as session:
        stopping = asyncio.create_task(session.stop(create()))
        await until(lambda: server.received)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
    assert told == []

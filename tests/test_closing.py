"""A session that closes while guards are open stops their responses first."""

import asyncio
import contextlib
import gc
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from conftest import KEY, cancels, notes, until
from ledgers import states
from web_hosts import left

from openai_cancel import AsyncSession, Guard, Session, SessionStateError, Verdict
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.ledger import Ledger

REFUSED = [Fault(status=403, body="You may not.")] * 2

Hold = Callable[..., "asyncio.Task[str]"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
async def opened(server: Emulator) -> AsyncIterator[AsyncSession]:
    session = await AsyncSession(api_key=KEY, base_url=server.base_url).open()
    yield session
    await session.close()


@pytest.fixture
async def hold() -> AsyncIterator[Hold]:
    """Run the block of a guard in a task until an event is set; the task returns `done`."""
    tasks: list[asyncio.Task[str]] = []

    def hold(guard: Guard, ended: asyncio.Event | None = None) -> asyncio.Task[str]:
        async def work() -> str:
            async with guard:
                await (ended or asyncio.Event()).wait()
            return "done"

        tasks.append(asyncio.create_task(work()))
        return tasks[-1]

    yield hold
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


class TestGuardsWhoseBlockRuns:
    async def test_closing_the_session_stops_their_responses_and_the_blocks_go_on(
        self, opened: AsyncSession, server: Emulator, hold: Hold
    ) -> None:
        guards, ended = [opened.guard(server.add(), server.add()) for _ in range(3)], asyncio.Event()
        tasks = [hold(guard, ended) for guard in guards]
        await asyncio.sleep(0)
        await opened.close()
        assert left(server) == []
        assert {outcome.verdict for guard in guards for outcome in guard.outcomes.values()} == {Verdict.CANCELLED}
        ended.set()
        assert await asyncio.gather(*tasks) == ["done"] * 3
        assert cancels(server) == 6

    async def test_an_exception_of_such_a_block_stops_nothing_again_and_needs_no_note(
        self, opened: AsyncSession, server: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(SessionStateError, match="closed") as caught:
            async with opened.guard(name := server.add()) as guard:
                await opened.close()
                await opened.retrieve(name)
        assert guard.outcome.verdict is Verdict.CANCELLED
        assert cancels(server) == 1
        assert notes(caught.value) == []
        assert warnings(caplog) == []

    async def test_a_guard_that_has_ended_and_one_that_was_disarmed_are_left_alone(
        self, opened: AsyncSession, server: Emulator
    ) -> None:
        async with opened.guard(server.add()):
            pass
        async with opened.guard(server.add()) as guard:
            guard.disarm()
            await opened.close()
        assert cancels(server) == 0

    async def test_a_response_that_could_not_be_stopped_is_logged_once_and_noted(
        self, opened: AsyncSession, server: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.faults += REFUSED
        with pytest.raises(ValueError, match="mine") as caught:
            async with opened.guard(name := server.add()):
                await opened.close()
                raise ValueError("mine")
        assert warnings(caplog) == [f"{name} was not stopped (forbidden, PermissionDeniedError)"]
        (note,) = notes(caught.value)
        assert note.startswith(f"openai-cancel: {name} was not stopped (forbidden: 403: You may not.")

    async def test_closing_takes_no_longer_than_the_grace(
        self, opened: AsyncSession, server: Emulator, hold: Hold, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.faults += [Fault(delay=math.inf)] * 99
        hold(opened.guard(server.add(), grace=0.2))
        hold(opened.guard(server.add(), grace=0.3))
        await asyncio.sleep(0)
        began = asyncio.get_running_loop().time()
        await opened.close()
        assert 0.25 < asyncio.get_running_loop().time() - began < 3
        assert len(warnings(caplog)) == 2

    async def test_a_response_that_is_added_after_the_session_was_closed_is_reported(
        self, opened: AsyncSession, server: Emulator
    ) -> None:
        with pytest.raises(ValueError, match="mine") as caught:
            async with opened.guard(server.add()) as guard:
                await opened.close()
                guard.add(late := server.add())
                raise ValueError("mine")
        assert notes(caught.value) == [
            f"openai-cancel: {late} was not stopped (The session is closed: create another one.)"
        ]

    async def test_a_guard_that_is_entered_while_the_session_closes_stops_its_response_and_refuses_its_block(
        self, opened: AsyncSession, server: Emulator, hold: Hold
    ) -> None:
        server.faults.append(Fault(on="cancel", delay=0.2))
        hold(opened.guard(server.add()))
        await asyncio.sleep(0)
        closing = asyncio.create_task(opened.close())
        await until(lambda: cancels(server))
        late = hold(opened.guard(server.add()))
        with pytest.raises(SessionStateError, match="is being closed"):
            await late
        await closing
        assert left(server) == []

    async def test_a_wait_that_is_under_way_has_its_response_stopped(
        self, opened: AsyncSession, server: Emulator
    ) -> None:
        stopped, kept = server.add(), server.add()
        waits = [
            asyncio.create_task(opened.wait(stopped)),
            asyncio.create_task(opened.wait(kept, on_abandon="leave")),
        ]
        await until(lambda: len(server.received) == 2)
        await opened.close()
        assert left(server) == [kept]
        ends = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(end, SessionStateError) or end.status == "cancelled" for end in ends)


class TestGuardsWhoseBlockEnds:
    @pytest.mark.parametrize("first", ["the task is cancelled", "the session closes"])
    async def test_a_task_that_is_cancelled_beside_has_its_response_stopped_once(
        self, opened: AsyncSession, server: Emulator, hold: Hold, first: str
    ) -> None:
        """As at a shutdown of uvicorn, which cancels its tasks and does not wait for them."""
        server.faults.append(Fault(on="cancel", delay=0.1))
        task = hold(opened.guard(server.add()))
        await asyncio.sleep(0)
        if first == "the session closes":
            closing = asyncio.create_task(opened.close())
            await until(lambda: cancels(server))
            task.cancel()
            await closing
        else:
            task.cancel()
            await opened.close()
        assert left(server) == []
        assert cancels(server) == 1
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert notes(caught.value) == []

    async def test_closing_waits_for_a_stop_that_is_under_way(
        self, opened: AsyncSession, server: Emulator, hold: Hold
    ) -> None:
        server.faults.append(Fault(on="cancel", delay=0.2))
        task = hold(opened.guard(server.add()))
        await asyncio.sleep(0)
        task.cancel()
        await until(lambda: cancels(server))
        await opened.close()
        assert left(server) == []
        assert cancels(server) == 1

    async def test_a_block_that_ends_normally_while_the_session_closes_waits_for_the_stop(
        self, opened: AsyncSession, server: Emulator, hold: Hold
    ) -> None:
        server.faults.append(Fault(on="cancel", delay=0.2))
        guard, ended = opened.guard(server.add()), asyncio.Event()
        task = hold(guard, ended)
        await asyncio.sleep(0)
        closing = asyncio.create_task(opened.close())
        await until(lambda: cancels(server))
        ended.set()
        assert await task == "done"
        assert guard.outcome.verdict is Verdict.CANCELLED
        await closing

    async def test_a_cancellation_while_such_a_block_waits_takes_effect_after_it(
        self, opened: AsyncSession, server: Emulator
    ) -> None:
        async def work() -> None:
            async with opened.guard(server.add()):
                await ended.wait()
            done.append(True)
            await asyncio.Event().wait()

        server.faults.append(Fault(on="cancel", delay=0.2))
        ended, done = asyncio.Event(), []
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        closing = asyncio.create_task(opened.close())
        await until(lambda: cancels(server))
        ended.set()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closing
        assert done == [True]

    def test_a_guarded_task_that_outlives_main_has_its_response_stopped(self) -> None:
        """`asyncio.run` cancels it after `main` has returned, and so after the session was closed."""
        ended: list[str] = []

        async def work(session: AsyncSession, name: str) -> None:
            try:
                async with session.guard(name):
                    await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                ended.extend(["cancelled", *notes(error)])
                raise

        async def main() -> list[str]:
            async with Emulator(script=Script(runs_for=math.inf)) as server:
                async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
                    tasks.append(asyncio.create_task(work(session, server.add())))
                    await asyncio.sleep(0)
                return left(server)

        tasks: list[asyncio.Task[None]] = []
        assert asyncio.run(main()) == []
        assert ended == ["cancelled"]

    def test_a_loop_that_shuts_down_cancels_the_closing_and_the_response_is_stopped_all_the_same(self) -> None:
        """`asyncio.run` cancels every task at its end: the one that closes the session, and those that help it."""
        stopped: list[list[str]] = []

        async def serve(ready: asyncio.Event) -> None:
            async with Emulator(script=Script(runs_for=math.inf)) as server:
                server.faults.append(Fault(on="cancel", delay=0.1))
                try:
                    async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
                        tasks.append(asyncio.create_task(work(session, server.add())))
                        await asyncio.sleep(0)
                        ready.set()
                        await asyncio.Event().wait()
                finally:
                    stopped.append(left(server))

        async def work(session: AsyncSession, name: str) -> None:
            async with session.guard(name):
                await asyncio.Event().wait()

        async def main() -> None:
            ready = asyncio.Event()
            tasks.append(asyncio.create_task(serve(ready)))
            await ready.wait()

        tasks: list[asyncio.Task[None]] = []
        asyncio.run(main())
        assert stopped == [[]]


class TestClosingThatIsCancelled:
    @pytest.fixture
    async def slow(self, server: Emulator, opened: AsyncSession, hold: Hold) -> AsyncSession:
        """A session with an open guard whose stop takes 0.2 s."""
        server.faults.append(Fault(on="cancel", delay=0.2))
        hold(opened.guard(server.add()))
        return opened

    @pytest.mark.parametrize("times", [1, 3])
    async def test_the_cancellation_takes_effect_after_the_stops(
        self, slow: AsyncSession, server: Emulator, times: int
    ) -> None:
        await asyncio.sleep(0)
        closing = asyncio.create_task(slow.close())
        await until(lambda: cancels(server))
        for number in range(times):
            closing.cancel(f"number {number}")
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError, match=f"number {times - 1}"):
            await closing
        assert left(server) == []
        assert closing.cancelling() == times
        assert "closed" in repr(slow)

    async def test_a_timeout_around_it_expires_after_the_stops(self, slow: AsyncSession, server: Emulator) -> None:
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await slow.close()
        assert left(server) == []
        assert "closed" in repr(slow)

    async def test_a_scope_of_anyio_around_it_expires_after_the_stops(
        self, slow: AsyncSession, server: Emulator
    ) -> None:
        await asyncio.sleep(0)
        with anyio.move_on_after(0.01) as scope:
            await slow.close()
        assert scope.cancelled_caught
        assert left(server) == []
        assert "closed" in repr(slow)

    async def test_closing_twice_at_once_stops_each_response_once(self, slow: AsyncSession, server: Emulator) -> None:
        await asyncio.sleep(0)
        await asyncio.gather(slow.close(), slow.close())
        assert left(server) == []
        assert cancels(server) == 1

    @pytest.mark.slow
    async def test_a_cancel_at_every_turn_leaves_nothing_running(self, server: Emulator) -> None:
        for turns in range(40):
            session = await AsyncSession(api_key=KEY, base_url=server.base_url).open()

            async def work(session: AsyncSession = session) -> None:
                async with session.guard(server.add()):
                    await asyncio.Event().wait()

            tasks = [asyncio.create_task(work()) for _ in range(2)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(session.close())
            await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in (closing, tasks[0]):
                task.cancel()
            await asyncio.wait({closing})
            assert left(server) == [], turns
            assert "closed" in repr(session)
            tasks[1].cancel()
            await asyncio.wait(tasks)


class TestLedger:
    @pytest.mark.parametrize("owner", ["session", "caller"])
    async def test_the_rows_of_open_guards_are_settled_before_the_ledger_closes(
        self, server: Emulator, tmp_path: Path, owner: str
    ) -> None:
        async def work(session: AsyncSession) -> str:
            async with session.guard(name):
                entered.set()
                await ended.wait()
            return "done"

        url, name = f"sqlite:///{tmp_path}/ledger.db", server.add()
        entered, ended = asyncio.Event(), asyncio.Event()
        ledger = Ledger(url)
        async with contextlib.AsyncExitStack() as stack:
            if owner == "caller":
                await stack.enter_async_context(ledger)
            session = AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger, ledger_required=True)
            await stack.enter_async_context(session)
            task = asyncio.create_task(work(session))
            await entered.wait()
        ended.set()
        assert await task == "done"
        async with Ledger(url) as again:
            assert await states(again) == {name: "cancelled"}

    async def test_a_blocking_guard_with_a_ledger_ends_normally_after_its_session_was_closed(
        self, server: Emulator, tmp_path: Path
    ) -> None:
        url, name = f"sqlite:///{tmp_path}/ledger.db", server.add()

        def work() -> None:
            with Session(api_key=KEY, base_url=server.base_url, ledger=Ledger(url)) as session, session.guard(name):
                session.close()

        await asyncio.to_thread(work)
        async with Ledger(url) as again:
            assert await states(again) == {name: "cancelled"}


class TestBlockingSessions:
    @pytest.fixture
    def blocking(self, server: Emulator) -> Iterator[Session]:
        with Session(api_key=KEY, base_url=server.base_url) as session:
            yield session

    async def test_closing_it_from_another_thread_stops_the_responses_of_blocks_that_run(
        self, blocking: Session, server: Emulator
    ) -> None:
        def work() -> Guard:
            with blocking.guard(server.add()) as guard:
                entered.set()
                ended.wait()
            return guard

        entered, ended = threading.Event(), threading.Event()
        working = asyncio.create_task(asyncio.to_thread(work))
        await asyncio.to_thread(entered.wait)
        await asyncio.to_thread(blocking.close)
        assert left(server) == []
        ended.set()
        assert (await working).outcome.verdict is Verdict.CANCELLED
        assert cancels(server) == 1

    async def test_a_block_that_fails_while_it_closes_waits_for_the_stop(
        self, blocking: Session, server: Emulator
    ) -> None:
        def work() -> None:
            with blocking.guard(server.add()):
                entered.set()
                ended.wait()
                raise ValueError("mine")

        server.faults.append(Fault(on="cancel", delay=0.2))
        entered, ended = threading.Event(), threading.Event()
        working = asyncio.create_task(asyncio.to_thread(work))
        await asyncio.to_thread(entered.wait)
        closing = asyncio.create_task(asyncio.to_thread(blocking.close))
        await until(lambda: cancels(server))
        ended.set()
        with pytest.raises(ValueError, match="mine") as caught:
            await working
        assert notes(caught.value) == []
        assert left(server) == []
        await closing

    async def test_a_response_that_could_not_be_stopped_is_noted(self, blocking: Session, server: Emulator) -> None:
        def work() -> None:
            with blocking.guard(name):
                blocking.close()
                raise ValueError("mine")

        name = server.add()
        server.faults += REFUSED
        with pytest.raises(ValueError, match="mine") as caught:
            await asyncio.to_thread(work)
        assert notes(caught.value)[0].startswith(f"openai-cancel: {name} was not stopped (forbidden: 403")

    async def test_a_response_that_is_added_after_it_was_closed_is_reported_if_the_block_fails(
        self, server: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        def work(*, fails: bool) -> None:
            with Session(api_key=KEY, base_url=server.base_url) as session, session.guard(server.add()) as guard:
                session.close()
                guard.add("resp_late")
                if fails:
                    raise ValueError("mine")

        await asyncio.to_thread(work, fails=False)
        assert warnings(caplog) == []
        with pytest.raises(ValueError, match="mine") as caught:
            await asyncio.to_thread(work, fails=True)
        assert notes(caught.value) == [
            "openai-cancel: resp_late was not stopped (The session is closed: create another one.)"
        ]

    async def test_blocks_that_have_ended_are_left_alone(self, blocking: Session, server: Emulator) -> None:
        def work() -> None:
            with blocking.guard(server.add()):
                pass
            with blocking.guard(server.add()) as guard:
                guard.disarm()
            blocking.close()

        await asyncio.to_thread(work)
        assert cancels(server) == 0

    async def test_a_session_that_only_its_guard_refers_to_stays_open(self, server: Emulator) -> None:
        def work() -> None:
            guard = Session(api_key=KEY, base_url=server.base_url).open().guard(server.add())
            with contextlib.suppress(ValueError), guard:
                gc.collect()
                assert not cancels(server)
                raise ValueError
            with pytest.warns(ResourceWarning, match="unclosed <Session"):
                del guard
                gc.collect()

        await asyncio.to_thread(work)
        assert left(server) == []

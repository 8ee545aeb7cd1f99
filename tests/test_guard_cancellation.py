"""A guard in a task that is cancelled: by `cancel()`, timeouts, task groups, anyio, or a loop that shuts down."""

import asyncio
import math
import sys
from contextlib import suppress
from typing import Any

import anyio
import pytest
from conftest import KEY, QuickSession, cancels, until

from openai_cancel import AsyncSession
from openai_cancel.caller import Caller
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.stop import stop

pytestmark = pytest.mark.usefixtures("no_task_is_left")

SLOW_CANCEL = Fault(on="cancel", delay=0.05)


class TestCancelledTask:
    async def test_the_response_is_stopped_and_the_cancellation_is_raised_with_its_message(
        self, session, server, create
    ) -> None:
        identifier = create()

        async def work() -> None:
            async with session.guard(identifier):
                await asyncio.sleep(1000)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel("a message")
        with pytest.raises(asyncio.CancelledError, match="a message"):
            await task
        assert task.cancelling() == 1
        assert server.responses[identifier].cancelled
        assert cancels(server) == 1

    @pytest.mark.parametrize("times", [2, 10])
    async def test_further_cancellations_do_not_interrupt_the_stop(self, session, server, create, times: int) -> None:
        async def work() -> None:
            async with session.guard(create()):
                await asyncio.sleep(1000)

        server.faults.append(Fault(on="cancel", delay=0.3))
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await until(lambda: cancels(server))
        for _ in range(times - 1):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (task.cancelling(), cancels(server)) == (times, 1)
        assert next(iter(server.responses.values())).cancelled

    async def test_a_cancellation_during_the_stop_takes_effect_at_the_next_await(self, session, server, create) -> None:
        """The exception of the block is raised first, and the cancellation is not lost."""
        reached: list[str] = []

        async def work() -> None:
            try:
                async with session.guard(create()):
                    raise ValueError("mine")
            except ValueError:
                reached.append("except")
                await asyncio.sleep(0)
                reached.append("after")

        server.faults.append(SLOW_CANCEL)
        task = asyncio.create_task(work())
        await until(lambda: cancels(server))
        task.cancel("late")
        with pytest.raises(asyncio.CancelledError, match="late"):
            await task
        assert (reached, task.cancelling()) == (["except"], 1)

    async def test_a_second_cancellation_during_the_stop_is_not_delivered_later(self, session, server, create) -> None:
        done: list[bool] = []

        async def work() -> None:
            try:
                async with session.guard(create()):
                    await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                done.append(True)

        server.faults.append(SLOW_CANCEL)
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await until(lambda: cancels(server))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done

    async def test_the_last_of_several_cancellations_during_the_stop_is_delivered(
        self, session, server, create
    ) -> None:
        async def work() -> None:
            with suppress(ValueError):
                async with session.guard(create()):
                    raise ValueError
            await asyncio.Event().wait()

        server.faults.append(SLOW_CANCEL)
        task = asyncio.create_task(work())
        await until(lambda: cancels(server))
        task.cancel("first")
        await asyncio.sleep(0)
        task.cancel("last")
        with pytest.raises(asyncio.CancelledError, match="last"):
            await task
        assert task.cancelling() == 2

    async def test_a_cancellation_takes_precedence_over_a_system_exit_of_the_key_function(self, server) -> None:
        def key() -> str:
            raise SystemExit(3)

        async def work(session: AsyncSession) -> None:
            async with session.guard("resp_a"):
                await asyncio.Event().wait()

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            task = asyncio.create_task(work(session))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def test_a_stop_that_is_cancelled_is_started_again_with_the_rest_of_the_grace(
        self, session: QuickSession, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An event loop that shuts down cancels all tasks, also those that stop a response."""
        given: list[float] = []

        async def cancelled_at_first(caller: Caller, name: str, *, deadline: float, **options: Any):
            given.append(deadline)
            if len(given) == 1:
                session.clock.now += 4
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
            return await stop(caller, name, deadline=deadline, **options)

        monkeypatch.setattr("openai_cancel.guarded_responses.stop", cancelled_at_first)
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create(), grace=10):
                raise ValueError("mine")
        assert given == [10, 6]


class TestTimeout:
    async def test_a_timeout_around_the_guard_stops_the_response(self, session, server, create) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with session.guard(create()):
                    await asyncio.sleep(1000)
        assert asyncio.current_task().cancelling() == 0
        assert cancels(server) == 1

    async def test_a_timeout_that_expires_during_the_stop_takes_effect_after_it(self, session, server, create) -> None:
        server.faults.append(Fault(on="cancel", delay=0.1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                try:
                    async with session.guard(create()):
                        raise ValueError("mine")
                except ValueError:
                    await asyncio.sleep(1000)
        assert (asyncio.current_task().cancelling(), cancels(server)) == (0, 1)

    async def test_a_timeout_that_ends_together_with_the_guard_cancels_nothing_afterwards(
        self, session, server, create
    ) -> None:
        """The timeout has taken its cancellation back, so it must not be delivered later."""
        server.faults += [Fault(on="cancel", delay=0.1)] * 2
        with pytest.raises(ValueError, match="mine"):
            async with asyncio.timeout(0.03), session.guard(create()):
                raise ValueError("mine")
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert asyncio.current_task().cancelling() == 0

    async def test_a_cancellation_swallowed_before_the_block_is_not_delivered_again(
        self, session, server, create
    ) -> None:
        """The task counts the swallowed one for ever. The timeout's own is taken back by the timeout."""

        async def work() -> str:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)
            with suppress(ValueError):
                async with asyncio.timeout(0.03), session.guard(create()):
                    raise ValueError("mine")
            await asyncio.sleep(0.01)
            return "went on"

        server.faults += [Fault(on="cancel", delay=0.1)] * 2
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "went on"

    async def test_a_cancellation_beside_a_timeout_is_raised_instead_of_the_timeout(
        self, session, server, create
    ) -> None:
        """`asyncio.timeout` raises no `TimeoutError` if the task was cancelled from elsewhere, too."""

        async def work() -> None:
            async with asyncio.timeout(0.01):
                async with session.guard(create()):
                    await asyncio.sleep(1000)

        server.faults.append(SLOW_CANCEL)
        task = asyncio.create_task(work())
        await until(lambda: cancels(server))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    async def test_a_timeout_inside_the_block_leaves_the_response_running(self, session, server, create) -> None:
        async with session.guard(create()):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(1000)
        assert cancels(server) == 0


class TestTaskGroup:
    async def test_a_task_group_that_fails_stops_the_responses_of_its_tasks(self, session, server, create) -> None:
        identifiers = [create(), create()]

        async def work(identifier: str) -> None:
            async with session.guard(identifier):
                await asyncio.sleep(1000)

        async def fail() -> None:
            await asyncio.sleep(0.01)
            raise ValueError("mine")

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                for identifier in identifiers:
                    group.create_task(work(identifier))
                group.create_task(fail())
        assert [str(error) for error in caught.value.exceptions] == ["mine"]
        assert all(server.responses[identifier].cancelled for identifier in identifiers)

    async def test_a_task_group_that_fails_inside_the_block_stops_the_response(self, session, server, create) -> None:
        async def fail() -> None:
            raise ValueError("mine")

        with pytest.raises(ExceptionGroup):
            async with session.guard(create()), asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.sleep(1000)
        assert cancels(server) == 1


class TestAnyio:
    async def test_cancel_scopes_do_not_interrupt_the_stop(self, session, server, create) -> None:
        """A scope cancels its task in each iteration of the loop, and the stop is shielded from that."""
        server.faults.append(SLOW_CANCEL)
        with anyio.move_on_after(0.01) as scope:
            async with session.guard(create()):
                await anyio.sleep(1000)
        assert scope.cancelled_caught
        assert cancels(server) == 1

        async def work() -> None:
            async with session.guard(create()):
                await anyio.sleep(1000)

        server.faults.append(SLOW_CANCEL)
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await asyncio.sleep(0.01)
            group.cancel_scope.cancel()
        assert cancels(server) == 2
        assert all(work.cancelled for work in server.responses.values())

    async def test_a_cancel_scope_does_not_cancel_the_task_in_each_iteration_of_the_loop(
        self, session, server, create, monkeypatch
    ) -> None:
        waits: list[object] = []
        wait = asyncio.wait
        monkeypatch.setattr(asyncio, "wait", lambda tasks: waits.append(tasks) or wait(tasks))
        server.faults.append(SLOW_CANCEL)
        with anyio.move_on_after(0.01):
            async with session.guard(create()):
                await anyio.sleep(1000)
        assert len(waits) == 1

    @pytest.mark.parametrize("stub", [object(), None])
    async def test_an_anyio_that_is_broken_or_only_half_imported_is_ignored(
        self, session, server, create, monkeypatch, stub
    ) -> None:
        monkeypatch.setitem(sys.modules, "anyio", stub)
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create()):
                raise ValueError("mine")
        assert cancels(server) == 1

    async def test_a_process_without_anyio_needs_no_shield(self, session, server, create, monkeypatch) -> None:
        monkeypatch.delitem(sys.modules, "anyio")
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create()):
                raise ValueError("mine")
        assert cancels(server) == 1


@pytest.mark.parametrize("moment", ["in the block", "during the stop"])
def test_an_event_loop_that_shuts_down_waits_until_the_response_is_stopped(moment: str) -> None:
    """`asyncio.run` cancels all tasks at its end, also those that stop a response."""
    stopped: list[bool] = []
    tasks: list[asyncio.Task[None]] = []

    async def serve(ready: "asyncio.Future[tuple[Emulator, AsyncSession]]") -> None:
        """Keep the server and the session open until the block has ended, even if this task is cancelled."""
        async with (
            Emulator(script=Script(runs_for=math.inf)) as server,
            AsyncSession(base_url=server.base_url, api_key=KEY) as session,
        ):
            ready.set_result((server, session))
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await until(lambda: stopped)

    async def work(server: Emulator, session: AsyncSession) -> None:
        identifier = server.add()
        try:
            async with session.guard(identifier):
                if moment == "during the stop":
                    raise ValueError("mine")
                await asyncio.Event().wait()
        finally:
            stopped.append(bool(server.responses[identifier].cancelled))

    async def main() -> None:
        ready = asyncio.get_running_loop().create_future()
        tasks.append(asyncio.create_task(serve(ready)))
        server, session = await ready
        server.faults.append(SLOW_CANCEL)
        tasks.append(asyncio.create_task(work(server, session)))
        await (asyncio.sleep(0) if moment == "in the block" else until(lambda: cancels(server)))

    asyncio.run(main(), debug=True)
    assert stopped == [True]
    assert tasks[1].cancelled() is (moment == "in the block")

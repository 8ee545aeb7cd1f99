"""Timeouts, foreign code in a task of its own, and waiting that a cancellation does not end."""

import asyncio
import gc
import inspect
import math
import sys
import weakref

import anyio
import anyio.lowlevel
import pytest

from openai_cancel import ConfigurationError
from openai_cancel.cancellation import (
    Timeout,
    TimeoutScheduler,
    contain,
    shielded_from_anyio,
    wait_through_cancellation,
)


@pytest.fixture
async def scheduler() -> TimeoutScheduler:
    return TimeoutScheduler()


async def test_a_block_that_ends_in_time_does_not_expire(scheduler: TimeoutScheduler) -> None:
    with Timeout(scheduler, 60) as timeout:
        await asyncio.sleep(0)
    assert not timeout.expired
    assert not scheduler.running


@pytest.mark.parametrize("seconds", [0.01, 0.0, -1.0])
async def test_a_block_that_takes_too_long_raises_a_timeout_error(scheduler: TimeoutScheduler, seconds: float) -> None:
    timeout = Timeout(scheduler, seconds)
    with pytest.raises(TimeoutError), timeout:
        await asyncio.Event().wait()
    assert timeout.expired
    assert asyncio.current_task().cancelling() == 0
    assert (scheduler.running, scheduler.at) == ({}, math.inf)
    await asyncio.sleep(0)


async def test_each_block_expires_at_its_own_time(scheduler: TimeoutScheduler) -> None:
    async def work(seconds: float) -> float:
        began = scheduler.loop.time()
        with pytest.raises(TimeoutError), Timeout(scheduler, seconds):
            await asyncio.Event().wait()
        return scheduler.loop.time() - began

    limits = (0.1, 0.05, 0.15, 0.1)
    longest = asyncio.create_task(work(60))
    taken = await asyncio.gather(*map(work, limits))
    # The clock of the event loop may be a little early.
    assert all(seconds > limit - 0.001 for seconds, limit in zip(taken, limits, strict=True))
    assert not longest.done()
    longest.cancel()
    with pytest.raises(asyncio.CancelledError):
        await longest


async def test_all_blocks_share_one_timer_of_the_event_loop(
    scheduler: TimeoutScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers = []
    call_at = scheduler.loop.call_at
    monkeypatch.setattr(scheduler.loop, "call_at", lambda *timer: timers.append(timer) or call_at(*timer))
    for _ in range(100):
        with Timeout(scheduler, 60):
            pass
    assert len(timers) == 1
    scheduler.close()
    assert scheduler.at == math.inf


async def test_a_block_without_a_limit_sets_no_timer(scheduler: TimeoutScheduler) -> None:
    with Timeout(scheduler, math.inf):
        assert scheduler.at == math.inf


async def test_a_block_that_still_runs_expires_after_the_scheduler_was_closed(scheduler: TimeoutScheduler) -> None:
    with pytest.raises(TimeoutError), Timeout(scheduler, 0.01):
        scheduler.close()
        await asyncio.Event().wait()


async def test_another_error_of_the_block_is_raised_unchanged(scheduler: TimeoutScheduler) -> None:
    with pytest.raises(KeyError), Timeout(scheduler, 60):
        raise KeyError
    with pytest.raises(KeyError), Timeout(scheduler, 0):
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError  # replaces the CancelledError
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize("when", ["before", "beside", "after"])
async def test_a_cancellation_from_elsewhere_is_raised_unless_the_block_has_ended_before(
    scheduler: TimeoutScheduler, when: str
) -> None:
    timeout = Timeout(scheduler, 60)

    async def work() -> None:
        with timeout:
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    if when == "before":
        task.cancel()
    elif when == "beside":
        timeout.expire()
        task.cancel()
    else:
        timeout.expire()
        asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError if when != "after" else TimeoutError):
        await task
    assert task.cancelled() == (when != "after")


async def test_a_block_expires_in_the_cleanup_of_a_cancelled_task(scheduler: TimeoutScheduler) -> None:
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with pytest.raises(TimeoutError), Timeout(scheduler, 0.01):
                await asyncio.Event().wait()
            return "cleaned up"

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "cleaned up"


async def test_nested_blocks_expire_independently(scheduler: TimeoutScheduler) -> None:
    with pytest.raises(TimeoutError), Timeout(scheduler, 0.02) as outer:
        with pytest.raises(TimeoutError), Timeout(scheduler, 0.01):
            await asyncio.Event().wait()
        await asyncio.Event().wait()
    assert outer.expired
    with pytest.raises(TimeoutError), Timeout(scheduler, 0.01), Timeout(scheduler, 60) as inner:
        await asyncio.Event().wait()
    assert not inner.expired


async def test_a_block_that_has_expired_is_not_cancelled_again(scheduler: TimeoutScheduler) -> None:
    """The block takes a while to end, and another block expires meanwhile."""
    first = Timeout(scheduler, 0.01)

    async def other() -> None:
        with pytest.raises(TimeoutError), Timeout(scheduler, 0.02):
            await asyncio.Event().wait()

    task = asyncio.create_task(other())
    with pytest.raises(TimeoutError), first:
        try:
            await asyncio.Event().wait()
        finally:
            await task
    assert first.expired


async def test_a_block_outside_a_task_does_not_expire(scheduler: TimeoutScheduler) -> None:
    """A callback of the event loop has no task that could be cancelled."""
    done = scheduler.loop.create_future()

    def callback() -> None:
        with Timeout(scheduler, -1) as timeout:
            timeout.expire()
        done.set_result(timeout.expired)

    scheduler.loop.call_soon(callback)
    assert await done is False


class Stubborn:
    """A coroutine function that swallows every cancellation until it is released."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.swallowed = 0

    async def __call__(self) -> str:
        self.started.set()
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.swallowed += 1
        return "late"


class TestContain:
    async def test_a_result_is_returned(self) -> None:
        async def work() -> int:
            await asyncio.sleep(0)
            return 5

        assert await contain(work()) == 5

    @pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, SystemExit, KeyboardInterrupt])
    async def test_any_exception_is_raised_and_does_not_end_the_loop(self, kind: type[BaseException]) -> None:
        async def work() -> None:
            raise kind("mine")

        with pytest.raises(kind, match="mine"):
            await contain(work())

    async def test_a_cancellation_that_the_code_swallows_still_cancels_the_caller(self) -> None:
        stubborn = Stubborn()
        task = asyncio.create_task(contain(stubborn()))
        await stubborn.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stubborn.swallowed == 1
        stubborn.release.set()
        await asyncio.sleep(0)

    async def test_a_cancelled_coroutine_may_clean_up_before_the_caller_continues(self) -> None:
        steps: list[str] = []
        started = asyncio.Event()

        async def work() -> None:
            try:
                started.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                steps.append("cleaned up")

        async def call() -> None:
            try:
                await contain(work())
            finally:
                steps.append("continued")

        task = asyncio.create_task(call())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert steps == ["cleaned up", "continued"]

    async def test_a_second_cancellation_ends_the_wait_for_the_cleanup(self) -> None:
        stubborn = Stubborn()
        task = asyncio.create_task(contain(stubborn()))
        await stubborn.started.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 2
        stubborn.release.set()
        await asyncio.sleep(0)

    async def test_an_error_is_freed_without_the_garbage_collector(self) -> None:
        async def work() -> None:
            raise ConfigurationError("mine")

        async def fail() -> weakref.ref[BaseException]:
            try:
                await contain(work())
            except ConfigurationError as error:
                return weakref.ref(error)
            raise AssertionError

        gc.collect()
        gc.disable()
        try:
            assert (await fail())() is None
        finally:
            gc.enable()


class TestWaitThroughCancellation:
    async def test_it_returns_when_all_tasks_are_done(self) -> None:
        tasks = [asyncio.create_task(asyncio.sleep(0)) for _ in range(3)]
        assert await wait_through_cancellation(*tasks) is None
        assert all(task.done() for task in tasks)

    async def test_it_returns_at_once_without_tasks(self) -> None:
        assert await wait_through_cancellation() is None

    async def test_it_returns_the_last_cancellation_when_all_tasks_are_done(self) -> None:
        async def work() -> asyncio.CancelledError | None:
            waiting.set()
            return await wait_through_cancellation(first, second)

        waiting, release = asyncio.Event(), asyncio.Event()
        first, second = asyncio.create_task(release.wait()), asyncio.create_task(asyncio.sleep(0))
        task = asyncio.create_task(work())
        await waiting.wait()
        for message in ("first", "last"):
            task.cancel(message)
            await asyncio.sleep(0)
        assert not task.done()
        release.set()
        cancellation = await task
        assert cancellation.args == ("last",)
        assert (first.result(), second.done()) == (True, True)


class TestShieldFromAnyio:
    async def test_a_cancelled_scope_does_not_cancel_the_block(self) -> None:
        steps: list[str] = []
        with anyio.CancelScope() as scope:
            scope.cancel()
            with shielded_from_anyio():
                await anyio.lowlevel.checkpoint()
                steps.append("shielded")
            await anyio.lowlevel.checkpoint()
            steps.append("not shielded")
        assert steps == ["shielded"]

    @pytest.mark.parametrize("module", [object(), None])
    async def test_the_block_runs_without_a_shield_if_anyio_does_not_work(self, monkeypatch, module: object) -> None:
        monkeypatch.setitem(sys.modules, "anyio", module)
        with shielded_from_anyio():
            await asyncio.sleep(0)


async def test_a_coroutine_that_a_loop_cancels_before_its_first_step_causes_no_warning() -> None:
    async def work() -> None:
        raise AssertionError  # it does not begin

    coroutine, before = work(), asyncio.all_tasks()
    containing = asyncio.create_task(contain(coroutine))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:  # as `asyncio.run` does at its end
        task.cancel()
    await asyncio.wait([containing])
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED

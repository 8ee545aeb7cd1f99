"""Time-outs of tasks, and what they do to a task that is cancelled beside them."""

import asyncio
import gc
import math
import weakref

import pytest

from openai_cancel import ConfigurationError
from openai_cancel.cancellation import Timeout, TimeoutScheduler, contain


@pytest.fixture
async def scheduler() -> TimeoutScheduler:
    return TimeoutScheduler()


async def test_in_time(scheduler: TimeoutScheduler) -> None:
    with Timeout(scheduler, 60) as timeout:
        await asyncio.sleep(0)
    assert not timeout.expired
    assert not scheduler.running


@pytest.mark.parametrize("seconds", [0.01, 0.0, -1.0])
async def test_too_late(scheduler: TimeoutScheduler, seconds: float) -> None:
    timeout = Timeout(scheduler, seconds)
    with pytest.raises(TimeoutError), timeout:
        await asyncio.Event().wait()
    assert timeout.expired
    assert asyncio.current_task().cancelling() == 0
    assert (scheduler.running, scheduler.at) == ({}, math.inf)
    await asyncio.sleep(0)


async def test_each_at_its_own_time(scheduler: TimeoutScheduler) -> None:
    ended: list[float] = []

    async def work(seconds: float) -> None:
        with pytest.raises(TimeoutError):  # noqa: SIM117 - the one around the other
            with Timeout(scheduler, seconds):
                await asyncio.Event().wait()
        ended.append(seconds)

    await asyncio.gather(*map(work, (0.03, 0.01, 0.04, 0.02, 0.02)))
    assert ended == [0.01, 0.02, 0.02, 0.03, 0.04]


async def test_one_timer_for_all(scheduler: TimeoutScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    timers = []
    call_at = scheduler.loop.call_at
    monkeypatch.setattr(scheduler.loop, "call_at", lambda *timer: timers.append(timer) or call_at(*timer))
    for _ in range(100):
        with Timeout(scheduler, 60):
            pass
    assert len(timers) == 1
    scheduler.close()
    assert scheduler.at == math.inf


async def test_no_bound_no_timer(scheduler: TimeoutScheduler) -> None:
    with Timeout(scheduler, math.inf):
        assert scheduler.at == math.inf


async def test_what_still_runs_is_bounded_after_the_close(scheduler: TimeoutScheduler) -> None:
    with pytest.raises(TimeoutError), Timeout(scheduler, 0.01):
        scheduler.close()
        await asyncio.Event().wait()


async def test_another_error_is_left_alone(scheduler: TimeoutScheduler) -> None:
    with pytest.raises(KeyError), Timeout(scheduler, 60):
        raise KeyError
    with pytest.raises(KeyError), Timeout(scheduler, 0):
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError  # in place of the cancel
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize("when", ["before", "beside", "after"])
async def test_a_cancel_by_somebody_else_goes_on(scheduler: TimeoutScheduler, when: str) -> None:
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


async def test_a_task_that_was_being_cancelled_already(scheduler: TimeoutScheduler) -> None:
    """As in the clean-up of a cancelled task."""

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


async def test_one_within_another(scheduler: TimeoutScheduler) -> None:
    with pytest.raises(TimeoutError), Timeout(scheduler, 0.02) as outer:
        with pytest.raises(TimeoutError), Timeout(scheduler, 0.01):
            await asyncio.Event().wait()
        await asyncio.Event().wait()
    assert outer.expired
    with pytest.raises(TimeoutError), Timeout(scheduler, 0.01), Timeout(scheduler, 60) as inner:
        await asyncio.Event().wait()
    assert not inner.expired


async def test_what_expires_once_is_not_ended_again(scheduler: TimeoutScheduler) -> None:
    """A block that takes a while to end is not cancelled again by the scheduler of another one."""
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


async def test_without_a_task(scheduler: TimeoutScheduler) -> None:
    """Nothing can be ended there, and nothing is lost either."""
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
    async def test_any_exception_is_raised_here_and_does_not_end_the_loop(self, kind: type[BaseException]) -> None:
        async def work() -> None:
            raise kind("mine")

        with pytest.raises(kind, match="mine"):
            await contain(work())

    async def test_a_cancellation_that_is_swallowed_cancels_the_caller_all_the_same(self) -> None:
        stubborn = Stubborn()
        task = asyncio.create_task(contain(stubborn()))
        await stubborn.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stubborn.swallowed == 1
        stubborn.release.set()
        await asyncio.sleep(0)

    async def test_a_cancelled_coroutine_may_clean_up_before_the_caller_goes_on(self) -> None:
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
                steps.append("went on")

        task = asyncio.create_task(call())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert steps == ["cleaned up", "went on"]

    async def test_a_second_cancellation_ends_the_wait_for_the_clean_up(self) -> None:
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

    async def test_a_failure_keeps_nothing_alive(self) -> None:
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

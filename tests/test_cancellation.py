"""Time-outs of tasks, and what they do to a task that is cancelled beside them."""

import asyncio
import math

import pytest

from openai_cancel.cancellation import Timeout, TimeoutScheduler


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

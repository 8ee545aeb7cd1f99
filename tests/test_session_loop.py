"""The event loop of a session, for code that runs in other threads and in other event loops."""

import asyncio
import os
import threading
from typing import Any

import pytest
from conftest import hasty_session

from openai_cancel import session_loop
from openai_cancel.session_loop import PendingCreations, SessionLoop


@pytest.fixture
def done() -> list[threading.Thread]:
    return []


@pytest.fixture
def work(done: list[threading.Thread]) -> Any:
    async def work() -> None:
        await asyncio.sleep(0)
        done.append(threading.current_thread())

    return work


async def test_work_is_done_at_home_wherever_it_comes_from(work: Any, done: list[threading.Thread]) -> None:
    here = SessionLoop(asyncio.get_running_loop())
    await here.run_async(work)
    await asyncio.to_thread(here.run_blocking, work)
    await asyncio.to_thread(asyncio.run, here.run_async(work))
    assert done == [threading.current_thread()] * 3


async def test_work_without_an_event_loop_of_asyncio_is_waited_for(work: Any, done: list[threading.Thread]) -> None:
    here = SessionLoop(asyncio.get_running_loop())

    def other_loop() -> None:
        with pytest.raises(StopIteration):  # driven as trio would drive it
            here.run_async(work).send(None)

    await asyncio.to_thread(other_loop)
    assert len(done) == 1


async def test_home_does_not_wait_for_itself(work: Any, done: list[threading.Thread]) -> None:
    here = SessionLoop(asyncio.get_running_loop())
    here.run_blocking(work)
    assert done == []
    async with asyncio.timeout(5):
        while not done:
            await asyncio.sleep(0)


async def test_a_loop_that_does_not_run_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    monkeypatch.setattr(session_loop, "LOOP_TIMEOUT", 0.02)
    loop = asyncio.new_event_loop()
    there = SessionLoop(loop)
    assert there.is_alive
    with pytest.raises(TimeoutError):
        await there.run_async(work)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(there.run_blocking, work)
    loop.run_until_complete = None
    await asyncio.to_thread(_finish, loop)
    assert not there.is_alive
    with pytest.raises(RuntimeError):
        await there.run_async(work)


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """Run what is left in a loop, and close it."""
    type(loop).run_until_complete(loop, asyncio.sleep(0.01))
    loop.close()


async def test_the_child_of_a_fork_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SessionLoop(asyncio.get_running_loop())
    assert here.is_alive
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert not here.is_alive


class TestPendingCreations:
    @pytest.fixture
    async def pending(self) -> PendingCreations:
        return PendingCreations(hasty_session(api_key="k").caller.clock)

    async def test_the_next_one_ends_the_wait(self, pending: PendingCreations) -> None:
        pending.add("a")
        pending.add("b")
        waiting = asyncio.create_task(pending.wait(60))
        await asyncio.sleep(0)
        await asyncio.to_thread(pending.discard, "a")
        assert await waiting is None
        assert pending
        pending.discard("b")
        assert not pending
        assert await pending.wait(60) is None

    async def test_all_who_wait_are_woken(self, pending: PendingCreations) -> None:
        pending.add("a")
        waits = [asyncio.create_task(pending.wait(60)) for _ in range(2)]
        await asyncio.sleep(0)
        pending.discard("a")
        async with asyncio.timeout(5):
            assert await asyncio.gather(*waits) == [None, None]

    async def test_time_ends_the_wait(self, pending: PendingCreations) -> None:
        pending.add("a")
        assert await pending.wait(0.01) is None
        assert pending

    async def test_a_cancellation_does_not_end_the_wait(self, pending: PendingCreations) -> None:
        pending.add("a")
        waiting = asyncio.create_task(pending.wait(60))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        pending.discard("a")
        assert isinstance(await waiting, asyncio.CancelledError)

    def test_a_note_after_the_loop_is_closed_is_ignored(self) -> None:
        async def leave() -> PendingCreations:
            pending = PendingCreations(hasty_session(api_key="k").caller.clock)
            pending.add("a")
            await pending.wait(0.001)
            return pending

        asyncio.run(leave()).discard("a")

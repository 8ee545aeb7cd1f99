"""`SessionLoop`: the event loop of a session, for code that runs in any thread and in any other event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias

from openai_cancel.cancellation import wait_through_cancellation
from openai_cancel.clock import Clock
from openai_cancel.process import OwnerProcess

LOOP_TIMEOUT = 10.0
"""Seconds for which a thread waits for the event loop of another one."""

CoroutineFunction: TypeAlias = Callable[[], Coroutine[Any, Any, object]]
"""A coroutine function that has to run in the event loop of a session."""


def in_asyncio() -> bool:
    """Return whether an event loop of asyncio runs the caller, and not one of trio, or none."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class SessionLoop:
    """The event loop of a session, in which its requests and its ledger work.

    Args:
        loop: the event loop.
        run: runs work in the loop, called in another thread, and waits for it. `LoopThread.run` is one.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, run: Callable[[CoroutineFunction], object] | None = None
    ) -> None:
        self.loop = loop
        self._run = run
        self._process = OwnerProcess(lacks="event loop")
        self._works: set[Future[object]] = set()

    @property
    def is_alive(self) -> bool:
        """Whether the loop can run anything: it is not closed, and this is not the child of a fork."""
        return self._process.is_current and not self.loop.is_closed()

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in the loop."""
        return in_asyncio() and asyncio.get_running_loop() is self.loop

    async def run_async(self, work: CoroutineFunction) -> None:
        """Run work in the loop, called in any loop, and wait for it."""
        if self.is_here:
            await work()
        elif not in_asyncio():
            self.run_blocking(work)
        else:
            await asyncio.wait_for(asyncio.wrap_future(self.start(work)), LOOP_TIMEOUT)

    def run_blocking(self, work: CoroutineFunction) -> None:
        """Run work in the loop, called in any thread, and wait for it, unless that would block the loop itself."""
        if self.is_here:
            self.start(work)
        elif self._run is not None:
            self._run(work)
        else:
            self.start(work).result(LOOP_TIMEOUT)

    def start(self, work: CoroutineFunction) -> Future[object]:
        """Run work in the loop, called in any thread, and do not wait for it.

        Raises:
            RuntimeError: the loop is closed.
        """
        coroutine = work()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise
        self._works.add(future)  # it refers to its task, to which the loop does not
        future.add_done_callback(self._works.discard)
        return future


class PendingCreations:
    """The creations that are under way, of which some may still create a response.

    Args:
        clock: the source of time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._expected: set[object] = set()
        self._change: asyncio.Future[None] | None = None

    def __bool__(self) -> bool:
        """Return whether any creation is under way."""
        return bool(self._expected)

    def add(self, creation: object) -> None:
        """Note that a creation is under way. Can be called from any thread."""
        self._expected.add(creation)

    def discard(self, creation: object) -> None:
        """Note that the response of a creation is known, or that there is none. Can be called from any thread."""
        self._expected.discard(creation)
        change = self._change
        if change is not None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                change.get_loop().call_soon_threadsafe(_wake, change)

    async def wait(self, seconds: float) -> asyncio.CancelledError | None:
        """Wait until the next one arrives.

        Cancellations of this task do not end the wait; the last one is returned, for the caller to raise.

        Args:
            seconds: the maximum time to wait.
        """
        change = self._change
        if change is None or change.done():  # otherwise another task waits for it, too
            change = self._change = asyncio.get_running_loop().create_future()
        if not self._expected:  # looked at after `discard` can find the future
            return None
        timer = asyncio.create_task(self._clock.sleep(seconds))
        timer.add_done_callback(lambda _: _wake(change))
        cancellation = await wait_through_cancellation(change)
        timer.cancel()
        return await wait_through_cancellation(timer) or cancellation


def _wake(change: "asyncio.Future[None]") -> None:
    if not change.done():
        change.set_result(None)

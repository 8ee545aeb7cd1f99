"""The thread with the event loop in which a `Session` runs its calls."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import closing, suppress
from threading import Thread
from typing import Any, Generic, NamedTuple, Self, TypeVar

from openai_cancel.session import AsyncSession

_T = TypeVar("_T")


class Worker(NamedTuple):
    """The thread with the event loop; `loop` is set when it is open, and `stop` ends it, and the calls under way."""

    thread: Thread
    loop: Future[asyncio.AbstractEventLoop]
    stop: Future[None]
    calls: set[asyncio.Task[None]]
    pid: int

    @classmethod
    def of(cls, session: AsyncSession) -> Self:
        """A thread that will open the session, and close it again; not yet started."""
        loop: Future[asyncio.AbstractEventLoop] = Future()
        stop: Future[None] = Future()
        calls: set[asyncio.Task[None]] = set()
        # A daemon, and without a reference to the `Session`: one that is forgotten keeps no process alive.
        thread = Thread(target=_serve, args=(session, loop, stop, calls), name="openai-cancel", daemon=True)
        return cls(thread, loop, stop, calls, os.getpid())

    def end(self) -> None:
        """Tell the thread to end."""
        with suppress(InvalidStateError):  # it has been told already
            self.stop.set_result(None)


class Call(Generic[_T]):
    """A call that runs in the loop, and that the thread which waits for it can give up."""

    def __init__(
        self, function: Callable[[], Coroutine[Any, Any, _T]], future: Future[_T], calls: set[asyncio.Task[None]]
    ) -> None:
        self._function = function
        self._future = future
        self._calls = calls
        self._task: asyncio.Task[None] | None = None
        self._notes: list[str] = []

    def start(self) -> None:
        """Begin; in the loop."""
        self._task = asyncio.ensure_future(self._run())
        self._calls.add(self._task)
        self._task.add_done_callback(self._calls.discard)

    async def _run(self) -> None:
        # Nothing is raised here: it would end the loop, and every other call with it, if it were SystemExit.
        try:
            result = await self._function()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            self._notes = getattr(error, "__notes__", [])
            if isinstance(error, asyncio.CancelledError):
                self._future.cancel()
            else:
                self._future.set_exception(error)
        else:
            self._future.set_result(result)
        finally:
            del self._future  # as in the thread that waits

    def give_up(self, future: Future[Any]) -> None:
        """Cancel it, once it has begun, for it may have something to end; in the loop."""
        if self._task is None:
            future.cancel()
        else:
            asyncio.get_running_loop().call_soon(self._task.cancel)

    def tell(self, error: BaseException) -> None:
        """Add what the call had to say when it failed."""
        for note in self._notes:
            error.add_note(note)


def _serve(
    session: AsyncSession,
    opened: Future[asyncio.AbstractEventLoop],
    stop: Future[None],
    calls: set[asyncio.Task[None]],
) -> None:
    async def main() -> None:
        async with session:
            opened.set_result(asyncio.get_running_loop())
            await asyncio.wrap_future(stop)
            under_way = [*calls]  # and no other task: a ledger has still to write what comes of it
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    try:
        # Not asyncio.run: it would wait for the look-up of a name that goes on in a thread.
        with closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(main())
            loop.run_until_complete(loop.shutdown_asyncgens())
    except BaseException as error:
        if opened.done():
            raise
        opened.set_exception(error)  # to whoever waits in open()

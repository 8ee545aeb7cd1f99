"""Blocking functions that run in other threads than the event loop's, also while the interpreter shuts down.

An executor, as in `asyncio.to_thread`, refuses work once the main thread has ended, keeps its threads, and waits for
them when the interpreter ends.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any, Generic, TypeVar, cast

_T = TypeVar("_T")


class _Work(Generic[_T]):
    """A call of a function in another thread, in the context of the task that waits for it."""

    def __init__(self, function: Callable[..., _T], *arguments: Any) -> None:
        self._call = partial(copy_context().run, function, *arguments)
        # An error is a part of the result, because a future cannot raise a StopIteration.
        self._future: Future[tuple[_T | None, BaseException | None]] = Future()

    def run(self) -> None:
        """Call the function, unless nobody waits any more."""
        if not self._future.set_running_or_notify_cancel():
            return
        try:
            self._future.set_result((self._call(), None))
        except BaseException as error:  # noqa: BLE001 - `result` raises it
            self._future.set_result((None, error))

    async def result(self) -> _T:
        """Wait for the result of the function, or raise its error."""
        result, error = await asyncio.wrap_future(self._future)
        if error is None:
            return cast("_T", result)
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame


async def run_in_thread(function: Callable[..., _T], /, *arguments: Any, name: str) -> _T:
    """Call a blocking function in a daemon thread, which ends with it, and return its result.

    Where no thread can be started, as in functions of `atexit` with CPython 3.12 and later, the function blocks the
    event loop.

    Args:
        function: the function.
        *arguments: its arguments.
        name: the name of the thread.
    """
    work = _Work(function, *arguments)
    try:
        Thread(target=work.run, name=name, daemon=True).start()
    except RuntimeError:
        work.run()
    return await work.result()


class HelperThread:
    """A daemon thread, without an event loop, that calls one function after another. It starts with the first one.

    Attributes:
        thread: the thread.
    """

    def __init__(self, name: str) -> None:
        # The thread does not refer to this object.
        self._works: SimpleQueue[_Work[Any] | None] = SimpleQueue()
        self.thread: Thread = Thread(target=_serve, args=(self._works,), name=name, daemon=True)
        self._started = False

    @property
    def is_current(self) -> bool:
        """Whether the running function was called by this thread."""
        return current_thread() is self.thread

    async def call(self, function: Callable[..., _T], /, *arguments: Any) -> _T:
        """Call a blocking function in the thread, and return its result."""
        work = _Work(function, *arguments)
        try:
            if not self._started:
                self.thread.start()
                self._started = True
            self._works.put(work)
        except RuntimeError:  # no thread can be started, see `run_in_thread`
            work.run()
        return await work.result()

    def close(self) -> None:
        """Tell the thread to end after the function that it calls, and do not wait for it."""
        self._works.put(None)


def _serve(works: "SimpleQueue[_Work[Any] | None]") -> None:
    while work := works.get():
        work.run()
        del work  # it refers to what the function returned

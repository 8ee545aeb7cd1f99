"""Blocking functions that run in other threads than the event loop's, also while the interpreter shuts down.

An executor, as in `asyncio.to_thread`, refuses work once the main thread has ended, keeps its threads, and waits for
them when the interpreter ends.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any, Generic, TypeVar, cast

from openai_cancel.errors import SessionStateError

_T = TypeVar("_T")


class _ThreadCall(Generic[_T]):
    """A call of a function in another thread, in the context of the task that waits for it."""

    def __init__(self, function: Callable[..., _T], *arguments: Any) -> None:
        self._call = partial(copy_context().run, function, *arguments)
        # An error is a part of the result, because a future cannot raise a StopIteration.
        self._future: Future[tuple[_T | None, BaseException | None]] = Future()
        self._is_certain = False

    def make_certain(self) -> "Future[tuple[_T | None, BaseException | None]]":
        """Have the function called also if nobody waits any more, and return the future of its result."""
        self._is_certain = self._future.set_running_or_notify_cancel()
        return self._future

    def run(self) -> None:
        """Call the function, unless nobody waits any more."""
        if not (self._is_certain or self._future.set_running_or_notify_cancel()):
            return
        try:
            self._future.set_result((self._call(), None))
        except BaseException as error:  # noqa: BLE001 - `result` raises it
            self._future.set_result((None, error))

    async def result(self) -> _T:
        """Wait for the result of the function, or raise its error."""
        waiting = asyncio.wrap_future(self._future)
        if _has_greenlets():
            # CPython 3.14 takes a greenlet in the thread of the loop for the loop itself, and does not wake it up.
            self._future.add_done_callback(partial(_wake_up, asyncio.get_running_loop()))
        result, error = await waiting
        if error is None:
            return cast("_T", result)
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame


def _wake_up(loop: asyncio.AbstractEventLoop, _: object) -> None:
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(int)  # a function without an effect


async def run_in_thread(function: Callable[..., _T], /, *arguments: Any, name: str) -> _T:
    """Call a blocking function in a daemon thread, which ends with it, and return its result.

    Where no thread can be started, as in functions of `atexit` with CPython 3.12 and later, the function blocks the
    event loop.

    Args:
        function: the function.
        *arguments: its arguments.
        name: the name of the thread.
    """
    work = _ThreadCall(function, *arguments)
    try:
        Thread(target=work.run, name=name, daemon=True).start()
    except RuntimeError:
        work.run()
    return await work.result()


class NativeThread(Thread):
    """A daemon thread of the operating system, also where gevent has replaced threads by greenlets.

    An event loop that runs in a greenlet would be the running one of all greenlets in the same thread. Wait for
    it with `result_of`.
    """

    def __init__(self, target: Callable[..., object], *arguments: Any, name: str) -> None:
        super().__init__(target=target, args=arguments, name=name, daemon=True)
        self._own_ident: int | None = None  # with gevent
        self._ended = False

    @property
    def is_current(self) -> bool:
        """Whether this thread runs the caller."""
        if self._own_ident is not None:
            return bool(_original("_thread", "get_ident")() == self._own_ident)
        return current_thread() is self

    @property
    def was_started(self) -> bool:
        """Whether the thread was started."""
        return self._own_ident is not None or self.ident is not None

    def start(self) -> None:
        """Start the thread.

        Raises:
            SessionStateError: eventlet has replaced threads, whose locks do not work between threads.
            RuntimeError: no thread can be started.
        """
        eventlet = sys.modules.get("eventlet.patcher")
        if eventlet is not None and eventlet.is_monkey_patched("thread"):
            raise SessionStateError(
                "eventlet has replaced threads, and a blocking session needs a real one: use another worker class, "
                "such as gevent or gunicorn's gthread, or call `openai-cancel` in a process of its own."
            )
        if not _has_greenlets():
            super().start()
            return
        sys.modules["gevent"].get_hub()  # two threads cannot create their first hubs at the same time
        run: Any = self._run_natively
        trace: Any = sys.settrace
        begin = lambda: (trace(threading.gettrace()), run())  # noqa: E731 - a debugger sees what this calls
        self._own_ident = _original("_thread", "start_new_thread")(begin, ())

    def wait_for_end(self) -> None:
        """Wait until the thread has ended."""
        if self._own_ident is None:
            self.join()
            return
        while not self._ended:
            time.sleep(0.001)  # of gevent: other greenlets go on

    def _run_natively(self) -> None:
        try:
            self.run()
        finally:
            sys.modules["gevent"].get_hub().destroy(destroy_loop=True)  # it would outlive the thread
            self._ended = True


def result_of(future: Future[_T]) -> _T:
    """Wait for the result of a future that another thread sets, and return it.

    With gevent, only the greenlet waits. gevent's own locks wake up a greenlet of another thread, too, but a thread in
    which nothing else happens takes such a wait for a deadlock.
    """
    if _has_greenlets():
        gevent = sys.modules["gevent"]
        done = sys.modules["gevent.event"].Event()
        # See https://www.gevent.org/loop_impls.html: the one thing that another thread may call.
        watcher = gevent.get_hub().loop.async_()
        watcher.start(done.set)
        senders = [watcher.send]
        try:
            future.add_done_callback(lambda _: [send() for send in senders])
            done.wait()
        finally:
            senders.clear()
            watcher.close()
    try:
        return future.result()
    finally:
        del future  # an exception's traceback refers to this frame, which would refer to the exception


def _has_greenlets() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _original(module: str, name: str) -> Any:
    return sys.modules["gevent.monkey"].get_original(module, name)


class HelperThread:
    """A daemon thread, without an event loop, that calls one function after another. It starts with the first one.

    Attributes:
        thread: the thread.
    """

    def __init__(self, name: str) -> None:
        # The thread does not refer to this object.
        # gevent's queues do not work between threads.
        make = _original("queue", "SimpleQueue") if _has_greenlets() else SimpleQueue
        self._works: SimpleQueue[_ThreadCall[Any] | None] = make()
        self.thread: NativeThread = NativeThread(_serve, self._works, name=name)
        self._started = False

    @property
    def is_current(self) -> bool:
        """Whether the running function was called by this thread."""
        return self.thread.is_current

    async def call(self, function: Callable[..., _T], /, *arguments: Any) -> _T:
        """Call a blocking function in the thread, and return its result."""
        work = _ThreadCall(function, *arguments)
        self._put(work)
        return await work.result()

    def finish(self, function: Callable[[], object]) -> Future[Any]:
        """Have a function called after those that were called before, whoever waits for it, and the thread end.

        Args:
            function: the function.

        Returns:
            A future that is done afterwards, whatever the function raises. Cancelling it has no effect.
        """
        work = _ThreadCall(function)
        future = work.make_certain()
        self._put(work)
        self.close()
        return future

    def _put(self, work: _ThreadCall[Any]) -> None:
        try:
            if not self._started:
                self.thread.start()
                self._started = True
            self._works.put(work)
        except RuntimeError:  # no thread can be started, see `run_in_thread`
            work.run()

    def close(self) -> None:
        """Tell the thread to end after the function that it calls, and do not wait for it."""
        self._works.put(None)


def _serve(works: "SimpleQueue[_ThreadCall[Any] | None]") -> None:
    while work := works.get():
        work.run()
        del work  # it refers to what the function returned

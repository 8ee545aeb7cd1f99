"""`LoopThread`: a thread with an event loop, in which a blocking `Session` runs its calls."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import closing, contextmanager, suppress
from functools import partial
from threading import RLock
from typing import Any, Generic, ParamSpec, TypeVar

from openai_cancel.errors import SessionStateError
from openai_cancel.process import OwnerProcess
from openai_cancel.session import AsyncSession
from openai_cancel.threads import HelperThread, NativeThread, result_of

_TOO_LATE = (
    "The interpreter is shutting down, and starts no more threads: open the session earlier, or run an AsyncSession in "
    "this thread."
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class LoopThread:
    """A thread with an event loop, in which a session is open.

    Args:
        session: the session.
        helpers: the threads that call the session's functions. They end with this thread.

    Attributes:
        thread: the thread, once it was started. It is a daemon, and does not refer to the `Session`: a forgotten one
            keeps no process alive.
        loop: the event loop, once the session is open.
    """

    thread: NativeThread

    def __init__(self, session: AsyncSession, helpers: Sequence[HelperThread] = ()) -> None:
        self.loop: Future[asyncio.AbstractEventLoop] = Future()
        self._session = session
        self._helpers = helpers
        self._stop: Future[None] = Future()
        self._calls: set[asyncio.Task[Any]] = set()
        self._closers: set[Callable[[], Coroutine[Any, Any, object]]] = set()
        self._lock = RLock()  # reentrant, for a signal handler may close a session in the thread that holds it
        self._owner: OwnerProcess | None = None  # the process in which the thread was started
        self._closed = False

    @property
    def is_running(self) -> bool:
        """Whether the thread was started in this process and not closed."""
        return self._owner is not None and self._owner.is_current and not self._closed

    def start(self) -> None:
        """Start the thread, and wait until the session is open.

        Raises:
            SessionStateError: the thread was started before or was closed, or the interpreter is shutting down.
        """
        if sys.is_finalizing():  # a new thread would be frozen at once
            raise SessionStateError(_TOO_LATE)
        with self._lock:
            if self._owner is not None and not self._closed:
                self._owner.check()
            if self._closed or self._owner is not None:
                raise SessionStateError("A session can be opened only once: create another one.")
            # Not in the constructor: CPython 3.13 cannot start a thread that was created before a fork.
            self.thread = NativeThread(self._serve, name="openai-cancel")
            self._owner = OwnerProcess(lacks="thread")
        try:
            self.thread.start()
            result_of(self.loop)
        except BaseException as error:  # also Ctrl-C
            self.close()
            # CPython 3.13 has a class for it, and 3.12 already refuses new threads once the main thread has ended.
            if isinstance(error, RuntimeError) and "interpreter shutdown" in str(error):
                raise SessionStateError(_TOO_LATE) from None
            raise

    def close(self) -> None:
        """Cancel the calls that are under way, close the session, and end the thread."""
        if self._owner is None or not self._owner.is_current:  # the child of a fork has no such thread
            self._closed = True
            return
        with self._lock:
            self._closed = True
            self.request_stop()
        self.join_closed()

    def join_closed(self) -> None:
        """Wait until the thread of a closed session has ended, if it runs in this process."""
        if not self._closed or self._owner is None or not self._owner.is_current:
            return
        # At the end of the interpreter its other threads are frozen.
        if self.thread.was_started and not self.thread.is_current and not sys.is_finalizing():
            self.thread.wait_for_end()

    def request_stop(self) -> None:
        """Tell the thread to end, and do not wait for it."""
        with suppress(InvalidStateError):  # it was told before
            self._stop.set_result(None)

    def run(self, function: Callable[_P, Coroutine[Any, Any, _T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a coroutine function in the event loop, and wait for its result. Ctrl-C cancels it.

        Raises:
            SessionStateError: the thread does not run in this process, or is closed.
        """
        self.check_running()
        future: Future[_T] = Future()
        call = _Call(partial(function, *args, **kwargs), future, self.adopt)
        try:
            self._submit(call)
            return result_of(future)
        except CancelledError:
            if not self._closed:
                raise
            closed = SessionStateError("The session was closed while the call was under way.")
            call.add_notes_to(closed)
            raise closed from None
        except SessionStateError:
            raise
        except BaseException as error:
            if not future.done():  # for example Ctrl-C
                # The call may have to do something before it ends, such as stopping a response.
                self.loop.result().call_soon_threadsafe(call.give_up, future)
                with suppress(Exception, CancelledError):
                    result_of(future)
                call.add_notes_to(error)
            raise
        finally:
            del future  # an exception's traceback refers to this frame, which would refer to the exception

    def _submit(self, call: "_Call[Any]") -> None:
        with self._lock:  # so that no call reaches the loop after it was told to stop
            if self._closed:
                raise SessionStateError("The session is closed: create another one.")
            try:
                self.loop.result().call_soon_threadsafe(call.start)
            except RuntimeError:  # a signal handler has closed the session in this thread, and the loop is closed
                raise SessionStateError("The session was closed while the call was under way.") from None

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        """Cancel a task, too, as the thread ends. Runs in the event loop."""
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    @contextmanager
    def closing(self, close: Callable[[], Coroutine[Any, Any, object]]) -> Generator[None, None, None]:
        """Call a coroutine function before the session is closed, if that happens while the block runs."""
        self._closers.add(close)
        try:
            yield
        finally:
            self._closers.discard(close)

    def check_running(self) -> None:
        """Make sure that a call can be made from this thread.

        Raises:
            SessionStateError: the thread does not run in this process, or is this thread.
        """
        if sys.is_finalizing():
            raise SessionStateError("The interpreter is shutting down, and has ended the session's thread.")
        if self._closed:
            raise SessionStateError("The session is closed: create another one.")
        if self._owner is None:
            raise SessionStateError("The session is not open: use `with Session() as session:`, or call its open().")
        self._owner.check()
        if self.thread.is_current or any(helper.is_current for helper in self._helpers):
            raise SessionStateError(
                "A function that the session calls, such as api_key, cannot call the session: this would deadlock."
            )

    def _serve(self) -> None:
        try:
            # asyncio.run would wait for a name resolution that goes on in a thread.
            with closing(asyncio.new_event_loop()) as loop:
                loop.run_until_complete(self._keep_open())
                loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as error:
            if self.loop.done():
                raise
            self.loop.set_exception(error)  # `start` raises it
        finally:
            for helper in self._helpers:
                helper.close()

    async def _keep_open(self) -> None:
        async with self._session:
            self.loop.set_result(asyncio.get_running_loop())
            await asyncio.wrap_future(self._stop)
            calls = [*self._calls]  # and no other task: a ledger still has to write
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.gather(*(close() for close in [*self._closers]), return_exceptions=True)


class _Call(Generic[_T]):
    """A call that runs in the event loop, and that the waiting thread can give up."""

    def __init__(
        self,
        function: Callable[[], Coroutine[Any, Any, _T]],
        future: Future[_T],
        adopt: "Callable[[asyncio.Task[Any]], None]",
    ) -> None:
        self._function = function
        self._future = future
        self._adopt = adopt
        self._task: asyncio.Task[None] | None = None
        self._notes: list[str] = []

    def start(self) -> None:
        """Start the call. Runs in the event loop."""
        self._task = asyncio.ensure_future(self._run())
        self._adopt(self._task)

    async def _run(self) -> None:
        # It raises nothing: a SystemExit would end the event loop, and all other calls with it.
        try:
            result = await self._function()
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
            self._notes = getattr(error, "__notes__", [])
            if isinstance(error, asyncio.CancelledError):
                self._future.cancel()
            else:
                self._future.set_exception(error)
        else:
            self._future.set_result(result)
        finally:
            del self._future  # as in the waiting thread

    def give_up(self, future: Future[Any]) -> None:
        """Cancel the call once it has started, so that it can clean up. Runs in the event loop."""
        if self._task is None:
            future.cancel()
        else:
            asyncio.get_running_loop().call_soon(self._task.cancel)

    def add_notes_to(self, error: BaseException) -> None:
        """Add the notes of the call's own exception to another one."""
        for note in self._notes:
            error.add_note(note)

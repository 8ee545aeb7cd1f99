"""`LoopThread`: a thread with an event loop that starts, runs calls and ends, whatever interrupts it."""

import asyncio
import concurrent.futures
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import KEY, until
from processes import StartProcess

from openai_cancel import AsyncSession, BadRequestError, Session, SessionStateError
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.loop_thread import LoopThread

HANG = Fault(delay=math.inf)


@pytest.fixture
def blocking(server: Emulator) -> Iterator[Session]:
    with Session(api_key=KEY, base_url=server.base_url) as session:
        yield session


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert "openai-cancel" not in [thread.name for thread in threading.enumerate()]


async def run_script(python: str, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [python, *options, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class TestStart:
    def test_an_interrupted_start_leaves_no_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class InterruptedFuture(concurrent.futures.Future):
            def result(self, timeout: float | None = None) -> object:
                result = super().result(timeout)
                if threading.current_thread() is threading.main_thread():
                    raise KeyboardInterrupt
                return result

        monkeypatch.setattr("openai_cancel.loop_thread.Future", InterruptedFuture)
        with pytest.raises(KeyboardInterrupt):
            Session(api_key=KEY).open()

    def test_the_error_of_a_loop_that_cannot_be_created_is_raised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> asyncio.AbstractEventLoop:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(asyncio, "new_event_loop", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            Session(api_key=KEY).open()

    def test_the_error_of_a_thread_that_cannot_start_is_raised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Session(api_key=KEY).open()

    async def test_a_session_that_is_opened_as_the_interpreter_ends_is_refused(self, python: str) -> None:
        """A thread that is started then would never run, and `open` would wait for it for ever."""
        script = """
from openai_cancel import Session, SessionStateError

class Late:
    session = Session(api_key="any")

    def __del__(self):
        try:
            self.session.open()
        except SessionStateError as error:
            print(error)

late = Late()
"""
        done = await run_script(python, script)
        assert done.stdout.startswith("The interpreter is shutting down, and starts no more threads: open the session")
        assert (done.stderr, done.returncode) == ("", 0)

    def test_a_session_is_not_opened_once_the_interpreter_is_shutting_down(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched, pytest.raises(SessionStateError, match="starts no more threads"):
            patched.setattr(sys, "is_finalizing", lambda: True)
            Session(api_key=KEY).open()

    def test_a_thread_that_the_interpreter_refuses_as_it_ends_is_reported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """CPython 3.12 refuses it once the main thread has ended, and later ones in the last finalizers."""

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(SessionStateError, match="or run an AsyncSession in this thread"):
            Session(api_key=KEY).open()

    def test_only_one_of_many_threads_can_open_a_session(self) -> None:
        session = Session(api_key=KEY)
        with ThreadPoolExecutor(8) as threads:
            results = [threads.submit(session.open) for _ in range(8)]
        assert sum(result.exception() is None for result in results) == 1
        session.close()


class TestClose:
    def test_an_interrupted_close_can_be_called_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(_: threading.Thread) -> None:
            raise KeyboardInterrupt

        session = Session(api_key=KEY).open()
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(threading.Thread, "join", interrupt)
            session.close()
        session.close()

    def test_an_error_while_the_session_closes_goes_to_the_threads_excepthook(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class FailingSession(AsyncSession):
            async def close(self) -> None:
                await super().close()
                raise RuntimeError("it could not be closed")

        shown: list[str] = []
        monkeypatch.setattr(threading, "excepthook", lambda hook: shown.append(str(hook.exc_value)))
        loop_thread = LoopThread(FailingSession(api_key=KEY))
        loop_thread.start()
        loop_thread.close()
        assert shown == ["it could not be closed"]

    @staticmethod
    def close_while_a_call_is_submitted() -> BaseException:
        """Close like a signal handler that runs in the very thread that submits a call, and return the call's error."""
        session = AsyncSession(api_key=KEY)
        loop_thread = LoopThread(session)
        loop_thread.start()
        loop = loop_thread.loop.result()
        submit = loop.call_soon_threadsafe

        def close_first(*arguments: object) -> object:
            loop.call_soon_threadsafe = submit
            loop_thread.close()
            return submit(*arguments)

        loop.call_soon_threadsafe = close_first
        with pytest.raises(RuntimeError, match="closed") as caught:
            loop_thread.run(session.cancel, "resp_x")
        assert not loop_thread.thread.is_alive()
        return caught.value

    def test_a_signal_handler_can_close_a_session_while_its_thread_submits_a_call(self) -> None:
        self.close_while_a_call_is_submitted()

    def test_a_call_that_a_signal_handler_has_closed_raises_an_error_of_this_package(self) -> None:
        assert isinstance(self.close_while_a_call_is_submitted(), SessionStateError)

    async def test_20_calls_run_at_the_same_time_and_closing_ends_them_all(
        self, blocking: Session, server: Emulator
    ) -> None:
        server.faults += [HANG] * 20
        with ThreadPoolExecutor(20) as threads:
            loop = asyncio.get_running_loop()
            calls = [loop.run_in_executor(threads, blocking.cancel, "x") for _ in range(20)]
            await until(lambda: len(server.received) == 20)
            blocking.close()
            for call in calls:
                with pytest.raises(SessionStateError, match="closed while the call was under way"):
                    await call


class TestRun:
    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
    async def test_a_key_function_that_exits_ends_its_own_call_only(self, server: Emulator, create, kind) -> None:
        keys: list[object] = [kind("no key"), KEY]

        def provide() -> str:
            if isinstance(key := keys.pop(0), BaseException):
                raise key
            return key

        def script() -> str:
            with Session(api_key=provide, base_url=server.base_url) as session:
                with pytest.raises(kind, match="no key"):
                    session.cancel("x")
                return session.cancel(identifier).status

        identifier = create()
        assert await asyncio.to_thread(script) == "cancelled"

    async def test_a_cancelled_error_of_a_key_function_is_raised_as_that_of_futures(self, server: Emulator) -> None:
        def provide() -> str:
            raise asyncio.CancelledError

        def script() -> None:
            with (
                Session(api_key=provide, base_url=server.base_url) as session,
                pytest.raises(concurrent.futures.CancelledError),
            ):
                session.cancel("x")

        await asyncio.to_thread(script)

    async def test_the_error_of_a_call_is_the_one_that_was_raised(self, blocking: Session, create) -> None:
        with pytest.raises(BadRequestError) as caught:
            await asyncio.to_thread(blocking.cancel, create(runs_for=0))
        assert caught.value.attempts == 1
        assert sys.exc_info() == (None, None, None)

    async def test_a_failed_call_leaves_no_reference_cycle(self, blocking: Session, create) -> None:
        identifier = create(runs_for=0)

        def script() -> weakref.ref[BaseException]:
            try:
                blocking.cancel(identifier)
            except BadRequestError as error:
                return weakref.ref(error)
            raise AssertionError

        gc.collect()
        gc.disable()
        try:
            assert (await asyncio.to_thread(script))() is None
        finally:
            gc.enable()

    def test_a_call_at_the_end_of_the_interpreter_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its other threads are frozen then, so a wait for one would never end."""
        with Session(api_key=KEY, base_url="http://127.0.0.1:9") as session, monkeypatch.context() as patched:
            patched.setattr(sys, "is_finalizing", lambda: True)
            with pytest.raises(SessionStateError, match="The interpreter is shutting down"):
                session.cancel("resp_x")

    def test_a_call_is_refused_if_a_signal_handler_closes_the_session_just_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = AsyncSession(api_key=KEY)
        loop_thread = LoopThread(session)
        loop_thread.start()
        process_id = os.getpid()

        def close_first() -> int:
            monkeypatch.undo()
            loop_thread.close()
            return process_id

        monkeypatch.setattr(os, "getpid", close_first)  # the call asks for it after it has seen an open session
        with pytest.raises(SessionStateError, match="The session is closed: create another one"):
            loop_thread.run(session.cancel, "resp_x")

    async def test_an_interruption_before_a_call_was_submitted_sends_nothing(self, server: Emulator) -> None:
        def work() -> None:
            session = AsyncSession(api_key=KEY, base_url=server.base_url)
            loop_thread = LoopThread(session)
            loop_thread.start()
            loop = loop_thread.loop.result()
            submit = loop.call_soon_threadsafe

            def interrupt(*_: object) -> None:
                loop.call_soon_threadsafe = submit
                raise KeyboardInterrupt

            loop.call_soon_threadsafe = interrupt
            with pytest.raises(KeyboardInterrupt):
                loop_thread.run(session.cancel, "resp_x")
            loop_thread.close()

        await asyncio.to_thread(work)
        assert not server.received

    async def test_ctrl_c_cancels_the_call_and_ends_the_process_promptly(
        self, server: Emulator, python: str, start_process: StartProcess
    ) -> None:
        server.faults += [HANG] * 10
        script = f"""
from openai_cancel import Session
with Session(api_key="{KEY}", base_url="{server.base_url}", timeout=600) as session:
    session.cancel("x")
"""
        process = await start_process(python, "-X", "dev", "-W", "error", "-c", script, stderr=asyncio.subprocess.PIPE)
        await until(lambda: server.received)
        process.send_signal(signal.SIGINT)
        _, shown = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == -signal.SIGINT
        assert shown.decode().rstrip().endswith("KeyboardInterrupt")
        assert b"Warning" not in shown
        assert KEY.encode() not in shown.replace(script.encode(), b"")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestFork:
    async def test_a_call_in_the_child_is_refused_and_the_parent_continues(
        self, server: Emulator, python: str, create
    ) -> None:
        script = f"""
import os, sys, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from openai_cancel import Session, SessionStateError
with Session(api_key="{KEY}", base_url="{server.base_url}") as session:
    print(session.retrieve("{create()}").status, flush=True)
    child = os.fork()
    if child == 0:
        try:
            session.cancel("x")
        except SessionStateError as error:
            print(error, flush=True)
        with Session(api_key="{KEY}", base_url="{server.base_url}") as own:
            print(own.retrieve("{create()}").status, flush=True)
        sys.exit()
    print(os.waitpid(child, 0)[1], session.retrieve("{create()}").status)
"""
        done = await run_script(python, script, "-W", "error")
        first, refused, own, last = done.stdout.splitlines()
        assert (first, own, last) == ("in_progress", "in_progress", "0 in_progress")
        assert "a fork does not copy its thread: open a session in this process" in refused
        assert done.stderr.splitlines() == [refused]  # the log

    async def test_a_child_does_not_warn_of_a_session_that_its_parent_opened(self, python: str) -> None:
        script = f"""
import gc, os, sys, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from openai_cancel import Session
session = Session(api_key="{KEY}").open()
if os.fork() == 0:
    del session
    gc.collect()
    os._exit(0)
os.wait()
session.close()
"""
        done = await run_script(python, script, "-W", "error")
        assert (done.returncode, done.stderr) == (0, "")


async def test_a_script_that_does_not_close_its_session_ends_normally(python: str) -> None:
    script = f"from openai_cancel import Session; session = Session(api_key='{KEY}').open()"
    done = await run_script(python, script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

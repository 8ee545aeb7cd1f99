"""`Session`: blocking, from anywhere, and never hanging."""

import asyncio
import concurrent.futures
import copy
import gc
import inspect
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from conftest import KEY, until

from openai_cancel import (
    APITimeoutError,
    AsyncSession,
    BadRequestError,
    ConfigurationError,
    NotFoundError,
    Session,
    SessionStateError,
    Verdict,
)
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.worker import LoopThread

HANG = Fault(delay=math.inf)


@pytest.fixture
def blocking(server: Emulator) -> Iterator[Session]:
    with Session(api_key=KEY, base_url=server.base_url) as session:
        yield session


def session_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "openai-cancel"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not session_threads()


async def test_the_same_calls(blocking: Session, server: Emulator, create) -> None:
    identifier = create()
    assert (await asyncio.to_thread(blocking.retrieve, identifier)).status == "in_progress"
    assert (await asyncio.to_thread(blocking.cancel, identifier, headers={"x-a": "1"})).status == "cancelled"
    with pytest.raises(NotFoundError):
        await asyncio.to_thread(blocking.cancel, "resp_none")
    assert server.received[1].headers["x-a"] == "1"
    assert repr(blocking) == f"<Session {server.base_url} open>"


async def test_stop(blocking: Session, create) -> None:
    outcome = await asyncio.to_thread(blocking.stop, create(runs_for=0), deadline=5, confirm=1)
    assert (outcome.verdict, outcome.attempts) == (Verdict.ALREADY_FINISHED, 2)
    with pytest.raises(ConfigurationError, match="confirm must be a number of seconds"):
        await asyncio.to_thread(blocking.stop, "resp_x", confirm=0)


async def test_from_many_threads_at_once(blocking: Session, create) -> None:
    """They share one loop: all are under way together, not one after the other."""
    identifiers = [create() for _ in range(50)]
    with ThreadPoolExecutor(50) as threads:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(threads, blocking.cancel, identifier) for identifier in identifiers]
        responses = await asyncio.gather(*calls)
    assert [response.id for response in responses] == identifiers


async def test_they_run_concurrently(blocking: Session, server: Emulator) -> None:
    server.faults += [HANG] * 20
    with ThreadPoolExecutor(20) as threads:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(threads, blocking.cancel, "x") for _ in range(20)]
        await until(lambda: len(server.received) == 20)
        blocking.close()
        for call in calls:
            with pytest.raises(SessionStateError, match="closed while the call was under way"):
                await call


class TestOwnServer:
    """The emulator in a thread of its own, so that the test itself may block."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        with asyncio.Runner() as runner:
            emulator = Emulator()
            runner.run(emulator.__aenter__())
            thread = threading.Thread(target=runner.get_loop().run_forever)
            thread.start()
            yield emulator.base_url
            runner.get_loop().call_soon_threadsafe(runner.get_loop().stop)
            thread.join()
            runner.run(emulator.__aexit__(None, None, None))

    def test_in_a_script(self, url: str) -> None:
        with Session(api_key=KEY, base_url=url) as session, pytest.raises(NotFoundError):
            session.cancel("resp_none")

    async def test_inside_a_running_loop(self, url: str) -> None:
        with Session(api_key=KEY, base_url=url) as session, pytest.raises(NotFoundError):
            session.cancel("resp_none")

    def test_azure_and_from_openai(self, url: str) -> None:
        import openai

        with Session.azure(url, api_key=KEY, max_retries=0) as session, pytest.raises(NotFoundError):
            session.cancel("x")
        with (
            openai.OpenAI(api_key=KEY, base_url=url) as client,
            Session.from_openai(client) as session,
            pytest.raises(NotFoundError),
        ):
            session.cancel("x")

    def test_a_time_out(self, url: str) -> None:
        async def hang() -> str:
            await asyncio.Event().wait()
            raise AssertionError

        with Session(api_key=hang, base_url=url) as session, pytest.raises(APITimeoutError):
            session.cancel("x", timeout=0.01, max_retries=0)

    def test_a_key_function_that_calls_the_session_is_told_so(self, url: str) -> None:
        with (
            Session(api_key=lambda: session.cancel("y"), base_url=url) as session,
            pytest.raises(SessionStateError, match="it would wait for itself"),
        ):
            session.cancel("x")

    def test_a_key_function_may_close_it(self, url: str) -> None:
        def close() -> str:
            session.close()
            return KEY

        with (
            Session(api_key=close, base_url=url) as session,
            pytest.raises(SessionStateError, match="closed while the call was under way|is closed"),
        ):
            session.cancel("x")


class TestInterruptions:
    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
    async def test_a_key_function_that_exits_takes_nobody_with_it(self, server: Emulator, create, kind) -> None:
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

    async def test_a_key_function_that_raises_cancelled_error(self, server: Emulator) -> None:
        def provide() -> str:
            raise asyncio.CancelledError

        def script() -> None:
            with (
                Session(api_key=provide, base_url=server.base_url) as session,
                pytest.raises(concurrent.futures.CancelledError),
            ):
                session.cancel("x")

        await asyncio.to_thread(script)

    def test_an_interpreter_that_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its other threads are frozen then: to wait for one would be to wait for ever."""
        with Session(api_key=KEY, base_url="http://127.0.0.1:9") as session, monkeypatch.context() as patched:
            patched.setattr(sys, "is_finalizing", lambda: True)
            with pytest.raises(SessionStateError, match="The interpreter is shutting down"):
                session.cancel("resp_x")

    async def test_an_interruption_before_the_call_was_handed_over(self, server: Emulator) -> None:
        def work() -> None:
            session = AsyncSession(api_key=KEY, base_url=server.base_url)
            loop_thread = LoopThread(session)
            loop_thread.start()
            loop = loop_thread.loop.result()
            hand_over = loop.call_soon_threadsafe

            def interrupted(*_: object) -> None:
                loop.call_soon_threadsafe = hand_over
                raise KeyboardInterrupt

            loop.call_soon_threadsafe = interrupted
            with pytest.raises(KeyboardInterrupt):
                loop_thread.run(session.cancel, "resp_x")
            loop_thread.close()

        await asyncio.to_thread(work)
        assert not server.received

    def test_open_that_is_interrupted_leaves_no_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Interrupted(concurrent.futures.Future):
            def result(self, timeout: float | None = None) -> object:
                outcome = super().result(timeout)
                if threading.current_thread() is threading.main_thread():
                    raise KeyboardInterrupt
                return outcome

        monkeypatch.setattr("openai_cancel.worker.Future", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            Session(api_key=KEY).open()

    def test_close_that_is_interrupted_can_be_called_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(_: threading.Thread) -> None:
            raise KeyboardInterrupt

        session = Session(api_key=KEY).open()
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(threading.Thread, "join", interrupted)
            session.close()
        session.close()

    def test_a_loop_that_could_not_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> asyncio.AbstractEventLoop:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(asyncio, "new_event_loop", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            Session(api_key=KEY).open()

    def test_what_nobody_waits_for_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Failing(AsyncSession):
            async def close(self) -> None:
                await super().close()
                raise RuntimeError("it could not be closed")

        shown: list[str] = []
        monkeypatch.setattr(threading, "excepthook", lambda hook: shown.append(str(hook.exc_value)))
        loop_thread = LoopThread(Failing(api_key=KEY))
        loop_thread.start()
        loop_thread.close()
        assert shown == ["it could not be closed"]

    def test_a_thread_that_could_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Session(api_key=KEY).open()

    def test_opened_by_many_threads_at_once(self) -> None:
        session = Session(api_key=KEY)
        with ThreadPoolExecutor(8) as threads:
            outcomes = [threads.submit(session.open) for _ in range(8)]
        assert sum(outcome.exception() is None for outcome in outcomes) == 1
        session.close()

    def test_closed_by_a_signal_handler_while_its_lock_is_held(self) -> None:
        with Session(api_key=KEY) as session, session._loop_thread._lock:
            session.close()

    async def test_a_failed_call_keeps_nothing_alive(self, blocking: Session, create) -> None:
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


class TestLife:
    @pytest.mark.parametrize("clone", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_it_cannot_be_pickled_or_copied(self, clone) -> None:
        with pytest.raises(TypeError, match="cannot be pickled or copied: it holds a key"):
            clone(Session(api_key=KEY))

    def test_a_repr_before_it_is_made(self) -> None:
        assert repr(Session.__new__(Session)) == "None"

    def test_before_it_is_open(self) -> None:
        session = Session(api_key=KEY)
        with pytest.raises(SessionStateError, match="not open: use `with Session"):
            session.cancel("x")
        session.close()

    def test_after_it_is_closed(self) -> None:
        with Session(api_key=KEY) as session:
            pass
        with pytest.raises(SessionStateError, match="closed: create another one"):
            session.cancel("x")
        with pytest.raises(SessionStateError, match="opened only once"):
            session.open()
        session.close()
        assert repr(session) == "<Session https://api.openai.com/v1 closed>"

    def test_closed_before_it_was_open(self) -> None:
        session = Session(api_key=KEY)
        session.close()
        with pytest.raises(SessionStateError, match="opened only once"):
            session.open()

    def test_opened_twice(self) -> None:
        with Session(api_key=KEY) as session, pytest.raises(SessionStateError, match="opened only once"):
            session.open()

    def test_a_setting_that_only_shows_when_it_opens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy")
        with pytest.raises(ConfigurationError, match="the proxy for https in the environment"):
            Session(api_key=KEY).open()

    def test_forgotten(self) -> None:
        with warnings.catch_warnings(record=True, action="always") as caught:
            session = Session(api_key=KEY).open()
            [thread] = session_threads()
            del session
            gc.collect()
        assert [str(warning.message) for warning in caught] == [
            "unclosed <Session https://api.openai.com/v1 open>: use `with`, or call its close()"
        ]
        thread.join()

    def test_forgotten_after_its_loop_has_died(self) -> None:
        session = Session(api_key=KEY).open()
        [thread] = session_threads()
        session._loop_thread.request_stop()
        thread.join()
        with pytest.warns(ResourceWarning, match="unclosed <Session"):
            session.__del__()
        session.close()

    def test_a_failed_constructor_is_silent_afterwards(self) -> None:
        with pytest.raises(ConfigurationError):
            Session()
        gc.collect()


@pytest.fixture
def hanging(server: Emulator) -> Emulator:
    server.faults += [HANG] * 10
    return server


async def test_ctrl_c_cancels_the_call_and_leaves_promptly(hanging: Emulator, python: str) -> None:
    script = f"""
from openai_cancel import Session
with Session(api_key="{KEY}", base_url="{hanging.base_url}", timeout=600) as session:
    session.cancel("x")
"""
    process = await asyncio.create_subprocess_exec(
        python, "-X", "dev", "-W", "error", "-c", script, stderr=asyncio.subprocess.PIPE
    )
    await until(lambda: hanging.received)
    process.send_signal(signal.SIGINT)
    _, shown = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == -signal.SIGINT
    assert shown.decode().rstrip().endswith("KeyboardInterrupt")
    assert b"Warning" not in shown
    assert KEY.encode() not in shown.replace(script.encode(), b"")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_after_a_fork_the_child_gets_an_error_and_the_parent_goes_on(
    server: Emulator, python: str, create
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
    done = await asyncio.to_thread(
        subprocess.run, [python, "-W", "error", "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    first, refused, own, last = done.stdout.splitlines()
    assert (first, own, last) == ("in_progress", "in_progress", "0 in_progress")
    assert "a fork does not copy its thread: open a session in this process" in refused
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_forgotten_session_is_the_parents_to_warn_of(python: str) -> None:
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
    done = await asyncio.to_thread(
        subprocess.run, [python, "-W", "error", "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_script_that_forgets_it_ends_all_the_same(python: str) -> None:
    script = f"from openai_cancel import Session; session = Session(api_key='{KEY}').open()"
    done = await asyncio.to_thread(
        subprocess.run, [python, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("make", [Session, Session.azure, Session.from_openai])
async def test_an_aiohttp_session_is_refused_at_once(make) -> None:
    """It belongs to the event loop of its owner."""
    arguments = {Session: (), Session.azure: ("https://host",), Session.from_openai: (object(),)}[make]
    async with aiohttp.ClientSession() as client:
        with pytest.raises(TypeError, match="client_session"):
            make(*arguments, client_session=client)


NAMES = [
    "__init__",
    "azure",
    "from_openai",
    "open",
    "close",
    "cancel",
    "retrieve",
    "stop",
    "guard",
    "wait",
    "stop_many",
]


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_calls_of_the_async_one(name: str) -> None:
    """Signature for signature, but for the aiohttp session, which belongs to another loop."""
    ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (Session, AsyncSession))
    expected = [parameter for key, parameter in theirs.parameters.items() if key != "client_session"]
    assert list(ours.parameters.values()) == expected
    assert name == "__init__" or inspect.getdoc(getattr(Session, name))


async def test_an_error_is_the_one_that_was_raised(blocking: Session, create) -> None:
    with pytest.raises(BadRequestError) as caught:
        await asyncio.to_thread(blocking.cancel, create(runs_for=0))
    assert caught.value.attempts == 1
    assert sys.exc_info() == (None, None, None)

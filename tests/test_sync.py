"""`Session`: the calls of `AsyncSession`, blocking, from a script, from threads and inside a running event loop."""

import asyncio
import copy
import gc
import inspect
import pickle
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import openai
import pytest
from conftest import KEY

from openai_cancel import (
    APITimeoutError,
    AsyncSession,
    ConfigurationError,
    NotFoundError,
    Outcome,
    Session,
    SessionStateError,
    Verdict,
)
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger


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


class TestCalls:
    async def test_cancel_and_retrieve_return_what_the_async_session_returns(
        self, blocking: Session, server: Emulator, create
    ) -> None:
        identifier = create()
        assert (await asyncio.to_thread(blocking.retrieve, identifier)).status == "in_progress"
        assert (await asyncio.to_thread(blocking.cancel, identifier, headers={"x-a": "1"})).status == "cancelled"
        with pytest.raises(NotFoundError):
            await asyncio.to_thread(blocking.cancel, "resp_none")
        assert server.received[1].headers["x-a"] == "1"
        assert repr(blocking) == f"<Session {server.base_url} open>"

    async def test_stop_returns_an_outcome_and_refuses_bad_options(self, blocking: Session, create) -> None:
        outcome = await asyncio.to_thread(blocking.stop, create(runs_for=0), deadline=5, confirm=1)
        assert (outcome.verdict, outcome.attempts) == (Verdict.ALREADY_FINISHED, 2)
        with pytest.raises(ConfigurationError, match="confirm must be a number of seconds"):
            await asyncio.to_thread(blocking.stop, "resp_x", confirm=0)

    async def test_calls_of_50_threads_run_at_the_same_time(self, blocking: Session, create) -> None:
        identifiers = [create() for _ in range(50)]
        with ThreadPoolExecutor(50) as threads:
            loop = asyncio.get_running_loop()
            calls = [loop.run_in_executor(threads, blocking.cancel, identifier) for identifier in identifiers]
            responses = await asyncio.gather(*calls)
        assert [response.id for response in responses] == identifiers


class TestInTheThreadOfTheTest:
    """The emulator runs in another thread, so that the test itself may block."""

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

    def test_a_script_can_make_a_call(self, url: str) -> None:
        with Session(api_key=KEY, base_url=url) as session, pytest.raises(NotFoundError):
            session.cancel("resp_none")

    async def test_a_coroutine_can_make_a_blocking_call(self, url: str) -> None:
        with Session(api_key=KEY, base_url=url) as session, pytest.raises(NotFoundError):
            session.cancel("resp_none")

    def test_azure_and_from_openai_create_blocking_sessions(self, url: str) -> None:
        with Session.azure(url, api_key=KEY, max_retries=0) as session, pytest.raises(NotFoundError):
            session.cancel("x")
        with (
            openai.OpenAI(api_key=KEY, base_url=url) as client,
            Session.from_openai(client) as session,
            pytest.raises(NotFoundError),
        ):
            session.cancel("x")

    def test_a_time_out_ends_a_blocking_call(self, url: str) -> None:
        async def hang() -> str:
            await asyncio.Event().wait()
            raise AssertionError

        with Session(api_key=hang, base_url=url) as session, pytest.raises(APITimeoutError):
            session.cancel("x", timeout=0.01, max_retries=0)

    def test_a_key_function_that_calls_its_own_session_gets_an_error(self, url: str) -> None:
        with (
            Session(api_key=lambda: session.cancel("y"), base_url=url) as session,
            pytest.raises(SessionStateError, match="this would deadlock"),
        ):
            session.cancel("x")

    def test_a_key_function_may_close_its_own_session(self, url: str) -> None:
        def close() -> str:
            session.close()
            return KEY

        with (
            Session(api_key=close, base_url=url) as session,
            pytest.raises(SessionStateError, match="closed while the call was under way|is closed"),
        ):
            session.cancel("x")


class TestOpeningAndClosing:
    def test_a_call_before_the_session_is_open_is_refused(self) -> None:
        session = Session(api_key=KEY)
        with pytest.raises(SessionStateError, match="not open: use `with Session"):
            session.cancel("x")
        session.close()

    def test_a_closed_session_cannot_be_used_or_opened_again(self) -> None:
        with Session(api_key=KEY) as session:
            pass
        with pytest.raises(SessionStateError, match="closed: create another one"):
            session.cancel("x")
        with pytest.raises(SessionStateError, match="opened only once"):
            session.open()
        session.close()
        assert repr(session) == "<Session https://api.openai.com/v1 closed>"

    def test_a_session_that_was_closed_first_cannot_be_opened(self) -> None:
        session = Session(api_key=KEY)
        session.close()
        with pytest.raises(SessionStateError, match="opened only once"):
            session.open()

    def test_an_open_session_cannot_be_opened_again(self) -> None:
        with Session(api_key=KEY) as session, pytest.raises(SessionStateError, match="opened only once"):
            session.open()

    def test_a_proxy_that_cannot_be_used_is_reported_by_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy")
        with pytest.raises(ConfigurationError, match="the proxy for https in the environment"):
            Session(api_key=KEY).open()


class TestGuard:
    """The end of the interpreter freezes the thread of a session."""

    def test_the_end_of_a_block_with_a_ledger_is_an_error_at_the_end_of_the_interpreter(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The ledger could not be told that the response may run on."""
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        with Session(api_key=KEY, base_url="http://127.0.0.1:9", ledger=ledger) as session:
            guard = session.guard("resp_1", grace=0.1)
            with monkeypatch.context() as patched, pytest.raises(SessionStateError, match="shutting down"), guard:
                patched.setattr(sys, "is_finalizing", lambda: True)

    def test_an_error_of_a_block_notes_that_nothing_could_be_stopped_at_the_end_of_the_interpreter(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Session(api_key=KEY, base_url="http://127.0.0.1:9") as session:
            guard = session.guard("resp_1", grace=0.1)
            with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError) as caught, guard:
                patched.setattr(sys, "is_finalizing", lambda: True)
                raise ZeroDivisionError
        [note] = caught.value.__notes__
        assert note.startswith(
            "openai-cancel: <Guard resp_1> could not stop its responses: The interpreter is shutting down"
        )


class TestForgettingToClose:
    def test_an_open_session_warns_when_it_is_collected_and_its_thread_ends(self) -> None:
        with warnings.catch_warnings(record=True, action="always") as caught:
            session = Session(api_key=KEY).open()
            [thread] = session_threads()
            del session
            gc.collect()
        assert [str(warning.message) for warning in caught] == [
            "unclosed <Session https://api.openai.com/v1 open>: use `with`, or call its close()"
        ]
        thread.join()

    def test_a_session_whose_thread_has_ended_warns_too(self) -> None:
        session = Session(api_key=KEY).open()
        [thread] = session_threads()
        with pytest.warns(ResourceWarning, match="unclosed <Session"):
            session.__del__()
        thread.join()
        with pytest.warns(ResourceWarning, match="unclosed <Session"):
            session.__del__()
        session.close()

    def test_a_constructor_that_failed_leaves_nothing_that_warns(self) -> None:
        with pytest.raises(ConfigurationError):
            Session()
        gc.collect()


class TestTheObject:
    @pytest.mark.parametrize("clone", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_a_session_cannot_be_pickled_or_copied(self, clone) -> None:
        with pytest.raises(TypeError, match="cannot be pickled or copied: it holds a key"):
            clone(Session(api_key=KEY))

    def test_a_session_without_settings_has_a_repr(self) -> None:
        assert repr(Session.__new__(Session)) == "None"

    @pytest.mark.parametrize("make", [Session, Session.azure, Session.from_openai])
    async def test_an_aiohttp_session_which_belongs_to_another_event_loop_is_refused(self, make) -> None:
        arguments = {Session: (), Session.azure: ("https://host",), Session.from_openai: (object(),)}[make]
        async with aiohttp.ClientSession() as client:
            with pytest.raises(TypeError, match="client_session"):
                make(*arguments, client_session=client)


@pytest.mark.parametrize(
    "name",
    [
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
        "wait_many",
    ],
)
def test_a_method_has_the_parameters_of_the_async_one(name: str) -> None:
    """All but `client_session`, which belongs to another event loop, and `abandoned`, as no thread can be cancelled."""
    blocking, asynchronous = (inspect.signature(getattr(cls, name)) for cls in (Session, AsyncSession))
    missing = {"client_session", "abandoned"}
    expected = [parameter for key, parameter in asynchronous.parameters.items() if key not in missing]
    assert list(blocking.parameters.values()) == expected
    assert name == "__init__" or inspect.getdoc(getattr(Session, name))


class TestManyThreads:
    """Sixteen threads share a session. In a free-threaded build of CPython, they run at the same time."""

    THREADS = 16
    ROUNDS = 2

    async def test_each_call_gets_its_own_answer(self, blocking: Session, server: Emulator, create) -> None:
        own = [[create() for _ in range(3 * self.ROUNDS)] for _ in range(self.THREADS)]
        shared, over = create(), create(runs_for=0)
        begin = threading.Barrier(self.THREADS)

        def work(names: list[str]) -> list[Outcome]:
            outcomes: list[Outcome] = []
            begin.wait()
            for first, second, third in zip(*[iter(names)] * 3, strict=True):
                assert blocking.retrieve(first).id == first
                outcomes.append(blocking.stop(first))
                with pytest.raises(ZeroDivisionError), blocking.guard(second) as guard:
                    raise ZeroDivisionError
                outcomes.append(guard.outcome)
                outcomes += blocking.stop_many([third, shared])
                assert blocking.wait(over).id == over
            return outcomes

        with ThreadPoolExecutor(self.THREADS) as pool:
            loop = asyncio.get_running_loop()
            done = await asyncio.gather(*(loop.run_in_executor(pool, work, names) for names in own))
        for names, outcomes in zip(own, done, strict=True):
            assert {outcome.response_id for outcome in outcomes} == {*names, shared}
            assert all(outcome.stopped for outcome in outcomes)
        assert [name for name, found in server.responses.items() if not found.cancelled] == [over]

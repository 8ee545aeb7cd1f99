"""A guard ends its block once a function reports that nobody waits for it any more."""

import asyncio
import functools
import logging
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from conftest import QuickSession, notes, until

from openai_cancel import AbandonedError, AsyncSession, ConfigurationError, Verdict, abandonment
from openai_cancel.emulator import Emulator, Fault

pytestmark = pytest.mark.usefixtures("no_task_is_left", "impatience")

SECOND = abandonment.POLL_INTERVAL
"""The interval outside of tests."""


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask more often, since most tests wait for the second question."""
    monkeypatch.setattr(abandonment, "POLL_INTERVAL", 0.02)


class Client:
    """A client that disconnects when a test says so.

    Attributes:
        gone: whether it has disconnected.
        questions: how often it was asked.
    """

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.questions = 0

    async def has_left(self) -> bool:
        self.questions += 1
        await asyncio.sleep(0)
        return self.gone

    def has_left_sync(self) -> bool:
        self.questions += 1
        return self.gone

    async def receive(self) -> dict[str, str]:
        self.questions += 1
        return {"type": "http.disconnect" if self.gone else "http.request"}


@pytest.fixture(params=["has_left", "has_left_sync", "receive"])
def client_and_question(request: pytest.FixtureRequest) -> tuple[Client, Callable[[], Any]]:
    client = Client()
    return client, getattr(client, request.param)


async def test_the_responses_are_stopped_and_the_block_raises_an_error(
    session: QuickSession, server: Emulator, create: Callable[..., str], client_and_question
) -> None:
    client, question = client_and_question
    name = create()
    with pytest.raises(AbandonedError) as caught:
        async with session.guard(name, abandoned=question) as guard:
            await until(lambda: client.questions)
            client.gone = True
            await asyncio.Event().wait()
    assert server.responses[name].cancelled
    assert caught.value.outcome == guard.outcome
    assert guard.outcome.verdict is Verdict.CANCELLED
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert question.__qualname__ in str(caught.value)
    assert asyncio.current_task().cancelling() == 0
    assert pickle.loads(pickle.dumps(caught.value)).outcome.verdict is Verdict.CANCELLED


@pytest.mark.slow
async def test_it_is_asked_about_once_a_second(
    session: QuickSession, create: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(abandonment, "POLL_INTERVAL", SECOND)
    client = Client()
    async with session.guard(create(), abandoned=client.has_left):
        await asyncio.sleep(1.5)
    assert client.questions == 2
    await asyncio.sleep(1.1)
    assert client.questions == 2


async def test_an_async_function_may_wait_until_the_client_has_left(
    session: QuickSession, server: Emulator, create: Callable[..., str]
) -> None:
    async def disconnected() -> bool:
        await left.wait()
        return True

    left, name = asyncio.Event(), create()
    with pytest.raises(AbandonedError):
        async with session.guard(name, abandoned=disconnected):
            await asyncio.sleep(0)
            left.set()
            await asyncio.Event().wait()
    assert server.responses[name].cancelled
    left.clear()
    async with session.guard(create(), abandoned=disconnected):
        await asyncio.sleep(0.01)


async def test_a_client_that_stays_changes_nothing(
    session: QuickSession, server: Emulator, create: Callable[..., str], client_and_question
) -> None:
    async with session.guard(create(), abandoned=client_and_question[1]):
        await asyncio.sleep(0.01)
    with pytest.raises(ValueError, match="mine"):
        async with session.guard(name := create(), abandoned=client_and_question[1]):
            raise ValueError("mine")
    assert [name for name, work in server.responses.items() if work.cancelled] == [name]


async def test_a_response_that_could_not_be_stopped_is_noted_in_the_error(
    session: QuickSession, server: Emulator, create: Callable[..., str]
) -> None:
    server.faults += [Fault(status=403, body="You may not.")] * 2
    with pytest.raises(AbandonedError) as caught:
        async with session.guard(create(), abandoned=Client(gone=True).has_left):
            await asyncio.Event().wait()
    assert "was not stopped (forbidden" in notes(caught.value)[0]
    assert caught.value.outcome.verdict is Verdict.FORBIDDEN


async def test_a_guard_without_responses_ends_its_block_as_well(session: QuickSession) -> None:
    with pytest.raises(AbandonedError) as caught:
        async with session.guard(abandoned=Client(gone=True).has_left):
            await asyncio.Event().wait()
    assert caught.value.outcome is None


async def test_a_guard_can_be_used_again(session: QuickSession, create: Callable[..., str]) -> None:
    client = Client(gone=True)
    guard = session.guard(create(), abandoned=client.has_left)
    with pytest.raises(AbandonedError):
        async with guard:
            await asyncio.Event().wait()
    client.gone = False
    async with guard:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("on_abandon", ["stop", "leave"])
async def test_a_wait_ends_too(server: Emulator, create: Callable[..., str], on_abandon: Any) -> None:
    name = create()
    async with AsyncSession(api_key="any", base_url=server.base_url) as session:
        with pytest.raises(AbandonedError) as caught:
            await session.wait(name, abandoned=Client(gone=True).has_left, on_abandon=on_abandon)
    assert bool(server.responses[name].cancelled) is (on_abandon == "stop")
    assert (caught.value.outcome is not None) is (on_abandon == "stop")


class TestFunctionThatFails:
    async def test_it_is_logged_once_and_the_block_runs_on(
        self, session: QuickSession, create: Callable[..., str], caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken() -> bool:
            questions.append(1)
            raise OSError("it knows sk-secret")

        questions: list[int] = []
        async with session.guard(create(), abandoned=broken):
            await until(lambda: len(questions) == 2)
        (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert line.endswith("broken raised OSError: the block runs on")

    @pytest.mark.parametrize("is_async", [False, True])
    async def test_one_that_raises_a_cancellation_of_its_own_is_asked_again(
        self, session: QuickSession, create: Callable[..., str], caplog: pytest.LogCaptureFixture, *, is_async: bool
    ) -> None:
        def cancelled_once() -> Any:
            questions.append(1)
            if len(questions) > 1:
                return True
            if not is_async:
                raise asyncio.CancelledError
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            return future

        questions: list[int] = []
        with pytest.raises(AbandonedError):
            async with session.guard(create(), abandoned=cancelled_once):
                await asyncio.wait_for(asyncio.Event().wait(), 10)
        assert "cancelled_once raised CancelledError: the block runs on" in caplog.text

    async def test_one_that_swallows_its_cancellation_does_not_hold_the_block_up(
        self, session: QuickSession, create: Callable[..., str]
    ) -> None:
        async def stubborn() -> bool:
            asked.set()
            while True:
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue
                return False

        asked, released = asyncio.Event(), asyncio.Event()
        began = asyncio.get_running_loop().time()
        async with session.guard(create(), abandoned=stubborn):
            await asked.wait()
        assert asyncio.get_running_loop().time() - began < 2
        released.set()
        await asyncio.sleep(0.01)

    @pytest.mark.parametrize("value", [True, "request.is_disconnected", object()])
    async def test_a_value_that_is_no_function_is_refused(self, session: QuickSession, value: Any) -> None:
        with pytest.raises(ConfigurationError, match="abandoned must be a function"):
            session.guard("resp_x", abandoned=value)

    async def test_a_coroutine_is_refused_without_a_warning(self, session: QuickSession) -> None:
        with warnings.catch_warnings(), pytest.raises(ConfigurationError, match=r"without \(\)"):
            warnings.simplefilter("error")
            await session.wait("resp_x", abandoned=Client().has_left())

    async def test_an_object_that_can_be_called_needs_no_name(
        self, session: QuickSession, create: Callable[..., str]
    ) -> None:
        with pytest.raises(AbandonedError, match="partial"):
            async with session.guard(create(), abandoned=functools.partial(bool, 1)):
                await asyncio.Event().wait()


class TestOtherEnds:
    """Only the cancellation of the monitor becomes an error."""

    async def test_another_cancellation_beside_it_takes_precedence(
        self, session: QuickSession, create: Callable[..., str]
    ) -> None:
        def gone() -> bool:
            task.cancel("other")
            return True

        async def work() -> None:
            async with session.guard(create(), abandoned=gone):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    async def test_a_cancellation_during_the_stop_takes_effect_afterwards(
        self, session: QuickSession, server: Emulator, create: Callable[..., str]
    ) -> None:
        async def work() -> None:
            try:
                async with session.guard(create(), abandoned=Client(gone=True).has_left):
                    await asyncio.Event().wait()
            except AbandonedError:
                seen.append(True)
                await asyncio.Event().wait()

        seen: list[bool] = []
        server.faults.append(Fault(on="cancel", delay=0.1))
        task = asyncio.create_task(work())
        await until(lambda: server.received)
        task.cancel("later")
        with pytest.raises(asyncio.CancelledError, match="later"):
            await task
        assert seen

    async def test_a_cancellation_while_a_block_that_has_ended_waits_for_the_monitor_takes_effect_afterwards(
        self, session: QuickSession, create: Callable[..., str]
    ) -> None:
        async def slow_to_end() -> bool:
            try:
                asked.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ending.set()
                await asyncio.sleep(0.05)
                raise

        async def work() -> None:
            async with session.guard(create(), abandoned=slow_to_end):
                await asked.wait()
            ended.append(True)
            await asyncio.Event().wait()

        asked, ending, ended = asyncio.Event(), asyncio.Event(), []
        task = asyncio.create_task(work())
        await ending.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [True]

    async def test_an_error_of_the_blocks_own_cleanup_is_raised(
        self, session: QuickSession, server: Emulator, create: Callable[..., str]
    ) -> None:
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(name := create(), abandoned=Client(gone=True).has_left):
                try:
                    await asyncio.Event().wait()
                finally:
                    raise ValueError("mine")
        assert server.responses[name].cancelled
        assert asyncio.current_task().cancelling() == 0

    async def test_a_block_that_swallows_the_cancellation_ends_normally(
        self, session: QuickSession, server: Emulator, create: Callable[..., str]
    ) -> None:
        async with session.guard(create(), abandoned=Client(gone=True).has_left):
            with pytest.raises(asyncio.CancelledError, match="has_left returned true"):
                await asyncio.Event().wait()
        assert not server.received
        assert asyncio.current_task().cancelling() == 0

    async def test_a_timeout_around_it_stays_a_timeout(self, session: QuickSession, create: Callable[..., str]) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), session.guard(create(), abandoned=Client().has_left):
                await asyncio.Event().wait()

    async def test_a_timeout_and_a_task_group_inside_pass_it_on(
        self, session: QuickSession, create: Callable[..., str]
    ) -> None:
        with pytest.raises(AbandonedError):
            async with (
                session.guard(create(), abandoned=Client(gone=True).has_left),
                asyncio.timeout(30),
                asyncio.TaskGroup() as group,
            ):
                group.create_task(asyncio.Event().wait())

    async def test_a_scope_of_anyio_around_it_is_not_confused(
        self, session: QuickSession, create: Callable[..., str]
    ) -> None:
        with anyio.move_on_after(30) as scope, pytest.raises(AbandonedError):
            async with session.guard(create(), abandoned=Client(gone=True).has_left):
                await anyio.sleep_forever()
        assert not scope.cancelled_caught

    async def test_a_guard_around_it_stops_its_responses_too(
        self, session: QuickSession, server: Emulator, create: Callable[..., str]
    ) -> None:
        with pytest.raises(AbandonedError):
            async with session.guard(create()), session.guard(create(), abandoned=Client(gone=True).has_left):
                await asyncio.Event().wait()
        assert all(work.cancelled for work in server.responses.values())


def test_a_loop_that_is_closed_around_a_watched_block_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The interpreter discards the coroutine, so nothing can be stopped."""

    async def work(session: AsyncSession) -> None:
        async with session.guard("resp_a", abandoned=Client().has_left):
            await asyncio.Event().wait()

    async def main() -> None:
        await session.open()
        coroutine.send(None)

    session = AsyncSession(api_key="any", base_url="http://127.0.0.1:9")
    coroutine = work(session)
    with asyncio.Runner() as runner:
        runner.run(main())
        coroutine.close()
        runner.run(session.close())
    assert "could not stop its responses" in caplog.text


class Request:
    """A request of Starlette below a BaseHTTPMiddleware, whose `is_disconnected` never returns True."""

    def __init__(self) -> None:
        self.messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def is_disconnected(self) -> bool:
        return False

    async def receive(self) -> dict[str, str]:
        return self.messages.pop(0)


async def test_the_receive_of_a_request_is_asked_in_place_of_its_is_disconnected(
    session: QuickSession, create: Callable[..., str]
) -> None:
    with pytest.raises(AbandonedError):
        async with session.guard(create(), abandoned=Request().is_disconnected) as guard:
            await asyncio.Event().wait()
    assert guard.outcome.verdict is Verdict.CANCELLED

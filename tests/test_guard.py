"""`guard` and `wait`: whatever ends the block, the remote work ends first, and nothing of asyncio's is bent."""

import asyncio
import contextlib
import itertools
import logging
import math
import pickle
import signal
import sys
import traceback
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from conftest import KEY, HastyClock, QuickClock, QuickSession, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openai_cancel import (
    AsyncSession,
    ConfigurationError,
    InvalidResponseIdError,
    NotFoundError,
    PermissionDeniedError,
    Response,
    Session,
    SessionStateError,
    Verdict,
    WaitTimeoutError,
)
from openai_cancel.caller import Caller
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.stop import stop

SLOW = Fault(on="cancel", delay=0.05)


def cancels(server: Emulator) -> int:
    return sum(request.method == "POST" for request in server.received)


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task outlives a block, and none is left with a cancel that it was not meant to have."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(5):
        await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
    assert asyncio.current_task().cancelling() == 0


class TestException:
    async def test_the_remote_goes_first_and_the_same_exception_goes_on(self, session, server, create) -> None:
        identifier, raised = create(), ValueError("mine")
        with pytest.raises(ValueError, match="mine") as caught:
            async with session.guard(identifier) as guard:
                raise raised
        assert caught.value is raised
        assert traceback.extract_tb(raised.__traceback__)[-1].line == "raise raised"
        assert (raised.__cause__, raised.__context__, notes(raised)) == (None, None, [])
        assert server.responses[identifier].cancelled
        assert guard.outcome.verdict is Verdict.CANCELLED
        assert cancels(server) == 1

    async def test_a_block_that_ends_normally_leaves_it_alone(self, session, server, create) -> None:
        async with session.guard(create()) as guard:
            pass
        assert (guard.outcome, server.received) == (None, [])

    @pytest.mark.parametrize("way", ["return", "break"])
    async def test_so_do_return_and_break(self, session, server, create, way) -> None:
        async def block() -> None:
            for _ in range(1):
                async with session.guard(create()):
                    if way == "return":
                        return
                    break

        await block()
        assert server.received == []

    async def test_disarmed(self, session, server, create) -> None:
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create()) as guard:
                guard.disarm()
                raise ValueError("mine")
        assert server.received == []
        assert repr(guard) == "<Guard disarmed>"

    async def test_many_at_once_and_one_more(self, session, server, create) -> None:
        identifiers = [create() for _ in range(20)]
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(*identifiers) as guard:
                identifiers.append(create())
                guard.add(Response(id=identifiers[-1]))
                guard.add(identifiers[0])
                assert repr(guard) == f"<Guard {', '.join(identifiers)}>"
                raise ValueError("mine")
        assert list(guard.outcomes) == identifiers
        assert all(outcome.verdict is Verdict.CANCELLED for outcome in guard.outcomes.values())
        assert guard.outcome is guard.outcomes[identifiers[0]]
        assert cancels(server) == 21

    async def test_nested(self, session, server, create) -> None:
        outer, inner = create(), create()
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(outer), session.guard(inner):
                raise ValueError("mine")
        assert [request.path.split("/")[3] for request in server.received] == [inner, outer]

    async def test_nested_and_caught_in_between(self, session, server, create) -> None:
        outer, inner = create(), create()
        async with session.guard(outer):
            with suppress(ValueError):
                async with session.guard(inner):
                    raise ValueError("mine")
        assert server.responses[inner].cancelled
        assert not server.responses[outer].cancelled

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_what_ends_the_program(self, kind: type[BaseException]) -> None:
        async def main() -> None:
            async with Emulator(script=Script(runs_for=math.inf)) as server:
                identifier = server.add()
                async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
                    try:
                        async with session.guard(identifier):
                            raise kind
                    finally:
                        seen.append(bool(server.responses[identifier].cancelled))

        seen: list[bool] = []
        with pytest.raises(kind):
            asyncio.run(main())
        assert seen == [True]

    async def test_a_generator_that_is_closed(self, session, server, create) -> None:
        async def events() -> AsyncIterator[int]:
            async with session.guard(create()):
                for number in itertools.count():
                    yield number

        stream = events()
        assert await anext(stream) == 0
        await stream.aclose()
        assert cancels(server) == 1

    async def test_an_exception_group_is_left_whole(self, session, create) -> None:
        group = ExceptionGroup("several", [ValueError("a"), TypeError("b")])
        with pytest.raises(ExceptionGroup) as caught:
            async with session.guard(create()):
                raise group
        assert caught.value is group


class TestWhatCannotBeStopped:
    async def test_it_is_noted_and_logged(self, session, server, create, caplog) -> None:
        identifier = create()
        server.faults += [Fault(status=403, body="You may not.")] * 2
        with pytest.raises(ValueError, match="mine") as caught:
            async with session.guard(identifier) as guard:
                raise ValueError("mine")
        (note,) = notes(caught.value)
        assert note.startswith(f"openai-cancel: {identifier} was not stopped (forbidden: 403: You may not.")
        assert guard.outcome.verdict is Verdict.FORBIDDEN
        (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert line.getMessage() == f"{identifier} was not stopped (forbidden, PermissionDeniedError)"

    async def test_still_running(self, session, create) -> None:
        with pytest.raises(ValueError, match="mine") as caught:
            async with session.guard(create(resumes_after=0, resumes=99)):
                raise ValueError("mine")
        assert notes(caught.value)[0].endswith("was not stopped (still_running)")

    async def test_what_is_over_needs_no_note(self, session, create) -> None:
        with pytest.raises(ValueError, match="mine") as caught:
            async with session.guard(create(runs_for=0)):
                raise ValueError("mine")
        assert notes(caught.value) == []

    async def test_it_is_bounded_by_the_grace(self, server, create) -> None:
        server.faults += [Fault(delay=math.inf)] * 9
        loop = asyncio.get_running_loop()
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            began = loop.time()
            with pytest.raises(ValueError, match="mine") as caught:
                async with session.guard(create(), grace=0.3):
                    raise ValueError("mine")
        assert 0.25 < loop.time() - began < 3
        assert "was not stopped (unknown: No complete answer within the deadline" in notes(caught.value)[0]

    async def test_a_session_that_was_closed(self, session, create) -> None:
        with pytest.raises(ValueError, match="mine") as caught:
            async with session.guard(create()):
                await session.close()
                raise ValueError("mine")
        assert "was not stopped (The session is closed: create another one.)" in notes(caught.value)[0]

    async def test_a_key_function_that_fails(self, server) -> None:
        def key() -> str:
            raise OSError("the vault is shut; it knows sk-secret")

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            with pytest.raises(ValueError, match="mine") as caught:
                async with session.guard("resp_a", "resp_b"):
                    raise ValueError("mine")
        assert notes(caught.value) == [f"openai-cancel: resp_{n} was not stopped (OSError)" for n in "ab"]

    async def test_one_that_ends_the_program_ends_it_after_the_rest_was_stopped(self, server, create) -> None:
        calls = iter([SystemExit(3), KEY, KEY])

        def key() -> str:
            if isinstance(answer := next(calls), BaseException):
                raise answer
            return answer

        other = create()
        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            with pytest.raises(SystemExit) as caught:
                async with session.guard("resp_a", other):
                    raise ValueError("mine")
        assert notes(caught.value.__context__) == ["openai-cancel: resp_a was not stopped (SystemExit)"]
        assert server.responses[other].cancelled

    async def test_a_key_function_that_says_it_was_cancelled(self, server) -> None:
        """Nobody has cancelled this task: a refresh that it shares with others, say."""
        calls: list[int] = []

        async def key() -> str:
            calls.append(1)
            raise asyncio.CancelledError

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            with pytest.raises(ValueError, match="mine") as caught:
                async with session.guard("resp_a", grace=0.2):
                    raise ValueError("mine")
        assert notes(caught.value) == ["openai-cancel: resp_a was not stopped (CancelledError)"]
        assert len(calls) == 1

    async def test_an_exception_that_takes_no_notes(self, session, server) -> None:
        class StrangeError(Exception):
            def add_note(self, note: str) -> None:
                raise RuntimeError(note)

        with pytest.raises(StrangeError):
            async with session.guard("resp_none"):
                raise StrangeError
        assert cancels(server) == 1

    async def test_a_guard_that_is_used_again_tries_again(self, session, server, create) -> None:
        guard = session.guard(create())
        server.faults += [Fault(status=403)] * 2
        for seen in (Verdict.FORBIDDEN, Verdict.CANCELLED):
            with pytest.raises(ValueError, match="mine"):
                async with guard:
                    raise ValueError("mine")
            assert guard.outcome.verdict is seen
        with pytest.raises(ValueError, match="mine"):
            async with guard:
                raise ValueError("mine")
        assert cancels(server) == 2

    async def test_failures_keep_no_frames(self, server) -> None:
        def key() -> str:
            raise OSError

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            guard = session.guard("resp_a")
            with pytest.raises(ValueError, match="mine"):
                async with guard:
                    raise ValueError("mine")
        assert [failure.__traceback__ for failure in guard._failures.values()] == [None]


class TestCancelled:
    async def test_a_task(self, session, server, create) -> None:
        identifier = create()

        async def work() -> None:
            async with session.guard(identifier):
                await asyncio.sleep(1000)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel("a message")
        with pytest.raises(asyncio.CancelledError, match="a message"):
            await task
        assert task.cancelling() == 1
        assert server.responses[identifier].cancelled
        assert cancels(server) == 1

    @pytest.mark.parametrize("times", [2, 10])
    async def test_again_and_again(self, session, server, create, times: int) -> None:
        async def work() -> None:
            async with session.guard(create()):
                await asyncio.sleep(1000)

        server.faults.append(SLOW)
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.002)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (task.cancelling(), cancels(server)) == (times, 1)
        assert next(iter(server.responses.values())).cancelled

    async def test_during_the_stop_of_a_block_that_failed(self, session, server, create) -> None:
        """The block's exception goes on, and the cancel is not lost: it comes at the next await."""
        reached: list[str] = []

        async def work() -> None:
            try:
                async with session.guard(create()):
                    raise ValueError("mine")
            except ValueError:
                reached.append("except")
                await asyncio.sleep(0)
                reached.append("after")

        server.faults.append(SLOW)
        task = asyncio.create_task(work())
        await until(lambda: cancels(server))
        task.cancel("late")
        with pytest.raises(asyncio.CancelledError, match="late"):
            await task
        assert (reached, task.cancelling()) == (["except"], 1)

    async def test_asyncio_timeout(self, session, server, create) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with session.guard(create()):
                    await asyncio.sleep(1000)
        assert asyncio.current_task().cancelling() == 0
        assert cancels(server) == 1

    async def test_a_timeout_that_comes_during_the_stop(self, session, server, create) -> None:
        server.faults.append(Fault(on="cancel", delay=0.1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                try:
                    async with session.guard(create()):
                        raise ValueError("mine")
                except ValueError:
                    await asyncio.sleep(1000)
        assert (asyncio.current_task().cancelling(), cancels(server)) == (0, 1)

    async def test_a_timeout_that_comes_during_the_stop_and_is_over_with_it(self, session, server, create) -> None:
        """Who has sent the cancel has taken it back: it must not come later, out of nowhere."""
        server.faults += [Fault(on="cancel", delay=0.1)] * 2
        with pytest.raises(ValueError, match="mine"):
            async with asyncio.timeout(0.03), session.guard(create()):
                raise ValueError("mine")
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert asyncio.current_task().cancelling() == 0

    async def test_a_cancel_that_was_swallowed_before_the_block_is_none_of_it(self, session, server, create) -> None:
        """A task counts it all its life; the time-out's own is over with the time-out."""

        async def work() -> str:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)
            with suppress(ValueError):
                async with asyncio.timeout(0.03), session.guard(create()):
                    raise ValueError("mine")
            await asyncio.sleep(0.01)
            return "went on"

        server.faults += [Fault(on="cancel", delay=0.1)] * 2
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "went on"

    async def test_a_timeout_and_a_cancel_during_the_stop(self, session, server, create) -> None:
        """The task was cancelled from outside, too: that is no time-out."""

        async def work() -> None:
            async with asyncio.timeout(0.01):
                async with session.guard(create()):
                    await asyncio.sleep(1000)

        server.faults.append(SLOW)
        task = asyncio.create_task(work())
        await until(lambda: cancels(server))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    async def test_a_timeout_inside_is_the_blocks_own(self, session, server, create) -> None:
        async with session.guard(create()):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(1000)
        assert cancels(server) == 0

    async def test_a_task_group_that_fails(self, session, server, create) -> None:
        identifiers = [create(), create()]

        async def work(identifier: str) -> None:
            async with session.guard(identifier):
                await asyncio.sleep(1000)

        async def fail() -> None:
            await asyncio.sleep(0.01)
            raise ValueError("mine")

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                for identifier in identifiers:
                    group.create_task(work(identifier))
                group.create_task(fail())
        assert [str(error) for error in caught.value.exceptions] == ["mine"]
        assert all(server.responses[identifier].cancelled for identifier in identifiers)

    async def test_a_group_inside_the_guard(self, session, server, create) -> None:
        async def fail() -> None:
            raise ValueError("mine")

        with pytest.raises(ExceptionGroup):
            async with session.guard(create()), asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.sleep(1000)
        assert cancels(server) == 1

    async def test_anyio(self, session, server, create) -> None:
        """Its scopes cancel at every turn of the loop, from which the stop is shielded."""
        server.faults.append(SLOW)
        with anyio.move_on_after(0.01) as scope:
            async with session.guard(create()):
                await anyio.sleep(1000)
        assert scope.cancelled_caught
        assert cancels(server) == 1

        async def work() -> None:
            async with session.guard(create()):
                await anyio.sleep(1000)

        server.faults.append(SLOW)
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await asyncio.sleep(0.01)
            group.cancel_scope.cancel()
        assert cancels(server) == 2
        assert all(work.cancelled for work in server.responses.values())

    async def test_anyio_does_not_storm(self, session, server, create, monkeypatch) -> None:
        waits: list[object] = []
        wait = asyncio.wait
        monkeypatch.setattr(asyncio, "wait", lambda tasks: waits.append(tasks) or wait(tasks))
        server.faults.append(SLOW)
        with anyio.move_on_after(0.01):
            async with session.guard(create()):
                await anyio.sleep(1000)
        assert len(waits) == 1

    @pytest.mark.parametrize("stub", [object(), None])
    async def test_an_anyio_that_does_not_work_here(self, session, server, create, monkeypatch, stub) -> None:
        monkeypatch.setitem(sys.modules, "anyio", stub)
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create()):
                raise ValueError("mine")
        assert cancels(server) == 1

    async def test_without_anyio(self, session, server, create, monkeypatch) -> None:
        monkeypatch.delitem(sys.modules, "anyio")
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create()):
                raise ValueError("mine")
        assert cancels(server) == 1


@pytest.mark.parametrize("when", ["in the block", "during the stop"])
def test_a_loop_that_shuts_down(when: str) -> None:
    """`asyncio.run` cancels every task at its end, those that stop something as well."""
    stopped: list[bool] = []

    async def main() -> None:
        async def work() -> None:
            try:
                async with session.guard(identifier):
                    if when == "during the stop":
                        raise ValueError("mine")
                    await asyncio.sleep(1000)
            finally:
                stopped.append(bool(server.responses[identifier].cancelled))

        server.faults.append(Fault(on="cancel", delay=0.05))
        task = asyncio.create_task(work())
        await (asyncio.sleep(0.01) if when == "in the block" else until(lambda: cancels(server)))
        kept.append(task)
        # What `main` leaves open is what the loop finds when it ends.

    async def everything() -> None:
        nonlocal server, session, identifier
        server = await Emulator(script=Script(runs_for=math.inf)).__aenter__()
        session = await AsyncSession(base_url=server.base_url, api_key=KEY).open()
        identifier = server.add()
        keeper = asyncio.create_task(keep_open())
        await asyncio.sleep(0)
        await main()
        kept.append(keeper)

    async def keep_open() -> None:
        """The server and the session, which close after the others have ended."""
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        await until(lambda: stopped)
        await session.close()
        await server.__aexit__(None, None, None)

    server: Any = None
    session: Any = None
    identifier = ""
    kept: list[asyncio.Task[None]] = []
    asyncio.run(everything(), debug=True)
    assert stopped == [True]
    assert isinstance(kept[0].exception() if not kept[0].cancelled() else None, ValueError | None)


class TestBadInput:
    @pytest.mark.parametrize("identifier", ["", "..", 5, None])
    async def test_ids_are_refused_before_the_block(self, session, server, identifier: Any) -> None:
        with pytest.raises(InvalidResponseIdError):
            session.guard("resp_x", identifier)
        with pytest.raises(InvalidResponseIdError):
            session.guard().add(identifier)
        with pytest.raises(InvalidResponseIdError):
            await session.wait(identifier)
        assert not server.received

    @pytest.mark.parametrize(
        ("options", "kind", "words"),
        [
            ({"max_retries": -1}, ConfigurationError, "max_retries must be a whole number"),
            ({"headers": {"a": "b\n"}}, ConfigurationError, "without line breaks"),
            ({"query": 5}, ConfigurationError, "query"),
            ({"bogus": 1}, TypeError, "bogus"),
        ],
    )
    async def test_options_are_refused_before_the_block(self, session, options: Any, kind, words) -> None:
        with pytest.raises(kind, match=words):
            session.guard("resp_x", **options)

    @pytest.mark.parametrize("grace", [0, -1, None, "1"])
    async def test_grace(self, session, grace: Any) -> None:
        with pytest.raises(ConfigurationError, match="grace must be a number of seconds"):
            session.guard("resp_x", grace=grace)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"timeout": 0}, "timeout must be a number of seconds"),
            ({"on_abandon": "pause"}, "on_abandon must be 'stop' or 'leave', not 'pause'"),
            ({"grace": 0}, "grace must be"),
        ],
    )
    async def test_wait(self, session, server, options: Any, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            await session.wait("resp_x", **options)
        assert not server.received


class TestWait:
    async def test_to_the_end(self, server, create, clock: QuickClock) -> None:
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            response = await session.wait(create(runs_for=20, says="Done."))
        assert (response.status, response.output_text) == ("completed", "Done.")
        assert session.clock.slept == [0.5, 1, 2, 4, 8, 8]
        assert cancels(server) == 0

    @pytest.mark.parametrize("becomes", ["failed", "incomplete"])
    async def test_other_ends(self, session, create, becomes: str) -> None:
        assert (await session.wait(create(runs_for=0, becomes=becomes), timeout=1)).status == becomes

    async def test_it_was_cancelled_by_somebody_else(self, session, create) -> None:
        identifier = create()
        await session.cancel(identifier)
        assert (await session.wait(identifier)).status == "cancelled"

    async def test_errors_that_pass(self, session: QuickSession, server, create) -> None:
        server.faults += [Fault(status=503)] * 7 + [Fault(cut="connection"), Fault(status=200, body=b"<html>")]
        server.faults += [Fault(status=429, headers={"retry-after": "3"})]
        assert (await session.wait(create(runs_for=0), max_retries=1)).status == "completed"
        assert session.clock.slept[-1] == 3

    async def test_retry_after(self, session: QuickSession, server, create) -> None:
        server.faults.append(
            Fault(status=200, body={"id": "resp_x", "status": "queued"}, headers={"retry-after-ms": "1500"})
        )
        await session.wait(create(runs_for=0))
        assert session.clock.slept == [1.5]

    async def test_a_time_out_stops_it(self, session: QuickSession, server, create) -> None:
        identifier = create()
        with pytest.raises(WaitTimeoutError) as caught:
            await session.wait(identifier, timeout=10)
        error = caught.value
        assert str(error) == f"{identifier} did not end within 10 s: its status was 'in_progress'."
        assert isinstance(error, TimeoutError)
        assert (error.outcome.verdict, error.response.status) == (Verdict.CANCELLED, "in_progress")
        assert server.responses[identifier].cancelled
        assert sum(session.clock.slept) == 10
        assert notes(error) == []

    async def test_without_any_answer(self, session: QuickSession, server) -> None:
        server.faults += [Fault(status=503)] * 100
        with pytest.raises(WaitTimeoutError, match="resp_x did not end within 5 s: no answer") as caught:
            await session.wait("resp_x", timeout=5, grace=3)
        assert caught.value.outcome.verdict is Verdict.UNKNOWN
        assert "resp_x was not stopped (unknown: 503" in notes(caught.value)[0]

    async def test_left_running(self, session, server, create) -> None:
        with pytest.raises(WaitTimeoutError) as caught:
            await session.wait(create(), timeout=3, on_abandon="leave")
        assert (caught.value.outcome, cancels(server)) == (None, 0)

    @pytest.mark.parametrize("on_abandon", ["stop", "leave"])
    async def test_a_task_that_is_cancelled(self, server, create, on_abandon) -> None:
        identifier = create()
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            task = asyncio.create_task(session.wait(identifier, on_abandon=on_abandon))
            await until(lambda: server.received)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert bool(server.responses[identifier].cancelled) is (on_abandon == "stop")

    async def test_what_will_not_pass(self, session) -> None:
        with pytest.raises(NotFoundError) as caught:
            await session.wait("resp_none")
        assert "resp_none was not stopped (not_found" in notes(caught.value)[0]

    async def test_options_of_requests(self, session, server, create) -> None:
        with pytest.raises(WaitTimeoutError):
            await session.wait(create(), timeout=1, headers={"x-team": "a"})
        assert {request.headers["x-team"] for request in server.received} == {"a"}

    async def test_the_error_is_data(self, session, create) -> None:
        with pytest.raises(WaitTimeoutError) as caught:
            await session.wait(create(), timeout=1)
        other = pickle.loads(pickle.dumps(caught.value))
        assert (str(other), other.outcome, other.response) == (
            str(caught.value), caught.value.outcome, caught.value.response,
        )  # fmt: skip


class TestWaitThatIsRefused:
    @pytest.mark.parametrize("status", [403, 404, 400, 410])
    @pytest.mark.parametrize("times", [1, 2])
    async def test_a_refusal_that_passes_does_not_end_the_wait(self, session, server, create, status, times) -> None:
        server.faults += [Fault(on="retrieve", status=status)] * times
        response = await session.wait(create(runs_for=0))
        assert response.status == "completed"
        assert cancels(server) == 0

    async def test_refusals_between_which_the_server_reports_do_not_end_the_wait(self, server, create, clock) -> None:
        refused = Fault(on="retrieve", status=404)
        answer = Fault(on="retrieve", status=200, body={"id": "resp_x", "status": "in_progress"})
        server.faults += [refused, refused, answer, refused, refused]
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            assert (await session.wait(create(runs_for=5))).status == "completed"

    @pytest.mark.parametrize(("status", "kind"), [(403, PermissionDeniedError), (404, NotFoundError)])
    async def test_three_refusals_in_a_row_end_it_and_the_error_has_the_outcome(
        self, session, server, caplog, status: int, kind
    ) -> None:
        server.faults += [Fault(on="retrieve", status=status)] * 3
        identifier = server.add()
        with pytest.raises(kind) as caught:
            await session.wait(identifier)
        assert caught.value.outcome.verdict is Verdict.CANCELLED
        assert notes(caught.value) == [f"openai-cancel: {identifier} was stopped (cancelled) as the wait ended"]
        assert f"{identifier}: the wait ended with {kind.__name__}; the response: cancelled" in caplog.text
        assert [request.method for request in server.received] == ["GET"] * 3 + ["POST"]

    async def test_a_response_that_may_run_on_is_reported_too(self, session, server, create, caplog) -> None:
        server.faults += [Fault(on="retrieve", status=403)] * 3
        identifier = create()
        with pytest.raises(PermissionDeniedError) as caught:
            await session.wait(identifier, on_abandon="leave")
        assert (caught.value.outcome, cancels(server)) == (None, 0)
        assert (
            f"{identifier}: the wait ended with PermissionDeniedError, and the response was not stopped" in caplog.text
        )

    async def test_an_unknown_id_is_not_found_after_three_looks(self, session) -> None:
        with pytest.raises(NotFoundError) as caught:
            await session.wait("resp_none")
        assert caught.value.outcome.verdict is Verdict.NOT_FOUND
        assert "resp_none was not stopped (not_found" in notes(caught.value)[0]

    async def test_the_error_with_its_outcome_is_data(self, session, server, create) -> None:
        server.faults += [Fault(on="retrieve", status=404)] * 3
        with pytest.raises(NotFoundError) as caught:
            await session.wait(create())
        assert pickle.loads(pickle.dumps(caught.value)).outcome == caught.value.outcome


class TestSessionThatCanStopNothing:
    """A guard refuses its block if its session cannot send a request."""

    async def test_a_session_that_is_not_open(self) -> None:
        session = AsyncSession(api_key=KEY, base_url="http://127.0.0.1:9")
        with pytest.raises(SessionStateError, match="The session is not open"):
            async with session.guard("resp_x"):
                pytest.fail("the block ran")

    async def test_a_session_that_is_closed(self, session) -> None:
        await session.close()
        with pytest.raises(SessionStateError, match="The session is closed"):
            async with session.guard("resp_x"):
                pytest.fail("the block ran")

    async def test_a_session_of_another_event_loop(self, session) -> None:
        async def work() -> None:
            async with session.guard("resp_x"):
                pytest.fail("the block ran")

        with pytest.raises(SessionStateError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, work())

    async def test_a_guard_may_be_created_before_its_session_is_open(self, server, create) -> None:
        identifier = create()
        session = AsyncSession(api_key=KEY, base_url=server.base_url)
        guard = session.guard(identifier)
        with pytest.raises(ValueError, match="mine"):
            async with session, guard:
                raise ValueError("mine")
        assert server.responses[identifier].cancelled

    @pytest.mark.parametrize("call", ["wait", "stop", "cancel"])
    async def test_other_calls_refuse_as_well(self, call: str) -> None:
        session = AsyncSession(api_key=KEY, base_url="http://127.0.0.1:9")
        with pytest.raises(SessionStateError, match="The session is not open"):
            await getattr(session, call)("resp_x")

    def test_a_blocking_session_that_is_not_open(self) -> None:
        session = Session(api_key=KEY, base_url="http://127.0.0.1:9")
        with pytest.raises(SessionStateError, match="The session is not open"), session.guard("resp_x"):
            pytest.fail("the block ran")

    def test_a_blocking_session_that_is_closed(self) -> None:
        with Session(api_key=KEY, base_url="http://127.0.0.1:9") as session:
            pass
        with pytest.raises(SessionStateError, match="The session is closed"), session.guard("resp_x"):
            pytest.fail("the block ran")


class TestBlocking:
    @pytest.fixture
    def blocking(self, server: Emulator):
        with Session(api_key=KEY, base_url=server.base_url) as session:
            yield session

    async def test_guard(self, blocking: Session, server, create) -> None:
        identifier, raised = create(), ValueError("mine")

        def work() -> None:
            with blocking.guard(identifier) as guard:
                guards.append(guard)
                raise raised

        guards: list[Any] = []
        with pytest.raises(ValueError, match="mine") as caught:
            await asyncio.to_thread(work)
        assert caught.value is raised
        assert notes(raised) == []
        assert guards[0].outcome.verdict is Verdict.CANCELLED
        assert cancels(server) == 1

    async def test_a_block_that_ends_normally(self, blocking: Session, server, create) -> None:
        def work() -> None:
            with blocking.guard(create()):
                pass

        await asyncio.to_thread(work)
        assert cancels(server) == 0

    async def test_a_session_that_was_closed(self, blocking: Session, create) -> None:
        def work() -> None:
            with blocking.guard(create()):
                blocking.close()
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine") as caught:
            await asyncio.to_thread(work)
        assert "could stop nothing: The session is closed" in notes(caught.value)[0]

    async def test_a_disarmed_guard_of_a_session_that_was_closed(self, blocking: Session, create) -> None:
        def work() -> None:
            with blocking.guard(create()) as guard:
                guard.disarm()
                blocking.close()
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine") as caught:
            await asyncio.to_thread(work)
        assert notes(caught.value) == []

    async def test_wait(self, blocking: Session, create) -> None:
        assert (await asyncio.to_thread(blocking.wait, create(runs_for=0))).status == "completed"
        with pytest.raises(WaitTimeoutError) as caught:
            await asyncio.to_thread(blocking.wait, create(), timeout=0.05)
        assert caught.value.outcome.verdict is Verdict.CANCELLED

    async def test_closing_the_session_stops_what_is_waited_for(self, blocking: Session, server, create) -> None:
        identifier = create()
        waiting = asyncio.create_task(asyncio.to_thread(blocking.wait, identifier))
        await until(lambda: server.received)
        await asyncio.to_thread(blocking.close)
        with pytest.raises(SessionStateError, match="closed while the call was under way"):
            await waiting
        assert server.responses[identifier].cancelled

    async def test_closing_it_tells_what_was_not_stopped(self, blocking: Session, server, create) -> None:
        waiting = asyncio.create_task(asyncio.to_thread(blocking.wait, create()))
        await until(lambda: server.received)
        server.faults += [Fault(status=403, body="You may not.")] * 3
        await asyncio.to_thread(blocking.close)
        with pytest.raises(SessionStateError) as caught:
            await waiting
        assert "was not stopped (forbidden" in notes(caught.value)[0]


GUARDS = """
import asyncio, signal, sys, time
from openai_cancel import AsyncSession, Session
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
name = sys.argv[1]

def run(main):
    async def cancelled_by_sigterm():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
        await main()
    try:
        asyncio.run(cancelled_by_sigterm())
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
"""
SCRIPTS = {
    "async guard": """
async def main():
    async with AsyncSession() as session, session.guard(name):
        print("ready", flush=True)
        await asyncio.sleep(1000)
run(main)
""",
    "async wait": """
async def main():
    async with AsyncSession() as session:
        print("ready", flush=True)
        await session.wait(name)
run(main)
""",
    "guard": """
with Session() as session, session.guard(name):
    print("ready", flush=True)
    time.sleep(1000)
""",
    "wait": """
with Session() as session:
    print("ready", flush=True)
    session.wait(name)
""",
}


BUSY = """
def key():
    if slow:
        print("ready", flush=True)
        slow.clear()
        time.sleep(1)  # in the loop of the session
    return "sk-12345678"

import threading
slow = [True]
with Session(api_key=key) as session:
    threading.Thread(target=session.retrieve, args=(name,)).start()
    while slow:
        pass
    session.wait(name)
"""


LEFT = """
def events():
    with Session() as session, session.guard(name):
        yield

generator = events()
next(generator)
print("ready", flush=True)
"""


class TestProcesses:
    @pytest.fixture
    async def start(self, server: Emulator, create, monkeypatch, python):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

        async def start(script: str) -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(
                python, "-X", "dev", "-W", "error", "-c", GUARDS + script, create(), stdout=PIPE, stderr=PIPE
            )
            processes.append(process)
            assert await process.stdout.readline() == b"ready\n"
            if ".wait(" in script and script != BUSY:
                await until(lambda: server.received)
            return process

        processes: list[asyncio.subprocess.Process] = []
        yield start
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    @pytest.mark.parametrize("script", SCRIPTS)
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
    async def test_it_is_stopped_before_the_process_ends(self, server, start, script, number, status) -> None:
        process = await start(SCRIPTS[script])
        process.send_signal(number)
        _, shown = await process.communicate()
        assert process.returncode == status, shown.decode()
        assert cancels(server) == 1
        assert next(iter(server.responses.values())).cancelled
        assert b"was not stopped" not in shown
        assert b"never" not in shown  # retrieved, awaited

    @pytest.mark.parametrize("script", ["guard", "wait"])
    async def test_a_second_ctrl_c_neither_ends_the_stop_nor_prolongs_it(self, server, start, script) -> None:
        process = await start(SCRIPTS[script].replace("(name)", "(name, grace=1)"))
        server.faults += [Fault(on="cancel", delay=0.2)] + [Fault(on="retrieve", delay=math.inf)] * 9
        process.send_signal(signal.SIGINT)
        await until(lambda: cancels(server))
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            await process.communicate()
        assert process.returncode == -signal.SIGINT
        assert next(iter(server.responses.values())).cancelled

    async def test_ctrl_c_while_the_loop_is_busy(self, server, start) -> None:
        """It is not lost where the call has not even begun."""
        process = await start(BUSY)
        await asyncio.sleep(0.3)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            await process.communicate()
        assert process.returncode == -signal.SIGINT
        assert next(iter(server.responses.values())).cancelled

    async def test_a_generator_that_is_left_to_the_interpreters_end(self, start) -> None:
        """Nothing can be stopped any more, for the thread of the session is frozen; but the process ends."""
        process = await start(LEFT)
        async with asyncio.timeout(10):
            await process.communicate()
        assert process.returncode == 0

    async def test_what_could_not_be_stopped_is_told(self, server, start) -> None:
        process = await start(SCRIPTS["wait"])
        server.faults += [Fault(status=403, body="You may not.")] * 9
        process.send_signal(signal.SIGINT)
        _, shown = await process.communicate()
        assert b"openai-cancel: resp_" in shown
        assert b"was not stopped (forbidden: 403: You may not." in shown


class Scheduler:
    """Cancels a task at chosen turns of the event loop, counted from where it begins."""

    def __init__(self, task: asyncio.Task[Any], turns: list[int]) -> None:
        self._task = task
        self._gaps = list(turns)
        self.sent = 0
        self._turn()

    def _turn(self) -> None:
        if self._task.done() or not self._gaps:
            return
        if self._gaps[0] == 0:
            self._gaps.pop(0)
            self.sent += self._task.cancel()
        else:
            self._gaps[0] -= 1
        asyncio.get_running_loop().call_soon(self._turn)


FAULTS: list[list[Fault]] = [
    [],
    [Fault(on="cancel", delay=0.002)],
    [Fault(on="cancel", cut="connection")],
    [Fault(on="cancel", act=True, cut="connection")],
    [Fault(on="cancel", act=True, cut="body")],
    [Fault(on="cancel", status=503)],
    [Fault(status=403)] * 9,
    [Fault(delay=0.003), Fault(on="cancel", status=400)],
]


async def interleave(turns: list[int], faults: list[Fault], *, ending: str) -> None:
    """One run: never an orphan without a note, never a swallowed cancel, never a task that is left."""
    before = asyncio.all_tasks()
    async with Emulator(script=Script(runs_for=math.inf)) as server:
        async with AsyncSession(base_url=server.base_url, api_key=KEY, max_retries=2, clock=HastyClock()) as session:
            identifier = server.add()
            server.faults += faults
            seen: list[BaseException] = []

            async def work() -> str:
                try:
                    async with session.guard(identifier, grace=0.5):
                        await session.retrieve(identifier)
                        await asyncio.sleep(0.001)
                        if ending == "raise":
                            raise ValueError("mine")
                except BaseException as error:
                    seen.append(error)
                    raise
                await asyncio.sleep(0)
                return "done"

            task = asyncio.create_task(work())
            scheduler = Scheduler(task, turns)
            await asyncio.wait({task})
            assert not [task for task in asyncio.all_tasks() - before if "openai_cancel/guard" in repr(task)]
            assert task.cancelling() == scheduler.sent
        work_there = server.responses[identifier]
        if seen:
            stopped = work_there.cancelled is not None
            assert stopped or notes(seen[0]), (turns, faults, seen)
        if scheduler.sent and not task.cancelled():
            # The block failed by itself, and ended before there was an await that could tell it.
            assert isinstance(task.exception(), Exception)
        if not scheduler.sent and ending == "return" and not faults:
            assert task.result() == "done"
            assert work_there.cancelled is None


@pytest.mark.parametrize("ending", ["raise", "return"])
async def test_a_cancel_at_every_turn(ending: str) -> None:
    for turn in range(60):
        await interleave([turn], FAULTS[turn % 2], ending=ending)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(st.integers(0, 40), max_size=4),
    faults=st.sampled_from(FAULTS),
    ending=st.sampled_from(["raise", "return"]),
)
async def test_random_cancels_delays_and_failures(turns: list[int], faults: list[Fault], ending: str) -> None:
    await interleave(turns, faults, ending=ending)


COMPOSITIONS = {
    "nested": lambda session, one, two: (session.guard(one), session.guard(two)),
    "around a timeout": lambda session, one, two: (session.guard(one), asyncio.timeout(5), session.guard(two)),
    "in a timeout": lambda session, one, two: (asyncio.timeout(0.004), session.guard(one), session.guard(two)),
    "in a scope of anyio": lambda session, one, two: (
        anyio.move_on_after(0.004), session.guard(one), session.guard(two)
    ),
}  # fmt: skip


@pytest.mark.parametrize("composition", COMPOSITIONS)
async def test_guards_around_each_other(composition: str) -> None:
    """A cancel at any turn comes through them all, and the code that caught the block's error hears of it."""
    for turn in range(0, 60, 3):
        before = asyncio.all_tasks()
        async with (
            Emulator(script=Script(runs_for=math.inf)) as server,
            AsyncSession(base_url=server.base_url, api_key=KEY) as session,
            contextlib.AsyncExitStack() as settled,
        ):
            ids = server.add(), server.add()
            entered: list[str] = []

            async def work(session: AsyncSession = session, ids=ids, entered=entered) -> None:
                try:
                    async with contextlib.AsyncExitStack() as stack:
                        for context in COMPOSITIONS[composition](session, *ids):
                            if isinstance(context, anyio.CancelScope):
                                stack.enter_context(context)
                            else:
                                await stack.enter_async_context(context)
                        entered += ids
                        await asyncio.sleep(0.001 if "in a" not in composition else 5)
                        raise ValueError("mine")
                except (ValueError, TimeoutError):
                    pass
                await asyncio.Event().wait()

            task = asyncio.create_task(work())
            scheduler = Scheduler(task, [turn])
            settled.callback(task.cancel)
            async with asyncio.timeout(5):
                await until(lambda scheduler=scheduler: scheduler.sent)
                await asyncio.wait({task})
            assert task.cancelled(), turn
            assert task.cancelling() == 1
            assert all(server.responses[name].cancelled for name in entered)
            assert not [task for task in asyncio.all_tasks() - before if "openai_cancel/guard" in repr(task)]


class TestRulesAtTheEdge:
    """Each holds a rule that a change could break unseen."""

    async def test_a_cancel_goes_before_what_the_stop_raises(self, server) -> None:
        def key() -> str:
            raise SystemExit(3)

        async def work(session: AsyncSession) -> None:
            async with session.guard("resp_a"):
                await asyncio.Event().wait()

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            task = asyncio.create_task(work(session))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def test_a_second_cancel_during_the_stop_does_not_come_again(self, session, server, create) -> None:
        done: list[bool] = []

        async def work() -> None:
            try:
                async with session.guard(create()):
                    await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                done.append(True)

        server.faults.append(SLOW)
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await until(lambda: cancels(server))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done

    async def test_the_last_cancel_counts(self, session, server, create) -> None:
        async def work() -> None:
            with suppress(ValueError):
                async with session.guard(create()):
                    raise ValueError
            await asyncio.Event().wait()

        server.faults.append(SLOW)
        task = asyncio.create_task(work())
        await until(lambda: cancels(server))
        task.cancel("first")
        await asyncio.sleep(0)
        task.cancel("last")
        with pytest.raises(asyncio.CancelledError, match="last"):
            await task
        assert task.cancelling() == 2

    async def test_a_failure_is_forgotten_when_it_is_used_again(self, server, create) -> None:
        keys = iter([OSError("shut"), KEY])

        def key() -> str:
            if isinstance(answer := next(keys), Exception):
                raise answer
            return answer

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            guard = session.guard(create())
            for _ in range(2):
                with pytest.raises(ValueError, match="mine"):
                    async with guard:
                        raise ValueError("mine")
        assert guard.outcome.verdict is Verdict.CANCELLED

    async def test_a_stop_that_is_begun_again_has_what_is_left(
        self, session: QuickSession, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in a loop that shuts down, which cancels every task."""
        given: list[float] = []

        async def cancelled_at_first(caller: Caller, name: str, *, deadline: float):
            given.append(deadline)
            if len(given) == 1:
                session.clock.now += 4
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
            return await stop(caller, name, deadline=deadline)

        monkeypatch.setattr("openai_cancel.guard.stop", cancelled_at_first)
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create(), grace=10):
                raise ValueError("mine")
        assert given == [10, 6]

    async def test_a_server_that_hangs_does_not_outlast_the_wait(self, server, create) -> None:
        server.faults += [Fault(on="retrieve", delay=math.inf)] * 9
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session, asyncio.timeout(10):
            with pytest.raises(WaitTimeoutError):
                await session.wait(create(), timeout=0.2)

    async def test_an_error_says_when_to_look_again(self, session: QuickSession, server, create) -> None:
        server.faults.append(Fault(status=429, headers={"retry-after": "3"}))
        await session.wait(create(runs_for=0), max_retries=0)
        assert session.clock.slept == [3]


def test_a_loop_that_is_closed_around_it(caplog: pytest.LogCaptureFixture) -> None:
    """The coroutine is thrown away: nothing can be stopped, and that is said."""

    async def main() -> object:
        session = await AsyncSession(base_url="http://127.0.0.1:9", api_key=KEY).open()

        async def work() -> None:
            async with session.guard("resp_a"):
                await asyncio.Event().wait()

        coroutine = work()
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(0)
        task._log_destroy_pending = False  # this is the point of the test
        await session.close()
        return coroutine

    loop = asyncio.new_event_loop()
    coroutine = loop.run_until_complete(main())
    loop.close()
    coroutine.close()
    assert "<Guard resp_a> could stop nothing: its event loop is closed" in caplog.text

"""`Guard`: it stops its responses if its block is left by an exception."""

import asyncio
import gc
import itertools
import logging
import math
import re
import traceback
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from conftest import KEY, cancels, notes
from crowds import crowd

from openai_cancel import (
    AsyncSession,
    ConfigurationError,
    InvalidResponseIdError,
    Response,
    Session,
    SessionStateError,
    Verdict,
)
from openai_cancel.emulator import Emulator, Fault, Script

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class TestBlock:
    async def test_the_response_is_stopped_before_the_same_exception_is_raised(self, session, server, create) -> None:
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

    async def test_a_block_that_ends_normally_leaves_the_response_running(self, session, server, create) -> None:
        async with session.guard(create()) as guard:
            pass
        assert (guard.outcome, server.received) == (None, [])

    @pytest.mark.parametrize("way", ["return", "break"])
    async def test_a_block_that_is_left_by_return_or_break_leaves_the_response_running(
        self, session, server, create, way
    ) -> None:
        async def block() -> None:
            for _ in range(1):
                async with session.guard(create()):
                    if way == "return":
                        return
                    break

        await block()
        assert server.received == []

    async def test_a_disarmed_guard_stops_nothing(self, session, server, create) -> None:
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create()) as guard:
                guard.disarm()
                raise ValueError("mine")
        assert server.received == []
        assert repr(guard) == "<Guard disarmed>"

    async def test_all_responses_are_stopped_including_those_added_inside_the_block(
        self, session, server, create
    ) -> None:
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

    async def test_nested_guards_stop_the_inner_response_first(self, session, server, create) -> None:
        outer, inner = create(), create()
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(outer), session.guard(inner):
                raise ValueError("mine")
        assert [request.path.split("/")[3] for request in server.received] == [inner, outer]

    async def test_an_exception_caught_between_two_guards_leaves_the_outer_response_running(
        self, session, server, create
    ) -> None:
        outer, inner = create(), create()
        async with session.guard(outer):
            with suppress(ValueError):
                async with session.guard(inner):
                    raise ValueError("mine")
        assert server.responses[inner].cancelled
        assert not server.responses[outer].cancelled

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_an_exception_that_ends_the_program_stops_the_response(self, kind: type[BaseException]) -> None:
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

    async def test_a_generator_that_is_closed_inside_the_block_stops_the_response(
        self, session, server, create
    ) -> None:
        async def events() -> AsyncIterator[int]:
            async with session.guard(create()):
                for number in itertools.count():
                    yield number

        stream = events()
        assert await anext(stream) == 0
        await stream.aclose()
        assert cancels(server) == 1

    async def test_an_exception_group_is_raised_unchanged(self, session, create) -> None:
        group = ExceptionGroup("several", [ValueError("a"), TypeError("b")])
        with pytest.raises(ExceptionGroup) as caught:
            async with session.guard(create()):
                raise group
        assert caught.value is group


class TestResponseThatIsNotStopped:
    async def test_the_exception_gets_a_note_and_the_log_a_warning(self, session, server, create, caplog) -> None:
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

    async def test_a_response_that_is_still_running_is_noted(self, session, create) -> None:
        with pytest.raises(ValueError, match="mine") as caught:
            async with session.guard(create(resumes_after=0, resumes=99)):
                raise ValueError("mine")
        assert notes(caught.value)[0].endswith("was not stopped (still_running)")

    async def test_a_response_that_had_already_finished_is_not_noted(self, session, create) -> None:
        with pytest.raises(ValueError, match="mine") as caught:
            async with session.guard(create(runs_for=0)):
                raise ValueError("mine")
        assert notes(caught.value) == []

    async def test_many_responses_are_stopped_with_few_refused_requests(self) -> None:
        async with crowd(100, allows=20) as many:
            with pytest.raises(ValueError, match="mine"):
                async with many.session.guard(*many.ids, grace=10):
                    raise ValueError("mine")
        assert all(many.server.responses[name].cancelled for name in many.ids)
        assert len(many.server.received) <= 120

    async def test_stopping_many_responses_takes_no_longer_than_the_grace(self) -> None:
        async with crowd(100, allows=20) as many:
            with pytest.raises(ValueError, match="mine") as caught:
                async with many.session.guard(*many.ids, grace=2) as guard:
                    raise ValueError("mine")
            assert many.clock.now < 3
        stopped = [name for name, outcome in guard.outcomes.items() if outcome.stopped]
        assert len(stopped) >= 25
        assert len(notes(caught.value)) == 100 - len(stopped)
        assert all(many.server.responses[name].cancelled for name in stopped)

    async def test_a_response_whose_turn_does_not_come_in_time_is_noted(self, server, create) -> None:
        server.faults += [Fault(delay=math.inf)] * 99
        names = [create() for _ in range(30)]
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            with pytest.raises(ValueError, match="mine") as caught:
                async with session.guard(*names, grace=0.3):
                    raise ValueError("mine")
        assert len(notes(caught.value)) == 30
        assert notes(caught.value)[-1] == f"openai-cancel: {names[-1]} was not stopped (no answer within 0.3 s)"

    async def test_stopping_takes_no_longer_than_the_grace(self, server, create) -> None:
        server.faults += [Fault(delay=math.inf)] * 9
        loop = asyncio.get_running_loop()
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            began = loop.time()
            with pytest.raises(ValueError, match="mine") as caught:
                async with session.guard(create(), grace=0.3):
                    raise ValueError("mine")
        assert 0.25 < loop.time() - began < 3
        # Which of the two depends on whether the first request was sent before the deadline.
        assert re.search(
            r"was not stopped \(unknown: (No complete answer within the|The) deadline", notes(caught.value)[0]
        )

    async def test_a_client_that_was_closed_inside_the_block_is_named_in_the_note(self, server, create) -> None:
        async with (
            aiohttp.ClientSession() as client,
            AsyncSession(api_key=KEY, base_url=server.base_url, client_session=client) as session,
        ):
            with pytest.raises(ValueError, match="mine") as caught:
                async with session.guard(create()):
                    await client.close()
                    raise ValueError("mine")
        assert "was not stopped (The session, or the aiohttp.ClientSession that it was given" in notes(caught.value)[0]

    async def test_an_exception_that_refuses_notes_is_still_raised(self, session, server, create) -> None:
        class StrangeError(Exception):
            def add_note(self, note: str) -> None:
                raise RuntimeError(note)

        server.faults += [Fault(status=403)] * 2
        with pytest.raises(StrangeError):
            async with session.guard(create()):
                raise StrangeError
        assert cancels(server) == 1

    async def test_a_guard_that_is_used_again_stops_only_what_is_not_stopped_yet(self, session, server, create) -> None:
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


class TestYoungResponse:
    async def test_a_response_that_the_server_does_not_know_yet_is_stopped(self, session, server, create) -> None:
        identifier = create()
        server.faults += [Fault(status=404)] * 2
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(identifier) as guard:
                raise ValueError("mine")
        assert guard.outcome.verdict is Verdict.CANCELLED
        assert server.responses[identifier].cancelled

    async def test_a_response_that_is_a_minute_old_is_not_found_at_once(self, session, server) -> None:
        with pytest.raises(ValueError, match="mine"):
            async with session.guard("resp_none") as guard:
                session.clock.now += 60
                raise ValueError("mine")
        assert (guard.outcome.verdict, cancels(server)) == (Verdict.NOT_FOUND, 1)


class TestKeyFunctionThatFails:
    async def test_its_error_is_noted_by_the_class_alone(self, server) -> None:
        def key() -> str:
            raise OSError("cannot read the key sk-secret")

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            with pytest.raises(ValueError, match="mine") as caught:
                async with session.guard("resp_a", "resp_b"):
                    raise ValueError("mine")
        assert notes(caught.value) == [f"openai-cancel: resp_{n} was not stopped (OSError)" for n in "ab"]

    async def test_its_system_exit_is_raised_after_the_other_responses_are_stopped(self, server, create) -> None:
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

    async def test_its_cancelled_error_is_noted_and_it_is_not_called_again(self, server) -> None:
        """It may come from a refresh of the key that others share, and does not mean that this task is cancelled."""
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

    async def test_its_error_is_forgotten_when_the_guard_is_used_again(self, server, create) -> None:
        keys = iter([OSError("no key"), KEY])

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

    async def test_its_error_keeps_none_of_its_variables_alive(self, server: Emulator) -> None:
        class Variable:
            pass

        def key() -> str:
            variable = Variable()
            variables.append(weakref.ref(variable))
            raise OSError

        variables: list[weakref.ref[Variable]] = []
        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            guard = session.guard("resp_a")
            with pytest.raises(ValueError, match="mine"):
                async with guard:
                    raise ValueError("mine")
        gc.collect()
        assert [variable() for variable in variables] == [None]


class TestArguments:
    @pytest.mark.parametrize("identifier", ["", "..", 5, None])
    async def test_an_invalid_id_is_refused_before_the_block(self, session, server, identifier: Any) -> None:
        with pytest.raises(InvalidResponseIdError):
            session.guard("resp_x", identifier)
        with pytest.raises(InvalidResponseIdError):
            session.guard().add(identifier)
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
    async def test_an_invalid_option_is_refused_before_the_block(self, session, options: Any, kind, words) -> None:
        with pytest.raises(kind, match=words):
            session.guard("resp_x", **options)

    @pytest.mark.parametrize("grace", [0, -1, None, "1"])
    async def test_an_invalid_grace_is_refused_before_the_block(self, session, grace: Any) -> None:
        with pytest.raises(ConfigurationError, match="grace must be a number of seconds"):
            session.guard("resp_x", grace=grace)


class TestSessionThatCanStopNothing:
    """A guard refuses its block if its session cannot send a request."""

    async def test_a_session_that_is_not_open_refuses_the_block(self) -> None:
        session = AsyncSession(api_key=KEY, base_url="http://127.0.0.1:9")
        with pytest.raises(SessionStateError, match="The session is not open"):
            async with session.guard("resp_x"):
                pytest.fail("the block ran")

    async def test_a_session_that_is_closed_refuses_the_block(self, session) -> None:
        await session.close()
        with pytest.raises(SessionStateError, match="The session is closed"):
            async with session.guard("resp_x"):
                pytest.fail("the block ran")

    async def test_a_session_of_another_event_loop_refuses_the_block(self, session) -> None:
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
    async def test_a_session_that_is_not_open_refuses_other_calls(self, call: str) -> None:
        session = AsyncSession(api_key=KEY, base_url="http://127.0.0.1:9")
        with pytest.raises(SessionStateError, match="The session is not open"):
            await getattr(session, call)("resp_x")

    def test_a_blocking_session_that_is_not_open_refuses_the_block(self) -> None:
        session = Session(api_key=KEY, base_url="http://127.0.0.1:9")
        with pytest.raises(SessionStateError, match="The session is not open"), session.guard("resp_x"):
            pytest.fail("the block ran")

    def test_a_blocking_session_that_is_closed_refuses_the_block(self) -> None:
        with Session(api_key=KEY, base_url="http://127.0.0.1:9") as session:
            pass
        with pytest.raises(SessionStateError, match="The session is closed"), session.guard("resp_x"):
            pytest.fail("the block ran")


class TestBlockingGuard:
    @pytest.fixture
    def blocking(self, server: Emulator) -> Iterator[Session]:
        with Session(api_key=KEY, base_url=server.base_url) as session:
            yield session

    async def test_the_response_is_stopped_before_the_same_exception_is_raised(
        self, blocking: Session, server, create
    ) -> None:
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

    async def test_a_block_that_ends_normally_leaves_the_response_running(
        self, blocking: Session, server, create
    ) -> None:
        def work() -> None:
            with blocking.guard(create()):
                pass

        await asyncio.to_thread(work)
        assert cancels(server) == 0

    async def test_a_session_that_is_closed_inside_the_block_stops_the_response(
        self, blocking: Session, server, create
    ) -> None:
        def work() -> None:
            with blocking.guard(create()):
                blocking.close()
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine") as caught:
            await asyncio.to_thread(work)
        assert notes(caught.value) == []
        assert cancels(server) == 1

    async def test_a_disarmed_guard_of_a_closed_session_adds_no_note(self, blocking: Session, create) -> None:
        def work() -> None:
            with blocking.guard(create()) as guard:
                guard.disarm()
                blocking.close()
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine") as caught:
            await asyncio.to_thread(work)
        assert notes(caught.value) == []


async def test_a_guard_is_used_for_one_block_at_a_time(session: AsyncSession, create) -> None:
    guard = session.guard(create())
    async with guard:
        with pytest.raises(SessionStateError, match="use another guard"):
            await guard.__aenter__()
    with pytest.raises(ZeroDivisionError):
        async with guard:
            raise ZeroDivisionError
    assert guard.outcome.stopped


def test_a_guard_whose_event_loop_is_closed_logs_that_it_stopped_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> object:
        session = await AsyncSession(base_url="http://127.0.0.1:9", api_key=KEY).open()

        async def work() -> None:
            async with session.guard("resp_a", grace=0.5):
                await asyncio.Event().wait()

        coroutine = work()
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(0)
        assert not task.done()
        await session.close()
        return coroutine

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it would log that the task was destroyed while it was pending
    coroutine = loop.run_until_complete(main())
    loop.close()
    coroutine.close()
    assert "<Guard resp_a> could not stop its responses: its event loop is closed" in caplog.text

"""`stop`: cancel, look, and cancel again, until the state decides or the deadline passes."""

import asyncio
import copy
import gc
import logging
import math
import pickle
from collections.abc import Callable
from typing import Any

import aiohttp
import attrs
import pytest
from conftest import KEY, QuickClock, QuickSession, emulated, reported, until

from openai_cancel import (
    APIConnectionError,
    APITimeoutError,
    AsyncSession,
    ConfigurationError,
    InvalidResponseIdError,
    PermissionDeniedError,
    Response,
    SessionStateError,
    Verdict,
)
from openai_cancel.caller import Caller
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.errors import detached


class TestDelays:
    async def test_looks_back_off_up_to_the_deadline(self, session: QuickSession, create) -> None:
        outcome = await session.stop(create(resumes_after=0, resumes=100), deadline=30)
        assert outcome.verdict is Verdict.STILL_RUNNING
        assert session.clock.slept[:5] == [0.5, 1, 2, 4, 8]
        assert session.clock.slept[5:] == [14.5 / 2 ** (halving + 1) for halving in range(5)]
        assert outcome.elapsed == sum(session.clock.slept) == pytest.approx(30, abs=0.5)
        assert outcome.error is None
        assert outcome.response.status == "in_progress"

    async def test_half_a_second_is_enough_for_another_look(self, session: QuickSession, create) -> None:
        await session.stop(create(resumes_after=0, resumes=100), deadline=1)
        assert session.clock.slept == [0.5, 0.25]

    async def test_half_of_each_short_delay_and_half_a_second_of_a_long_one_are_random(
        self, session: QuickSession, create
    ) -> None:
        session.clock.drawn = 0.0
        await session.stop(create(resumes_after=0, resumes=100), deadline=30)
        assert session.clock.slept[:5] == [0.25, 0.5, 1, 2, 7.5]

    async def test_every_fourth_look_cancels_again(self, session: QuickSession, server: Emulator, create) -> None:
        await session.stop(create(resumes_after=0, resumes=100), deadline=30)
        calls = "".join("c" if request.method == "POST" else "r" for request in server.received)
        assert calls == "crrrcrrrcrr"

    async def test_retry_after_of_an_answer_sets_the_delay(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        identifier = create(resumes_after=0)
        server.faults += [reported("in_progress", **{"Retry-After": "7"}), reported("completed")]
        outcome = await session.stop(identifier)
        assert outcome.verdict is Verdict.ALREADY_FINISHED
        assert session.clock.slept == [0.5, 7]

    async def test_retry_after_of_an_error_sets_the_delay(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        identifier = create(resumes_after=0)
        server.faults += [Fault(on="cancel", status=409), reported("completed")]
        server.faults.insert(1, Fault(on="retrieve", status=429, headers={"retry-after": "9"}))
        outcome = await session.stop(identifier)
        assert (outcome.verdict, outcome.error) == (Verdict.ALREADY_FINISHED, None)
        assert session.clock.slept == [9, 1]

    async def test_a_long_retry_after_is_cut_to_half_of_the_remaining_time(
        self, session: QuickSession, server, create
    ) -> None:
        identifier = create(resumes_after=0)
        server.faults += [reported("queued", **{"Retry-After": "50"}), reported("completed")]
        outcome = await session.stop(identifier, deadline=50.5)
        assert (outcome.verdict, session.clock.slept) == (Verdict.ALREADY_FINISHED, [0.5, 25])

    @pytest.mark.parametrize("headers", [{"Retry-After": "0"}, {"Retry-After": "-5"}, {"Retry-After-Ms": "1"}])
    async def test_a_retry_after_of_zero_does_not_cause_a_busy_loop(
        self, session: QuickSession, server, create, headers
    ) -> None:
        server.faults += [reported("queued", **headers)] * 9
        await session.stop(create(resumes_after=0, resumes=99), deadline=3)
        assert session.clock.slept[:3] == [0.5, 0.25, 0.25]


class TestDeadline:
    async def test_a_server_that_hangs_within_a_body_does_not_prolong_the_stop(self) -> None:
        closed = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            body = b'{"id": "resp_x", "status": "in_progress"}'
            for part in (body, body[:10]):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), part))
            await reader.read()
            writer.close()
            closed.set()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with AsyncSession(base_url=f"http://127.0.0.1:{port}", api_key=KEY) as session:
            outcome = await session.stop("resp_x", deadline=1.0)
        await closed.wait()  # the connection is not reused
        listener.close()
        await asyncio.sleep(0)
        assert outcome.verdict is Verdict.STILL_RUNNING
        assert isinstance(outcome.error, APITimeoutError)
        assert outcome.error.__traceback__ is None
        assert 0.9 < outcome.elapsed < 5

    @pytest.mark.slow  # it waits for three seconds
    async def test_a_cancel_without_an_answer_leaves_time_for_a_look(self, server: Emulator, create) -> None:
        identifier = create(runs_for=0)
        server.faults.append(Fault(on="cancel", delay=math.inf))
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            outcome = await session.stop(identifier, deadline=4)
        assert outcome.verdict is Verdict.ALREADY_FINISHED
        assert outcome.attempts == 2
        assert 2.9 < outcome.elapsed < 4

    @pytest.mark.parametrize("deadline", [0.5, 1])
    async def test_one_look_is_made_if_the_deadline_has_passed_unnoticed(
        self, server: Emulator, deadline: float
    ) -> None:
        seconds = iter(range(100))

        class Racing(QuickClock):
            def monotonic(self) -> float:
                return next(seconds)

        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=Racing()) as session:
            outcome = await session.stop("resp_x", deadline=deadline)
        assert (outcome.verdict, outcome.attempts, outcome.stopped) == (Verdict.UNKNOWN, 1, False)
        assert [request.method for request in server.received] == ["GET"]

    async def test_no_more_than_one_look_is_made_after_the_deadline(self, server: Emulator, clock: QuickClock) -> None:
        requests = 0

        async def freeze(*_: object) -> None:
            nonlocal requests
            requests += 1
            clock.now += 100 * (requests == 1)  # the cancel, which a replica refuses

        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(freeze)
        server.faults += [Fault(on="cancel", status=404), reported("in_progress"), reported("in_progress")]
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock, trace_configs=[trace]) as session:
            outcome = await session.stop("resp_x", deadline=60)
        assert (outcome.verdict, requests) == (Verdict.STILL_RUNNING, 2)

    async def test_a_cancel_may_take_three_quarters_of_the_remaining_time_and_a_look_all_of_it(
        self, session: QuickSession, create, monkeypatch
    ) -> None:
        """The rest of the time is for a look, in case the cancel has no answer."""
        deadlines: list[float] = []

        def recorded(call: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, deadline, **options: (
                deadlines.append(deadline) or call(*args, deadline=deadline, **options)
            )

        monkeypatch.setattr(Caller, "cancel", recorded(Caller.cancel))
        monkeypatch.setattr(Caller, "retrieve", recorded(Caller.retrieve))
        await session.stop(create(resumes_after=3, runs_for=4), deadline=20, confirm=5)
        assert deadlines == [15, 15]

    async def test_the_deadline_may_be_infinite(self, session: QuickSession, create) -> None:
        assert (await session.stop(create(), deadline=math.inf)).verdict is Verdict.CANCELLED


class TestConfirm:
    async def test_a_response_that_stays_cancelled_is_looked_at_once_more(self, session: QuickSession, create) -> None:
        outcome = await session.stop(create(), confirm=5)
        assert (outcome.verdict, outcome.attempts, session.clock.slept) == (Verdict.CANCELLED, 2, [5])

    async def test_a_response_that_had_already_finished_is_not_looked_at_again(
        self, session: QuickSession, create
    ) -> None:
        outcome = await session.stop(create(runs_for=0), confirm=5)
        assert (outcome.verdict, session.clock.slept) == (Verdict.ALREADY_FINISHED, [])

    async def test_a_response_that_is_not_found_or_forbidden_is_not_looked_at_again(
        self, session: QuickSession, server, create
    ) -> None:
        assert (await session.stop("resp_none", confirm=5)).verdict is Verdict.NOT_FOUND
        server.faults.append(Fault(status=401))
        assert (await session.stop(create(), confirm=5)).verdict is Verdict.FORBIDDEN
        assert session.clock.slept == []

    @pytest.mark.parametrize(
        ("then", "verdict"),
        [
            ([Fault(on="cancel", status=400), reported("completed")], Verdict.ALREADY_FINISHED),
            ([Fault(on="cancel", status=403), reported("in_progress")], Verdict.FORBIDDEN),
        ],
    )
    async def test_a_response_that_resumes_and_refuses_another_cancel_has_the_verdict_of_the_refusal(
        self, session: QuickSession, server, create, then, verdict
    ) -> None:
        server.faults += [Fault(on="cancel"), reported("in_progress"), *then]
        outcome = await session.stop(create(), confirm=5)
        assert (outcome.verdict, session.clock.slept, outcome.attempts) == (verdict, [5], 4)

    async def test_a_response_that_resumes_and_completes_is_not_cancelled_again(self) -> None:
        async with emulated("azure") as (server, session):
            identifier = server.add(Script(runs_for=12, resumes_after=5))
            outcome = await session.stop(identifier, confirm=20)
        assert (outcome.verdict, outcome.attempts) == (Verdict.ALREADY_FINISHED, 2)
        assert outcome.response.status == "completed"

    async def test_a_response_that_resumes_is_cancelled_again(self) -> None:
        async with emulated("azure") as (server, session):
            identifier = server.add(Script(runs_for=math.inf, resumes_after=5))
            outcome = await session.stop(identifier, confirm=10)
        assert outcome.verdict is Verdict.CANCELLED
        assert outcome.attempts == 4
        assert session.clock.slept == [10, 10]

    async def test_a_response_that_resumes_twice_is_still_running(self) -> None:
        async with emulated("azure") as (server, session):
            identifier = server.add(Script(runs_for=math.inf, resumes_after=5, resumes=9))
            outcome = await session.stop(identifier, confirm=10)
        assert (outcome.verdict, outcome.attempts) == (Verdict.STILL_RUNNING, 4)
        assert (outcome.stopped, outcome.error) == (False, None)

    async def test_the_second_look_comes_earlier_if_the_deadline_is_near(self, session: QuickSession, create) -> None:
        outcome = await session.stop(create(), confirm=100, deadline=31)
        assert (outcome.verdict, session.clock.slept) == (Verdict.CANCELLED, [15.5])

    async def test_a_second_look_that_fails_leaves_the_verdict_cancelled(
        self, session: QuickSession, server, create
    ) -> None:
        identifier = create()
        server.faults += [Fault(on="retrieve", status=403, body="no")]
        outcome = await session.stop(identifier, confirm=5)
        assert (outcome.verdict, outcome.stopped) == (Verdict.CANCELLED, True)
        assert isinstance(outcome.error, PermissionDeniedError)


async def test_an_outcome_can_be_pickled_and_copied(session: QuickSession, create) -> None:
    outcome = await session.stop(create())
    for other in (pickle.loads(pickle.dumps(outcome)), copy.deepcopy(outcome)):
        assert other == outcome


class TestDryRun:
    @pytest.mark.parametrize(
        ("answer", "verdict"),
        [
            (None, Verdict.STILL_RUNNING),
            (Fault(status=200, body={"id": "x", "status": "completed"}), Verdict.ALREADY_FINISHED),
            (Fault(status=200, body={"id": "x", "status": "cancelled"}), Verdict.ALREADY_FINISHED),
            (Fault(status=404), Verdict.NOT_FOUND),
            (Fault(status=403), Verdict.FORBIDDEN),
            (Fault(status=400), Verdict.UNKNOWN),
            (Fault(status=200, body=b"yes"), Verdict.UNKNOWN),
        ],
    )
    async def test_a_dry_run_looks_and_cancels_nothing(
        self, session: QuickSession, server, create, answer, verdict
    ) -> None:
        server.faults += [answer] if answer else []
        identifier = create()
        outcome = await session.stop(identifier, dry_run=True, confirm=1)
        assert outcome.verdict is verdict
        assert (outcome.error is None) == (outcome.response is not None)
        assert [request.method for request in server.received] == ["GET"]
        assert not server.responses[identifier].cancelled

    async def test_a_dry_run_of_many_ids_cancels_nothing(self, session: QuickSession, server: Emulator, create) -> None:
        outcomes = [outcome async for outcome in session.stop_many([create(), create()], dry_run=True)]
        assert [outcome.verdict for outcome in outcomes] == [Verdict.STILL_RUNNING] * 2
        assert {request.method for request in server.received} == {"GET"}

    async def test_a_dry_run_retries_a_look_that_fails(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [Fault(status=500)] * 2
        assert (await session.stop(create(), dry_run=True)).verdict is Verdict.STILL_RUNNING
        server.faults += [Fault(status=500)] * 9
        assert (await session.stop(create(), dry_run=True)).verdict is Verdict.UNKNOWN


class TestCancelledTask:
    @pytest.mark.parametrize("on", ["cancel", "retrieve"])
    async def test_a_task_that_is_cancelled_during_a_request_ends_at_once(self, server: Emulator, create, on) -> None:
        identifier = create(resumes_after=0)
        server.faults.append(Fault(on=on, delay=math.inf))
        before = asyncio.all_tasks()
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            task = asyncio.create_task(session.stop(identifier))
            await until(lambda: not server.faults)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelling() == 1
        await until(lambda: asyncio.all_tasks() <= before)

    async def test_a_task_that_is_cancelled_between_two_looks_ends_at_once(self, session: QuickSession, create) -> None:
        asleep = asyncio.Event()

        async def sleep(seconds: float) -> None:
            asleep.set()
            await asyncio.sleep(seconds * 1000)

        session.clock.sleep = sleep
        task = asyncio.create_task(session.stop(create(resumes_after=0)))
        await asleep.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_closing_the_session_ends_the_stop(self, session: QuickSession, server: Emulator, create) -> None:
        identifier = create()
        server.faults.append(Fault(delay=math.inf))
        task = asyncio.create_task(session.stop(identifier))
        await until(lambda: not server.faults)
        await session.close()
        with pytest.raises(SessionStateError):
            await task


class TestArguments:
    @pytest.mark.parametrize("identifier", ["", ".", "a\n", 5, None])
    async def test_an_invalid_id_is_refused(self, session: QuickSession, server: Emulator, identifier: Any) -> None:
        with pytest.raises(InvalidResponseIdError):
            await session.stop(identifier)
        assert not server.received

    @pytest.mark.parametrize("options", [{"deadline": 0}, {"deadline": None}, {"confirm": -1}, {"confirm": "1"}])
    async def test_an_invalid_number_of_seconds_is_refused(
        self, session: QuickSession, server: Emulator, options: Any
    ) -> None:
        with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be a number of seconds"):
            await session.stop("resp_x", **options)
        assert not server.received

    async def test_headers_and_query_are_sent_with_every_request(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        await session.stop(create(), confirm=1, headers={"x-team": "a"}, query={"v": "1"})
        assert [request.headers["x-team"] for request in server.received] == ["a", "a"]
        assert all(request.path.endswith("?v=1") for request in server.received)

    async def test_an_object_with_an_id_is_accepted(self, session: QuickSession, create) -> None:
        response = Response(id=create())
        assert (await session.stop(response)).response_id == response.id


class TestMemory:
    @pytest.mark.parametrize("fault", [Fault(status=400), Fault(status=503), Fault(status=200), Fault(status=404)])
    async def test_a_finished_stop_is_freed_without_the_garbage_collector(
        self, session: QuickSession, server: Emulator, create, fault
    ) -> None:
        """A frame that refers to an error whose traceback refers to the frame would be a reference cycle."""
        identifier = create()
        server.faults += [attrs.evolve(fault, on="cancel"), reported("completed")]
        gc.collect()
        gc.disable()
        try:
            await session.stop(identifier, max_retries=0)
            assert not [thing for thing in gc.get_objects() if type(thing).__module__ == "openai_cancel.stop"]
        finally:
            gc.enable()

    async def test_the_error_of_an_outcome_keeps_no_frames(self, session: QuickSession, server: Emulator) -> None:
        server.faults += [Fault(cut="connection")] * 99
        error = (await session.stop("resp_x", deadline=2)).error
        while error:
            assert error.__traceback__ is None
            error = error.__cause__ or error.__context__

    def test_the_causes_and_contexts_of_a_detached_error_keep_no_frames(self) -> None:
        def fail() -> None:
            raise ValueError

        try:
            try:
                try:
                    raise KeyError
                except KeyError:
                    fail()
            except ValueError as inner:
                error = APIConnectionError("reset")
                raise error from inner
        except APIConnectionError as caught:
            caught.__context__ = None
            links = [detached(caught), caught.__cause__, caught.__cause__.__context__]
        assert [(type(link), link.__traceback__) for link in links] == [
            (APIConnectionError, None),
            (ValueError, None),
            (KeyError, None),
        ]


class TestLog:
    async def test_each_outcome_is_a_line_at_level_info(self, session: QuickSession, create, caplog) -> None:
        caplog.set_level(logging.INFO, "openai_cancel")
        outcome = await session.stop(create())
        (line,) = caplog.messages
        assert line == f"{outcome.response_id}: cancelled (attempts: 1, 0.000 s, request id: {outcome.request_id})"
        assert caplog.records[0].name == "openai_cancel.outcomes"

    async def test_each_attempt_is_a_line_at_level_debug(
        self, session: QuickSession, server: Emulator, create, caplog
    ) -> None:
        caplog.set_level(logging.DEBUG, "openai_cancel")
        identifier = create(runs_for=0, says="a secret of the body")
        server.faults += [Fault(cut="connection"), Fault(status=503, body="a secret of the body")]
        await session.stop(Response(id=identifier))
        assert [line.partition(" (request")[0] for line in caplog.messages[:4]] == [
            f"cancel {identifier}: attempt 1: APIConnectionError",
            f"retrieve {identifier}: attempt 1: InternalServerError 503",
            f"cancel {identifier}: attempt 1: BadRequestError 400",
            f"retrieve {identifier}: attempt 1: completed",
        ]
        assert caplog.messages[1].endswith(f"(request id: req_{2:032x})")
        assert caplog.messages[3].endswith(f"(request id: req_{4:032x})")
        assert [record.levelname for record in caplog.records] == ["DEBUG"] * 4 + ["INFO"]
        assert "secret" not in caplog.text

    async def test_a_status_that_the_api_does_not_know_is_not_logged(
        self, session: QuickSession, server, create, caplog
    ) -> None:
        caplog.set_level(logging.DEBUG, "openai_cancel")
        server.faults.append(reported(f"in_progress\nINFO forged {KEY}"))
        await session.stop(create(resumes_after=0))
        assert "retrieve" in caplog.messages[1]
        assert "attempt 1: another status" in caplog.messages[1]
        assert KEY not in caplog.text

    async def test_nothing_is_logged_at_the_default_level(self, session: QuickSession, create, caplog) -> None:
        await session.stop(create())
        assert not caplog.messages

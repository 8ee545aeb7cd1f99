"""`wait`: poll a response until it ends, or stop it."""

import asyncio
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import KEY, QuickClock, QuickSession, cancels, notes, reported, until

from openai_cancel import (
    AsyncSession,
    BadRequestError,
    ConfigurationError,
    InvalidResponseIdError,
    NotFoundError,
    PermissionDeniedError,
    Session,
    SessionStateError,
    Verdict,
    WaitTimeoutError,
)
from openai_cancel.emulator import Emulator, Fault

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class TestPolling:
    async def test_the_final_response_is_returned_after_looks_that_back_off(
        self, server, create, clock: QuickClock
    ) -> None:
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            response = await session.wait(create(runs_for=20, says="Done."))
        assert (response.status, response.output_text) == ("completed", "Done.")
        assert session.clock.slept == [0.5, 1, 2, 4, 8, 8]
        assert cancels(server) == 0

    @pytest.mark.parametrize("becomes", ["failed", "incomplete"])
    async def test_a_failed_or_incomplete_response_is_returned(self, session, create, becomes: str) -> None:
        assert (await session.wait(create(runs_for=0, becomes=becomes), timeout=1)).status == becomes

    async def test_a_response_that_was_cancelled_elsewhere_is_returned(self, session, create) -> None:
        identifier = create()
        await session.cancel(identifier)
        assert (await session.wait(identifier)).status == "cancelled"

    async def test_transient_errors_do_not_end_the_wait(self, session: QuickSession, server, create) -> None:
        server.faults += [Fault(status=503)] * 7 + [Fault(cut="connection"), Fault(status=200, body=b"<html>")]
        server.faults += [Fault(status=429, headers={"retry-after": "3"})]
        assert (await session.wait(create(runs_for=0), max_retries=1)).status == "completed"
        assert session.clock.slept[-1] == 3

    async def test_retry_after_of_an_answer_sets_the_delay(self, session: QuickSession, server, create) -> None:
        server.faults.append(
            Fault(status=200, body={"id": "resp_x", "status": "queued"}, headers={"retry-after-ms": "1500"})
        )
        await session.wait(create(runs_for=0))
        assert session.clock.slept == [1.5]

    async def test_retry_after_of_an_error_sets_the_delay(self, session: QuickSession, server, create) -> None:
        server.faults.append(Fault(status=429, headers={"retry-after": "3"}))
        await session.wait(create(runs_for=0), max_retries=0)
        assert session.clock.slept == [3]

    async def test_headers_are_sent_with_every_request(self, session, server, create) -> None:
        with pytest.raises(WaitTimeoutError):
            await session.wait(create(), timeout=1, headers={"x-team": "a"})
        assert {request.headers["x-team"] for request in server.received} == {"a"}


class TestTimeout:
    async def test_a_timeout_stops_the_response(self, session: QuickSession, server, create) -> None:
        identifier = create()
        with pytest.raises(WaitTimeoutError) as caught:
            await session.wait(identifier, timeout=10)
        error = caught.value
        assert str(error) == (
            f"{identifier} did not end within 10 s: its status was 'in_progress'. It was stopped (cancelled)."
        )
        assert isinstance(error, TimeoutError)
        assert (error.outcome.verdict, error.response.status) == (Verdict.CANCELLED, "in_progress")
        assert server.responses[identifier].cancelled
        assert sum(session.clock.slept) == 10
        assert notes(error) == []

    async def test_a_timeout_without_any_answer_has_an_unknown_outcome(self, session: QuickSession, server) -> None:
        server.faults += [Fault(status=503)] * 100
        with pytest.raises(WaitTimeoutError, match="resp_x did not end within 5 s: no answer") as caught:
            await session.wait("resp_x", timeout=5, grace=3)
        assert caught.value.outcome.verdict is Verdict.UNKNOWN
        assert "resp_x was not stopped (unknown: 503" in notes(caught.value)[0]

    async def test_a_timeout_leaves_the_response_running_if_told_so(self, session, server, create) -> None:
        with pytest.raises(WaitTimeoutError) as caught:
            await session.wait(create(), timeout=3, on_abandon="leave")
        assert (caught.value.outcome, cancels(server)) == (None, 0)

    async def test_a_server_that_hangs_does_not_prolong_the_wait(self, server, create) -> None:
        server.faults += [Fault(on="retrieve", delay=math.inf)] * 9
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session, asyncio.timeout(10):
            with pytest.raises(WaitTimeoutError):
                await session.wait(create(), timeout=0.2)

    async def test_the_error_can_be_pickled(self, session, create) -> None:
        with pytest.raises(WaitTimeoutError) as caught:
            await session.wait(create(), timeout=1)
        other = pickle.loads(pickle.dumps(caught.value))
        assert (str(other), other.outcome, other.response) == (
            str(caught.value), caught.value.outcome, caught.value.response,
        )  # fmt: skip


@pytest.mark.parametrize("on_abandon", ["stop", "leave"])
async def test_a_cancelled_task_stops_the_response_unless_told_otherwise(server, create, on_abandon) -> None:
    identifier = create()
    async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
        task = asyncio.create_task(session.wait(identifier, on_abandon=on_abandon))
        await until(lambda: server.received)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert bool(server.responses[identifier].cancelled) is (on_abandon == "stop")


class TestRefusal:
    @pytest.mark.parametrize("status", [403, 404, 400, 410])
    @pytest.mark.parametrize("times", [1, 2])
    async def test_a_refusal_that_passes_does_not_end_the_wait(self, session, server, create, status, times) -> None:
        server.faults += [Fault(on="retrieve", status=status)] * times
        response = await session.wait(create(runs_for=0))
        assert response.status == "completed"
        assert cancels(server) == 0

    async def test_refusals_with_an_answer_between_them_do_not_end_the_wait(self, server, create, clock) -> None:
        refused = Fault(on="retrieve", status=404)
        answer = Fault(on="retrieve", status=200, body={"id": "resp_x", "status": "in_progress"})
        server.faults += [refused, refused, answer, refused, refused]
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            assert (await session.wait(create(runs_for=5))).status == "completed"

    @pytest.mark.parametrize(("status", "kind"), [(403, PermissionDeniedError), (400, BadRequestError)])
    async def test_three_refusals_in_a_row_end_the_wait_and_stop_the_response(
        self, session, server, caplog, status: int, kind
    ) -> None:
        server.faults += [Fault(on="retrieve", status=status)] * 3
        identifier = server.add()
        with pytest.raises(kind) as caught:
            await session.wait(identifier)
        assert caught.value.outcome.verdict is Verdict.CANCELLED
        assert notes(caught.value) == [f"openai-cancel: {identifier} was stopped (cancelled) when the wait ended"]
        assert f"{identifier}: the wait ended with {kind.__name__}; the response: cancelled" in caplog.text
        assert [request.method for request in server.received] == ["GET"] * 3 + ["POST"]

    async def test_a_refused_wait_that_leaves_the_response_running_is_logged(
        self, session, server, create, caplog
    ) -> None:
        server.faults += [Fault(on="retrieve", status=403)] * 3
        identifier = create()
        with pytest.raises(PermissionDeniedError) as caught:
            await session.wait(identifier, on_abandon="leave")
        assert (caught.value.outcome, cancels(server)) == (None, 0)
        assert f"{identifier}: the wait ended with PermissionDeniedError; the response was not stopped" in caplog.text

    async def test_the_error_with_its_outcome_can_be_pickled(self, session, server, create) -> None:
        server.faults += [Fault(on="retrieve", status=403)] * 3
        with pytest.raises(PermissionDeniedError) as caught:
            await session.wait(create())
        assert pickle.loads(pickle.dumps(caught.value)).outcome == caught.value.outcome


class TestNotFound:
    """A 404 may come from a store that is late, or from a replica that does not share it."""

    async def test_a_response_that_its_server_shows_late_is_waited_for(self, clock: QuickClock, server, create) -> None:
        server.store_delay = 6
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            assert (await session.wait(create(runs_for=20))).status == "completed"
        assert cancels(server) == 0

    async def test_an_unknown_id_is_looked_for_during_ten_seconds(self, session: QuickSession, server) -> None:
        with pytest.raises(NotFoundError) as caught:
            await session.wait("resp_none")
        assert caught.value.outcome.verdict is Verdict.NOT_FOUND
        assert "resp_none was not stopped (not_found" in notes(caught.value)[0]
        assert [request.method for request in server.received][:13] == ["GET"] * 12 + ["POST"]
        assert session.clock.slept[:11] == [0.5] + [1] * 10

    @pytest.mark.parametrize("drawn", [0.0, 1.0])
    async def test_three_looks_are_not_enough_if_they_are_close_together(self, server, clock, create, drawn) -> None:
        clock.drawn = drawn
        server.faults += [Fault(on="retrieve", status=404)] * 5
        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
            assert (await session.wait(create(runs_for=0))).status == "completed"

    async def test_ten_seconds_are_not_enough_if_they_are_two_looks(self, session, server, create) -> None:
        server.faults += [Fault(on="retrieve", status=404, headers={"retry-after": "30"})] * 2
        assert (await session.wait(create(runs_for=0))).status == "completed"

    async def test_a_response_that_was_seen_is_looked_for_during_a_minute(self, session, server, create) -> None:
        server.faults += [reported("in_progress"), *[Fault(on="retrieve", status=404)] * 60]
        assert (await session.wait(create(runs_for=0))).status == "completed"
        server.faults += [reported("in_progress"), *[Fault(on="retrieve", status=404)] * 61]
        session.clock.slept.clear()
        with pytest.raises(NotFoundError) as caught:
            await session.wait(create())
        assert session.clock.slept == [0.5] + [1] * 60
        assert caught.value.outcome.verdict is Verdict.CANCELLED

    async def test_another_refusal_between_them_does_not_count_with_them(self, session, server, create) -> None:
        server.faults += [Fault(on="retrieve", status=status) for status in (404, 404, 403, 404, 403)]
        assert (await session.wait(create(runs_for=0))).status == "completed"

    async def test_the_timeout_counts(self, session: QuickSession) -> None:
        with pytest.raises(WaitTimeoutError) as caught:
            await session.wait("resp_none", timeout=5, on_abandon="leave")
        assert str(caught.value) == "resp_none did not end within 5 s: it was not found. It was left running."
        assert sum(session.clock.slept) == 5


class TestArguments:
    @pytest.mark.parametrize("identifier", ["", "..", 5, None])
    async def test_an_invalid_id_is_refused_before_the_first_look(self, session, server, identifier: Any) -> None:
        with pytest.raises(InvalidResponseIdError):
            await session.wait(identifier)
        assert not server.received

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"timeout": 0}, "timeout must be a number of seconds"),
            ({"on_abandon": "pause"}, "on_abandon must be 'stop' or 'leave', not 'pause'"),
            ({"on_abandon": []}, r"on_abandon must be 'stop' or 'leave', not \[\]"),
            ({"grace": 0}, "grace must be"),
        ],
    )
    async def test_an_invalid_option_is_refused_before_the_first_look(
        self, session, server, options: Any, words: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=words):
            await session.wait("resp_x", **options)
        assert not server.received


class TestBlockingWait:
    @pytest.fixture
    def blocking(self, server: Emulator) -> Iterator[Session]:
        with Session(api_key=KEY, base_url=server.base_url) as session:
            yield session

    async def test_the_final_response_is_returned_and_a_timeout_stops_the_response(
        self, blocking: Session, create
    ) -> None:
        assert (await asyncio.to_thread(blocking.wait, create(runs_for=0))).status == "completed"
        with pytest.raises(WaitTimeoutError) as caught:
            await asyncio.to_thread(blocking.wait, create(), timeout=0.05)
        assert caught.value.outcome.verdict is Verdict.CANCELLED

    async def test_closing_the_session_stops_the_response(self, blocking: Session, server, create) -> None:
        identifier = create()
        waiting = asyncio.create_task(asyncio.to_thread(blocking.wait, identifier))
        await until(lambda: server.received)
        await asyncio.to_thread(blocking.close)
        with pytest.raises(SessionStateError, match="closed while the call was under way"):
            await waiting
        assert server.responses[identifier].cancelled

    async def test_closing_the_session_adds_a_note_if_the_response_was_not_stopped(
        self, blocking: Session, server, create
    ) -> None:
        waiting = asyncio.create_task(asyncio.to_thread(blocking.wait, create()))
        await until(lambda: server.received)
        server.faults += [Fault(status=403, body="You may not.")] * 3
        await asyncio.to_thread(blocking.close)
        with pytest.raises(SessionStateError) as caught:
            await waiting
        assert "was not stopped (forbidden" in notes(caught.value)[0]

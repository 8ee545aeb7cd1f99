"""`stop` against every server that the emulator plays, in every state; the verdicts expected stand in the README."""

import asyncio
import copy
import gc
import logging
import math
import pickle
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from conftest import KEY, QuickClock, QuickSession, until

from openai_cancel import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncSession,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    InternalServerError,
    InvalidResponseIdError,
    NotFoundError,
    Outcome,
    PermissionDeniedError,
    RateLimitError,
    Response,
    ResponseDecodeError,
    SessionStateError,
    UnprocessableEntityError,
    Verdict,
)
from openai_cancel.caller import Caller
from openai_cancel.emulator import DIALECTS, Dialect, Emulator, Fault, Reply, Script
from openai_cancel.errors import detached
from openai_cancel.outcome import judge

README = (Path(__file__).parents[1] / "README.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The cells of a table in the README, from the row that begins with a heading."""
    lines = README[README.index(f"| {heading} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|-")]


def expected() -> dict[tuple[str, str], str]:
    """The verdict by state and server: the one that all give, except those that are named."""
    verdicts = {}
    for state, usual, exceptions in table("state")[1:]:
        verdicts |= {(state, dialect): usual for dialect in DIALECTS}
        for exception in filter(None, exceptions.split("; ")):
            dialects, verdict = exception.split(": ")
            verdicts |= {(state, dialect.strip("`")): verdict for dialect in dialects.split(", ")}
    return verdicts


EXPECTED = expected()
REFUSALS = {
    "overloaded": Fault(status=503, body="Overloaded"),
    "out of quota": Fault(
        status=429, body={"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}
    ),
}
SCRIPTS: dict[str, dict[str, Any]] = {
    "queued": {"queued_for": math.inf},
    "completed": {"runs_for": 0},
    "failed": {"runs_for": 0, "becomes": "failed"},
    "incomplete": {"runs_for": 0, "becomes": "incomplete"},
    "not in the background": {"runs_for": 0},
    "running again after 10 s": {"resumes_after": 10},
    "never over": {"resumes_after": 0, "resumes": 1000},
}


@asynccontextmanager
async def playing(
    dialect: str | Dialect, *, key: str = KEY, **options: Any
) -> AsyncIterator[tuple[Emulator, QuickSession]]:
    """A server of a kind, which loses no real time over its answers, and a session on its clock."""
    clock = QuickClock()
    ways = DIALECTS[dialect] if isinstance(dialect, str) else dialect
    async with (
        Emulator(api_key=KEY, dialect=attrs.evolve(ways, cancel_takes=0), clock=clock.monotonic) as server,
        QuickSession(api_key=key, base_url=server.base_url, clock=clock, **options) as session,
    ):
        yield server, session


@pytest.mark.parametrize(("state", "dialect"), EXPECTED, ids=str)
async def test_every_server_in_every_state(state: str, dialect: str) -> None:
    wrong = "sk-this-is-not-the-key"
    async with playing(dialect, key=wrong if state == "stopped with a wrong key" else KEY) as (server, session):
        script = Script(**{"runs_for": math.inf, **SCRIPTS.get(state, {})})
        identifier = server.add(script, background=state != "not in the background")
        work = server.responses[identifier]
        match state:
            case "cancelled before":
                work.cancel(server.clock())
                session.clock.now += 60
            case "unknown":
                del server.responses[identifier]
            case "unknown, its id malformed":
                identifier = "no id at all/+="
            case "rate limited once":
                server.faults.append(Fault(on="cancel", status=429, headers={"retry-after": "2"}))
            case "cancelled, the answer lost":
                server.faults.append(Fault(on="cancel", act=True, cut="connection"))
            case "overloaded" | "out of quota":
                server.faults += [REFUSALS[state]] * 100
        ended = not state.startswith(("queued", "running", "never", "stopped", "rate", "cancelled, "))
        outcome = await session.stop(identifier, confirm=15 if state == "running again after 10 s" else None)

        assert outcome.verdict.replace("_", " ") == EXPECTED[state, dialect]
        assert outcome.response_id == identifier
        assert outcome.attempts == len(server.received)
        assert outcome.request_id
        assert outcome.elapsed <= 60
        is_over = outcome.verdict in {Verdict.CANCELLED, Verdict.ALREADY_FINISHED}
        assert outcome.stopped is (is_over or outcome.verdict is Verdict.NOT_BACKGROUND)
        assert (outcome.error is None) is is_over or outcome.verdict is Verdict.STILL_RUNNING
        # A verdict is true: what is said to be over is over on the server.
        if is_over and not ended:
            assert work.status(server.clock()) == "cancelled"


def test_the_table_is_whole() -> None:
    assert {dialect for _, dialect in EXPECTED} == set(DIALECTS)
    assert set(SCRIPTS) | set(REFUSALS) < {state for state, _ in EXPECTED}
    assert set(EXPECTED.values()) == {verdict.replace("_", " ") for verdict in Verdict}
    assert [row[0].strip("`") for row in table("verdict")[1:]] == list(Verdict)


def json_answer(status: str, **headers: str) -> Fault:
    """An answer to a retrieve that says what a test needs."""
    return Fault(on="retrieve", status=200, body={"id": "resp_x", "status": status}, headers=headers)


class TestTime:
    async def test_looks_back_off_up_to_the_deadline(self, session: QuickSession, create) -> None:
        outcome = await session.stop(create(resumes_after=0, resumes=100), deadline=30)
        assert outcome.verdict is Verdict.STILL_RUNNING
        assert session.clock.slept[:5] == [0.5, 1, 2, 4, 8]
        assert session.clock.slept[5:] == [14.5 / 2 ** (halving + 1) for halving in range(5)]
        assert outcome.elapsed == sum(session.clock.slept) == pytest.approx(30, abs=0.5)
        assert outcome.error is None
        assert outcome.response.status == "in_progress"

    async def test_half_a_second_is_enough_for_one_more(self, session: QuickSession, create) -> None:
        await session.stop(create(resumes_after=0, resumes=100), deadline=1)
        assert session.clock.slept == [0.5, 0.25]

    async def test_a_half_of_each_wait_is_left_to_chance(self, session: QuickSession, create) -> None:
        session.clock.drawn = 0.0
        await session.stop(create(resumes_after=0, resumes=100), deadline=30)
        assert session.clock.slept[:5] == [0.25, 0.5, 1, 2, 4]

    async def test_every_fourth_look_cancels_again(self, session: QuickSession, server: Emulator, create) -> None:
        await session.stop(create(resumes_after=0, resumes=100), deadline=30)
        calls = "".join("c" if request.method == "POST" else "r" for request in server.received)
        assert calls == "crrrcrrrcrr"

    async def test_retry_after_with_an_answer(self, session: QuickSession, server: Emulator, create) -> None:
        identifier = create(resumes_after=0)
        server.faults += [json_answer("in_progress", **{"Retry-After": "7"}), json_answer("completed")]
        outcome = await session.stop(identifier)
        assert outcome.verdict is Verdict.ALREADY_FINISHED
        assert session.clock.slept == [0.5, 7]

    async def test_retry_after_with_an_error(self, session: QuickSession, server: Emulator, create) -> None:
        identifier = create(resumes_after=0)
        server.faults += [Fault(on="cancel", status=409), json_answer("completed")]
        server.faults.insert(1, Fault(on="retrieve", status=429, headers={"retry-after": "9"}))
        outcome = await session.stop(identifier, max_retries=0)
        assert (outcome.verdict, outcome.error) == (Verdict.ALREADY_FINISHED, None)
        assert session.clock.slept == [9, 1]

    async def test_a_wish_past_the_deadline_is_met_half_way(self, session: QuickSession, server, create) -> None:
        identifier = create(resumes_after=0)
        server.faults += [json_answer("queued", **{"Retry-After": "50"}), json_answer("completed")]
        outcome = await session.stop(identifier, deadline=50.5)
        assert (outcome.verdict, session.clock.slept) == (Verdict.ALREADY_FINISHED, [0.5, 25])

    @pytest.mark.parametrize("wish", [{"Retry-After": "0"}, {"Retry-After": "-5"}, {"Retry-After-Ms": "1"}])
    async def test_a_wish_for_no_wait_is_no_spin(self, session: QuickSession, server, create, wish) -> None:
        server.faults += [json_answer("queued", **wish)] * 9
        await session.stop(create(resumes_after=0, resumes=99), deadline=3)
        assert session.clock.slept[:3] == [0.5, 0.25, 0.25]

    async def test_a_server_that_hangs_in_the_middle_of_a_body(self) -> None:
        left = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            body = b'{"id": "resp_x", "status": "in_progress"}'
            for part in (body, body[:10]):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), part))
            await reader.read()
            writer.close()
            left.set()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with AsyncSession(base_url=f"http://127.0.0.1:{port}", api_key=KEY) as session:
            outcome = await session.stop("resp_x", deadline=1.0)
        await left.wait()  # the connection is not kept
        listener.close()
        await asyncio.sleep(0)
        assert outcome.verdict is Verdict.STILL_RUNNING
        assert isinstance(outcome.error, APITimeoutError)
        assert outcome.error.__traceback__ is None
        assert 0.9 < outcome.elapsed < 5

    async def test_a_cancel_without_an_answer_leaves_time_for_a_look(self, server: Emulator, create) -> None:
        identifier = create(runs_for=0)
        server.faults.append(Fault(on="cancel", delay=math.inf))
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            outcome = await session.stop(identifier, deadline=0.8)
        assert outcome.verdict is Verdict.ALREADY_FINISHED
        assert outcome.attempts == 2
        assert 0.55 < outcome.elapsed < 0.8

    @pytest.mark.parametrize("deadline", [0.5, 1])
    async def test_no_time_at_all(self, server: Emulator, deadline: float) -> None:
        seconds = iter(range(100))

        class Racing(QuickClock):
            def monotonic(self) -> float:
                return next(seconds)

        async with QuickSession(api_key=KEY, base_url=server.base_url, clock=Racing()) as session:
            outcome = await session.stop("resp_x", deadline=deadline)
        assert (outcome.verdict, outcome.attempts, outcome.stopped) == (Verdict.UNKNOWN, 0, False)
        with pytest.raises(APITimeoutError, match=rf"The deadline of {deadline} s has passed."):
            raise outcome.error

    async def test_what_each_request_may_take(self, session: QuickSession, create, monkeypatch) -> None:
        """All that is left for a look; for a cancel three quarters of it, so that a look can follow."""
        deadlines: list[float] = []

        def noting(call: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, deadline, **options: (
                deadlines.append(deadline) or call(*args, deadline=deadline, **options)
            )

        monkeypatch.setattr(Caller, "cancel", noting(Caller.cancel))
        monkeypatch.setattr(Caller, "retrieve", noting(Caller.retrieve))
        await session.stop(create(resumes_after=3, runs_for=4), deadline=20, confirm=5)
        assert deadlines == [15, 15]

    async def test_no_deadline(self, session: QuickSession, create) -> None:
        assert (await session.stop(create(), deadline=math.inf)).verdict is Verdict.CANCELLED


class TestConfirm:
    async def test_it_stayed_cancelled(self, session: QuickSession, create) -> None:
        outcome = await session.stop(create(), confirm=5)
        assert (outcome.verdict, outcome.attempts, session.clock.slept) == (Verdict.CANCELLED, 2, [5])

    async def test_what_was_over_is_not_looked_at_again(self, session: QuickSession, create) -> None:
        outcome = await session.stop(create(runs_for=0), confirm=5)
        assert (outcome.verdict, session.clock.slept) == (Verdict.ALREADY_FINISHED, [])

    async def test_nothing_else_is_looked_at_again_either(self, session: QuickSession, server, create) -> None:
        assert (await session.stop("resp_none", confirm=5)).verdict is Verdict.NOT_FOUND
        server.faults.append(Fault(status=401))
        assert (await session.stop(create(), confirm=5)).verdict is Verdict.FORBIDDEN
        assert session.clock.slept == []

    @pytest.mark.parametrize(
        ("then", "verdict"),
        [
            ([Fault(on="cancel", status=400), json_answer("completed")], Verdict.ALREADY_FINISHED),
            ([Fault(on="cancel", status=403), json_answer("in_progress")], Verdict.FORBIDDEN),
            ([Fault(on="cancel", status=404), Fault(on="retrieve", status=404)], Verdict.NOT_FOUND),
        ],
    )
    async def test_it_went_back_and_could_not_be_cancelled_again(
        self, session: QuickSession, server, create, then, verdict
    ) -> None:
        server.faults += [Fault(on="cancel"), json_answer("in_progress"), *then]
        outcome = await session.stop(create(), confirm=5)
        assert (outcome.verdict, session.clock.slept, outcome.attempts) == (verdict, [5], 4)

    async def test_it_ran_to_its_end_all_the_same(self) -> None:
        async with playing("azure") as (server, session):
            identifier = server.add(Script(runs_for=12, resumes_after=5))
            outcome = await session.stop(identifier, confirm=20)
        assert outcome.verdict is Verdict.ALREADY_FINISHED
        assert outcome.response.status == "completed"

    async def test_it_went_back_once(self) -> None:
        async with playing("azure") as (server, session):
            identifier = server.add(Script(runs_for=math.inf, resumes_after=5))
            outcome = await session.stop(identifier, confirm=10)
        assert outcome.verdict is Verdict.CANCELLED
        assert outcome.attempts == 4
        assert session.clock.slept == [10, 10]

    async def test_it_went_back_twice(self) -> None:
        async with playing("azure") as (server, session):
            identifier = server.add(Script(runs_for=math.inf, resumes_after=5, resumes=9))
            outcome = await session.stop(identifier, confirm=10)
        assert (outcome.verdict, outcome.attempts) == (Verdict.STILL_RUNNING, 4)
        assert (outcome.stopped, outcome.error) == (False, None)

    async def test_sooner_where_the_deadline_is_near(self, session: QuickSession, create) -> None:
        outcome = await session.stop(create(), confirm=100, deadline=31)
        assert (outcome.verdict, session.clock.slept) == (Verdict.CANCELLED, [15.5])

    async def test_a_look_that_fails_leaves_the_servers_word(self, session: QuickSession, server, create) -> None:
        identifier = create()
        server.faults += [Fault(on="retrieve", status=403, body="no")]
        outcome = await session.stop(identifier, confirm=5)
        assert (outcome.verdict, outcome.stopped) == (Verdict.CANCELLED, True)
        assert isinstance(outcome.error, PermissionDeniedError)


class TestWhatIsNotSeen:
    async def test_a_cancel_that_was_accepted_in_no_words(self, session: QuickSession, server, create) -> None:
        identifier = create()
        server.faults.append(Fault(on="cancel", act=True, status=200, body=b"<html>ok</html>"))
        outcome = await session.stop(identifier)
        assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 2)

    async def test_looks_that_fail_for_a_while(self, session: QuickSession, server: Emulator, create) -> None:
        identifier = create(resumes_after=0)
        server.faults += [Fault(on="retrieve", status=503)] * 2
        server.faults += [Fault(on="retrieve", status=200, body=b"<html>"), json_answer("cancelled")]
        outcome = await session.stop(identifier, max_retries=0)
        assert (outcome.verdict, outcome.error) == (Verdict.CANCELLED, None)

    async def test_looks_that_fail_until_the_deadline(self, session: QuickSession, server: Emulator, create) -> None:
        identifier = create(resumes_after=0)
        server.faults += [Fault(on="cancel", act=True)] + [Fault(status=503)] * 100
        outcome = await session.stop(identifier)
        assert outcome.verdict is Verdict.STILL_RUNNING
        assert isinstance(outcome.error, InternalServerError)
        assert outcome.elapsed > 59

    @pytest.mark.parametrize("status", [405, 501])
    async def test_a_server_that_knows_no_cancel(self, session: QuickSession, server, create, status: int) -> None:
        identifier = create()
        server.faults += [Fault(on="cancel", status=status)] * 100
        outcome = await session.stop(identifier, max_retries=0, deadline=20)
        assert outcome.verdict is Verdict.STILL_RUNNING
        assert outcome.error.status == status

    async def test_one_that_knows_it_a_little_later(self, session: QuickSession, server: Emulator, create) -> None:
        identifier = create()
        server.faults += [Fault(on="cancel", status=409, body="busy")] * 2
        outcome = await session.stop(identifier)
        assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 5)

    async def test_a_look_is_repeated_unless_the_cancel_was(self, session: QuickSession, server, create) -> None:
        """A server that is silent is asked less, one that has answered as often as always."""
        down = Fault(status=503)
        server.faults += [attrs.evolve(down, on="cancel")] * 2 + [attrs.evolve(down, on="retrieve")]
        assert (await session.stop(create(), max_retries=1)).attempts == 4
        server.faults += [Fault(on="cancel", status=400), attrs.evolve(down, on="retrieve"), json_answer("completed")]
        assert (await session.stop(create(), max_retries=1)).attempts == 3

    @pytest.mark.parametrize("status", [404, 410])
    async def test_forgotten_after_the_cancel(self, session: QuickSession, server: Emulator, create, status) -> None:
        identifier = create(resumes_after=0)
        server.faults += [Fault(on="cancel", act=True)] + [Fault(status=status)] * 3
        outcome = await session.stop(identifier)
        assert (outcome.verdict, outcome.stopped, outcome.attempts) == (Verdict.NOT_FOUND, False, 4)
        assert outcome.response.status == "in_progress"

    @pytest.mark.parametrize("status", [401, 403, 404, 405, 409, 302])
    async def test_a_look_that_is_refused_is_no_verdict(self, session: QuickSession, server, create, status) -> None:
        """A replica that does not know it yet, a key that may only write: the next cancel tells."""
        server.faults.append(Fault(on="retrieve", status=status))
        outcome = await session.stop(create(resumes_after=0))
        assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 3)

    @pytest.mark.parametrize(
        "failing",
        [
            [Fault(status=503)] * 7,
            [Fault(on="cancel", status=200), Fault(on="retrieve", status=503)],
            [Fault(status=200), Fault(status=200)],
            [Fault(status=429, headers={"retry-after": "50"}), Fault(status=429, headers={"retry-after": "10"})],
        ],
        ids=["down", "no words, then down", "no words", "limited"],
    )
    async def test_a_server_that_recovers_before_the_deadline(self, session, server, create, failing) -> None:
        server.faults += failing
        assert (await session.stop(create())).verdict is Verdict.CANCELLED

    async def test_a_key_that_may_look_and_not_cancel(self, session: QuickSession, server: Emulator, create) -> None:
        running, over = create(), create(runs_for=0)
        server.faults += [Fault(on="cancel", status=403, body="no")] * 2
        outcome = await session.stop(running)
        assert (outcome.verdict, outcome.attempts) == (Verdict.FORBIDDEN, 2)
        assert isinstance(outcome.error, PermissionDeniedError)
        assert (await session.stop(over)).verdict is Verdict.ALREADY_FINISHED

    async def test_a_key_that_is_wrong_is_sent_once(self, server: Emulator, session: QuickSession) -> None:
        server.faults.append(Fault(status=401, body="no"))
        outcome = await session.stop("resp_x")
        assert (outcome.verdict, outcome.attempts) == (Verdict.FORBIDDEN, 1)
        assert isinstance(outcome.error, AuthenticationError)

    async def test_no_server(self, session: QuickSession, server: Emulator) -> None:
        await server.__aexit__(None, None, None)
        outcome = await session.stop("resp_x")
        assert (outcome.verdict, outcome.request_id) == (Verdict.UNKNOWN, None)
        assert isinstance(outcome.error, APIConnectionError)
        assert outcome.elapsed > 59


def failure(kind: type[APIStatusError], status: int, message: str = "", *, attempts: int = 1) -> APIStatusError:
    error = kind(message, status=status, headers={}, body=b"")
    error.attempts = attempts
    return error


REFUSED = failure(BadRequestError, 400, "No.")
SYNCHRONOUS = failure(BadRequestError, 400, "Cannot cancel a synchronous response.")
SILENT = APIConnectionError("refused")


@pytest.mark.parametrize(
    ("status", "background", "refusal", "reached", "verdict"),
    [
        ("cancelled", None, None, True, Verdict.CANCELLED),
        ("cancelled", None, REFUSED, True, Verdict.CANCELLED),
        ("cancelled", None, REFUSED, False, Verdict.ALREADY_FINISHED),
        ("failed", None, None, True, Verdict.ALREADY_FINISHED),
        ("completed", False, None, True, Verdict.ALREADY_FINISHED),
        ("canceled", None, None, True, Verdict.CANCELLED),
        ("complete", None, None, True, Verdict.ALREADY_FINISHED),
        ("completed", False, SYNCHRONOUS, False, Verdict.NOT_BACKGROUND),
        ("completed", False, SYNCHRONOUS, True, Verdict.NOT_BACKGROUND),
        ("cancelled", False, SYNCHRONOUS, True, Verdict.CANCELLED),
        ("in_progress", False, SYNCHRONOUS, True, None),
        ("in_progress", None, SYNCHRONOUS, True, None),
        ("in_progress", None, failure(ConflictError, 409, "An asynchronous cancel is under way."), False, None),
        ("in_progress", None, failure(ConflictError, 409, "It is being cancelled in the background."), False, None),
        ("in_progress", False, failure(NotFoundError, 404), False, None),
        ("in_progress", False, failure(APIStatusError, 307), False, None),
        ("completed", None, SYNCHRONOUS, False, Verdict.ALREADY_FINISHED),
        ("completed", True, SYNCHRONOUS, False, Verdict.ALREADY_FINISHED),
        ("in_progress", False, REFUSED, False, Verdict.NOT_BACKGROUND),
        ("in_progress", None, SYNCHRONOUS, False, Verdict.NOT_BACKGROUND),
        ("in_progress", None, failure(ConflictError, 409, "Only background ones."), False, Verdict.NOT_BACKGROUND),
        ("in_progress", True, SYNCHRONOUS, False, None),
        ("in_progress", None, REFUSED, False, None),
        ("in_progress", False, SILENT, False, None),
        ("in_progress", False, failure(InternalServerError, 500), False, None),
        ("in_progress", False, failure(RateLimitError, 429), False, None),
        ("in_progress", False, failure(APIStatusError, 408), False, None),
        ("in_progress", False, failure(PermissionDeniedError, 403), False, Verdict.FORBIDDEN),
        ("completed", False, failure(PermissionDeniedError, 403), False, Verdict.ALREADY_FINISHED),
        ("cancelling", True, None, True, None),
        (None, True, None, True, None),
    ],
)
def test_the_state_decides(status, background, refusal, reached, verdict) -> None:
    response = Response(id="resp_x", status=status, background=background)
    assert judge(response, refusal=refusal, error=None, reached=reached) is verdict


NOT_THERE = failure(BadRequestError, 400, 'OpenAIException - {"detail": "Response with id \'x\' not found."}')
UNREADABLE = ResponseDecodeError("no", status=200, headers={}, body=b"", request_id=None)
QUOTA = failure(RateLimitError, 429, "insufficient_quota")


@pytest.mark.parametrize(
    ("refusal", "error", "unseen", "seen"),
    [
        (REFUSED, failure(AuthenticationError, 401), Verdict.FORBIDDEN, Verdict.FORBIDDEN),
        (REFUSED, failure(PermissionDeniedError, 403), Verdict.FORBIDDEN, Verdict.FORBIDDEN),
        (failure(PermissionDeniedError, 403), SILENT, Verdict.FORBIDDEN, Verdict.FORBIDDEN),
        (REFUSED, failure(NotFoundError, 404), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(APIStatusError, 410), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (SILENT, failure(NotFoundError, 404), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (NOT_THERE, REFUSED, Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, NOT_THERE, Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(BadRequestError, 400, "MALFORMED identifier."), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(BadRequestError, 400, "No such response"), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(BadRequestError, 400, "The id does not exist."), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(BadRequestError, 400, "Expected an ID …"), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(UnprocessableEntityError, 422, "id: not found"), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (failure(APIStatusError, 408, "Response not found"), REFUSED, None, None),
        (REFUSED, failure(BadRequestError, 400, "The model was not found."), Verdict.UNKNOWN, Verdict.STILL_RUNNING),
        (REFUSED, REFUSED, Verdict.UNKNOWN, Verdict.STILL_RUNNING),
        (QUOTA, QUOTA, Verdict.UNKNOWN, Verdict.STILL_RUNNING),
        (SILENT, NOT_THERE, None, None),
        (NOT_THERE, SILENT, None, None),
        (SILENT, SILENT, None, None),
        (UNREADABLE, REFUSED, None, None),
        (REFUSED, UNREADABLE, None, None),
        (None, failure(NotFoundError, 404), None, None),
        (None, QUOTA, None, None),
    ],
)
def test_what_failed_decides_where_the_state_is_not_seen(refusal, error, unseen, seen) -> None:
    assert judge(None, refusal=refusal, error=error, reached=True) is unseen
    response = Response(id="resp_x", status="in_progress")
    assert judge(response, refusal=refusal, error=error, reached=True) is seen


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        # A refusal of the first attempt: it was cancelled by somebody else. Of a later one: perhaps by the first.
        ([Fault(on="cancel", status=400, body="No.")], Verdict.ALREADY_FINISHED),
        ([Fault(on="cancel", status=429), Fault(on="cancel", status=400, body="No.")], Verdict.CANCELLED),
        ([Fault(on="cancel", status=503)] * 9, Verdict.CANCELLED),
        ([Fault(on="cancel", status=429, headers={"x-should-retry": "false"})], Verdict.ALREADY_FINISHED),
        ([Fault(on="cancel", status=503, headers={"x-should-retry": "false"})], Verdict.CANCELLED),
        ([Fault(on="cancel", cut="connection")] * 9, Verdict.CANCELLED),
        ([Fault(on="cancel", status=200, body="yes")], Verdict.CANCELLED),
    ],
)
async def test_who_cancelled_it(session: QuickSession, server: Emulator, create, answers, verdict) -> None:
    identifier = create()
    server.responses[identifier].cancel(server.clock())
    server.faults += answers
    assert (await session.stop(identifier)).verdict is verdict


async def test_a_lost_cancel_counts_although_a_later_one_is_refused(session: QuickSession, server, create) -> None:
    identifier = create()
    server.faults += [Fault(on="cancel", cut="connection"), json_answer("in_progress")]
    server.faults += [Fault(on="cancel", act=True, status=400, body="No.")]
    assert (await session.stop(identifier, max_retries=0)).verdict is Verdict.CANCELLED


class TestCancelled:
    @pytest.mark.parametrize("on", ["cancel", "retrieve"])
    async def test_a_task_that_is_cancelled_ends_at_once(self, server: Emulator, create, on) -> None:
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

    async def test_while_it_waits(self, session: QuickSession, create) -> None:
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

    async def test_closing_the_session_ends_it(self, session: QuickSession, server: Emulator, create) -> None:
        identifier = create()
        server.faults.append(Fault(delay=math.inf))
        task = asyncio.create_task(session.stop(identifier))
        await until(lambda: not server.faults)
        await session.close()
        with pytest.raises(SessionStateError):
            await task


class TestBadInput:
    @pytest.mark.parametrize("identifier", ["", ".", "a\n", 5, None])
    async def test_ids(self, session: QuickSession, server: Emulator, identifier: Any) -> None:
        with pytest.raises(InvalidResponseIdError):
            await session.stop(identifier)
        assert not server.received

    @pytest.mark.parametrize("options", [{"deadline": 0}, {"deadline": None}, {"confirm": -1}, {"confirm": "1"}])
    async def test_options(self, session: QuickSession, server: Emulator, options: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be a number of seconds"):
            await session.stop("resp_x", **options)
        assert not server.received

    async def test_options_of_requests_reach_every_one(self, session: QuickSession, server: Emulator, create) -> None:
        await session.stop(create(), confirm=1, headers={"x-team": "a"}, query={"v": "1"})
        assert [request.headers["x-team"] for request in server.received] == ["a", "a"]
        assert all(request.path.endswith("?v=1") for request in server.received)

    async def test_an_object_with_an_id(self, session: QuickSession, create) -> None:
        response = Response(id=create())
        assert (await session.stop(response)).response_id == response.id


class TestOutcome:
    async def test_it_is_data(self, session: QuickSession, create) -> None:
        outcome = await session.stop(create())
        for other in (pickle.loads(pickle.dumps(outcome)), copy.deepcopy(outcome)):
            assert other == outcome
        with pytest.raises(TypeError, match="positional"):
            Outcome("resp_x", *(None,) * 6)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            outcome.verdict = Verdict.UNKNOWN
        assert str(outcome.verdict) == "cancelled"
        assert re.match(r"Outcome\(response_id='resp_\w+', verdict=<Verdict.CANCELLED: 'cancelled'>", repr(outcome))

    @pytest.mark.parametrize("fault", [Fault(status=400), Fault(status=503), Fault(status=200), Fault(status=404)])
    async def test_it_keeps_nothing_alive(self, session: QuickSession, server: Emulator, create, fault) -> None:
        """Frames that hold the error whose traceback holds them would wait for the garbage collector."""
        identifier = create()
        server.faults += [attrs.evolve(fault, on="cancel"), json_answer("completed")]
        gc.collect()
        gc.disable()
        try:
            await session.stop(identifier, max_retries=0)
            assert not [thing for thing in gc.get_objects() if type(thing).__module__ == "openai_cancel.stop"]
        finally:
            gc.enable()

    async def test_what_failed_keeps_no_frames(self, session: QuickSession, server: Emulator) -> None:
        server.faults += [Fault(cut="connection")] * 99
        error = (await session.stop("resp_x", deadline=2)).error
        while error:
            assert error.__traceback__ is None
            error = error.__cause__ or error.__context__

    def test_causes_and_contexts_keep_none_either(self) -> None:
        try:
            try:
                try:
                    raise KeyError
                except KeyError:
                    raise ValueError  # noqa: B904 - it has a context, and no cause
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

    async def test_with_an_error(self, session: QuickSession) -> None:
        outcome = await session.stop("resp_x")
        other = pickle.loads(pickle.dumps(outcome))
        assert (other.verdict, str(other.error)) == (Verdict.NOT_FOUND, str(outcome.error))


class TestLog:
    async def test_a_line_for_each_outcome(self, session: QuickSession, create, caplog) -> None:
        caplog.set_level(logging.INFO, "openai_cancel")
        outcome = await session.stop(create())
        (line,) = caplog.messages
        assert line == f"{outcome.response_id}: cancelled (attempts: 1, 0.000 s, request id: {outcome.request_id})"
        assert caplog.records[0].name == "openai_cancel"

    async def test_a_line_for_each_attempt(self, session: QuickSession, server: Emulator, create, caplog) -> None:
        caplog.set_level(logging.DEBUG, "openai_cancel")
        identifier = create(runs_for=0, says="a secret of the body")
        server.faults += [Fault(status=503, body="a secret of the body"), Fault(on="cancel", cut="connection")]
        await session.stop(Response(id=identifier))
        assert [line.partition(" (request")[0] for line in caplog.messages[:4]] == [
            f"cancel {identifier}: attempt 1: InternalServerError 503",
            f"cancel {identifier}: attempt 2: APIConnectionError",
            f"cancel {identifier}: attempt 3: BadRequestError 400",
            f"retrieve {identifier}: attempt 1: completed",
        ]
        assert caplog.messages[0].endswith(f"(request id: req_{1:032x})")
        assert caplog.messages[3].endswith(f"(request id: req_{4:032x})")
        assert [record.levelname for record in caplog.records] == ["DEBUG"] * 4 + ["INFO"]
        assert "secret" not in caplog.text

    async def test_a_status_that_is_none_is_not_logged(self, session: QuickSession, server, create, caplog) -> None:
        caplog.set_level(logging.DEBUG, "openai_cancel")
        server.faults.append(json_answer(f"in_progress\nINFO forged {KEY}"))
        await session.stop(create(resumes_after=0))
        assert "retrieve" in caplog.messages[1]
        assert "attempt 1: another status" in caplog.messages[1]
        assert KEY not in caplog.text

    async def test_nothing_where_nobody_listens(self, session: QuickSession, create, caplog) -> None:
        await session.stop(create())
        assert not caplog.messages


class TestDialects:
    """What the matrix does not show of the servers that are played."""

    async def test_one_of_your_own(self) -> None:
        teapot = Dialect(cancel={"in_progress": Reply(418, "Short and stout: {id} is {status}.")})
        async with playing(teapot) as (server, session):
            identifier = server.add()
            with pytest.raises(APIStatusError, match=f"418: Short and stout: {identifier} is in_progress."):
                await session.cancel(identifier)

    async def test_a_body_that_is_not_taken(self) -> None:
        async with playing("gomodel", headers={"content-type": "application/json"}) as (server, session):
            with pytest.raises(BadRequestError, match="A cancel takes no body."):
                await session.cancel(server.add())

    async def test_another_id_on_every_reply(self) -> None:
        async with playing("litellm") as (server, session):
            identifier = server.add()
            shown = [(await session.retrieve(identifier)).id for _ in range(2)]
            assert len({identifier, *shown}) == 3
            outcome = await session.stop(shown[0])
            assert outcome.verdict is Verdict.CANCELLED
            assert outcome.response_id == shown[0] != outcome.response.id

    @pytest.mark.parametrize("dialect", ["litellm", "litellm_polling"])
    async def test_no_key_at_litellm(self, dialect: str) -> None:
        async with playing(dialect, headers={"Authorization": ""}) as (_, session):
            outcome = await session.stop("resp_x")
        assert outcome.verdict is Verdict.UNKNOWN
        assert outcome.error.body == b"Internal Server Error"

    async def test_what_vllm_does_not_say(self) -> None:
        async with playing("vllm") as (server, session):
            response = await session.retrieve(server.add())
            assert response.status == "queued"
            assert "store" not in response.to_dict()
            assert response.extra == {"kv_transfer_params": None, "input_messages": None, "output_messages": None}
            with pytest.raises(NotFoundError) as caught:
                await session.cancel("x")
            assert caught.value.code == 404

    async def test_azure_takes_its_time(self) -> None:
        async with Emulator(dialect="azure") as server, AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            assert (await session.stop(server.add())).elapsed >= 0.5

    async def test_what_ends_while_azure_takes_its_time_is_not_cancelled(self) -> None:
        async with Emulator(dialect="azure") as server, AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            outcome = await session.stop(server.add(Script(runs_for=0.2)))
        assert (outcome.verdict, outcome.response.status) == (Verdict.ALREADY_FINISHED, "completed")

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="no such dialect: 'foo'; choose one of openai, azure, vllm"):
            Emulator(dialect="foo")


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
    async def test_it_looks_and_cancels_nothing(self, session: QuickSession, server, create, answer, verdict) -> None:
        server.faults += [answer] if answer else []
        identifier = create()
        outcome = await session.stop(identifier, dry_run=True, confirm=1)
        assert outcome.verdict is verdict
        assert (outcome.error is None) == (outcome.response is not None)
        assert [request.method for request in server.received] == ["GET"]
        assert not server.responses[identifier].cancelled

    async def test_many(self, session: QuickSession, server: Emulator, create) -> None:
        outcomes = [outcome async for outcome in session.stop_many([create(), create()], dry_run=True)]
        assert [outcome.verdict for outcome in outcomes] == [Verdict.STILL_RUNNING] * 2
        assert {request.method for request in server.received} == {"GET"}

    async def test_a_failure_that_passes(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [Fault(status=500)] * 2
        assert (await session.stop(create(), dry_run=True)).verdict is Verdict.STILL_RUNNING
        server.faults += [Fault(status=500)] * 9
        assert (await session.stop(create(), dry_run=True)).verdict is Verdict.UNKNOWN


class TestRulesAtTheEdge:
    """Each holds a rule that a change could break unseen."""

    @pytest.mark.parametrize("words", ["Set background=true to be able to cancel.", "It is not a background response."])
    def test_words_for_what_is_not_in_the_background(self, words: str) -> None:
        refusal = failure(BadRequestError, 400, words)
        running = Response(id="x", status="in_progress")
        assert judge(running, refusal=refusal, error=None, reached=False) is Verdict.NOT_BACKGROUND

    def test_a_422_is_a_refusal(self) -> None:
        refusal = failure(UnprocessableEntityError, 422)
        over = Response(id="x", status="completed", background=False)
        assert judge(over, refusal=refusal, error=None, reached=False) is Verdict.NOT_BACKGROUND

    @pytest.mark.parametrize(("kind", "status"), [(InternalServerError, 500), (RateLimitError, 429)])
    def test_a_failing_server_does_not_know_what_it_finds(self, kind: type[APIStatusError], status: int) -> None:
        fails = failure(kind, status, "Response not found")
        unknown = failure(BadRequestError, 400, "Response not found")
        for refusal, error in ((fails, unknown), (unknown, fails)):
            assert judge(None, refusal=refusal, error=error, reached=True) is None

    async def test_what_ran_to_its_end_is_not_cancelled_again(self) -> None:
        async with playing("azure") as (server, session):
            outcome = await session.stop(server.add(Script(runs_for=12, resumes_after=5)), confirm=20)
        assert (outcome.verdict, outcome.attempts) == (Verdict.ALREADY_FINISHED, 2)

    async def test_the_last_words_are_told(self, session: QuickSession, server: Emulator) -> None:
        server.faults += [Fault(on="cancel", status=400, body="first"), Fault(on="retrieve", status=409, body="last")]
        assert (await session.stop("x")).error.message == "last"

    async def test_the_last_words_are_told_at_the_deadline(self, session: QuickSession, server: Emulator) -> None:
        fails = [Fault(on="cancel", status=503, body="first"), Fault(on="retrieve", status=503, body="last")]
        server.faults += fails * 99
        assert (await session.stop("x", deadline=5, max_retries=0)).error.message == "last"

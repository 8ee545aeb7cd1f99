"""`stop` if requests fail or are refused."""

import pytest
from conftest import QuickSession, reported

from openai_cancel import (
    APIConnectionError,
    AuthenticationError,
    InternalServerError,
    PermissionDeniedError,
    Verdict,
)
from openai_cancel.emulator import Emulator, Fault


async def test_a_cancel_that_is_accepted_with_an_unreadable_body_is_followed_by_a_look(
    session: QuickSession, server, create
) -> None:
    identifier = create()
    server.faults.append(Fault(on="cancel", act=True, status=200, body=b"<html>ok</html>"))
    outcome = await session.stop(identifier)
    assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 2)


async def test_looks_that_fail_for_a_while_do_not_change_the_verdict(
    session: QuickSession, server: Emulator, create
) -> None:
    identifier = create(resumes_after=0)
    server.faults += [Fault(on="retrieve", status=503)] * 2
    server.faults += [Fault(on="retrieve", status=200, body=b"<html>"), reported("cancelled")]
    outcome = await session.stop(identifier)
    assert (outcome.verdict, outcome.error) == (Verdict.CANCELLED, None)


async def test_a_response_is_still_running_if_the_looks_fail_until_the_deadline(
    session: QuickSession, server: Emulator, create
) -> None:
    identifier = create(resumes_after=0)
    server.faults += [Fault(on="cancel", act=True)] + [Fault(status=503)] * 100
    outcome = await session.stop(identifier)
    assert outcome.verdict is Verdict.STILL_RUNNING
    assert isinstance(outcome.error, InternalServerError)
    assert outcome.elapsed > 59


@pytest.mark.parametrize("status", [405, 501])
async def test_a_response_is_still_running_if_the_server_cannot_cancel(
    session: QuickSession, server, create, status: int
) -> None:
    identifier = create()
    server.faults += [Fault(on="cancel", status=status)] * 100
    outcome = await session.stop(identifier)
    assert (outcome.verdict, outcome.attempts) == (Verdict.STILL_RUNNING, 2)
    assert outcome.error.status == status
    assert "This server cannot cancel responses." in str(outcome.error)


async def test_a_cancel_that_is_refused_at_first_is_repeated(session: QuickSession, server: Emulator, create) -> None:
    identifier = create()
    server.faults += [Fault(on="cancel", status=409, body="busy")] * 2
    outcome = await session.stop(identifier)
    assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 5)


@pytest.mark.parametrize(("max_retries", "attempts"), [(0, 2), (1, 4), (2, 6)])
async def test_max_retries_limits_the_failures_in_a_row(
    session: QuickSession, server: Emulator, create, max_retries: int, attempts: int
) -> None:
    server.faults += [Fault(status=503)] * 99
    outcome = await session.stop(create(), max_retries=max_retries)
    assert (outcome.verdict, outcome.attempts) == (Verdict.UNKNOWN, attempts)


async def test_a_success_starts_the_count_of_failures_again(session: QuickSession, server: Emulator, create) -> None:
    fails = Fault(on="retrieve", status=503)
    server.faults += [fails, reported("in_progress"), fails, reported("cancelled")]
    outcome = await session.stop(create(resumes_after=0), max_retries=1)
    assert (outcome.verdict, outcome.error) == (Verdict.CANCELLED, None)


async def test_a_cancel_over_the_rate_limit_is_not_followed_by_a_look(
    session: QuickSession, server: Emulator, create
) -> None:
    server.faults.append(Fault(on="cancel", status=429, headers={"retry-after": "2"}))
    outcome = await session.stop(create())
    assert (outcome.verdict, session.clock.slept) == (Verdict.CANCELLED, [2])
    assert [request.method for request in server.received] == ["POST", "POST"]


async def test_a_response_that_every_second_request_does_not_find_is_cancelled(
    session: QuickSession, server: Emulator, create
) -> None:
    """Two replicas without a common store answer in turn. An additional look changes which one gets the cancel."""
    server.faults.append(Fault(on="cancel", status=404))
    outcome = await session.stop(create())
    assert outcome.verdict is Verdict.CANCELLED
    assert "".join(request.method[0] for request in server.received) == "PGGP"


@pytest.mark.parametrize("status", [404, 410])
async def test_a_response_that_is_forgotten_after_the_cancel_is_not_found(
    session: QuickSession, server: Emulator, create, status
) -> None:
    identifier = create(resumes_after=0)
    server.faults += [Fault(on="cancel", act=True)] + [Fault(status=status)] * 99
    outcome = await session.stop(identifier)
    assert (outcome.verdict, outcome.stopped) == (Verdict.NOT_FOUND, False)
    assert outcome.response.status == "in_progress"


@pytest.mark.parametrize("status", [401, 403, 404, 405, 409, 302])
async def test_a_look_that_is_refused_is_followed_by_another_cancel(
    session: QuickSession, server, create, status
) -> None:
    """A replica may not know the response yet, or the key may only write. An accepted cancel reports the state."""
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
    ids=["down", "unreadable, then down", "unreadable", "limited"],
)
async def test_a_response_is_cancelled_if_the_server_recovers_before_the_deadline(
    session, server, create, failing
) -> None:
    server.faults += failing
    assert (await session.stop(create())).verdict is Verdict.CANCELLED


async def test_a_key_that_may_retrieve_but_not_cancel_is_forbidden(
    session: QuickSession, server: Emulator, create
) -> None:
    running, over = create(), create(runs_for=0)
    server.faults += [Fault(on="cancel", status=403, body="no")] * 2
    outcome = await session.stop(running)
    assert (outcome.verdict, outcome.attempts) == (Verdict.FORBIDDEN, 2)
    assert isinstance(outcome.error, PermissionDeniedError)
    assert (await session.stop(over)).verdict is Verdict.ALREADY_FINISHED


async def test_a_refusal_that_proves_the_end_is_believed_though_the_key_may_not_retrieve(
    session: QuickSession, server: Emulator, create
) -> None:
    server.faults.append(Fault(on="retrieve", status=403, body="no"))
    outcome = await session.stop(create(runs_for=0))
    assert (outcome.verdict, outcome.stopped, outcome.error) == (Verdict.ALREADY_FINISHED, True, None)


async def test_a_wrong_key_is_sent_only_once(server: Emulator, session: QuickSession) -> None:
    server.faults.append(Fault(status=401, body="no"))
    outcome = await session.stop("resp_x")
    assert (outcome.verdict, outcome.attempts) == (Verdict.FORBIDDEN, 1)
    assert isinstance(outcome.error, AuthenticationError)


async def test_the_verdict_is_unknown_if_there_is_no_server(session: QuickSession, server: Emulator) -> None:
    await server.__aexit__(None, None, None)
    outcome = await session.stop("resp_x")
    assert (outcome.verdict, outcome.request_id) == (Verdict.UNKNOWN, None)
    assert isinstance(outcome.error, APIConnectionError)
    assert outcome.elapsed > 59


async def test_the_error_is_the_one_of_the_last_look(session: QuickSession, server: Emulator) -> None:
    server.faults += [Fault(on="cancel", status=400, body="first"), Fault(on="retrieve", status=409, body="last")]
    assert (await session.stop("x")).error.message == "last"


async def test_the_error_at_the_deadline_is_the_one_of_the_last_look(session: QuickSession, server: Emulator) -> None:
    fails = [Fault(on="cancel", status=503, body="first"), Fault(on="retrieve", status=503, body="last")]
    server.faults += fails * 99
    assert (await session.stop("x", deadline=5, max_retries=0)).error.message == "last"


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        # A refusal means that the response was cancelled elsewhere. A cancel without an answer may have cancelled it.
        ([Fault(on="cancel", status=400, body="No.")], Verdict.ALREADY_FINISHED),
        ([Fault(on="cancel", status=429), Fault(on="cancel", status=400, body="No.")], Verdict.ALREADY_FINISHED),
        ([Fault(on="cancel", status=503)] * 9, Verdict.CANCELLED),
        ([Fault(on="cancel", status=429, headers={"x-should-retry": "false"})], Verdict.ALREADY_FINISHED),
        ([Fault(on="cancel", status=503, headers={"x-should-retry": "false"})], Verdict.CANCELLED),
        ([Fault(on="cancel", cut="connection")] * 9, Verdict.CANCELLED),
        ([Fault(on="cancel", status=200, body="yes")], Verdict.CANCELLED),
    ],
)
async def test_a_cancelled_response_was_cancelled_by_this_stop_if_a_cancel_may_have_acted(
    session: QuickSession, server: Emulator, create, answers, verdict
) -> None:
    identifier = create()
    server.responses[identifier].cancel(server.clock())
    server.faults += answers
    assert (await session.stop(identifier)).verdict is verdict


async def test_a_cancel_without_an_answer_may_have_acted_even_if_a_later_one_is_refused(
    session: QuickSession, server, create
) -> None:
    identifier = create()
    server.faults += [Fault(on="cancel", cut="connection"), reported("in_progress")]
    server.faults += [Fault(on="cancel", act=True, status=400, body="No.")]
    assert (await session.stop(identifier)).verdict is Verdict.CANCELLED

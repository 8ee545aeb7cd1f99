"""`stop` against servers that cannot cancel, gateways that hide what has happened, and stores that lag behind."""

import math
from typing import Any

import attrs
import pytest
from conftest import KEY, QuickSession, emulated, reported

from openai_cancel import (
    APIConnectionError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    UnsupportedError,
    Verdict,
)
from openai_cancel.emulator import DIALECTS, Emulator, Fault, Reply, Script

UNKNOWN_ID = {"error": {"message": "Response with id 'resp_x' not found."}}
MAYBE_OVER = {"detail": "Response not found or already completed"}
NO_ROUTE = {"detail": "Not Found"}
EXPRESS_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Error</title>
</head>
<body>
<pre>Cannot POST /v1/responses/resp_x/cancel</pre>
</body>
</html>
"""


def methods(server: Emulator) -> list[str]:
    return [request.method for request in server.received]


class TestServerThatCannotCancel:
    REFUSALS = (
        (501, "Cancel response not implemented"),
        (501, {"detail": "Cancellation is not yet implemented."}),
        (405, b""),
    )
    MISSING_ROUTES = (
        (404, NO_ROUTE),
        (404, "404 page not found"),
        (404, {"error": {"message": "Invalid URL (POST /v1/responses/resp_x/cancel)"}}),
        (404, EXPRESS_PAGE),
        (404, {"message": "Route POST:/v1/responses/resp_x/cancel not found", "error": "Not Found", "statusCode": 404}),
        (404, {"statusCode": 404, "message": "Resource not found"}),
        (404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}),
        (404, {"error": {"message": "Unknown request URL: POST /v1/responses/resp_x/cancel. Please check the URL."}}),
        (
            404,
            {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "No static resource v1/x/cancel."},
        ),
        (404, {"error": "The requested URL was not found on the server. If you entered it manually, check it."}),
        (404, "404: Not Found"),
        (404, "<html><head><title>HTTP Status 404 \u2013 Not Found</title></head></html>"),
        (200, {"error": "Unexpected endpoint or method. (POST /v1/responses/resp_x/cancel)"}),
    )

    @pytest.mark.parametrize(("status", "body"), [*REFUSALS, *MISSING_ROUTES])
    async def test_a_running_response_takes_one_cancel_and_one_look(
        self, session, server, create, status, body
    ) -> None:
        server.faults += [Fault(on="cancel", status=status, body=body)] * 9
        outcome = await session.stop(create())
        assert (outcome.verdict, outcome.stopped) == (Verdict.STILL_RUNNING, False)
        assert methods(server) == ["POST", "GET"]
        assert "This server cannot cancel responses." in str(outcome.error)

    async def test_a_404_without_a_body_is_final_at_the_second_cancel(self, session, server, create) -> None:
        server.faults += [Fault(on="cancel", status=404)] * 9
        outcome = await session.stop(create())
        assert (outcome.verdict, outcome.stopped) == (Verdict.STILL_RUNNING, False)
        assert methods(server) == ["POST", "GET", "GET", "POST", "GET"]
        assert "This server cannot cancel responses." in str(outcome.error)

    async def test_a_young_response_takes_four_cancels_until_a_404_about_the_path_is_final(
        self, session, server, create
    ) -> None:
        server.faults += [Fault(on="cancel", status=404, body=NO_ROUTE)] * 9
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create()) as guard:
                raise ValueError("mine")
        assert guard.outcome.verdict is Verdict.STILL_RUNNING
        assert methods(server).count("POST") == 4

    async def test_a_404_about_the_path_is_doubted_after_a_cancel_that_was_accepted(
        self, session, server, create
    ) -> None:
        server.faults += [Fault(on="cancel"), reported("in_progress"), reported("in_progress")]
        server.faults += [reported("in_progress"), *[Fault(on="cancel", status=404, body=NO_ROUTE)] * 3]
        outcome = await session.stop(create(resumes_after=0))
        assert outcome.verdict is Verdict.CANCELLED
        assert methods(server).count("POST") == 5

    @pytest.mark.parametrize(("status", "body"), [*REFUSALS, *MISSING_ROUTES, (404, b"")])
    async def test_a_response_that_has_ended_takes_two_requests(self, session, server, create, status, body) -> None:
        server.faults += [Fault(on="cancel", status=status, body=body)] * 9
        outcome = await session.stop(create(runs_for=0))
        assert (outcome.verdict, methods(server)) == (Verdict.ALREADY_FINISHED, ["POST", "GET"])

    async def test_an_unknown_id_is_not_found(self, session, server) -> None:
        server.faults.append(Fault(on="cancel", status=501))
        outcome = await session.stop("resp_none")
        assert outcome.verdict is Verdict.NOT_FOUND
        assert isinstance(outcome.error, NotFoundError)

    async def test_a_server_that_cannot_retrieve_either_is_unknown(self, session, server, create) -> None:
        server.faults += [Fault(on="cancel", status=501), Fault(on="retrieve", status=404, body=NO_ROUTE)]
        outcome = await session.stop(create())
        assert (outcome.verdict, len(server.received)) == (Verdict.UNKNOWN, 2)
        assert "This server cannot cancel responses." in str(outcome.error)

    @pytest.mark.parametrize("status", [405, 501])
    async def test_cancel_and_retrieve_raise_an_error_that_says_so(self, session, server, create, status: int) -> None:
        server.faults += [Fault(status=status)] * 2
        with pytest.raises(UnsupportedError, match="This server cannot cancel responses"):
            await session.cancel(create())
        with pytest.raises(UnsupportedError, match="This server cannot retrieve responses"):
            await session.retrieve(create())
        assert len(server.received) == 2

    async def test_a_404_without_a_body_may_be_about_the_id_and_is_tried_again(self, session, server, create) -> None:
        server.faults.append(Fault(on="cancel", status=404))
        assert (await session.stop(create())).verdict is Verdict.CANCELLED


class TestAnswerThatSaysNoInItsStatus:
    """A cancel of agent-framework-devui is always a 200, and its GET has no route."""

    def answer(self, status: str) -> list[Fault]:
        body = {"status": status, "response_id": "resp_x"}
        return [Fault(on="cancel", status=200, body=body), Fault(on="retrieve", status=404, body=NO_ROUTE)]

    @pytest.mark.parametrize(
        ("status", "verdict"),
        [
            ("cancelled", Verdict.CANCELLED),
            ("already_completed", Verdict.ALREADY_FINISHED),
            ("not_found", Verdict.NOT_FOUND),
        ],
    )
    async def test_it_takes_one_request(self, session, server, create, status: str, verdict: Verdict) -> None:
        server.faults += self.answer(status)
        outcome = await session.stop(create())
        assert (outcome.verdict, outcome.attempts) == (verdict, 1)
        assert outcome.stopped is (verdict is not Verdict.NOT_FOUND)


class TestAnswerWithoutAnId:
    """A 200 of a cancel whose status may be that of the cancel. The state that a look reports decides."""

    @pytest.mark.parametrize("status", ["failed", "completed", "incomplete", "success", "in_progress"])
    async def test_it_is_followed_by_a_look_and_polls(self, session, server, create, status: str) -> None:
        identifier = create()
        server.faults.append(Fault(on="cancel", status=200, body={"status": status, "message": "…"}))
        outcome = await session.stop(identifier)
        assert (outcome.verdict, outcome.response.id) == (Verdict.CANCELLED, identifier)
        assert methods(server) == ["POST", *["GET"] * 4, "POST"]

    async def test_a_cancel_that_worked_is_seen_at_once(self, session, server, create) -> None:
        server.faults.append(Fault(on="cancel", act=True, status=200, body={"status": "success"}))
        outcome = await session.stop(create())
        assert (outcome.verdict, methods(server)) == (Verdict.CANCELLED, ["POST", "GET"])

    async def test_it_is_not_believed_if_the_looks_fail(self, session, server, create) -> None:
        server.faults += [Fault(on="cancel", status=200, body={"status": "failed"})] * 50
        server.faults += [Fault(on="retrieve", status=503)] * 50
        updates = []
        outcome = await session.stop(create(), deadline=5, on_update=updates.append)
        assert (outcome.verdict, outcome.stopped, outcome.response) == (Verdict.UNKNOWN, False, None)
        assert isinstance(outcome.error, InternalServerError)
        assert updates == []

    async def test_it_does_not_confirm_that_a_response_stays_cancelled(self, session, server, create) -> None:
        server.faults += [Fault(on="cancel"), Fault(on="cancel", status=200, body={"status": "failed"})]
        server.faults.append(Fault(on="retrieve", status=404, body=NO_ROUTE))
        outcome = await session.stop(create(), confirm=5)
        assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 3)
        assert isinstance(outcome.error, NotFoundError)


class TestStoresThatDiffer:
    @pytest.mark.parametrize(
        "words",
        [
            "Cannot cancel a completed response.",
            "Cannot cancel failed response.",
            "Cannot cancel a response that is already incomplete.",
            "Response 'resp_x' cannot be cancelled: its status is completed.",
            "Cannot cancel a response in terminal state.",
        ],
    )
    @pytest.mark.parametrize("status", [400, 409])
    async def test_a_refusal_that_proves_the_end_outweighs_a_404(self, session, server, create, words, status) -> None:
        server.faults += [
            Fault(on="cancel", status=status, body={"error": {"message": words}}),
            Fault(on="retrieve", status=404, body=UNKNOWN_ID),
        ]
        outcome = await session.stop(create())
        assert (outcome.verdict, outcome.stopped, outcome.error) == (Verdict.ALREADY_FINISHED, True, None)

    async def test_a_404_that_may_mean_the_end_does_not_prove_it(self, session, server, create) -> None:
        server.faults += [Fault(status=404, body=MAYBE_OVER)] * 2
        outcome = await session.stop(create())
        assert (outcome.verdict, outcome.stopped, outcome.attempts) == (Verdict.NOT_FOUND, False, 2)

    @pytest.mark.parametrize("rounds", [1, 3])
    async def test_a_guard_does_not_believe_a_404_that_may_mean_the_end(self, session, server, create, rounds) -> None:
        identifier = create()
        server.faults += [Fault(status=404, body=MAYBE_OVER)] * (2 * rounds)
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(identifier) as guard:
                raise ValueError("mine")
        assert guard.outcome.verdict is Verdict.CANCELLED
        assert server.responses[identifier].cancelled

    async def test_words_that_some_servers_say_of_everything_do_not_prove_the_end(
        self, session, server, create
    ) -> None:
        words = {"error": {"message": "Cannot cancel a synchronous response."}}
        server.faults += [
            Fault(on="cancel", status=400, body=words),
            Fault(on="retrieve", status=404, body=UNKNOWN_ID),
        ]
        outcome = await session.stop(create())
        assert (outcome.verdict, outcome.stopped) == (Verdict.NOT_BACKGROUND, False)

    async def test_a_404_is_no_answer_while_every_cancel_fails_with_5xx(self, session, server, create) -> None:
        server.faults += [Fault(on="cancel", status=500), Fault(on="retrieve", status=404, body=UNKNOWN_ID)] * 50
        outcome = await session.stop(create(), deadline=20)
        assert outcome.verdict is Verdict.UNKNOWN
        assert isinstance(outcome.error, InternalServerError)

    @pytest.mark.parametrize(("replicas", "cancels"), [(2, 2), (3, 4)])
    async def test_a_replica_that_answers_an_unknown_id_like_an_unknown_path_is_not_the_last_one_asked(
        self, replicas, cancels
    ) -> None:
        dialect = attrs.evolve(DIALECTS["openai"], unknown=Reply(404, "Not Found"))
        async with emulated(dialect, replicas=replicas) as (server, session):
            work = server.responses[identifier := server.add(Script(runs_for=math.inf))]
            for _ in range(replicas - 2):
                server.add()  # takes a turn, so that the first look finds the response
            with pytest.raises(ValueError, match="mine"):
                async with session.guard(identifier) as guard:
                    raise ValueError("mine")
        assert (guard.outcome.verdict, bool(work.cancelled)) == (Verdict.CANCELLED, True)
        assert methods(server).count("POST") == cancels

    async def test_a_response_that_was_seen_is_found_again_on_another_replica(self, session, server, create) -> None:
        identifier = create()
        server.faults += [
            Fault(on="cancel", status=404, body=UNKNOWN_ID),
            Fault(on="retrieve"),
            Fault(on="cancel", status=404, body=UNKNOWN_ID),
            Fault(on="retrieve", status=404, body=UNKNOWN_ID),
        ]
        outcome = await session.stop(identifier)
        assert outcome.verdict is Verdict.CANCELLED
        assert server.responses[identifier].cancelled

    @pytest.mark.parametrize("status", [404, 410])
    async def test_a_response_that_was_seen_is_not_found_in_the_end(self, session, server, create, status: int) -> None:
        running = {"id": "resp_x", "status": "in_progress"}
        server.faults += [Fault(on="cancel", status=200, body=running)]
        server.faults += [Fault(status=status, body=UNKNOWN_ID)] * 20
        outcome = await session.stop(create())
        assert (outcome.verdict, outcome.response.status) == (Verdict.NOT_FOUND, "in_progress")
        assert 5 <= outcome.attempts <= 12

    async def test_an_unknown_id_is_not_found_at_once(self, session) -> None:
        outcome = await session.stop("resp_none")
        assert (outcome.verdict, outcome.attempts) == (Verdict.NOT_FOUND, 2)

    @pytest.mark.parametrize("rounds", [1, 3])
    async def test_a_guard_looks_again_for_an_id_that_is_young(self, session, server, create, rounds: int) -> None:
        identifier = create()
        server.faults += [Fault(status=404, body=UNKNOWN_ID)] * (2 * rounds)
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(identifier) as guard:
                raise ValueError("mine")
        assert guard.outcome.verdict is Verdict.CANCELLED

    async def test_a_guard_believes_that_an_old_id_is_unknown(self, session: QuickSession) -> None:
        with pytest.raises(ValueError, match="mine"):
            async with session.guard("resp_none") as guard:
                session.clock.now += 60
                raise ValueError("mine")
        assert (guard.outcome.verdict, guard.outcome.attempts) == (Verdict.NOT_FOUND, 2)


class TestGateways:
    async def test_a_500_for_a_cancel_that_worked_is_seen_at_the_first_look(self, session, server, create) -> None:
        server.faults.append(Fault(on="cancel", act=True, status=500, body={"status": "failure"}))
        outcome = await session.stop(create())
        assert (outcome.verdict, methods(server)) == (Verdict.CANCELLED, ["POST", "GET"])

    async def test_litellms_400_for_an_unknown_id_is_not_found(self, session, server, create) -> None:
        words = "You passed in model=None. There are no healthy deployments for this model"
        server.faults += [Fault(status=400, body={"error": {"message": words}})] * 2
        outcome = await session.stop(create())
        assert (outcome.verdict, outcome.attempts) == (Verdict.NOT_FOUND, 2)

    async def test_a_400_of_both_calls_for_another_reason_is_unknown(self, session, server, create) -> None:
        words = "Missing required query parameter: api-version"
        server.faults += [Fault(status=400, body={"error": {"message": words}})] * 2
        outcome = await session.stop(create())
        assert (outcome.verdict, outcome.attempts) == (Verdict.UNKNOWN, 2)


class TestRemarks:
    """The hint of an outcome's error fits its verdict."""

    async def test_not_found_asks_to_check_the_id(self, session, server, create) -> None:
        words = {"error": {"message": "Malformed identifier."}}
        server.faults += [Fault(status=400, body=words)] * 2
        error = (await session.stop(create())).error
        assert isinstance(error, BadRequestError)
        assert "Check the id" in str(error)
        assert "Retrieve" not in str(error)

    async def test_a_response_that_is_still_running_is_not_explained_by_a_404(self, session, server, create) -> None:
        running = {"id": "resp_x", "status": "in_progress"}
        server.faults += [Fault(on="cancel", status=400, body={"error": {"message": "Not now."}})] * 20
        server.faults += [Fault(on="retrieve", status=200, body=running)]
        server.faults += [Fault(on="retrieve", status=404, body=UNKNOWN_ID)] * 20
        outcome = await session.stop(create(), deadline=2)
        assert outcome.verdict is Verdict.STILL_RUNNING
        assert "Not now." in str(outcome.error)
        assert "not found" not in str(outcome.error)


class TestMaxRetries:
    @pytest.mark.parametrize(("max_retries", "cancels"), [(0, 1), (1, 2), (3, 4)])
    async def test_so_many_failures_in_a_row_are_followed_by_another_request(
        self, session, server, create, max_retries: int, cancels: int
    ) -> None:
        server.faults += [Fault(on="cancel", status=503)] * 50
        outcome = await session.stop(create(), max_retries=max_retries)
        assert outcome.verdict is Verdict.STILL_RUNNING
        assert methods(server).count("POST") == cancels

    async def test_polls_of_a_running_response_are_no_failures(self, session, create) -> None:
        identifier = create(resumes_after=0, resumes=1)
        outcome = await session.stop(identifier, max_retries=0)
        assert outcome.verdict is Verdict.CANCELLED

    async def test_a_guard_keeps_to_it(self, session, server, create) -> None:
        server.faults += [Fault(on="cancel", status=503)] * 50
        with pytest.raises(ValueError, match="mine"):
            async with session.guard(create(), max_retries=0):
                raise ValueError("mine")
        assert methods(server) == ["POST", "GET"]

    async def test_stop_many_keeps_to_it(self, session, server, create) -> None:
        server.faults += [Fault(on="cancel", status=500)] * 50
        ids = [create() for _ in range(3)]
        outcomes = [outcome async for outcome in session.stop_many(ids, max_retries=0)]
        assert {outcome.verdict for outcome in outcomes} == {Verdict.STILL_RUNNING}
        assert len(server.received) == 6


class TestUnreachableServer:
    async def collect(self, session: QuickSession, **options: Any) -> list[Any]:
        return [outcome async for outcome in session.stop_many(map("resp_{}".format, range(500)), **options)]

    async def test_a_run_ends_after_that_many_seconds_without_an_answer(self, unused_tcp_port: int) -> None:
        async with QuickSession(api_key=KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}") as session:
            began = session.clock.now
            with pytest.raises(APIConnectionError, match="Cannot connect"):
                await self.collect(session, give_up_after=10)
            assert 10 <= session.clock.now - began < 60

    async def test_a_server_that_answers_now_and_then_is_not_given_up(self, server: Emulator, create) -> None:
        server.faults += [Fault(cut="connection"), Fault(cut="connection"), Fault()] * 30
        ids = [create() for _ in range(20)]
        async with QuickSession(api_key=KEY, base_url=server.base_url) as session:
            outcomes = [outcome async for outcome in session.stop_many(ids, give_up_after=5, concurrency=1)]
        assert len(outcomes) == 20

    async def test_a_run_goes_on_without_the_option(self, unused_tcp_port: int) -> None:
        async with QuickSession(api_key=KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}") as session:
            ids = ["resp_1", "resp_2"]
            outcomes = [outcome async for outcome in session.stop_many(ids, deadline=5, give_up_after=math.inf)]
        assert {outcome.verdict for outcome in outcomes} == {Verdict.UNKNOWN}

"""`judge`, `explain` and `Outcome`: a verdict follows from what the server has said, without any I/O."""

import copy
import pickle
import re

import attrs
import pytest

from openai_cancel import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    OpenAICancelError,
    Outcome,
    PermissionDeniedError,
    RateLimitError,
    Response,
    ResponseDecodeError,
    UnprocessableEntityError,
    UnsupportedError,
    Verdict,
)
from openai_cancel.outcome import explain, judge, may_have_acted


def failure(kind: type[APIStatusError], status: int, message: str = "", *, attempts: int = 1) -> APIStatusError:
    error = kind(message, status=status, headers={}, body=b"")
    error.attempts = attempts
    return error


REFUSED = failure(BadRequestError, 400, "No.")
SYNCHRONOUS = failure(BadRequestError, 400, "Cannot cancel a synchronous response.")
NO_CONNECTION = APIConnectionError("refused")
UNREADABLE = ResponseDecodeError("no", status=200, headers={}, body=b"", request_id=None)
NO_SUCH_ROUTE = NotFoundError("Not Found", status=404, headers={}, body=b"Not Found")
NO_QUOTA = failure(RateLimitError, 429, "insufficient_quota")
NO_SUCH_ID = failure(BadRequestError, 400, 'OpenAIException - {"detail": "Response with id \'x\' not found."}')
OVER = failure(BadRequestError, 400, "Cannot cancel a completed response.")
MAYBE_OVER = failure(NotFoundError, 404, "Response not found or already completed")


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
        ("in_progress", False, NO_CONNECTION, False, None),
        ("in_progress", False, failure(InternalServerError, 500), False, None),
        ("in_progress", False, failure(RateLimitError, 429), False, None),
        ("in_progress", False, failure(APIStatusError, 408), False, None),
        ("in_progress", False, failure(PermissionDeniedError, 403), False, Verdict.FORBIDDEN),
        ("completed", False, failure(PermissionDeniedError, 403), False, Verdict.ALREADY_FINISHED),
        ("cancelling", True, None, True, None),
        ("in_progress", True, failure(UnsupportedError, 501), False, Verdict.STILL_RUNNING),
        ("in_progress", None, NO_SUCH_ROUTE, False, Verdict.STILL_RUNNING),
        ("in_progress", None, failure(NotFoundError, 404, "Not Found"), False, Verdict.STILL_RUNNING),
        ("in_progress", None, failure(NotFoundError, 404, "The model was not found."), False, None),
        ("in_progress", None, failure(NotFoundError, 404, "Response not found"), False, None),
        ("in_progress", None, failure(APIStatusError, 200, "Unexpected endpoint (…)"), False, Verdict.STILL_RUNNING),
        ("in_progress", None, failure(APIStatusError, 418, "Not Found"), False, None),
        ("completed", True, NO_SUCH_ROUTE, False, Verdict.ALREADY_FINISHED),
        ("not_found", None, None, True, Verdict.NOT_FOUND),
        (None, True, None, True, None),
    ],
)
def test_the_reported_state_decides_the_verdict(status, background, refusal, reached, verdict) -> None:
    response = Response(id="resp_x", status=status, background=background)
    assert judge(response, refusal=refusal, error=None, reached=reached) is verdict


@pytest.mark.parametrize(
    ("refusal", "error", "without_a_response", "with_one_that_ran"),
    [
        (REFUSED, failure(AuthenticationError, 401), Verdict.FORBIDDEN, Verdict.FORBIDDEN),
        (REFUSED, failure(PermissionDeniedError, 403), Verdict.FORBIDDEN, Verdict.FORBIDDEN),
        (failure(PermissionDeniedError, 403), NO_CONNECTION, Verdict.FORBIDDEN, Verdict.FORBIDDEN),
        (REFUSED, failure(NotFoundError, 404), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(APIStatusError, 410), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (NO_CONNECTION, failure(NotFoundError, 404), None, None),
        (UNREADABLE, failure(NotFoundError, 404), None, None),
        (
            failure(BadRequestError, 400, "Cannot cancel a synchronous response."),
            failure(NotFoundError, 404),
            Verdict.NOT_BACKGROUND,
            Verdict.NOT_BACKGROUND,
        ),
        (OVER, failure(NotFoundError, 404), Verdict.ALREADY_FINISHED, Verdict.ALREADY_FINISHED),
        (MAYBE_OVER, failure(NotFoundError, 404), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (failure(APIStatusError, 410, "Already completed"), failure(APIStatusError, 410), *[Verdict.NOT_FOUND] * 2),
        (failure(BadRequestError, 400, MAYBE_OVER.message), REFUSED, Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (MAYBE_OVER, NO_CONNECTION, None, None),
        (OVER, failure(PermissionDeniedError, 403), Verdict.ALREADY_FINISHED, Verdict.ALREADY_FINISHED),
        (OVER, failure(AuthenticationError, 401), Verdict.ALREADY_FINISHED, Verdict.ALREADY_FINISHED),
        (MAYBE_OVER, failure(PermissionDeniedError, 403), Verdict.FORBIDDEN, Verdict.FORBIDDEN),
        (
            failure(PermissionDeniedError, 403, OVER.message),
            failure(NotFoundError, 404),
            Verdict.FORBIDDEN,
            Verdict.FORBIDDEN,
        ),
        (failure(InternalServerError, 500), failure(NotFoundError, 404), None, None),
        (failure(UnsupportedError, 501), failure(NotFoundError, 404), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (failure(UnsupportedError, 501), NO_SUCH_ROUTE, Verdict.UNKNOWN, Verdict.STILL_RUNNING),
        (NO_SUCH_ID, REFUSED, Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, NO_SUCH_ID, Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(BadRequestError, 400, "MALFORMED identifier."), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(BadRequestError, 400, "No such response"), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(BadRequestError, 400, "The id does not exist."), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(BadRequestError, 400, "Expected an ID …"), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (REFUSED, failure(UnprocessableEntityError, 422, "id: not found"), Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (failure(APIStatusError, 408, "Response not found"), REFUSED, None, None),
        (REFUSED, failure(BadRequestError, 400, "The model was not found."), Verdict.UNKNOWN, Verdict.STILL_RUNNING),
        (REFUSED, REFUSED, Verdict.UNKNOWN, Verdict.STILL_RUNNING),
        (NO_QUOTA, NO_QUOTA, Verdict.UNKNOWN, Verdict.STILL_RUNNING),
        (NO_CONNECTION, NO_SUCH_ID, None, None),
        (NO_SUCH_ID, NO_CONNECTION, None, None),
        (NO_CONNECTION, NO_CONNECTION, None, None),
        (UNREADABLE, REFUSED, None, None),
        (REFUSED, UNREADABLE, None, None),
        (None, failure(NotFoundError, 404), None, None),
        (None, NO_QUOTA, None, None),
    ],
)
def test_the_errors_decide_the_verdict_if_the_last_look_failed(
    refusal, error, without_a_response, with_one_that_ran
) -> None:
    assert judge(None, refusal=refusal, error=error, reached=True) is without_a_response
    response = Response(id="resp_x", status="in_progress")
    assert judge(response, refusal=refusal, error=error, reached=True) is with_one_that_ran


def sent(error: OpenAICancelError) -> OpenAICancelError:
    """Return a copy of an error that came after one attempt."""
    copied = copy.copy(error)
    copied.attempts = 1
    return copied


def test_there_is_no_verdict_before_the_first_answer() -> None:
    assert judge(None, refusal=None, error=None, reached=True) is None


@pytest.mark.parametrize("words", ["Set background=true to be able to cancel.", "It is not a background response."])
def test_the_words_of_a_refusal_decide_if_the_server_does_not_report_the_background_flag(words: str) -> None:
    refusal = failure(BadRequestError, 400, words)
    running = Response(id="x", status="in_progress")
    assert judge(running, refusal=refusal, error=None, reached=False) is Verdict.NOT_BACKGROUND


def test_a_422_counts_as_a_refusal() -> None:
    refusal = failure(UnprocessableEntityError, 422)
    over = Response(id="x", status="completed", background=False)
    assert judge(over, refusal=refusal, error=None, reached=False) is Verdict.NOT_BACKGROUND


@pytest.mark.parametrize(("kind", "status"), [(InternalServerError, 500), (RateLimitError, 429)])
def test_an_error_of_a_failing_server_does_not_mean_that_the_id_is_unknown(
    kind: type[APIStatusError], status: int
) -> None:
    failing = failure(kind, status, "Response not found")
    refused = failure(BadRequestError, 400, "Response not found")
    for refusal, error in ((failing, refused), (refused, failing)):
        assert judge(None, refusal=refusal, error=error, reached=True) is None


@pytest.mark.parametrize(
    ("refusal", "acted"),
    [
        (None, True),
        (REFUSED, False),
        (failure(BadRequestError, 400, attempts=2), True),
        (failure(RateLimitError, 429), False),
        (failure(InternalServerError, 503), True),
        (failure(InternalServerError, 503, attempts=0), False),
        (sent(UNREADABLE), True),
        (sent(NO_CONNECTION), True),
        (NO_CONNECTION, False),
    ],
)
def test_a_cancel_may_have_acted_unless_its_only_attempt_was_refused(refusal, acted) -> None:
    assert may_have_acted(refusal) is acted


class TestExplain:
    def test_a_404_without_a_body_does_not_say_that_a_server_cannot_cancel_unless_it_knows_the_id(self) -> None:
        refusal = failure(NotFoundError, 404, "Not Found")
        failing = failure(InternalServerError, 503, "Overloaded")
        assert explain(Verdict.UNKNOWN, refusal, failing) is failing
        assert explain(Verdict.STILL_RUNNING, refusal, failing) is refusal
        assert "This server cannot cancel responses." in str(refusal)

    @pytest.mark.parametrize("verdict", [Verdict.CANCELLED, Verdict.ALREADY_FINISHED])
    def test_a_stopped_response_needs_no_reason(self, verdict: Verdict) -> None:
        assert explain(verdict, REFUSED, NO_CONNECTION) is None

    @pytest.mark.parametrize("verdict", [Verdict.NOT_FOUND, Verdict.STILL_RUNNING])
    def test_a_verdict_without_an_error_has_no_reason(self, verdict: Verdict) -> None:
        assert explain(verdict, None, None) is None

    def test_the_reason_is_the_error_of_the_last_request(self) -> None:
        first, last = failure(InternalServerError, 503, "first"), failure(InternalServerError, 503, "last")
        assert explain(Verdict.UNKNOWN, first, last) is last
        assert explain(Verdict.UNKNOWN, first, None) is first

    def test_an_unknown_id_is_explained_by_the_error_that_says_so(self) -> None:
        unknown = failure(NotFoundError, 404, "Response not found")
        assert explain(Verdict.NOT_FOUND, unknown, failure(BadRequestError, 400)) is unknown
        assert explain(Verdict.NOT_FOUND, failure(BadRequestError, 400), unknown) is unknown

    def test_an_unknown_id_does_not_suggest_to_retrieve_the_response(self) -> None:
        refusal = failure(BadRequestError, 400, "Malformed identifier.")
        explained = str(explain(Verdict.NOT_FOUND, refusal, failure(BadRequestError, 400, "No.")))
        assert "Check the id" in explained
        assert "Retrieve" not in explained

    def test_a_connection_error_can_explain_an_unknown_id(self) -> None:
        assert explain(Verdict.NOT_FOUND, NO_CONNECTION, None) is NO_CONNECTION

    @pytest.mark.parametrize(
        "refusal",
        [
            failure(UnsupportedError, 501, "Not implemented"),
            NotFoundError("Not Found", status=404, headers={}, body=b"Not Found"),
        ],
    )
    def test_a_server_that_cannot_cancel_is_named_as_the_reason(self, refusal: APIStatusError) -> None:
        assert explain(Verdict.STILL_RUNNING, refusal, None) is refusal
        assert "This server cannot cancel responses." in str(refusal)

    def test_a_response_that_still_runs_is_not_explained_by_a_404(self) -> None:
        refusal = failure(ConflictError, 409, "busy")
        assert explain(Verdict.STILL_RUNNING, refusal, failure(NotFoundError, 404)) is refusal
        assert str(refusal) == "409: busy. Try again later."

    def test_a_404_explains_a_verdict_if_there_is_no_other_error(self) -> None:
        unknown = failure(NotFoundError, 404)
        assert explain(Verdict.STILL_RUNNING, None, unknown) is unknown

    def test_an_error_keeps_its_own_hint_if_that_fits(self) -> None:
        forbidden = failure(PermissionDeniedError, 403, "no")
        assert explain(Verdict.FORBIDDEN, forbidden, None) is forbidden
        assert forbidden.hint == PermissionDeniedError.hint


class TestOutcome:
    @pytest.fixture
    def outcome(self) -> Outcome:
        return Outcome(
            response_id="resp_x",
            verdict=Verdict.CANCELLED,
            response=Response(id="resp_x", status="cancelled"),
            error=None,
            attempts=1,
            elapsed=0.5,
            request_id="req_1",
        )

    def test_it_can_be_pickled_and_copied(self, outcome: Outcome) -> None:
        for other in (pickle.loads(pickle.dumps(outcome)), copy.deepcopy(outcome)):
            assert other == outcome

    def test_it_can_be_pickled_with_an_error(self, outcome: Outcome) -> None:
        error = failure(NotFoundError, 404, "Response not found")
        unknown = attrs.evolve(outcome, verdict=Verdict.NOT_FOUND, response=None, error=error)
        other = pickle.loads(pickle.dumps(unknown))
        assert (other.verdict, str(other.error)) == (Verdict.NOT_FOUND, str(error))

    def test_it_takes_no_positional_arguments(self) -> None:
        with pytest.raises(TypeError, match="positional"):
            Outcome("resp_x", *(None,) * 6)

    def test_it_cannot_be_changed(self, outcome: Outcome) -> None:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            outcome.verdict = Verdict.UNKNOWN

    def test_its_text_begins_with_the_id_and_the_verdict(self, outcome: Outcome) -> None:
        assert str(outcome.verdict) == "cancelled"
        assert re.match(r"Outcome\(response_id='resp_x', verdict=<Verdict.CANCELLED: 'cancelled'>", repr(outcome))

    @pytest.mark.parametrize(
        ("verdict", "status", "stopped"),
        [
            (Verdict.CANCELLED, "cancelled", True),
            (Verdict.ALREADY_FINISHED, "failed", True),
            (Verdict.ALREADY_FINISHED, "in_progress", True),
            (Verdict.NOT_BACKGROUND, "completed", True),
            (Verdict.NOT_BACKGROUND, "in_progress", False),
            (Verdict.STILL_RUNNING, "in_progress", False),
            (Verdict.STILL_RUNNING, None, False),
        ],
    )
    def test_it_is_stopped_if_the_verdict_or_the_reported_status_is_final(
        self, outcome: Outcome, verdict, status, stopped
    ) -> None:
        response = Response(id="resp_x", status=status)
        assert attrs.evolve(outcome, verdict=verdict, response=response).stopped is stopped

    @pytest.mark.parametrize(("verdict", "stopped"), [(Verdict.ALREADY_FINISHED, True), (Verdict.NOT_FOUND, False)])
    def test_it_is_stopped_without_a_response_if_the_verdict_is_final(self, outcome: Outcome, verdict, stopped) -> None:
        assert attrs.evolve(outcome, verdict=verdict, response=None).stopped is stopped

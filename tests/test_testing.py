"""The factories for tests of users, beside what a session returns and raises for the answers of a server."""

import pickle
from datetime import UTC, datetime

import pytest
from conftest import KEY

from openai_cancel import (
    APIConnectionError,
    APIStatusError,
    AsyncSession,
    NotFoundError,
    RateLimitError,
    Verdict,
)
from openai_cancel import testing as factories
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.models import FunctionCall, Message, OutputText, Usage
from openai_cancel.testing import make_error, make_outcome, make_response


def test_a_response_has_what_the_server_sends() -> None:
    response = make_response(text="Because.", metadata={"team": "search"})
    assert (response.id, response.status, response.output_text) == ("resp_123", "completed", "Because.")
    assert (response.metadata, response.is_terminal, response.problems) == ({"team": "search"}, True, ())
    assert response.usage.total_tokens == 123
    assert make_response("in_progress", response_id="resp_7").to_dict()["id"] == "resp_7"
    assert make_response("failed").error.code == "server_error"


def test_fields_of_a_response_may_be_objects_of_the_models() -> None:
    output = [Message(content=[OutputText(text="Because.")]), FunctionCall(name="ask")]
    response = make_response(output=output, usage=Usage(total_tokens=5), metadata={"team": Verdict.UNKNOWN})
    assert (response.output_text, response.items(FunctionCall), response.problems) == ("Because.", output[1:], ())
    assert response.to_dict()["usage"] == {"total_tokens": 5}
    assert pickle.loads(pickle.dumps(response)) == response


def test_a_field_of_a_response_that_is_neither_json_nor_a_model_is_refused() -> None:
    with pytest.raises(TypeError, match="pass fields as in JSON, or as objects of openai_cancel.models; got datetime"):
        make_response(created_at=datetime.now(UTC))


async def test_a_response_has_the_fields_of_one_that_the_emulator_sends(server: Emulator) -> None:
    async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
        sent = await session.retrieve(server.add(Script(runs_for=0)))
    assert make_response().to_dict().keys() == sent.to_dict().keys()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 418, 422, 429, 500, 503])
async def test_an_error_is_what_a_session_raises(session, server: Emulator, status: int) -> None:
    body = {"error": {"message": "No.", "code": "why"}}
    headers = {"x-request-id": "req_7", "retry-after-ms": "1500", "x-should-retry": "false"}
    server.faults.append(Fault(status=status, body=body, headers=headers))
    with pytest.raises(APIStatusError) as caught:
        await session.cancel("resp_1")
    raised = caught.value
    made = make_error(
        status, "No.", code="why", request_id="req_7", retry_after=1.5, headers={"X-Should-Retry": "false"}
    )
    for name in ("status", "message", "code", "request_id", "retry_after", "should_retry", "hint", "attempts"):
        assert getattr(made, name) == getattr(raised, name)
    assert (type(made), str(made)) == (type(raised), str(raised))
    assert made.__traceback__ is None


def test_an_error_needs_only_a_status() -> None:
    assert isinstance(make_error(404), NotFoundError)
    assert str(make_error(429)).startswith("429: Too Many Requests.")
    exhausted = make_error(429, code="insufficient_quota")
    assert (type(exhausted), exhausted.message) == (RateLimitError, "Too Many Requests")
    assert make_error(200, "No workers.").message == "No workers."  # some servers answer so


@pytest.mark.parametrize("status", [200, 204])
def test_a_status_without_an_error_is_refused(status: int) -> None:
    with pytest.raises(ValueError, match=f"such as 404, or there must be a message; got {status}"):
        make_error(status)


@pytest.mark.parametrize("verdict", Verdict)
def test_an_outcome_fits_its_verdict(verdict: Verdict) -> None:
    outcome = make_outcome(verdict, response_id="resp_7")
    assert outcome == make_outcome(str(verdict), response_id="resp_7", response=outcome.response, error=outcome.error)
    assert outcome.stopped == (verdict in {Verdict.CANCELLED, Verdict.ALREADY_FINISHED})
    assert outcome.response is None or outcome.response.id == "resp_7"
    assert (outcome.error is None) == (outcome.stopped or verdict is Verdict.STILL_RUNNING)
    assert outcome.to_dict()["verdict"] == verdict


def test_an_outcome_can_have_any_response_and_error() -> None:
    error = APIConnectionError("refused")
    outcome = make_outcome("still_running", response=None, error=error, attempts=3, elapsed=9.0, request_id=None)
    assert (outcome.response, outcome.error, outcome.attempts, outcome.request_id) == (None, error, 3, None)
    with pytest.raises(ValueError, match="canceled"):
        make_outcome("canceled")


def test_all_lists_the_public_names() -> None:
    assert factories.__all__ == sorted(factories.__all__)


def test_the_seconds_of_an_error_are_exact_and_its_status_is_a_number() -> None:
    assert make_error(503, retry_after=1234.567).retry_after == 1234.567
    for status in ("404", None, 404.5):
        with pytest.raises(ValueError, match=r"status must be a number, such as 404; got '?(404|None)"):
            make_error(status)

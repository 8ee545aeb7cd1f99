"""Outcomes of responses, as a run reports them."""

from openai_cancel import NotFoundError, Outcome, Response, Verdict
from openai_cancel.converter import response_hook


def response(**document: object) -> Response:
    return response_hook()(document)


def outcome(response_id: str = "resp_1", verdict: Verdict = Verdict.CANCELLED, **values: object) -> Outcome:
    state = response(id=response_id, status="cancelled") if verdict is Verdict.CANCELLED else None
    defaults = {"response": state, "error": None, "attempts": 1, "elapsed": 0.25, "request_id": "req_1"}
    return Outcome(response_id=response_id, verdict=verdict, **{**defaults, **values})


MISSING = outcome(
    "resp_2", Verdict.NOT_FOUND, error=NotFoundError("no such id", status=404, headers={}, body=b"", request_id="r")
)

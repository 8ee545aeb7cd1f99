"""Outcomes of responses and ends of waits, as a run reports them."""

from openai_cancel import NotFoundError, OpenAICancelError, Outcome, Response, Verdict, WaitResult
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


def ended(response_id: str = "resp_1", status: str = "completed") -> WaitResult:
    """The end of a wait for a response that has ended."""
    return WaitResult(response_id=response_id, response=response(id=response_id, status=status), error=None)


def unfinished(error: OpenAICancelError, response_id: str = "resp_1") -> WaitResult:
    """The end of a wait whose response has not ended."""
    return WaitResult(response_id=response_id, response=response(id=response_id, status="queued"), error=error)

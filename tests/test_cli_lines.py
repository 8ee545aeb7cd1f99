"""The lines of a run: what they say, and whether a resumed run skips them."""

import attrs
import pytest
from outcomes import MISSING, ended, outcome, response, unfinished

from openai_cancel import (
    AbandonedError,
    APIConnectionError,
    NotFoundError,
    OpenAICancelError,
    Outcome,
    Verdict,
    WaitTimeoutError,
)
from openai_cancel.cli.lines import line_of
from openai_cancel.finding import Finding

STOPPED = outcome()
REFUSED = outcome(verdict=Verdict.UNKNOWN, error=APIConnectionError("no way"))


def failed(error: OpenAICancelError, stop: Outcome | None) -> OpenAICancelError:
    error.outcome = stop
    return error


def not_stopped() -> AbandonedError:
    """The error of a guard that had no answer in time."""
    error = AbandonedError("x returned true")
    error.add_note("openai-cancel: resp_1 was not stopped (no answer within 10 s)")
    return error


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (STOPPED, "resp_1  cancelled"),
        (MISSING, f"resp_2  not found: {MISSING.error}"),
        (ended(status="failed"), "resp_1  failed"),
        (ended(status="\x1b[2J"), r"resp_1  \x1b[2J"),
        (unfinished(failed(APIConnectionError("lost"), None)), "'resp_1': lost"),
        (unfinished(failed(APIConnectionError("lost"), STOPPED)), "'resp_1': lost It was stopped (cancelled)."),
        (
            unfinished(failed(APIConnectionError("lost"), REFUSED)),
            "'resp_1': lost It was not stopped (unknown: no way).",
        ),
        (
            unfinished(failed(APIConnectionError("lost"), attrs.evolve(REFUSED, error=None))),
            "'resp_1': lost It was not stopped (unknown).",
        ),
        (unfinished(failed(APIConnectionError("no way"), REFUSED)), "'resp_1': no way It was not stopped (unknown)."),
        (
            unfinished(WaitTimeoutError("resp_1 was queued (queued_timeout).", limit="queued_timeout")),
            "'resp_1': resp_1 was queued (--queued-timeout). It was left running.",
        ),
        (
            unfinished(failed(AbandonedError("x returned true"), STOPPED)),
            "resp_1 was stopped (cancelled) when the wait ended",
        ),
        (unfinished(not_stopped()), "resp_1 was not stopped (no answer within 10 s)"),
        (unfinished(AbandonedError("x returned true")), "resp_1 was left running"),
    ],
)
def test_a_line_says_how_a_response_has_ended_or_what_became_of_it(result: object, words: str) -> None:
    assert line_of(result).describe() == words


@pytest.mark.parametrize(
    ("result", "said"),  # whether it is good, whether the response has ended, and its status
    [
        (STOPPED, (True, True, "cancelled")),
        (MISSING, (False, False, None)),
        (ended(), (True, True, "completed")),
        (unfinished(WaitTimeoutError("late", outcome=STOPPED)), (False, True, "cancelled")),
        (unfinished(WaitTimeoutError("late", outcome=REFUSED)), (False, False, "queued")),
        (unfinished(WaitTimeoutError("late")), (False, False, "queued")),
        (unfinished(failed(NotFoundError("?", status=404, headers={}, body=b""), MISSING)), (False, False, "queued")),
    ],
)
def test_the_document_of_a_line_has_the_last_status_and_whether_a_resumed_run_skips_it(
    result: object, said: tuple[bool, bool, str | None]
) -> None:
    line = line_of(result)
    document = line.document()
    assert (line.is_good, line.stopped, document["status"]) == said
    assert (document["id"], document["stopped"]) == (line.response_id, line.stopped)


def test_the_document_of_a_wait_has_the_response_or_the_error_and_the_stop() -> None:
    document = line_of(ended()).document()
    assert document["response"] == response(id="resp_1", status="completed").to_dict()
    assert not {"error", "outcome"} & document.keys()
    document = line_of(unfinished(failed(AbandonedError("x returned true"), STOPPED))).document()
    assert document["error"] == {"type": "AbandonedError", "message": "The wait was interrupted."}
    assert document["outcome"] == {"verdict": "cancelled", "stopped": True}
    assert "response" not in document
    document = line_of(unfinished(WaitTimeoutError("late (stalled_timeout).", limit="stalled_timeout"))).document()
    assert document["error"]["message"] == "late (--stalled-timeout). It was left running."
    assert "outcome" not in document


@pytest.mark.parametrize(
    ("kind", "action", "result", "words", "is_good"),
    [
        ("unknown", None, None, "unknown (in_progress)", False),
        ("unknown", "adopt", None, "unknown, adopted (in_progress)", True),
        ("forgotten", "stop", STOPPED, "forgotten, stopped (in_progress)", True),
        ("unknown", "stop", REFUSED, "unknown, not stopped (in_progress): no way", False),
        ("ended", "strike_off", MISSING, "ended, struck off (in_progress)", True),
        ("unclear", None, REFUSED, "unclear (in_progress): no way", False),
    ],
)
def test_a_difference_says_what_was_done(kind, action, result, words, is_good) -> None:
    seen = response(status="in_progress")
    line = line_of(Finding(response_id="resp_1", kind=kind, action=action, response=seen, outcome=result))
    assert (line.response_id, line.describe()) == ("resp_1", f"resp_1  {words}")
    assert (line.is_good, line.stopped) == (is_good, result is STOPPED)

"""The totals of a run."""

import io

import pytest
from outcomes import MISSING, ended, outcome, response, unfinished
from rich.console import Console

from openai_cancel import (
    AbandonedError,
    APIConnectionError,
    AuthenticationError,
    NotFoundError,
    OpenAICancelError,
    Verdict,
    WaitTimeoutError,
)
from openai_cancel.cli.lines import line_of
from openai_cancel.cli.tally import Tally


def test_every_verdict_is_counted() -> None:
    tally = Tally()
    assert tally.all_stopped
    for _ in range(1200):
        tally.note(line_of(outcome()))
    assert tally.all_stopped
    assert tally.line().plain == "cancelled 1,200"
    tally.skipped = 3
    assert tally.all_stopped
    tally.note(line_of(MISSING))
    assert not tally.all_stopped
    assert tally.line().plain == "cancelled 1,200  not found 1  stopped earlier 3"


def test_with_a_bad_line_not_everything_is_stopped() -> None:
    tally = Tally(bad=1)
    assert not tally.all_stopped
    assert tally.line().plain == "bad lines 1"
    tally = Tally(blank=2, repeated=3)
    assert not tally.all_stopped
    assert tally.line().plain == "without an id 2  repeated 3"


def test_ids_that_occur_again_do_not_matter() -> None:
    assert Tally(repeated=3).all_stopped


def test_a_result_that_is_taken_back_does_not_count() -> None:
    tally = Tally()
    for line in (line_of(outcome()), line_of(MISSING)):
        tally.note(line)
        tally.take_back(line.kind, line.is_good)
    assert (tally.done, tally.good, tally.line().plain) == (0, 0, "")


def test_a_response_that_ended_counts_as_stopped_whatever_the_verdict() -> None:
    tally = Tally()
    tally.note(line_of(outcome(verdict=Verdict.NOT_BACKGROUND, response=response(id="x", status="completed"))))
    assert tally.all_stopped


def test_waits_are_counted_by_status_and_then_by_the_reason_for_their_end() -> None:
    tally = Tally()
    refusal = {"status": 401, "headers": {}, "body": b""}
    for status in ("completed", "failed", "completed"):
        tally.note(line_of(ended(status=status)))
    assert tally.all_stopped
    errors = [
        APIConnectionError("refused"),
        AuthenticationError("who?", **refusal),
        NotFoundError("what?", **refusal),
        AbandonedError("bye"),
        WaitTimeoutError("late", limit="queued_timeout"),
    ]
    for error in errors:
        tally.note(line_of(unfinished(error)))
    assert not tally.all_stopped
    assert tally.line().plain == (
        "completed 2  failed 1  queued too long, not stopped 1  interrupted, not stopped 1  "
        "not found 1  forbidden 1  unknown 1"
    )


@pytest.mark.parametrize(
    ("limit", "words"),
    [("timeout", "timed out"), ("queued_timeout", "queued too long"), ("stalled_timeout", "stalled")],
)
def test_each_limit_of_a_wait_has_its_name(limit: str, words: str) -> None:
    tally = Tally()
    error: OpenAICancelError = WaitTimeoutError("late", limit=limit)
    tally.note(line_of(unfinished(error)))
    stopped = WaitTimeoutError("late", limit=limit, outcome=outcome())
    tally.note(line_of(unfinished(stopped)))
    assert tally.line().plain == f"{words} 1  {words}, not stopped 1"


def test_the_totals_are_the_same_table_with_and_without_a_terminal() -> None:
    tally = Tally(skipped=1000)
    tally.note(line_of(outcome()))
    console = Console(width=60, file=io.StringIO())
    console.print(tally.table())
    drawn = [line.rstrip() for line in console.file.getvalue().splitlines()]
    plain = tally.text().splitlines()
    assert drawn[:2] == plain[:2] == ["cancelled            1", "stopped earlier  1,000"]
    assert drawn[2].split()[:4] == plain[2].split()[:4] == ["in", "all", "1", "in"]

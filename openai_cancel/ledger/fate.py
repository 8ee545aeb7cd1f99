"""The fate of a row that a process guards and no longer owns. Pure: no I/O."""

from enum import Enum, auto

from openai_cancel.errors import LeaseTakenError
from openai_cancel.ledger.table import BY_HAND, BY_LEASE, BY_LIMIT, BY_STOP, RELEASED, STOPPING, TRACKED, RowState
from openai_cancel.outcome import STOPPED_VERDICTS, Outcome, Verdict

_REASONS = {
    BY_LEASE: ", because its lease had expired",
    BY_LIMIT: ", because its max_age is over",
    BY_STOP: ", because it was asked to",
}


class Fate(Enum):
    """The fate of a row."""

    OURS = auto()
    """The process owns it."""

    MISSING = auto()
    """It does not exist: somebody has deleted it, or the table."""

    LEFT = auto()
    """Another guard held its lease, and has ended. The guards of this process still run."""

    SHARED = auto()
    """A guard of another process holds its lease."""

    RELEASED = auto()
    """Somebody has released the response by hand, so that no sweep stops it."""

    TAKEN = auto()
    """Another process is stopping the response, or will try again."""

    ENDED = auto()
    """Another process has stopped the response, or has given up."""


def decide_fate(row: RowState | None, owner: str) -> Fate:
    """Return what has become of a row that an owner has recorded for a guard.

    Args:
        row: the row as it is now, or None if there is none.
        owner: the owner.
    """
    if row is None:
        return Fate.MISSING
    if row.owner == owner:
        return Fate.OURS
    if row.state == RELEASED:
        return Fate.RELEASED if row.reason == BY_HAND else Fate.LEFT
    if row.state == TRACKED:
        return _decide_tracked(row)
    return Fate.TAKEN if row.state == STOPPING else Fate.ENDED


def _decide_tracked(row: RowState) -> Fate:
    if row.owner is not None:
        return Fate.SHARED if (row.lease_left or 0.0) > 0 else Fate.LEFT
    return Fate.TAKEN if row.attempts or row.reason not in {None, BY_LEASE} else Fate.LEFT


def describe_taken(row: RowState, response_id: str) -> Outcome:
    """Return the outcome of a response that another process stops, or has stopped."""
    is_over = row.state not in {TRACKED, STOPPING}
    verdict = Verdict(row.state) if is_over else Verdict.STILL_RUNNING
    done = "has stopped" if verdict in STOPPED_VERDICTS else "could not stop" if is_over else "is stopping"
    why = _REASONS.get(row.reason or "", "")
    error = f" {row.error}" if row.error else ""
    return Outcome(
        response_id=response_id,
        verdict=verdict,
        response=None,
        error=LeaseTakenError(f"Another process {done} it{why}.{error}"),
        attempts=row.attempts,
        elapsed=0.0,
        request_id=row.request_id,
    )

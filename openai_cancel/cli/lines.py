"""The lines of a run: one for each response, about its stop or about the end of its wait."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import attrs

from openai_cancel.cli.documents import now, outcome_as_document
from openai_cancel.cli.output import printable
from openai_cancel.errors import (
    AbandonedError,
    AuthenticationError,
    NotFoundError,
    OpenAICancelError,
    PermissionDeniedError,
    StopResult,
)
from openai_cancel.finding import Finding
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome, Verdict
from openai_cancel.wait import WaitTimeoutError
from openai_cancel.wait_many import WaitResult

Result: TypeAlias = Outcome | WaitResult | Finding
"""The result of a run for one response."""

VERDICT_STYLES = {
    Verdict.CANCELLED: "green",
    Verdict.ALREADY_FINISHED: "green",
    Verdict.STILL_RUNNING: "red",
}
"""The colours of verdicts. All others are yellow."""

LIMITS = {"timeout": "timed out", "queued_timeout": "queued too long", "stalled_timeout": "stalled"}
"""The limits of a wait, in words."""

ACTIONS = {"adopt": "adopted", "strike_off": "struck off", "stop": "stopped"}
"""The actions of `Finding`, in words."""

STATUS_STYLES = {"completed": "green", "failed": "red"}
"""The colours of final statuses. All others are yellow."""


@attrs.frozen(order=True)
class Kind:
    """The category of a response in the totals.

    Attributes:
        rank: its place among the others.
        title: a few words.
        style: its colour.
    """

    rank: int
    title: str
    style: str


class Line(Protocol):
    """The report of a run about one response."""

    @property
    def response_id(self) -> str:
        """The id that was passed in."""
        ...

    @property
    def kind(self) -> Kind:
        """The category in which it is counted."""
        ...

    @property
    def is_good(self) -> bool:
        """Whether the run has done for this response what it was asked for."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether the response has ended, so that a resumed run can skip it."""
        ...

    @property
    def error(self) -> OpenAICancelError | None:
        """The reason why it is not good."""
        ...

    def document(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        ...

    def describe(self) -> str:
        """Return it in words."""
        ...


@attrs.frozen
class StopLine:
    """The report about the stop of a response. See `Line`.

    Attributes:
        outcome: the outcome.
        dry_run: whether the response was only checked, to see what a run would do.
    """

    outcome: Outcome
    dry_run: bool = False

    @property
    def response_id(self) -> str:
        """The id that was passed in."""
        return self.outcome.response_id

    @property
    def kind(self) -> Kind:
        """The verdict."""
        return WOULD_BE_STOPPED if self._would_be_stopped else VERDICTS[self.outcome.verdict]

    @property
    def is_good(self) -> bool:
        """Whether it has ended."""
        return self.outcome.stopped

    @property
    def stopped(self) -> bool:
        """Whether it has ended."""
        return self.outcome.stopped

    @property
    def error(self) -> OpenAICancelError | None:
        """The reason why it has not ended."""
        return None if self.outcome.stopped else self.outcome.error

    def document(self) -> dict[str, Any]:
        """Return the outcome as a JSON document."""
        return outcome_as_document(self.outcome)

    def describe(self) -> str:
        """Return the verdict, the status and the error in words."""
        outcome = self.outcome
        words = f"{outcome.response_id}  {self.kind.title}"
        status = outcome.response.status if outcome.response else None
        if status and status != outcome.verdict:
            words += f" ({status})"
        return printable(f"{words}: {outcome.error}" if outcome.error else words)

    @property
    def _would_be_stopped(self) -> bool:
        return self.dry_run and self.outcome.verdict is Verdict.STILL_RUNNING


@attrs.frozen
class WaitLine:
    """The report about the end of a wait. See `Line`."""

    result: WaitResult

    @property
    def response_id(self) -> str:
        """The id that was passed in."""
        return self.result.response_id

    @property
    def kind(self) -> Kind:
        """The status at the end, or the reason why the wait has ended before."""
        error, status = self.result.error, self._status
        if error is None:
            return Kind(0, printable(status), STATUS_STYLES.get(status, "yellow"))
        if isinstance(error, WaitTimeoutError):
            return Kind(1, LIMITS[error.limit] + self._left, "red")
        if isinstance(error, AbandonedError):
            return Kind(2, f"interrupted{self._left}", "red" if self._left else "yellow")
        if isinstance(error, NotFoundError):
            return Kind(3, "not found", "yellow")
        if isinstance(error, AuthenticationError | PermissionDeniedError):
            return Kind(4, "forbidden", "yellow")
        return Kind(5, "unknown", "yellow")

    @property
    def is_good(self) -> bool:
        """Whether the response has ended by itself."""
        return self.result.ended

    @property
    def stopped(self) -> bool:
        """Whether the response has ended by itself, or was stopped."""
        return self.result.ended or (self._outcome is not None and self._outcome.stopped)

    @property
    def error(self) -> OpenAICancelError | None:
        """The reason why the wait has ended before the response."""
        return self.result.error

    def document(self) -> dict[str, Any]:
        """Return the status and the response, or the error and the outcome of the stop, as a JSON document."""
        result, outcome = self.result, self._outcome
        document: dict[str, Any] = {
            "id": result.response_id,
            "stopped": self.stopped,
            "status": self._last_seen and self._last_seen.status,
            "at": now(),
        }
        if result.error is None:
            return document | {"response": result.response and result.response.to_dict()}
        document["error"] = result.error.to_dict() | {"message": self._problem()}
        if outcome is not None:
            document["outcome"] = {"verdict": outcome.verdict, "stopped": outcome.stopped}
        return document

    def describe(self) -> str:
        """Return the status, or the error and what became of the response, in words."""
        if self.error is None:
            return printable(f"{self.response_id}  {self._status}")
        if isinstance(self.error, AbandonedError):
            return printable(self._describe_interrupted(self.error))
        says_so = isinstance(self.error, WaitTimeoutError)
        return printable(f"{self.response_id!r}: {self._problem()}{'' if says_so else self._fate()}")

    @property
    def _last_seen(self) -> Response | None:
        """The response as it was last seen, also by the stop."""
        outcome = self._outcome
        return (outcome.response if isinstance(outcome, Outcome) else None) or self.result.response

    @property
    def _left(self) -> str:
        """Return whether the response may still be running, as a part of the category."""
        return "" if self.stopped else ", not stopped"

    @property
    def _status(self) -> str:
        return str(self.result.response and self.result.response.status)

    @property
    def _outcome(self) -> StopResult | None:
        return getattr(self.result.error, "outcome", None)

    def _problem(self) -> str:
        """Return the text of the error, in which a limit has the name of its option."""
        error = self.error
        if isinstance(error, WaitTimeoutError):
            return f"{error}".replace(f"({error.limit})", f"(--{error.limit.replace('_', '-')})")
        return "The wait was interrupted." if isinstance(error, AbandonedError) else f"{error or ''}"

    def _describe_interrupted(self, error: AbandonedError) -> str:
        if error.outcome is not None and error.outcome.stopped:
            return f"{self.response_id} was stopped ({error.outcome.verdict}) when the wait ended"
        notes: list[str] = getattr(error, "__notes__", [])  # of the guard, which could not stop it
        return notes[0].removeprefix("openai-cancel: ") if notes else f"{self.response_id} was left running"

    def _fate(self) -> str:
        outcome = self._outcome
        if outcome is None:
            return ""
        if outcome.stopped:
            return f" It was stopped ({outcome.verdict})."
        told = outcome.error is None or f"{outcome.error}" == f"{self.error}"
        return f" It was not stopped ({outcome.verdict}{'' if told else f': {outcome.error}'})."


@attrs.frozen
class FindingLine:
    """The report about a difference between a ledger and the list of its server. See `Line`."""

    finding: Finding

    @property
    def response_id(self) -> str:
        """The id."""
        return self.finding.response_id

    @property
    def kind(self) -> Kind:
        """The kind of the difference, and what was done about it."""
        rank = ("unknown", "forgotten", "ended", "unclear").index(self.finding.kind)
        return Kind(rank, self._title, "green" if self.is_good else "red")

    @property
    def is_good(self) -> bool:
        """Whether nothing runs that the ledger does not track."""
        return self.finding.settled

    @property
    def stopped(self) -> bool:
        """Whether it has ended."""
        outcome = self.finding.outcome
        return outcome is not None and outcome.stopped

    @property
    def error(self) -> OpenAICancelError | None:
        """The reason why it was not stopped, or is unclear."""
        outcome = self.finding.outcome
        return None if outcome is None or self.is_good else outcome.error

    def document(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        finding, response, outcome = self.finding, self.finding.response, self.finding.outcome
        return {
            "id": finding.response_id,
            "kind": finding.kind,
            "action": finding.action,
            "settled": finding.settled,
            "stopped": self.stopped,
            "verdict": outcome and outcome.verdict,
            "status": response and response.status,
            "created_at": response and response.created_at,
            "model": response and response.model,
            "metadata": response and response.metadata,
            "error": self.error and self.error.to_dict(),
            "at": now(),
        }

    def describe(self) -> str:
        """Return it in words."""
        finding, response = self.finding, self.finding.response
        words = f"{finding.response_id}  {self._title}"
        if response is not None and response.status:
            words += f" ({response.status})"
        return printable(f"{words}: {self.error}" if self.error else words)

    @property
    def _title(self) -> str:
        finding = self.finding
        if finding.action == "stop" and not self.stopped:
            return f"{finding.kind}, not stopped"
        return finding.kind if finding.action is None else f"{finding.kind}, {ACTIONS[finding.action]}"


def line_of(result: Result, *, dry_run: bool = False) -> Line:
    """Return the line about a result.

    Args:
        result: the result.
        dry_run: whether responses were only checked.
    """
    if isinstance(result, Outcome):
        return StopLine(result, dry_run)
    return WaitLine(result) if isinstance(result, WaitResult) else FindingLine(result)


def document_of(line: Line, columns: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the JSON document of a line, with the other columns of the input, if any, as its field `input`."""
    return line.document() | {"input": columns} if columns else line.document()


def _title(verdict: Verdict) -> str:
    return verdict.replace("_", " ")


VERDICTS = {
    verdict: Kind(rank, _title(verdict), VERDICT_STYLES.get(verdict, "yellow")) for rank, verdict in enumerate(Verdict)
}
"""The category of each verdict."""

WOULD_BE_STOPPED = attrs.evolve(VERDICTS[Verdict.STILL_RUNNING], title="would be stopped", style="yellow")
"""The category of a response that runs, and that a dry run has only checked."""

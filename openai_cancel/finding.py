"""`Finding`: a difference between a ledger and the list of a server. Pure: no I/O."""

from typing import Any, Literal, TypeAlias

import attrs

from openai_cancel.models import Response
from openai_cancel.models.serialization import Serializable
from openai_cancel.outcome import Outcome

FindingKind: TypeAlias = Literal["unknown", "forgotten", "ended", "unclear"]
"""The kind of a difference; see `Finding`."""

FindingAction: TypeAlias = Literal["adopt", "stop", "strike_off"]
"""What was done about a difference; see `Finding`."""


@attrs.frozen(kw_only=True)
class Finding(Serializable):
    """A difference between a ledger and the list of its server, which `Ledger.reconcile` has found.

    Attributes:
        response_id: the id.
        kind: `unknown` if the response runs, and the ledger does not know it; `forgotten` if it runs, although the
            ledger has recorded that it has ended, or that it was given up; `ended` if the ledger tracks it, and it is
            over; `unclear` if the ledger tracks it, and the server does not say whether it is over.
        action: `adopt` if the ledger tracks it from now on; `stop` if it was stopped, or this was tried: see `outcome`;
            `strike_off` if the ledger no longer tracks it; None if nothing was done.
        response: the response as the server last reported it, or None.
        outcome: the outcome of the stop, or of the look at a response that is tracked; otherwise None.
    """

    response_id: str
    kind: FindingKind
    action: FindingAction | None
    response: Response | None
    outcome: Outcome | None

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do: the response has ended, or was adopted."""
        if self.kind == "ended":
            return True
        return self.action == "adopt" or (self.outcome is not None and self.outcome.stopped)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a JSON document, with the document of the response, and `settled`."""
        return {
            "response_id": self.response_id,
            "kind": self.kind,
            "action": self.action,
            "settled": self.settled,
            "response": None if self.response is None else self.response.to_dict(),
            "outcome": None if self.outcome is None else self.outcome.to_dict(),
        }

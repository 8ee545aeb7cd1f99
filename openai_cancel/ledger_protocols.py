"""The protocols that a ledger fulfils for sessions and guards."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from openai_cancel.outcome import Outcome


class History(NamedTuple):
    """The progress of a response in earlier waits, by the clock of the ledger's database.

    Attributes:
        age: seconds since the response was first recorded.
        mark: a text that changes with the progress of the response, as it was last seen; or None.
        unchanged_for: seconds since that progress.
    """

    age: float = 0.0
    mark: str | None = None
    unchanged_for: float = 0.0


class Tracker(Protocol):
    """The part of a ledger that guards use: it records the responses of one account on one server.

    A response that is recorded here is stopped by a sweep if this process can no longer do it. Methods whose name ends
    in `_soon` do not wait for the database, and can be called from any thread.
    """

    def listen(self, taken: Callable[[Outcome], None]) -> None:
        """Set the function that is called if another process stops a response, or has stopped it.

        If it is still running, or could not be stopped, the outcome is not `stopped`, and may be followed by another.
        """

    async def begin(self, response_ids: Collection[str]) -> None:
        """Record responses and hold their leases.

        Raises:
            LedgerError: they could not be recorded, and the session requires it.
        """

    def begin_soon(self, response_id: str) -> None:
        """Record one more response and hold its lease."""

    async def history(self, response_id: str) -> History:
        """Return the history of a response. It is empty if the response is not recorded, or the database fails."""
        ...

    async def note_progress(self, response_id: str, mark: str, ago: float) -> bool:
        """Record the progress of a response, for a wait that may follow after a restart of the process.

        Args:
            response_id: the id.
            mark: a short text that changes with the progress.
            ago: seconds since the progress. It may be negative.

        Returns:
            Whether it was recorded. If not, the database has failed.
        """
        ...

    async def release(self, response_ids: Collection[str]) -> None:
        """Let responses run on without a lease.

        Raises:
            LedgerError: this could not be recorded, and the session requires it.
        """

    def release_soon(self, response_ids: Collection[str]) -> None:
        """Let responses run on without a lease."""

    def settle_soon(self, outcome: Outcome) -> None:
        """Record the outcome of a response that has ended."""

    async def settle(self, response_ids: Collection[str], outcomes: Mapping[str, Outcome]) -> None:
        """Record the outcomes of responses. A sweep may take over those without an outcome at once."""


@runtime_checkable
class SessionLedger(Protocol):
    """A ledger as a session uses it. `openai_cancel.ledger.Ledger` is one."""

    async def attach(self, *, required: bool) -> None:
        """Use the ledger until `detach`, in the running event loop. If it is not open, this opens it.

        Args:
            required: whether to connect to the database now, and fail if that is not possible.

        Raises:
            LedgerError: the database cannot be used.
            SessionStateError: the ledger was closed, or is open in another event loop.
        """
        ...

    async def detach(self) -> None:
        """End the use of the ledger. If `attach` has opened it, and nobody else uses it, this closes it."""

    def tracker(self, *, account: str, base_url: str, required: bool, max_age: float | None) -> Tracker:
        """Return what records the responses of a guard, which are of one account on one server.

        Args:
            account: the name of the account.
            base_url: the address of the server.
            required: whether a failure to record raises an error.
            max_age: seconds since a response was first recorded after which a sweep stops it in any case, or None.

        Raises:
            SessionStateError: the ledger is not open.
        """
        ...

"""The protocols that a ledger fulfils for sessions and guards."""

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

from openai_cancel.outcome import Outcome


class Tracker(Protocol):
    """The part of a ledger that guards use: it records the responses of one account on one server.

    A response that is recorded here is stopped by a sweep if this process can no longer do it. Methods whose name ends
    in `_soon` do not wait for the database, and can be called from any thread.
    """

    async def begin(self, response_ids: Collection[str]) -> None:
        """Record responses and hold their leases.

        Raises:
            LedgerError: they could not be recorded, and the session requires it.
        """

    def begin_soon(self, response_id: str) -> None:
        """Record one more response and hold its lease."""

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

    async def attach(self, *, required: bool) -> bool:
        """Make sure that the ledger is open in the running event loop.

        Args:
            required: whether to connect to the database now, and fail if that is not possible.

        Returns:
            Whether this call has opened it; if so, the session closes it.

        Raises:
            LedgerError: the database cannot be used.
            SessionStateError: the ledger was closed, or is open in another event loop.
        """
        ...

    async def close(self) -> None:
        """Write what is still to be written, and close the ledger."""

    def tracker(self, *, account: str, base_url: str, required: bool) -> Tracker:
        """Return what records the responses of one account on one server.

        Raises:
            SessionStateError: the ledger is not open.
        """
        ...

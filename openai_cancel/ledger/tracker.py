"""`LeaseTracker`: records the responses of a guard in a ledger."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TypeVar

from openai_cancel.errors import LedgerError
from openai_cancel.ledger.leases import Leases, Written
from openai_cancel.ledger.table import TRACKED, Account, End, Record, Release, Settlement, history, note_progress
from openai_cancel.ledger_protocols import History
from openai_cancel.outcome import Outcome

_T = TypeVar("_T")


class LeaseTracker:
    """Records the responses that a guard holds. It is the `openai_cancel.ledger_protocols.Tracker` of a ledger.

    Args:
        leases: the leases of the process.
        account: the account of the session.
        labels: the labels of the ledger.
        required: whether a failure to record raises an error.
        max_age: seconds since a response was first recorded after which a sweep stops it in any case; None for never.
    """

    def __init__(
        self,
        leases: Leases,
        account: Account,
        labels: Mapping[str, str],
        *,
        required: bool,
        max_age: float | None = None,
    ) -> None:
        self._leases = leases
        self._account = account
        self._labels = labels
        self._required = required
        self._max_age = max_age
        self._listener: Callable[[Outcome], None] | None = None

    def listen(self, taken: Callable[[Outcome], None]) -> None:
        """Set the function that is called if another process stops a response, or has stopped it."""
        self._listener = taken

    async def begin(self, response_ids: Collection[str]) -> None:
        """Record responses and hold their leases.

        Raises:
            LedgerError: they could not be recorded, and that is required.
        """
        await self._wait(self._hold(self._records(response_ids)), required=self._required)

    def begin_soon(self, response_id: str) -> None:
        """Record one more response and hold its lease, without waiting, from any thread."""
        self._call(self._hold, self._records([response_id]))

    async def history(self, response_id: str) -> History:
        """Return the history of a response. It is empty if the response is not recorded, or the database fails."""
        try:
            rows = await self._leases.database.read(history(self._account.digest(response_id)))
        except LedgerError:
            return History()
        if not rows:
            return History()
        (row,) = rows
        return History(max(row.age, 0.0), row.mark, max(row.unchanged_for or 0.0, 0.0))  # clocks may go back

    async def note_progress(self, response_id: str, mark: str, ago: float) -> bool:
        """Record the progress of a response, and return whether that was possible. See `Tracker`."""
        try:
            await self._leases.database.execute(note_progress(self._account.digest(response_id), mark, ago))
        except LedgerError:
            return False
        return True

    async def release(self, response_ids: Collection[str]) -> None:
        """Let responses run on without a lease.

        Raises:
            LedgerError: this could not be recorded, and that is required.
        """
        await self._wait(self._let_go(self._releases(response_ids)), required=self._required)

    def release_soon(self, response_ids: Collection[str]) -> None:
        """Let responses run on without a lease, without waiting, from any thread."""
        self._call(self._let_go, self._releases(response_ids))

    def settle_soon(self, outcome: Outcome) -> None:
        """Record the outcome of a response that has ended, without waiting, from any thread."""
        self._call(self._let_go, [self._settled(outcome.response_id, outcome)])

    async def settle(self, response_ids: Collection[str], outcomes: Mapping[str, Outcome]) -> None:
        """Record the outcomes of responses. A sweep may claim those at once that were not stopped."""
        settlements = [self._settled(name, outcomes.get(name)) for name in response_ids]
        # If this fails, the leases expire, and a sweep does the rest.
        await self._wait(self._let_go(settlements), required=False)

    def _records(self, response_ids: Collection[str]) -> list[Record]:
        return [
            self._account.record(
                name,
                owner=self._leases.owner,
                seconds=self._leases.duration,
                labels=self._labels,
                max_age=self._max_age,
            )
            for name in response_ids
        ]

    def _releases(self, response_ids: Collection[str]) -> list[End]:
        return [Release(self._account.digest(name), name, self._leases.owner) for name in response_ids]

    def _settled(self, response_id: str, outcome: Outcome | None) -> End:
        digest, owner = self._account.digest(response_id), self._leases.owner
        if outcome is None:
            return Settlement(digest, response_id, owner, TRACKED, again_in=0.0, more_attempts=1)
        return Settlement.from_outcome(digest, owner, outcome, again_in=0.0, more_attempts=1, not_found_is_final=False)

    def _hold(self, records: Collection[Record]) -> Written:
        return self._leases.hold(records, self._lose)

    def _let_go(self, ends: Collection[End]) -> Written:
        return self._leases.let_go(ends, self._lose)

    def _lose(self, outcome: Outcome) -> None:
        """Tell the guard, if it listens, that another process stops a response, or has stopped it."""
        if self._listener is not None:
            self._listener(outcome)

    async def _wait(self, written: Written, *, required: bool) -> None:
        try:
            await self._leases.wait(written)
        except LedgerError:
            if required:
                raise

    def _call(self, function: Callable[[list[_T]], object], changes: list[_T]) -> None:
        """Call a function in the event loop of the ledger: now in this loop, and soon in that of another thread."""
        loop = self._leases.database.loop
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            function(changes)
            return
        with suppress(RuntimeError):  # the loop is closed, and the leases expire
            loop.call_soon_threadsafe(function, changes)

"""The leases that one process holds in a ledger, and the heartbeat that renews them."""

import asyncio
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from openai_cancel.cancellation import wait_through_cancellation
from openai_cancel.clock import Clock
from openai_cancel.errors import LedgerError
from openai_cancel.ledger.database import Database, Rows
from openai_cancel.ledger.table import RELEASED, TRACKED, Account, Change, Record, Settlement, renew, write
from openai_cancel.outcome import Outcome

MAX_MISSED = 10_000
"""The largest number of changes that are kept, to be written later, while the database fails."""

Written = asyncio.Future[Rows]
"""The result of a write, for which `Leases.wait` waits."""

_T = TypeVar("_T")

_log = logging.getLogger("openai_cancel")


class Leases:
    """The leases that this process holds. Each heartbeat renews all of them with one statement.

    A heartbeat also writes the changes that could not be written before, unless they no longer matter.

    Args:
        database: the database. It is closed together with this object.
        duration: seconds that a lease lasts. The heart beats three times as often.
        clock: the source of time.

    Attributes:
        database: the database.
        duration: seconds that a lease lasts.
        owner: the name of this process in the ledger.
    """

    def __init__(self, database: Database, *, duration: float, clock: Clock) -> None:
        self.database = database
        self.duration = duration
        self.owner: str = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._clock = clock
        self._held: Counter[str] = Counter()  # by digest, because a response can be guarded more than once
        self._sweeps: set[str] = set()
        self._missed: dict[str, Change] = {}
        self._failing = False
        self._heart = asyncio.create_task(self._beat())

    async def close(self) -> None:
        """Write what is still to be written, and close the database. Leases that are still held lapse."""
        self._heart.cancel()
        if cancellation := await wait_through_cancellation(self._heart, self.database.close()):
            raise cancellation

    def hold(self, records: Collection[Record]) -> Written:
        """Hold the leases of rows, and write those that are not held already."""
        new = [record for record in records if record.digest not in self._held]
        self._held.update(record.digest for record in records)
        return self.write(new)

    def let_go(self, settlements: Collection[Settlement]) -> Written:
        """Give up the leases of rows, and write the changes of those that nothing else holds."""
        self._held.subtract(settlement.digest for settlement in settlements)
        last = [settlement for settlement in settlements if self._held[settlement.digest] <= 0]
        for settlement in last:
            del self._held[settlement.digest]
        return self.write(last)

    def write(self, changes: Sequence[Change]) -> Written:
        """Write changes now, or with a later heartbeat if that fails. `wait` waits for it."""
        for change in changes:
            self._missed.pop(change.digest, None)
        written: Written = self.database.loop.create_future()
        if not changes:
            written.set_result(())
            return written
        try:
            written = self.database.submit(write(changes, self.database.dialect))
        except LedgerError as error:
            written.set_exception(error)
        written.add_done_callback(partial(self._note, changes))
        return written

    async def wait(self, written: Written) -> None:
        """Wait until changes are written.

        Raises:
            LedgerError: they could not be written yet.
        """
        try:
            await self.database.wait(written)
        except LedgerError as error:
            self._complain(error)
            raise

    @contextmanager
    def renewing(self, sweep: str) -> Generator[None, None, None]:
        """Renew the leases of a sweep, too, while the block runs. Its claims are leases."""
        self._sweeps.add(sweep)
        try:
            yield
        finally:
            self._sweeps.discard(sweep)

    def _note(self, changes: Collection[Change], written: Written) -> None:
        """Keep changes that could not be written for a later heartbeat."""
        error = None if written.cancelled() else written.exception()
        if error is not None:
            self._complain(error)
        elif not written.cancelled():
            self._failing = False
        for change in changes:
            if error is None and not written.cancelled():
                self._missed.pop(change.digest, None)
            elif len(self._missed) < MAX_MISSED:
                self._missed[change.digest] = change

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self.duration / 3)
            await self._renew()

    async def _renew(self) -> None:
        """Write the changes that were missed, and renew all leases."""
        # A row that was let go in the meantime is not held again, and a row that is held again is not let go.
        missed = [
            change for digest, change in self._missed.items() if isinstance(change, Record) == (digest in self._held)
        ]
        self._missed.clear()
        owners = {*self._sweeps, self.owner} if self._held else self._sweeps
        try:
            if missed:
                await self.wait(self.write(missed))
            if owners:
                await self.database.execute(renew(owners, self.duration))
        except LedgerError as error:
            self._complain(error)

    def _complain(self, error: BaseException) -> None:
        """Log that the database fails: once, until it works again."""
        if not self._failing:
            _log.error("the ledger fails, and running responses are not recorded until it works again: %s", error)
        self._failing = True


class LeaseTracker:
    """Records the responses that the guards of a session hold. It is the `openai_cancel.tracking.Tracker` of a ledger.

    Args:
        leases: the leases of the process.
        account: the account of the session.
        labels: the labels of the ledger.
        required: whether a failure to record raises an error.
    """

    def __init__(self, leases: Leases, account: Account, labels: Mapping[str, str], *, required: bool) -> None:
        self._leases = leases
        self._account = account
        self._labels = labels
        self._required = required

    async def begin(self, response_ids: Collection[str]) -> None:
        """Record responses and hold their leases.

        Raises:
            LedgerError: they could not be recorded, and that is required.
        """
        await self._wait(self._leases.hold(self._records(response_ids)), required=self._required)

    def begin_soon(self, response_id: str) -> None:
        """Record one more response and hold its lease, without waiting, from any thread."""
        self._call(self._leases.hold, self._records([response_id]))

    async def release(self, response_ids: Collection[str]) -> None:
        """Let responses run on without a lease.

        Raises:
            LedgerError: this could not be recorded, and that is required.
        """
        await self._wait(self._leases.let_go(self._released(response_ids)), required=self._required)

    def release_soon(self, response_ids: Collection[str]) -> None:
        """Let responses run on without a lease, without waiting, from any thread."""
        self._call(self._leases.let_go, self._released(response_ids))

    def settle_soon(self, outcome: Outcome) -> None:
        """Record the outcome of a response that has ended, without waiting, from any thread."""
        self._call(self._leases.let_go, [self._settled(outcome.response_id, outcome)])

    async def settle(self, response_ids: Collection[str], outcomes: Mapping[str, Outcome]) -> None:
        """Record the outcomes of responses. A sweep may claim those at once that were not stopped."""
        settlements = [self._settled(name, outcomes.get(name)) for name in response_ids]
        # If this fails, the leases lapse, and a sweep does the rest.
        await self._wait(self._leases.let_go(settlements), required=False)

    def _records(self, response_ids: Collection[str]) -> list[Record]:
        owner, seconds = self._leases.owner, self._leases.duration
        return [self._account.record(name, owner=owner, seconds=seconds, labels=self._labels) for name in response_ids]

    def _released(self, response_ids: Collection[str]) -> list[Settlement]:
        owner = self._leases.owner
        return [Settlement(digest=self._account.digest(name), owner=owner, state=RELEASED) for name in response_ids]

    def _settled(self, response_id: str, outcome: Outcome | None) -> Settlement:
        digest, owner = self._account.digest(response_id), self._leases.owner
        if outcome is None:
            return Settlement(digest=digest, owner=owner, state=TRACKED, again_in=0.0, more_attempts=1)
        return Settlement.from_outcome(digest, owner, outcome, again_in=0.0, more_attempts=1, young=True)

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
        with suppress(RuntimeError):  # the loop is closed, and the leases lapse
            loop.call_soon_threadsafe(function, changes)

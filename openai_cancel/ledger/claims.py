"""`Claims`: the rows of a ledger that a sweep or a stop claims, in batches."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

import attrs

from openai_cancel.clock import Clock
from openai_cancel.errors import LedgerError
from openai_cancel.ledger.connection import Rows
from openai_cancel.ledger.database import ClosedError, Database
from openai_cancel.ledger.health import Health
from openai_cancel.ledger.selection import Place, Selection, any_claimable, claim_selected, now, page
from openai_cancel.ledger.table import Account, Claimed, Command, claim
from openai_cancel.retry import poll_delay

MAX_LOCKED = 12
"""The number of times that a stop waits for rows which another transaction has locked: about a minute in all."""


@attrs.frozen(kw_only=True)
class Claims:
    """Claims rows for an owner.

    If the database fails, for example during a restart, it tries again for as long as a lease. Then it raises a
    `LedgerError`, and at once if the ledger is closed.

    Attributes:
        database: the database.
        owner: the holder of the claims, which are leases.
        duration: seconds that a lease lasts.
        batch: the number of rows that are claimed at once.
        clock: the clock and the source of randomness.
        health: whether the database works.
    """

    database: Database
    owner: str
    duration: float
    batch: int
    clock: Clock
    health: Health

    async def expired(self, account: Account) -> AsyncGenerator[list[Claimed], None]:
        """Claim the rows of an account whose lease has expired, until there are none."""
        command = claim(self.owner, self.duration, account, limit=self.batch)
        while rows := await self._persist(self.database.execute, command):
            yield _claimed(rows)

    async def selected(self, selection: Selection) -> AsyncGenerator[list[Claimed], None]:
        """Claim rows in the order of the table, whoever holds their leases, until there are none.

        Raises:
            LedgerError: also if another transaction has locked rows for about a minute.
        """
        ((since,),) = await self._persist(self.database.read, now())
        command = partial(claim_selected, selection, self.owner, self.duration, since=since, limit=self.batch)
        locked = 0
        while True:
            after = Place()
            while rows := await self._persist(self.database.execute, command(after=after)):
                after = max(Place(row.created, row.digest) for row in rows)
                locked = 0
                yield _claimed(rows)
            if after != Place():
                continue  # rows may have been skipped
            if not await self._persist(self.database.read, any_claimable(selection, since=since)):
                return
            if locked >= MAX_LOCKED:
                raise LedgerError("Rows of the ledger are locked by another transaction, which does not end.")
            await self.clock.sleep(poll_delay(locked, asked=None, random=self.clock.random()))
            locked += 1

    async def ids(self, selection: Selection) -> AsyncGenerator[str, None]:
        """Yield the ids of open rows, and claim none."""
        after = Place()
        while rows := await self._persist(
            self.database.read, page(selection, after, include_ended=False, limit=self.batch)
        ):
            for row in rows:
                yield row.response_id
            after = Place(rows[-1].created, rows[-1].digest)

    async def _persist(self, execute: Callable[[Command], Awaitable[Rows]], command: Command) -> Rows:
        until = self.clock.monotonic() + self.duration
        failures = 0
        while True:
            try:
                rows = await execute(command)
            except ClosedError:
                raise
            except LedgerError as error:
                self.health.note_failure(error)
                delay = poll_delay(failures, asked=None, random=self.clock.random())
                if self.clock.monotonic() + delay > until:
                    raise
                failures += 1
                await self.clock.sleep(delay)
            else:
                self.health.note_success()
                return rows


def _claimed(rows: Rows) -> list[Claimed]:
    return [Claimed(row.digest, row.response_id, row.attempts, row.age) for row in rows]

"""`Sweep`: stop the responses whose lease has expired, and record their outcomes."""

import logging
import math
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

import attrs

from openai_cancel.bulk import stop_many
from openai_cancel.caller import Caller
from openai_cancel.clock import Clock
from openai_cancel.errors import APIConnectionError, AuthenticationError, LedgerError
from openai_cancel.ledger.claims import Claims
from openai_cancel.ledger.leases import Leases, Written
from openai_cancel.ledger.selection import Selection
from openai_cancel.ledger.table import TRACKED, Account, Claimed, Settlement
from openai_cancel.log_events import log_fields
from openai_cancel.outcome import Outcome

SWEEP_STORE_DELAY = 120.0
"""Seconds after it was recorded in which a response that the server does not find is tried again."""

INITIAL_BACKOFF = 30.0
"""Seconds until a response that could not be stopped may be claimed again. They double with each further attempt."""

MAX_BACKOFF = 3600.0
"""The maximum number of those seconds."""

MAX_UNWRITTEN = 256
"""The maximum number of outcomes that wait for the database. The sweep pauses if there are more."""

_log = logging.getLogger("openai_cancel.ledger")


@attrs.define(kw_only=True, eq=False)
class Sweep:
    """A sweep that is under way.

    Attributes:
        leases: the leases of the process.
        caller: makes the calls.
        account: returns the account whose responses are claimed.
        selection: the rows that are claimed, whoever holds their leases; None for those whose lease has expired.
        source: claims rows for an owner and yields them; or None to claim the rows of the account and the selection.
        clock: the clock and the source of randomness.
        batch: the number of responses that are claimed at once.
        max_attempts: the number of attempts after which a response is given up.
        concurrency: as for `AsyncSession.stop_many`.
        deadline: as for `AsyncSession.stop_many`.
        confirm: as for `AsyncSession.stop_many`.
        max_retries: as for `AsyncSession.stop_many`.
        give_up_after: as for `AsyncSession.stop_many`.
    """

    leases: Leases
    caller: Caller
    account: Callable[[], Awaitable[Account]]
    selection: Selection | None = None
    source: Callable[[str], AsyncGenerator[list[Claimed], None]] | None = None
    clock: Clock
    batch: int
    max_attempts: int
    concurrency: int
    deadline: float
    confirm: float | None
    max_retries: int | None
    give_up_after: float = math.inf

    _owner: str = attrs.field(init=False)
    _claims: Claims = attrs.field(init=False)
    _claimed: dict[str, Claimed] = attrs.field(init=False, factory=dict[str, Claimed])
    _unwritten: deque[Written] = attrs.field(init=False, factory=deque[Written])
    _refused: bool = False

    def __attrs_post_init__(self) -> None:
        # A sweep is an owner of its own: a claim whose answer was lost expires when the sweep ends, not the process.
        self._owner = f"{self.leases.owner}:{secrets.token_hex(4)}"
        self._claims = Claims(
            database=self.leases.database,
            owner=self._owner,
            duration=self.leases.duration,
            batch=self.batch,
            clock=self.clock,
            health=self.leases.health,
        )

    async def run(self) -> AsyncGenerator[Outcome, None]:
        """Yield the outcomes as they come. At the end all of them are recorded.

        Raises:
            APIConnectionError: the server cannot be reached. What is claimed is given back.
        """
        reason: str | None = None
        is_complete = False
        outcomes = stop_many(
            self.caller,
            self._claim_ids(),
            concurrency=self.concurrency,
            deadline=self.deadline,
            confirm=self.confirm,
            max_retries=self.max_retries,
            give_up_after=self.give_up_after,
            keep=self._record,
        )
        try:
            with self.leases.renewing(self._owner):
                async with aclosing(outcomes):
                    async for outcome in outcomes:
                        yield outcome
                        while len(self._unwritten) > MAX_UNWRITTEN:
                            await self._wait_for_oldest()
            is_complete = True
        except APIConnectionError as error:
            reason = str(error)
            raise
        finally:
            for row in self._claimed.values():  # which it has not stopped
                self._give_back(row, reason)
            if not is_complete:
                with suppress(LedgerError):  # the claims expire
                    self._unwritten.append(self.leases.give_back(self._owner))
            while self._unwritten:
                await self._wait_for_oldest()

    async def look(self, selection: Selection) -> AsyncGenerator[Outcome, None]:
        """Yield the outcomes of a dry run of `stop_many` for the open rows of a selection, and change nothing."""
        outcomes = stop_many(
            self.caller,
            self._claims.ids(attrs.evolve(selection, account=await self.account())),
            concurrency=self.concurrency,
            deadline=self.deadline,
            dry_run=True,
            max_retries=self.max_retries,
            give_up_after=self.give_up_after,
        )
        async with aclosing(outcomes):
            async for outcome in outcomes:
                yield outcome

    async def _claim_ids(self) -> AsyncGenerator[str, None]:
        """Yield the ids of responses, and claim more of them when they are needed."""
        account, selection = await self.account(), self.selection
        if self.source is not None:
            claims = self.source(self._owner)
        elif selection is None:
            claims = self._claims.expired(account)
        else:
            claims = self._claims.selected(attrs.evolve(selection, account=account))
        async with aclosing(claims):
            async for rows in claims:
                _log.info(
                    "claimed %s response%s",
                    f"{len(rows):,}",
                    "s" * (len(rows) != 1),
                    extra=log_fields("sweep_claimed", affected=len(rows)),
                )
                # If the database was away for longer than a lease, some are claimed again that are under way.
                new = [row.response_id for row in rows if row.response_id not in self._claimed]
                self._claimed |= {row.response_id: row for row in rows}
                for response_id in new:
                    yield response_id
                if self._refused:
                    return

    def _record(self, outcome: Outcome) -> None:
        row = self._claimed.pop(outcome.response_id)
        if isinstance(outcome.error, AuthenticationError):
            # A key that the server does not accept for one response is not accepted for the others.
            self._refused = True
            if self.selection is None:  # otherwise this stop would claim the row again
                # It stays overdue for a sweep with a better key, and for whoever looks for what is overdue.
                self._give_back(row, str(outcome.error), outcome.request_id)
                return
        backoff = min(INITIAL_BACKOFF * 2 ** min(row.attempts - 1, 10), MAX_BACKOFF)
        again_in = backoff if row.attempts < self.max_attempts else None
        self._write(
            Settlement.from_outcome(
                row.digest,
                self._owner,
                outcome,
                again_in=again_in,
                attempts=row.attempts,
                not_found_is_final=row.age >= SWEEP_STORE_DELAY,
            )
        )

    def _give_back(self, row: Claimed, error: str | None = None, request_id: str | None = None) -> None:
        """Let other sweeps claim a row at once, as if this one had not claimed it."""
        self._write(
            Settlement(
                digest=row.digest,
                response_id=row.response_id,
                owner=self._owner,
                state=TRACKED,
                again_in=0.0,
                more_attempts=-1,
                error=error,
                request_id=request_id,
            )
        )

    def _write(self, settlement: Settlement) -> None:
        if self.leases.is_closed:  # which has given back all claims
            return
        self._unwritten.append(self.leases.write([settlement]))

    async def _wait_for_oldest(self) -> None:
        with suppress(LedgerError):  # a heartbeat tries again
            await self.leases.wait(self._unwritten.popleft())

"""Stopping what has lapsed, and recording what became of it."""

import asyncio
import random
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import NamedTuple

from sqlalchemy import Update
from sqlalchemy.ext.asyncio import AsyncConnection

from openai_cancel.errors import AuthenticationError, LedgerError
from openai_cancel.ledger.book import Book
from openai_cancel.ledger.statements import TRACKED, Account, Change, claim
from openai_cancel.outcome import Outcome
from openai_cancel.retry import poll_delay

FIRST_BACKOFF = 30.0
"""Seconds until what could not be stopped is claimed again; twice as long after each further attempt."""

MOST_BACKOFF = 3600.0

BEHIND = 256
"""How many records of outcomes may wait for the database, until the sweep waits for them."""


class Claimed(NamedTuple):
    """A row that was claimed; `attempts` counts this one."""

    digest: str
    response_id: str
    attempts: int


class Sweep:
    """One sweep under way.

    Args:
        book: of the ledger.
        account: of whom responses are claimed.
        batch: how many are claimed at once.
        max_attempts: after how many a response is given up.
        stop_many: stops them.
    """

    def __init__(
        self,
        book: Book,
        *,
        account: Account,
        batch: int,
        max_attempts: int,
        stop_many: Callable[[AsyncIterable[str]], AsyncGenerator[Outcome, None]],
    ) -> None:
        self._book = book
        # A name of its own: what it claimed and never heard of lapses when it is over, and not with the process.
        self._name = f"{book.owner}:{secrets.token_hex(4)}"
        self._account = account
        self._batch = batch
        self._max_attempts = max_attempts
        self._stop_many = stop_many
        self._claimed: dict[str, Claimed] = {}
        self._records: deque[asyncio.Future[None]] = deque()
        self._refused = False

    async def run(self) -> AsyncGenerator[Outcome, None]:
        """The outcomes as they come; all are recorded at the end."""
        self._book.sweeps.add(self._name)
        try:
            async with aclosing(self._stop_many(self._ids())) as outcomes:
                async for outcome in outcomes:
                    self._record(outcome)
                    yield outcome
                    while len(self._records) > BEHIND:
                        await self._recorded()
        finally:
            self._book.sweeps.discard(self._name)
            self._give_back()
            while self._records:
                await self._recorded()

    async def _ids(self) -> AsyncGenerator[str, None]:
        while not self._refused and (rows := await self._claim()):
            self._claimed |= {row.response_id: row for row in rows}
            for row in rows:
                yield row.response_id

    async def _claim(self) -> Sequence[Claimed]:
        """Claim some more. A database that fails, since it is being restarted, say, has as long as a lease."""
        statement = claim(self._name, self._book.lease, self._account, most=self._batch)
        until = self._book.loop.time() + self._book.lease
        failures = 0
        while True:
            try:
                return await self._book.do(lambda connection: _rows(connection, statement))
            except LedgerError:
                delay = poll_delay(failures, asked=None, random=random.random())  # noqa: S311 - no secret
                if self._book.loop.time() + delay > until:
                    raise
                failures += 1
                await asyncio.sleep(delay)

    def _record(self, outcome: Outcome) -> None:
        row = self._claimed.pop(outcome.response_id)
        self._refused = self._refused or isinstance(outcome.error, AuthenticationError)  # so would all others be
        backoff = min(FIRST_BACKOFF * 2 ** (row.attempts - 1), MOST_BACKOFF)
        again_in = backoff if row.attempts < self._max_attempts else None
        self._write(Change.of_outcome(row.digest, self._name, outcome, again_in=again_in))

    def _give_back(self) -> None:
        """What was claimed and not stopped, since the sweep is left early, may be claimed at once."""
        for row in self._claimed.values():
            self._write(Change.settled(row.digest, self._name, TRACKED, again_in=0.0, more_attempts=-1))

    def _write(self, change: Change) -> None:
        self._records.append(self._book.write(change))

    async def _recorded(self) -> None:
        with suppress(LedgerError):  # the heartbeat will try again
            await self._book.wait(self._records.popleft())


async def _rows(connection: AsyncConnection, statement: Update) -> list[Claimed]:
    return [Claimed(*row) for row in await connection.execute(statement)]

"""What guards do with a ledger."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial

from openai_cancel.errors import LedgerError
from openai_cancel.ledger.book import Book
from openai_cancel.ledger.statements import RELEASED, TRACKED, Account, Change
from openai_cancel.outcome import Outcome


class Tracking:
    """What the guards of a session do with a ledger. See `openai_cancel.guard.Tracking`."""

    def __init__(self, book: Book, account: Account, labels: Mapping[str, str], *, required: bool) -> None:
        self._book = book
        self._account = account
        self._labels = labels
        self._required = required

    async def begin(self, names: Collection[str]) -> None:
        """Write down responses, and hold their leases.

        Raises:
            LedgerError: it could not be done, and is required.
        """
        await self._written(self._book.hold(self._rows(names)), required=self._required)

    def begin_soon(self, name: str) -> None:
        """As `begin`, without a wait, from any thread."""
        self._in_loop(partial(self._book.hold, self._rows([name])))

    async def release(self, names: Collection[str]) -> None:
        """Strike responses off.

        Raises:
            LedgerError: it could not be done, and is required.
        """
        await self._written(self._book.let_go(self._released(names)), required=self._required)

    def release_soon(self, names: Collection[str]) -> None:
        """As `release`, without a wait, from any thread."""
        self._in_loop(partial(self._book.let_go, self._released(names)))

    async def settle(self, names: Collection[str], outcomes: Mapping[str, Outcome]) -> None:
        """Write down what became of responses. What was not stopped may be claimed by a sweep at once."""
        changes = [self._settled(name, outcomes.get(name)) for name in names]
        # Where this fails, the lease lapses, and a sweep does the rest.
        await self._written(self._book.let_go(changes), required=False)

    def _rows(self, names: Collection[str]) -> list[Change]:
        owner, seconds = self._book.owner, self._book.lease
        return [self._account.row(name, owner=owner, seconds=seconds, labels=self._labels) for name in names]

    def _released(self, names: Collection[str]) -> list[Change]:
        return [Change.settled(self._account.digest(name), self._book.owner, RELEASED) for name in names]

    def _settled(self, name: str, outcome: Outcome | None) -> Change:
        digest, owner = self._account.digest(name), self._book.owner
        if outcome is None:
            return Change.settled(digest, owner, TRACKED, again_in=0.0, more_attempts=1)
        return Change.of_outcome(digest, owner, outcome, again_in=0.0, more_attempts=1)

    async def _written(self, written: "asyncio.Future[None]", *, required: bool) -> None:
        try:
            await self._book.wait(written)
        except LedgerError:
            if required:
                raise

    def _in_loop(self, call: Callable[[], object]) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._book.loop:
            call()
            return
        with suppress(RuntimeError):  # it has ended, and the leases will
            self._book.loop.call_soon_threadsafe(call)

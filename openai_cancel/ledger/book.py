"""What one process holds of a ledger, and the heartbeat that keeps its leases."""

import asyncio
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import TypeVar

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from openai_cancel.cancellation import wait_through_cancellation
from openai_cancel.errors import LedgerError
from openai_cancel.ledger.statements import Change, renewal, write
from openai_cancel.ledger.writer import Writer

MOST_MISSED = 10_000
"""How many rows that could not be written are kept, to be written later."""

_T = TypeVar("_T")

_log = logging.getLogger("openai_cancel")


class Book:
    """The rows that this process holds. The heartbeat renews all their leases with one statement.

    It also writes what could not be written before, as far as that still matters.

    Args:
        url: of the database.
        lease: seconds that a lease lasts; the heart beats three times as often.
        timeout: seconds that the database may take.

    Attributes:
        owner: what this process is called in the ledger.
        sweeps: what its sweeps are called, as long as they last: their claims are leases, too.
    """

    def __init__(self, url: URL, *, lease: float, timeout: float) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.lease = lease
        self.owner: str = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.sweeps: set[str] = set()
        self._writer = Writer(url, timeout)
        self._held: Counter[str] = Counter()  # by digest: a response can be guarded more than once
        self._missed: dict[str, Change] = {}
        self._fails = False
        self._heart = asyncio.create_task(self._beat())

    async def close(self) -> None:
        """Write what waits. What is still held is left to its lease."""
        self._heart.cancel()
        if cancel := await wait_through_cancellation(self._heart, self._writer.end()):
            raise cancel

    async def do(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """Do some work in a transaction.

        Raises:
            LedgerError: the database failed, or takes too long.
        """
        return await self._writer.do(work)

    async def wait(self, written: "asyncio.Future[None]") -> None:
        """Wait until something is written.

        Raises:
            LedgerError: it could not be written yet.
        """
        try:
            await self._writer.wait(written)
        except LedgerError as error:
            self._complain(error)
            raise

    def hold(self, changes: Collection[Change]) -> "asyncio.Future[None]":
        """Hold rows: write those that are not held already, and renew the leases of all."""
        new = [change for change in changes if change.digest not in self._held]
        self._held.update(change.digest for change in changes)
        return self.write(*new)

    def let_go(self, changes: Collection[Change]) -> "asyncio.Future[None]":
        """Let go of rows: write what became of those that are not held otherwise, too."""
        self._held.subtract(change.digest for change in changes)
        last = [change for change in changes if self._held[change.digest] <= 0]
        for change in last:
            del self._held[change.digest]
        return self.write(*last)

    def write(self, *changes: Change) -> "asyncio.Future[None]":
        """Write rows, now or with a later heartbeat."""
        for change in changes:
            self._missed.pop(change.digest, None)
        written: asyncio.Future[None] = self.loop.create_future()
        if not changes:
            written.set_result(None)
            return written
        try:
            written = self._writer.begin(partial(write, changes=changes))
        except LedgerError as error:
            written.set_exception(error)
        written.add_done_callback(partial(self._note, changes))
        return written

    def _note(self, changes: Collection[Change], written: "asyncio.Future[None]") -> None:
        error = None if written.cancelled() else written.exception()
        if error is not None:
            self._complain(error)
        elif not written.cancelled():
            self._fails = False
        for change in changes:
            if error is None and not written.cancelled():
                self._missed.pop(change.digest, None)
            elif len(self._missed) < MOST_MISSED:
                self._missed[change.digest] = change

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.lease / 3)
            await self.renew()

    async def renew(self) -> None:
        """Write what was missed, and renew all leases."""
        # What was let go since is not to be held, and the other way round.
        missed = [change for digest, change in self._missed.items() if change.holds == (digest in self._held)]
        self._missed.clear()
        owners = {*self.sweeps, self.owner} if self._held else self.sweeps
        try:
            if missed:
                await self.wait(self.write(*missed))
            if owners:
                await self.do(lambda connection: connection.execute(renewal(owners, self.lease)))
        except LedgerError as error:
            self._complain(error)

    def _complain(self, error: BaseException) -> None:
        """Say that the database fails: once, until it works again."""
        if not self._fails:
            _log.error("responses run without the ledger, which keeps trying: %s", error)
        self._fails = True

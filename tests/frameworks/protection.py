"""The code around a driver: with this package, or without it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from enum import Flag, auto
from typing import Any

from openai_cancel import AsyncSession, Session
from openai_cancel.ledger import Ledger

KEY = "sk-of-the-matrix"
LEASE = 2.0
"""Seconds after which a sweep may stop what a dead process has left."""
GRACE = 30.0
"""Seconds that a stop, or a transaction of the ledger, may take. The machine may be busy."""


class Protection(Flag):
    """The protection of a run: a guard around it, a watch over its client with a ledger, or nothing."""

    GUARD = auto()
    WATCH = auto()


NOTHING = Protection(0)


@asynccontextmanager
async def protecting(client: Any, protection: Protection, base_url: str, ledger_url: str) -> AsyncIterator[None]:
    """Protect what a client creates in the block."""
    async with AsyncExitStack() as stack:
        ledger = None
        if protection & Protection.WATCH:
            ledger = await stack.enter_async_context(Ledger(ledger_url, lease=LEASE, timeout=GRACE))
        if protection:
            session = AsyncSession(api_key=KEY, base_url=base_url, ledger=ledger)
            await stack.enter_async_context(session)
            if ledger:
                session.watch(client, grace=GRACE)
            if protection & Protection.GUARD:
                await stack.enter_async_context(session.guard(client, grace=GRACE, on_exit="stop"))
        yield


@contextmanager
def protecting_blocking(client: Any, protection: Protection, base_url: str, ledger_url: str) -> Iterator[None]:
    """Do the same for a blocking client."""
    with ExitStack() as stack:
        ledger = Ledger(ledger_url, lease=LEASE, timeout=GRACE) if protection & Protection.WATCH else None
        if protection:
            session = stack.enter_context(Session(api_key=KEY, base_url=base_url, ledger=ledger))
            if ledger:
                session.watch(client, grace=GRACE)
            if protection & Protection.GUARD:
                stack.enter_context(session.guard(client, grace=GRACE, on_exit="stop"))
        yield

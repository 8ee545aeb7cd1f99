"""The code around a driver: with this package, or without it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from openai_cancel import AsyncSession, Session
from openai_cancel.ledger import Ledger

KEY = "sk-of-the-matrix"
LEASE = 2.0
"""Seconds after which a sweep may stop what a dead process has left."""


@asynccontextmanager
async def protecting(client: Any, base_url: str, ledger_url: str = "", *, protected: bool) -> AsyncIterator[None]:
    """Guard what a client creates in the block; with a ledger, watch it."""
    if not protected:
        yield
    elif not ledger_url:
        async with AsyncSession(api_key=KEY, base_url=base_url) as session, session.guard(client):
            yield
    else:
        async with (
            Ledger(ledger_url, lease=LEASE) as ledger,
            AsyncSession(api_key=KEY, base_url=base_url, ledger=ledger) as session,
        ):
            session.watch(client)
            yield


@contextmanager
def protecting_blocking(client: Any, base_url: str, ledger_url: str = "", *, protected: bool) -> Iterator[None]:
    """Do the same for a blocking client."""
    if not protected:
        yield
    elif not ledger_url:
        with Session(api_key=KEY, base_url=base_url) as session, session.guard(client):
            yield
    else:
        with Session(api_key=KEY, base_url=base_url, ledger=Ledger(ledger_url, lease=LEASE)) as session:
            session.watch(client)
            yield

"""The code around a driver: with this package, or without it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from openai_cancel import AsyncSession, Session
from openai_cancel.ledger import Ledger

KEY = "sk-of-the-matrix"


@asynccontextmanager
async def protecting(client: Any, base_url: str, *, protected: bool, ledger_url: str = "") -> AsyncIterator[None]:
    """Guard what a client creates in the block. With a ledger, also watch it."""
    if not protected:
        yield
    elif not ledger_url:
        async with AsyncSession(api_key=KEY, base_url=base_url) as session, session.guard(client):
            yield
    else:
        async with (
            Ledger(ledger_url) as ledger,
            AsyncSession(api_key=KEY, base_url=base_url, ledger=ledger) as session,
            session.watch(client),
        ):
            yield


@contextmanager
def protecting_blocking(client: Any, base_url: str, *, protected: bool, ledger_url: str = "") -> Iterator[None]:
    """Do the same for a blocking client."""
    if not protected:
        yield
    elif not ledger_url:
        with Session(api_key=KEY, base_url=base_url) as session, session.guard(client):
            yield
    else:
        with (
            Session(api_key=KEY, base_url=base_url, ledger=Ledger(ledger_url)) as session,
            session.watch(client),
        ):
            yield

"""Two roles of PostgreSQL: one that owns the tables of a ledger, and a service that may only use them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import attrs
from ledger_database import execute
from postgres import empty

OWNER, SERVICE = "ledger-owner", 'my "service"'


@attrs.frozen
class Roles:
    """The URLs of the same database for an administrator and for two roles."""

    admin: str
    owner: str
    service: str


@asynccontextmanager
async def two_roles(url: str) -> AsyncIterator[Roles]:
    """Create the roles in a database without tables, and drop them at the end."""
    await empty(url)
    for role in (OWNER, SERVICE):
        await execute(url, f"CREATE ROLE {quoted(role)} LOGIN")
    await execute(url, f"GRANT CREATE ON SCHEMA public TO {quoted(OWNER)}")
    try:
        yield Roles(url, *(url.replace("//postgres@", f"//{quote(role)}@") for role in (OWNER, SERVICE)))
    finally:
        for role in (OWNER, SERVICE):
            await execute(url, f"DROP OWNED BY {quoted(role)}")
            await execute(url, f"DROP ROLE {quoted(role)}")


def quoted(role: str) -> str:
    return '"' + role.replace('"', '""') + '"'

"""What the command `demo` shows."""

import asyncio
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from openai_cancel.emulator import Emulator, Script
from openai_cancel.errors import BadRequestError
from openai_cancel.session import AsyncSession


def show() -> None:
    """Create and cancel a background response on an emulated server."""
    asyncio.run(_demo(Console()))


async def _demo(console: Console) -> None:
    table = Table("call", "request", "answer", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    async with (
        Emulator(script=Script(runs_for=3600)) as server,
        # The session's own client would use a proxy from the environment.
        aiohttp.ClientSession(headers={"Authorization": "Bearer demo"}) as client,
        AsyncSession(base_url=server.base_url, api_key="demo", client_session=client) as session,
    ):
        running = await _create(client, server.base_url, {})
        table.add_row("create", "POST /responses", running["status"])
        before = await session.retrieve(running["id"])
        table.add_row("session.retrieve(id)", "GET  /responses/ID", before.status)
        cancelled = await session.cancel(running["id"])
        table.add_row("session.cancel(id)", "POST /responses/ID/cancel", f"[bold green]{cancelled.status}")
        after = await session.retrieve(running["id"])
        table.add_row("session.retrieve(id)", "GET  /responses/ID", after.status)
        done = await _create(client, server.base_url, {"runs_for": "0"})
        try:
            await session.cancel(done["id"])
        except BadRequestError as error:
            table.add_row(
                "session.cancel(done)", "POST /responses/ID/cancel", f"[yellow]{error.status} {error.message}"
            )
    console.print(f"A background response that would run for an hour on the emulated server {server.base_url}:\n")
    console.print(table)
    console.print(f"\nbefore  {before!r}\nafter   {after!r}", highlight=False, soft_wrap=True)


async def _create(client: aiohttp.ClientSession, base_url: str, metadata: dict[str, str]) -> dict[str, Any]:
    body = {"model": "emulated", "input": "How much wood?", "background": True, "metadata": metadata}
    async with client.post(f"{base_url}/responses", json=body) as answer:
        created: dict[str, Any] = await answer.json()
        return created

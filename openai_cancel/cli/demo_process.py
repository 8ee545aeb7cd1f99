"""The process that `demo` kills. It guards a response with a lease, and waits."""

import asyncio

import aiohttp

from openai_cancel.cli.output import print_line
from openai_cancel.ledger import Ledger
from openai_cancel.session import AsyncSession


async def guard_for_a_minute(url: str, base_url: str, lease: float) -> None:
    """Create a response, guard it, print its id, and wait to be killed.

    Args:
        url: the ledger.
        base_url: the server.
        lease: seconds that the lease lasts.
    """
    async with (
        # The session's own client would use a proxy from the environment.
        aiohttp.ClientSession(headers={"Authorization": "Bearer demo"}) as client,
        AsyncSession(
            base_url=base_url, api_key="demo", client_session=client, ledger=Ledger(url, lease=lease)
        ) as session,
    ):
        body = {"model": "emulated", "input": "How much wood?", "background": True}
        async with client.post(f"{base_url}/responses", json=body) as answer:
            name = (await answer.json())["id"]
        async with session.guard(name):
            print_line(name)
            await asyncio.sleep(60)  # if nobody kills it, it ends

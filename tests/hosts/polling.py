"""The part of a handler that all web frameworks here share: a guard around a loop that polls."""

import asyncio
from typing import Any

from openai_cancel import AsyncSession


async def poll(session: AsyncSession, response_id: str, **options: Any) -> dict[str, str | None]:
    async with session.guard(response_id, **options):
        while not (response := await session.retrieve(response_id)).is_terminal:
            await asyncio.sleep(0.05)
    return {"status": response.status}

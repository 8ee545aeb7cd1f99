"""Many responses on a server that allows few requests a second, in time that runs faster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
from conftest import KEY
from manual_clock import ManualClock

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator


@attrs.frozen
class Crowd:
    """Responses that run until they are stopped.

    Attributes:
        clock: the clock of the server and the session.
        server: the server.
        session: a session for it.
        ids: the ids of the responses.
    """

    clock: ManualClock
    server: Emulator
    session: AsyncSession
    ids: list[str]


@asynccontextmanager
async def crowd(responses: int, *, allows: float) -> AsyncIterator[Crowd]:
    """Create responses on a server that allows that many requests a second."""
    clock = ManualClock()

    async def run() -> None:
        while True:
            await asyncio.sleep(0.002)
            clock.advance(0.01)

    async with (
        Emulator(rate_limit=allows, clock=clock.monotonic) as server,
        AsyncSession(api_key=KEY, base_url=server.base_url, clock=clock) as session,
    ):
        running = asyncio.create_task(run())
        try:
            yield Crowd(clock, server, session, [server.add() for _ in range(responses)])
        finally:
            running.cancel()
            await asyncio.wait([running])

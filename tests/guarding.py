"""A process for tests to kill: it guards one response all the time, and the others in turns.

    python tests/guarding.py LEDGER BASE_URL KEY < IDS

It prints each id as soon as it is guarded.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from openai_cancel import AsyncSession
from openai_cancel.ledger import Ledger

CONCURRENCY = 5


async def main(url: str, base_url: str, key: str) -> None:
    ids = iter(sys.stdin.read().split())
    async with (
        Ledger(url, timeout=30) as ledger,
        AsyncSession(base_url=base_url, api_key=key, ledger=ledger) as session,
    ):

        @asynccontextmanager
        async def guarding(name: str) -> AsyncIterator[None]:
            async with session.guard(name):
                sys.stdout.write(f"{name}\n")
                sys.stdout.flush()
                yield

        async def work() -> None:
            for name in ids:
                async with guarding(name):
                    await asyncio.sleep(0.001)

        async with guarding(next(ids)):
            await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

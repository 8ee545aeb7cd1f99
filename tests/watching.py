"""A process for tests to kill: a service that watches its client and creates responses, several at the same time.

    python tests/watching.py LEDGER BASE_URL KEY

It prints each id as soon as it has it.
"""

import asyncio
import sys

import openai

from openai_cancel import AsyncSession
from openai_cancel.ledger import Ledger

CONCURRENCY = 5


async def main(url: str, base_url: str, key: str) -> None:
    async with (
        openai.AsyncOpenAI(base_url=base_url, api_key=key) as client,
        AsyncSession(base_url=base_url, api_key=key, ledger=Ledger(url, timeout=30)) as session,
    ):
        session.watch(client)

        async def work() -> None:
            while True:
                response = await client.responses.create(model="m", input="hi", background=True)
                sys.stdout.write(f"{response.id}\n")
                sys.stdout.flush()

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""Guard a response with a ledger, so that it is stopped even if this process is killed: `ledger_guard.py URL ID`.

URL is a database, such as sqlite:///ledger.db. Another process runs `openai-cancel ledger sweep`, which stops the
responses whose process has died.
"""

import asyncio
import sys

from openai_cancel import AsyncSession
from openai_cancel.ledger import Ledger


async def main(url: str, response_id: str) -> None:
    """Record the response in the ledger, then wait for it."""
    async with Ledger(url, lease=15) as ledger, AsyncSession(ledger=ledger) as session:
        async with session.guard(response_id):
            print("guarding", flush=True)
            response = await session.wait(response_id)
        print(response.status, response.output_text)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

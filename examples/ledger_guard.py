"""One of two processes: it guards a response, and may be killed. The other is `openai-cancel ledger sweep`.

python examples/ledger_guard.py sqlite:///ledger.db resp_123
"""

import asyncio
import sys

from openai_cancel import AsyncSession
from openai_cancel.ledger import Ledger


async def main(url: str, response_id: str) -> None:
    """Wait for a response which is stopped, whatever becomes of this process."""
    async with Ledger(url, lease=15) as ledger, AsyncSession(ledger=ledger) as session:
        async with session.guard(response_id):
            print("guarding", flush=True)
            response = await session.wait(response_id)
        print(response.status, response.output_text)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""vLLM, where the first answer wins: `vllm.py ID…` prints the response that is over first, and stops the others.

Start it with VLLM_ENABLE_RESPONSES_API_STORE=1, without which it has no responses in the background.
"""

import asyncio
import os
import sys

from openai_cancel import AsyncSession

URL = os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")


async def main(ids: list[str]) -> None:
    """Wait for all; a wait that ends before its response does stops the response."""
    async with AsyncSession(base_url=URL, api_key="any") as session:  # vLLM asks for a key only if it was given one
        async with asyncio.TaskGroup() as group:
            # With a time-out, for after an error of its engine vLLM says `queued` for ever.
            waits = [group.create_task(session.wait(response_id, timeout=600)) for response_id in ids]
            first, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in others:
                wait.cancel()
        print(first.pop().result().output_text)
        # To a cancel of what is over vLLM says "Cannot cancel a synchronous response.", true or not: `stop` looks.
        for response_id in ids:
            print(response_id, (await session.stop(response_id)).verdict)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))

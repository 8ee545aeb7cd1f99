"""Take the first of several responses on vLLM, and stop the others: `vllm.py ID…`.

Start vLLM with VLLM_ENABLE_RESPONSES_API_STORE=1, or it has no background responses.
"""

import asyncio
import os
import sys

from openai_cancel import AsyncSession

URL = os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")


async def main(ids: list[str]) -> None:
    """Wait for all responses. When one ends, cancel the other waits, which stops their responses."""
    async with AsyncSession(base_url=URL, api_key="any") as session:  # vLLM checks the key only with --api-key
        async with asyncio.TaskGroup() as group:
            # With a timeout: after an engine error, vLLM reports `queued` forever.
            waits = [group.create_task(session.wait(response_id, timeout=600)) for response_id in ids]
            first, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in others:
                wait.cancel()
        print(first.pop().result().output_text)
        # For ended responses vLLM answers "Cannot cancel a synchronous response."; `stop` looks up the status.
        for response_id in ids:
            print(response_id, (await session.stop(response_id)).verdict)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))

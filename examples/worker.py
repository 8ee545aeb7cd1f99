"""Wait for several responses, each with a timeout: `worker.py SECONDS ID…`."""

import asyncio
import sys

from openai_cancel import AsyncSession, WaitTimeoutError


async def work(session: AsyncSession, response_id: str, seconds: float) -> str:
    """Wait for one response, and return a line about it."""
    try:
        response = await session.wait(response_id, timeout=seconds)
    except WaitTimeoutError as error:
        return f"{response_id} timed out: {error.outcome.verdict if error.outcome else 'left running'}"
    return f"{response_id} {response.status}: {response.output_text}"


async def main(seconds: float, ids: list[str]) -> None:
    """Wait for all responses at once. If one wait fails or the worker is cancelled, the other responses are stopped."""
    async with AsyncSession() as session, asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(session, response_id, seconds)) for response_id in ids]
    for task in tasks:
        print(task.result())


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:]))

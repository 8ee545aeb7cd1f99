"""Ask an agent of Agno, and stop its response after a timeout: `with_agno.py SECONDS QUESTION`."""

import asyncio
import sys

from agno.agent import Agent
from agno.models.openai import OpenAIResponses
from agno.run import RunStatus
from openai import AsyncOpenAI

from openai_cancel import AsyncSession


async def main(seconds: float, question: str) -> None:
    """Print the answer, unless it takes too long."""
    async with AsyncOpenAI() as client, AsyncSession.from_openai(client) as session:
        agent = Agent(model=OpenAIResponses(id="gpt-5", async_client=client, background=True))
        try:
            async with asyncio.timeout(seconds), session.guard(client):
                output = await agent.arun(question)
                if output.status is not RunStatus.completed:
                    raise RuntimeError(output.content)  # Agno returns errors, and only exceptions end the guard
        except TimeoutError:
            print("Timed out. The response was stopped.")
        else:
            print(output.content)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2]))

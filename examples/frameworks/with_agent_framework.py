"""Poll for an answer of Microsoft's Agent Framework for some seconds: `with_agent_framework.py SECONDS QUESTION`."""

import asyncio
import sys
from typing import Any

from agent_framework import Agent
from agent_framework.openai import OpenAIChatClient
from openai import AsyncOpenAI

from openai_cancel import AsyncSession


async def ask(agent: Agent[Any], question: str) -> str:
    """Ask, and poll until there is an answer."""
    answer = await agent.run(question, options={"background": True})
    while answer.continuation_token is not None:
        await asyncio.sleep(0.5)  # seconds between two polls
        answer = await agent.run(options={"background": True, "continuation_token": answer.continuation_token})
    return answer.text


async def main(seconds: float, question: str) -> None:
    """Print the answer, unless it takes too long."""
    async with AsyncOpenAI() as client, AsyncSession.from_openai(client) as session:
        agent = Agent(client=OpenAIChatClient(async_client=client, model="gpt-5"))
        try:
            async with asyncio.timeout(seconds), session.guard(client):
                print(await ask(agent, question))
        except TimeoutError:
            print("Timed out. The response was stopped.")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2]))

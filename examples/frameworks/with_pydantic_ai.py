"""Ask an agent of Pydantic AI, and stop its response after a timeout: `with_pydantic_ai.py SECONDS QUESTION`."""

import asyncio
import sys

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

from openai_cancel import AsyncSession


async def main(seconds: float, question: str) -> None:
    """Print the answer, unless it takes too long."""
    async with AsyncOpenAI() as client, AsyncSession.from_openai(client) as session:
        model = OpenAIResponsesModel("gpt-5", provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, model_settings=OpenAIResponsesModelSettings(openai_background=True))
        try:
            async with asyncio.timeout(seconds), session.guard(client):
                result = await agent.run(question)
        except TimeoutError:
            print("Timed out. The response was stopped.")
        else:
            print(result.output)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2]))

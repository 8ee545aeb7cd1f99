"""Stream an answer of the OpenAI Agents SDK for some seconds: `with_openai_agents.py SECONDS QUESTION`."""

import asyncio
import sys

from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

from openai_cancel import AsyncSession


async def main(seconds: float, question: str) -> None:
    """Print the answer in pieces, unless it takes too long."""
    set_tracing_disabled(disabled=True)
    async with AsyncOpenAI() as client, AsyncSession.from_openai(client) as session:
        model = OpenAIResponsesModel("gpt-5", client)
        agent = Agent("forester", model=model, model_settings=ModelSettings(extra_args={"background": True}))
        try:
            async with asyncio.timeout(seconds), session.guard(client):
                result = Runner.run_streamed(agent, question)
                async for event in result.stream_events():
                    if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                        print(event.data.delta, end="", flush=True)
                print()
        except TimeoutError:
            print("\nTimed out. The response was stopped.")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2]))

"""Create a response with the official client, and stop it after a timeout: `with_openai.py SECONDS QUESTION`."""

import asyncio
import sys

import openai

from openai_cancel import AsyncSession


async def ask(question: str) -> str:
    """Ask a question and poll for the answer. An exception, such as a cancellation, stops the response."""
    async with openai.AsyncOpenAI() as client, AsyncSession.from_openai(client) as session:
        response = await client.responses.create(model="gpt-5", input=question, background=True)
        async with session.guard(response.id):
            while response.status in {"queued", "in_progress"}:
                await asyncio.sleep(1)
                response = await client.responses.retrieve(response.id)
        return response.output_text


async def main(seconds: float, question: str) -> None:
    """Wait for the answer for some seconds."""
    try:
        print(await asyncio.wait_for(ask(question), seconds))
    except TimeoutError:
        print("Timed out. The response was stopped.")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2]))

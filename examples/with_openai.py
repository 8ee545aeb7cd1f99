"""Create a response with the official client, and stop it after a timeout: `with_openai.py SECONDS QUESTION`."""

import asyncio
import sys

import openai

from openai_cancel import AsyncSession


async def ask(client: openai.AsyncOpenAI, question: str) -> str:
    """Ask a question and poll for the answer. A framework that is given the client does the same."""
    response = await client.responses.create(model="gpt-5", input=question, background=True)
    while response.status in {"queued", "in_progress"}:
        await asyncio.sleep(1)
        response = await client.responses.retrieve(response.id)
    return response.output_text


async def main(seconds: float, question: str) -> None:
    """Wait for the answer for some seconds. An exception, such as a timeout, stops the response."""
    async with openai.AsyncOpenAI() as client, AsyncSession.from_openai(client) as session:
        try:
            async with session.guard(client):
                print(await asyncio.wait_for(ask(client, question), seconds))
        except TimeoutError:
            print("Timed out. The response was stopped.")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2]))

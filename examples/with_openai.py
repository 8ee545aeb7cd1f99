"""The official client creates the response, and this package ends it: `with_openai.py SECONDS QUESTION`."""

import asyncio
import sys

import openai

from openai_cancel import AsyncSession


async def ask(question: str) -> str:
    """Ask, and wait for the answer; whatever ends the wait early ends the work."""
    async with openai.AsyncOpenAI() as client, AsyncSession.from_openai(client) as session:
        response = await client.responses.create(model="gpt-5", input=question, background=True)
        async with session.guard(response.id):
            while response.status in {"queued", "in_progress"}:
                await asyncio.sleep(1)
                response = await client.responses.retrieve(response.id)
        return response.output_text


async def main(seconds: float, question: str) -> None:
    """Give it so many seconds."""
    try:
        print(await asyncio.wait_for(ask(question), seconds))
    except TimeoutError:
        print("It took too long, and was stopped.")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2]))

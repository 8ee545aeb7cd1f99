"""A service that records its responses, for a sweep in case it is killed: `watch_openai.py LEDGER QUESTION...`.

Kill it, and run `openai-cancel ledger sweep` with the same ledger a minute later: everything that ran is stopped.
"""

import asyncio
import sys

import openai

from openai_cancel import AsyncSession
from openai_cancel.ledger import Ledger


async def ask(client: openai.AsyncOpenAI, question: str) -> str:
    """Ask a question and read the answer as it is written. The ledger has the response before this function does."""
    events = await client.responses.create(model="gpt-5", input=question, background=True, stream=True)
    text = ""
    async for event in events:
        if event.type == "response.created":
            print(f"{event.response.id} runs", flush=True)
        elif event.type == "response.output_text.delta":
            text += event.delta
    return text


async def main(url: str, *questions: str) -> None:
    """Answer all questions at the same time."""
    async with (
        openai.AsyncOpenAI() as client,
        AsyncSession.from_openai(client, ledger=Ledger(url)) as session,
    ):
        session.watch(client)
        print(*await asyncio.gather(*(ask(client, question) for question in questions)), sep="\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

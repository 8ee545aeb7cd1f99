"""Stream an answer of LangChain for some seconds: `with_langchain.py SECONDS QUESTION`."""

import asyncio
import sys

from langchain_openai import ChatOpenAI
from openai import DefaultAsyncHttpxClient

from openai_cancel import AsyncSession


async def main(seconds: float, question: str) -> None:
    """Print the answer in pieces, unless it takes too long."""
    async with DefaultAsyncHttpxClient() as http, AsyncSession() as session:
        model = ChatOpenAI(
            model="gpt-5", use_responses_api=True, model_kwargs={"background": True}, http_async_client=http
        )
        try:
            async with asyncio.timeout(seconds), session.guard(http):
                async for chunk in model.astream(question):
                    print(chunk.text, end="", flush=True)
                print()
        except TimeoutError:
            print("\nTimed out. The response was stopped.")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2]))

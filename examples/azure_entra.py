"""Azure OpenAI with Entra ID in place of a key: `azure_entra.py SECONDS ID…`, after `pip install azure-identity`.

The endpoint is AZURE_OPENAI_ENDPOINT. TOKEN_FUNCTION may name a function of yours that gives tokens: `module:function`.
"""

import asyncio
import os
import pkgutil
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from openai_cancel import AsyncSession

SCOPE = "https://cognitiveservices.azure.com/.default"


@asynccontextmanager
async def token_function() -> AsyncGenerator[Callable[[], str | Awaitable[str]], None]:
    """Give a function that is asked for a token before each attempt: one that has expired is never sent."""
    if name := os.environ.get("TOKEN_FUNCTION"):
        yield pkgutil.resolve_name(name)
        return
    from azure.identity.aio import DefaultAzureCredential, get_bearer_token_provider  # where it is needed only

    async with DefaultAzureCredential() as credential:  # `az login`, a managed identity, …
        yield get_bearer_token_provider(credential, SCOPE)


async def main(seconds: float, ids: list[str]) -> None:
    """Stop them, and look again after so many seconds: Azure was seen to run on with what it calls cancelled."""
    async with token_function() as token, AsyncSession.azure(token_provider=token) as session:
        async for outcome in session.stop_many(ids, confirm=seconds):
            print(outcome.response_id, outcome.verdict, outcome.error or "")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:]))

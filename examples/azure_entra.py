"""Stop responses on Azure OpenAI with Entra ID: `azure_entra.py SECONDS ID…`. Needs `pip install azure-identity`.

Set AZURE_OPENAI_ENDPOINT. To get tokens elsewhere, set TOKEN_FUNCTION to the name of a function: `module:function`.
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
    """Yield a function that returns a token. The session calls it before each attempt, so no token is stale."""
    if name := os.environ.get("TOKEN_FUNCTION"):
        yield pkgutil.resolve_name(name)
        return
    from azure.identity.aio import DefaultAzureCredential, get_bearer_token_provider  # only if it is used

    async with DefaultAzureCredential() as credential:  # `az login`, a managed identity, …
        yield get_bearer_token_provider(credential, SCOPE)


async def main(seconds: float, ids: list[str]) -> None:
    """Stop all responses, and check each again after some seconds: on Azure, some went on after `cancelled`."""
    async with token_function() as token, AsyncSession.azure(token_provider=token) as session:
        async for outcome in session.stop_many(ids, confirm=seconds):
            print(outcome.response_id, outcome.verdict, outcome.error or "")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:]))

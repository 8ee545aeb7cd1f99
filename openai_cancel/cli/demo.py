"""The commands `demo` and `emulate`, which run the emulated server."""

import asyncio
from typing import Annotated, Any

import aiohttp
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from openai_cancel.cli.output import print_line
from openai_cancel.emulator import DIALECTS, Emulator, Script
from openai_cancel.errors import BadRequestError, ConfigurationError
from openai_cancel.session import AsyncSession


def demo() -> None:
    """Create and cancel a background response on an emulated server, without a network, a key or a model."""
    asyncio.run(_demo(Console()))


async def _demo(console: Console) -> None:
    table = Table("call", "request", "answer", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    async with (
        Emulator(script=Script(runs_for=3600)) as server,
        # The session's own client would use a proxy from the environment.
        aiohttp.ClientSession(headers={"Authorization": "Bearer demo"}) as client,
        AsyncSession(base_url=server.base_url, api_key="demo", client_session=client) as session,
    ):
        running = await _create(client, server.base_url, {})
        table.add_row("create", "POST /responses", running["status"])
        before = await session.retrieve(running["id"])
        table.add_row("session.retrieve(id)", "GET  /responses/ID", before.status)
        cancelled = await session.cancel(running["id"])
        table.add_row("session.cancel(id)", "POST /responses/ID/cancel", f"[bold green]{cancelled.status}")
        after = await session.retrieve(running["id"])
        table.add_row("session.retrieve(id)", "GET  /responses/ID", after.status)
        done = await _create(client, server.base_url, {"runs_for": "0"})
        try:
            await session.cancel(done["id"])
        except BadRequestError as error:
            table.add_row(
                "session.cancel(done)", "POST /responses/ID/cancel", f"[yellow]{error.status} {error.message}"
            )
    console.print(f"A background response that would run for an hour on the emulated server {server.base_url}:\n")
    console.print(table)
    console.print(f"\nbefore  {before!r}\nafter   {after!r}", highlight=False, soft_wrap=True)


async def _create(client: aiohttp.ClientSession, base_url: str, metadata: dict[str, str]) -> dict[str, Any]:
    body = {"model": "emulated", "input": "How much wood?", "background": True, "metadata": metadata}
    async with client.post(f"{base_url}/responses", json=body) as answer:
        created: dict[str, Any] = await answer.json()
        return created


def _is_dialect(_: Any, dialect: str) -> None:
    if dialect not in DIALECTS:
        raise ValueError(f"Choose one of {', '.join(DIALECTS)}.")


def emulate(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8080,
    runs_for: Annotated[float, Parameter(validator=Number(gte=0))] = 60.0,
    rate_limit: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    dialect: Annotated[str, Parameter(validator=_is_dialect)] = "openai",
) -> None:
    """Run the emulated server until Ctrl-C. It accepts any key.

    ```
    openai-cancel emulate --port 8080 --dialect vllm
    ```

    Args:
        host: The address to listen on.
        port: The port to listen on. 0 picks a free port.
        runs_for: Seconds that a background response runs. The metadata of a request can change this and more:
            queued_for, runs_for, becomes (completed, failed or incomplete), says, resumes_after.
        rate_limit: Requests per second. The server answers 429 to any more.
        dialect: The server to emulate: openai, azure, vllm, sglang, sglang_old, ogx, litellm, litellm_polling,
            perplexity, mistralrs, openresponses, gomodel, smg, smg_http, smg_openai, databricks, devui, portkey,
            open_responses_server, azure_restarted, method_not_allowed or no_cancel_route.
    """
    script = Script(runs_for=runs_for)
    emulator = Emulator(host=host, port=port, script=script, rate_limit=rate_limit, dialect=dialect)
    try:
        asyncio.run(_emulate(emulator))
    except (OSError, UnicodeError) as error:  # the latter if the host is not a valid name
        reason = getattr(error, "strerror", error)
        raise ConfigurationError(f"Cannot listen on {host}, port {port}: {reason}.") from error


async def _emulate(emulator: Emulator) -> None:
    async with emulator:
        print_line(f"OPENAI_BASE_URL={emulator.base_url} OPENAI_API_KEY=any")
        await asyncio.Event().wait()

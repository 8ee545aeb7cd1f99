"""Clients of the openai package for tests, with each of its transports, and what an emulator knows of their work."""

from collections.abc import Callable
from typing import Any

import openai
from conftest import KEY

from openai_cancel.emulator import Emulator

TRANSPORTS: dict[str, Callable[[], Any]] = {
    "httpx": openai.DefaultAsyncHttpxClient,
    "aiohttp": openai.DefaultAioHttpClient,
}
REQUEST: dict[str, Any] = {"model": "m", "input": "hi", "background": True}


def async_client(server: Emulator, transport: str = "httpx", **options: Any) -> openai.AsyncOpenAI:
    settings: dict[str, Any] = {"api_key": KEY, "base_url": server.base_url, "max_retries": 0, **options}
    return openai.AsyncOpenAI(http_client=TRANSPORTS[transport](), **settings)


def blocking_client(server: Emulator, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"api_key": KEY, "base_url": server.base_url, "max_retries": 0, **options})


def states(server: Emulator) -> list[str]:
    """Return the statuses of all responses, the oldest first."""
    return [work.status(server.clock()) for work in server.responses.values()]


def inside(client: Any) -> dict[str, Any]:
    """Return the attributes of the httpx client that a request does not change."""
    attributes = {**vars(client._client), "event_hooks": client._client.event_hooks}
    return {name: value for name, value in attributes.items() if name not in {"_state", "_cookies"}}

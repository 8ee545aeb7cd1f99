"""A client that disconnects from a web service has its response stopped."""

import asyncio

import pytest
from conftest import until
from web_hosts import ask, host, left, needs

from openai_cancel.emulator import Emulator

UVICORN = ("-m", "uvicorn", "--port", "0")
WATCHED = {
    "fastapi": (*UVICORN, "fastapi_app:app"),
    "starlette": (*UVICORN, "starlette_app:app"),
    "litestar": (*UVICORN, "litestar_app:app"),
    "hypercorn": ("-m", "hypercorn", "--bind", "127.0.0.1:0", "starlette_app:app"),
    "aiohttp": ("-m", "aiohttp_app", "60"),
}
"""Those that let the handler run on."""

CANCELLED = {
    "quart": ((*UVICORN, "quart_app:app"), "plain"),
    "django": ((*UVICORN, "guard_django:application"), "answers"),
    "aiohttp": (("-m", "aiohttp_app", "60", "cancel"), "plain"),
}
"""Those that cancel the handler."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def disconnect(server: Emulator, command: tuple[str, ...], folder: str) -> None:
    """Disconnect one of two clients. The server then ends at once when it is terminated, as no handler is left."""
    gone, served = server.add(), server.add()
    async with host(server, command) as service:
        disconnecting, waiting = await ask(service, server, f"/{folder}/{gone}", f"/{folder}/{served}")
        disconnecting.cancel()
        async with asyncio.timeout(20):
            await until(lambda: server.responses[gone].cancelled)
        assert left(server) == [served]
        server.responses[served].cancel(server.clock())
        await waiting
        async with asyncio.timeout(10):
            await service.terminated()
    assert "Exception in ASGI application" not in service.output
    assert "Traceback" not in service.output
    assert "was not stopped" not in service.output


@pytest.mark.parametrize("framework", [pytest.param(name, marks=needs(name)) for name in WATCHED])
async def test_a_guard_notices_it_where_the_framework_does_not_cancel_the_handler(
    server: Emulator, framework: str
) -> None:
    await disconnect(server, WATCHED[framework], "watched")


@pytest.mark.parametrize("framework", [pytest.param(name, marks=needs(name)) for name in CANCELLED])
async def test_a_guard_needs_no_help_where_the_framework_cancels_the_handler(server: Emulator, framework: str) -> None:
    command, folder = CANCELLED[framework]
    await disconnect(server, command, folder)


@needs("fastapi")
async def test_a_guard_in_a_streamed_answer_needs_no_help(server: Emulator) -> None:
    await disconnect(server, WATCHED["fastapi"], "streamed")


@needs("fastapi")
async def test_a_guard_in_a_dependency_of_a_streamed_answer_stops_at_its_exit(server: Emulator) -> None:
    await disconnect(server, WATCHED["fastapi"], "dependent")


@needs("fastapi")
async def test_the_example_for_fastapi_needs_no_more(server: Emulator) -> None:
    await disconnect(server, (*UVICORN, "guard_fastapi:app"), "answers")

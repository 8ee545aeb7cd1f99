"""A deploy terminates a web service that has requests in flight, and leaves no response running."""

import asyncio
import signal

import pytest
from conftest import until
from web_hosts import ask, host, left, needs

from openai_cancel.emulator import Emulator

IN_FLIGHT = 5
UVICORN = ("-m", "uvicorn", "--port", "0", "--timeout-graceful-shutdown", "1")
SERVICES = {
    "fastapi": (*UVICORN, "fastapi_app:app"),
    "starlette": (*UVICORN, "starlette_app:app"),
    "litestar": (*UVICORN, "litestar_app:app"),
    "quart": (*UVICORN, "quart_app:app"),
    "hypercorn": ("-m", "hypercorn", "--bind", "127.0.0.1:0", "--graceful-timeout", "1", "starlette_app:app"),
    "aiohttp": ("-m", "aiohttp_app", "1"),
}
RUN_AIOHTTP = "from guard_aiohttp import *; web.run_app(make_app(), host='127.0.0.1', port=0, shutdown_timeout=1)"
GUNICORN = {
    "uvicorn": ("gunicorn_worker.Worker", "fastapi_app:app"),
    "aiohttp": ("aiohttp.GunicornWebWorker", "aiohttp_app:make_runner"),
}
"""The workers, and what they serve."""

EXAMPLES = {
    "fastapi": (*UVICORN, "guard_fastapi:app"),
    "django": (*UVICORN, "guard_django:application"),
    "aiohttp": ("-c", RUN_AIOHTTP),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def terminate(server: Emulator, command: tuple[str, ...], folder: str) -> None:
    """Terminate a service that has requests in flight, and look what is left."""
    async with host(server, command) as service:
        asking = await ask(service, server, *(f"/{folder}/{server.add()}" for _ in range(IN_FLIGHT)))
        await service.terminated()
        assert left(server) == []
        assert "was not stopped" not in service.output
        await asyncio.gather(*asking)


@pytest.mark.parametrize("framework", [pytest.param(name, marks=needs(name)) for name in SERVICES])
async def test_a_guard_around_a_poll_loop_leaves_nothing_running_at_sigterm(server: Emulator, framework: str) -> None:
    await terminate(server, SERVICES[framework], "plain")


@pytest.mark.parametrize("framework", [pytest.param(name, marks=needs(name)) for name in EXAMPLES])
async def test_an_example_leaves_nothing_running_at_sigterm(server: Emulator, framework: str) -> None:
    await terminate(server, EXAMPLES[framework], "answers")


@needs("gunicorn")
@pytest.mark.parametrize("worker", GUNICORN)
async def test_a_worker_that_ends_before_gunicorn_kills_it_leaves_nothing_running(
    server: Emulator, worker: str
) -> None:
    kind, served = GUNICORN[worker]
    await terminate(server, ("-m", "gunicorn", "-b", "127.0.0.1:0", "-k", kind, served), "plain")


@needs("fastapi")
async def test_a_second_ctrl_c_leaves_nothing_running(server: Emulator) -> None:
    """The first one waits for the requests, and the second one does not."""
    async with host(server, ("-m", "uvicorn", "--port", "0", "fastapi_app:app")) as service:
        asking = await ask(service, server, f"/plain/{server.add()}")
        service.process.send_signal(signal.SIGINT)
        await until(lambda: "Waiting for connections to close" in service.output)
        service.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            await service.process.wait()
        assert left(server) == []
        await asyncio.gather(*asking)

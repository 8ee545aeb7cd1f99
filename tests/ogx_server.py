"""ogx in a process of its own. Its model server is a stub that never answers, and its store is a real PostgreSQL."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
from aiohttp import web
from server_processes import SCRIPTS, free_port, installed, running
from sqlalchemy import make_url

MODEL = "model/m"


@asynccontextmanager
async def model_server() -> AsyncIterator[str]:
    """Run a model server whose model never answers."""

    async def answer(_: web.Request) -> web.Response:
        await asyncio.Event().wait()

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model", "created": 1}]})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", answer)])
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@asynccontextmanager
async def ogx_server(folder: Path, model_url: str, database_url: str) -> AsyncIterator[str]:
    """Run ogx, and yield its base URL."""
    command, port = installed("ogx"), free_port()
    database = make_url(database_url)
    options = {
        "MODEL_URL": model_url,
        "DATABASE_HOST": str(database.host or database.query["host"]),
        "DATABASE_PORT": str(database.port or 5432),
        "DATABASE_NAME": database.database,
        "DATABASE_USER": database.username,
        "DATABASE_PASSWORD": database.password or "none",
    }
    config = str(SCRIPTS / "ogx.yaml")
    async with running(folder, command, "run", config, "--port", str(port), "--insecure", port=port, **options) as url:
        yield f"{url}/v1"


async def stored(database_url: str) -> list[dict[str, Any]]:
    """Return the responses in the server's own store."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        rows = await (await connection.execute("SELECT response_object::text FROM responses")).fetchall()
    return [json.loads(document) for (document,) in rows]

"""A service on aiohttp.web with a guard: `aiohttp_app.py SHUTDOWN_TIMEOUT [cancel]`."""

import sys
from collections.abc import AsyncIterator

from aiohttp import web
from polling import poll

from openai_cancel import AbandonedError, AsyncSession

SESSION = web.AppKey("session", AsyncSession)


async def plain(request: web.Request) -> web.Response:
    return web.json_response(await poll(request.app[SESSION], request.match_info["id"]))


async def watched(request: web.Request) -> web.Response:
    return web.json_response(
        await poll(request.app[SESSION], request.match_info["id"], abandoned=lambda: request.transport is None)
    )


@web.middleware
async def answer_nobody(request: web.Request, handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except AbandonedError:
        return web.Response(status=499)


async def open_session(app: web.Application) -> AsyncIterator[None]:
    async with AsyncSession() as app[SESSION]:
        yield


app = web.Application(middlewares=[answer_nobody])
app.add_routes([web.get("/plain/{id}", plain), web.get("/watched/{id}", watched)])
app.cleanup_ctx.append(open_session)


async def make_runner() -> web.AppRunner:
    """Return what gunicorn runs."""
    return web.AppRunner(app, shutdown_timeout=1)


if __name__ == "__main__":
    timeout, *options = sys.argv[1:]
    web.run_app(
        app, host="127.0.0.1", port=0, shutdown_timeout=float(timeout), handler_cancellation=options == ["cancel"]
    )

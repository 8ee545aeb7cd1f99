"""Stop a response when its HTTP client disconnects, in a service on aiohttp, which can cancel the handler."""

from collections.abc import AsyncIterator

from aiohttp import web

from openai_cancel import AsyncSession

SESSION = web.AppKey("session", AsyncSession)


async def answer(request: web.Request) -> web.Response:
    """Wait for a response. If the client disconnects, aiohttp cancels this handler, and `wait` stops the response."""
    response = await request.app[SESSION].wait(request.match_info["id"], timeout=600)
    return web.json_response({"status": response.status, "text": response.output_text})


async def open_session(app: web.Application) -> AsyncIterator[None]:
    """Keep one session open while the service runs."""
    async with AsyncSession() as app[SESSION]:
        yield


def make_app() -> web.Application:
    """Create the application. Set OPENAI_API_KEY and, for another server, OPENAI_BASE_URL."""
    app = web.Application()
    app.add_routes([web.get("/answers/{id}", answer)])
    app.cleanup_ctx.append(open_session)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), handler_cancellation=True)  # off by default: handlers would run on without a client

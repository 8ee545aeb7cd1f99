"""A service whose client may leave: what runs for it is stopped then, and paid for no longer."""

from collections.abc import AsyncIterator

from aiohttp import web

from openai_cancel import AsyncSession

SESSION = web.AppKey("session", AsyncSession)


async def answer(request: web.Request) -> web.Response:
    """Wait for a response. aiohttp cancels the handler when its client disconnects, and that ends the response."""
    response = await request.app[SESSION].wait(request.match_info["id"], timeout=600)
    return web.json_response({"status": response.status, "text": response.output_text})


async def open_session(app: web.Application) -> AsyncIterator[None]:
    """One session for the life of the service."""
    async with AsyncSession() as app[SESSION]:
        yield


def make_app() -> web.Application:
    """Make the application. The key and the server come from OPENAI_API_KEY and OPENAI_BASE_URL."""
    app = web.Application()
    app.add_routes([web.get("/answers/{id}", answer)])
    app.cleanup_ctx.append(open_session)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), handler_cancellation=True)  # without it, a handler runs on for a client that is gone

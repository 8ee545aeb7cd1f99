"""Cancel responses from a service on aiohttp: `POST /runs/{id}/cancel`."""

from collections.abc import AsyncIterator

from aiohttp import web

from openai_cancel import APIStatusError, AsyncSession, OpenAICancelError

SESSION = web.AppKey("session", AsyncSession)


async def cancel(request: web.Request) -> web.Response:
    """Cancel a response, and pass an error on with its status and message."""
    try:
        response = await request.app[SESSION].cancel(request.match_info["id"])
    except APIStatusError as error:
        return web.json_response({"error": error.message}, status=error.status)
    except OpenAICancelError as error:
        return web.json_response({"error": str(error)}, status=502)
    return web.json_response({"id": response.id, "status": response.status})


async def open_session(app: web.Application) -> AsyncIterator[None]:
    """Keep one session open while the service runs, so that requests share its connections."""
    async with AsyncSession() as app[SESSION]:
        yield


def make_app() -> web.Application:
    """Create the application. Set OPENAI_API_KEY and, for another server, OPENAI_BASE_URL."""
    app = web.Application()
    app.add_routes([web.post("/runs/{id}/cancel", cancel)])
    app.cleanup_ctx.append(open_session)
    return app


if __name__ == "__main__":
    web.run_app(make_app())

"""A service on Starlette with a guard: `uvicorn starlette_app:app`."""

from contextlib import asynccontextmanager

from polling import poll
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openai_cancel import AbandonedError, AsyncSession


@asynccontextmanager
async def lifespan(app: Starlette):
    async with AsyncSession() as app.state.session:
        yield


async def plain(request: Request) -> Response:
    return JSONResponse(await poll(request.app.state.session, request.path_params["id"]))


async def watched(request: Request) -> Response:
    await request.body()  # otherwise `is_disconnected` would read it
    return JSONResponse(
        await poll(request.app.state.session, request.path_params["id"], abandoned=request.is_disconnected)
    )


async def abandoned(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)


app = Starlette(
    routes=[Route("/plain/{id}", plain), Route("/watched/{id}", watched, methods=["GET", "POST"])],
    exception_handlers={AbandonedError: abandoned},
    lifespan=lifespan,
)

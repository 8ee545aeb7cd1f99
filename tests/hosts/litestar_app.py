"""A service on Litestar with a guard: `uvicorn litestar_app:app`."""

from contextlib import asynccontextmanager

from litestar import Litestar, Request, Response, get
from polling import poll

from openai_cancel import AbandonedError, AsyncSession


@asynccontextmanager
async def lifespan(app: Litestar):
    async with AsyncSession() as app.state.session:
        yield


@get("/plain/{response_id:str}")
async def plain(response_id: str, request: Request) -> dict[str, str | None]:
    return await poll(request.app.state.session, response_id)


@get("/watched/{response_id:str}")
async def watched(response_id: str, request: Request) -> dict[str, str | None]:
    return await poll(request.app.state.session, response_id, abandoned=request.receive)


def abandoned(_request: Request, _error: AbandonedError) -> Response[None]:
    return Response(None, status_code=499)


app = Litestar([plain, watched], lifespan=[lifespan], exception_handlers={AbandonedError: abandoned})

"""A service on FastAPI with a guard: `uvicorn fastapi_app:app`."""

import asyncio
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from polling import poll

from openai_cancel import AbandonedError, AsyncSession


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with AsyncSession() as app.state.session:
        yield


app = FastAPI(lifespan=lifespan)


@app.middleware("http")
async def pass_on(request: Request, call_next):
    """Middleware of this kind wraps the function that reads messages from the server."""
    return await call_next(request)


@app.exception_handler(AbandonedError)
async def abandoned(_request: Request, _error: AbandonedError) -> Response:
    return Response(status_code=499)


@app.get("/plain/{response_id}")
async def plain(response_id: str, request: Request) -> dict[str, str | None]:
    return await poll(request.app.state.session, response_id)


@app.get("/watched/{response_id}")
async def watched(response_id: str, request: Request) -> dict[str, str | None]:
    return await poll(request.app.state.session, response_id, abandoned=request.is_disconnected)


@app.get("/streamed/{response_id}")
async def streamed(response_id: str, request: Request) -> StreamingResponse:
    async def lines():
        yield "waiting\n"
        yield str(await poll(request.app.state.session, response_id))

    return StreamingResponse(lines())


async def guarded(response_id: str, request: Request):
    async with request.app.state.session.guard(response_id, on_exit="stop"):
        yield


@app.get("/dependent/{response_id}", dependencies=[Depends(guarded)])
async def dependent(response_id: str, request: Request) -> StreamingResponse:
    async def lines():
        while not (await request.app.state.session.retrieve(response_id)).is_terminal:
            yield "waiting\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(lines())

"""A service on FastAPI with a guard: `uvicorn fastapi_app:app`."""

from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
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

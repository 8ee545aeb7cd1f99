"""Stop a response when its HTTP client disconnects, in a service on FastAPI, which does not cancel the handler."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from openai_cancel import AbandonedError, AsyncSession


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Keep one session open while the service runs. At a shutdown, it stops the responses of all handlers."""
    async with AsyncSession() as app.state.session:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/answers/{response_id}")
async def answer(response_id: str, request: Request) -> dict[str, str | None]:
    """Wait for a response. If the client disconnects, `wait` stops the response and raises an AbandonedError."""
    session: AsyncSession = request.app.state.session
    response = await session.wait(response_id, timeout=600, abandoned=request.is_disconnected)
    return {"status": response.status, "text": response.output_text}


@app.exception_handler(AbandonedError)
async def answer_nobody(_request: Request, _error: AbandonedError) -> Response:
    """Return something that nobody reads. Without a handler, the server logs a traceback."""
    return Response(status_code=499)

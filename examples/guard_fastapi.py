"""Stop a response when its HTTP client disconnects, in a service on FastAPI, which does not cancel the handler."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from openai_cancel import AsyncSession


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Keep one session open while the service runs."""
    async with AsyncSession() as app.state.session:
        yield


app = FastAPI(lifespan=lifespan)


async def cancel_on_disconnect(request: Request, task: "asyncio.Task[object]") -> None:
    """Cancel the task when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


@app.get("/answers/{response_id}")
async def answer(response_id: str, request: Request) -> dict[str, str | None]:
    """Wait for a response. If the wait is cancelled, it stops the response."""
    waiting = asyncio.create_task(request.app.state.session.wait(response_id, timeout=600))
    watching = asyncio.create_task(cancel_on_disconnect(request, waiting))
    try:
        response = await waiting
    finally:
        watching.cancel()
    return {"status": response.status, "text": response.output_text}

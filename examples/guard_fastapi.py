"""The same with FastAPI, which leaves it to the handler to notice that its client has gone."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from openai_cancel import AsyncSession


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """One session for the life of the service."""
    async with AsyncSession() as app.state.session:
        yield


app = FastAPI(lifespan=lifespan)


async def cancel_when_gone(request: Request, task: "asyncio.Task[object]") -> None:
    """Cancel a task when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


@app.get("/answers/{response_id}")
async def answer(response_id: str, request: Request) -> dict[str, str | None]:
    """Wait for a response; a cancel of the wait ends the response."""
    waiting = asyncio.create_task(request.app.state.session.wait(response_id, timeout=600))
    watching = asyncio.create_task(cancel_when_gone(request, waiting))
    try:
        response = await waiting
    finally:
        watching.cancel()
    return {"status": response.status, "text": response.output_text}

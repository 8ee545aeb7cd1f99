"""A service on Quart with a guard: `uvicorn quart_app:app`."""

from polling import poll
from quart import Quart

from openai_cancel import AsyncSession

app = Quart(__name__)


@app.while_serving
async def open_session():
    async with AsyncSession() as app.session:
        yield


@app.get("/plain/<response_id>")
async def plain(response_id: str) -> dict[str, str | None]:
    return await poll(app.session, response_id)

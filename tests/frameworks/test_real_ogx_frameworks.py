"""The same with ogx, which has not been written by us: how many responses are left running, its own store knows.

OPENAI_CANCEL_TEST_SERVERS names the folder in which tests/servers/install.py has installed it. It does not stream what
runs in the background.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from drivers import DRIVERS
from matrix import PROTECTIONS, cells, run_all, table
from ogx_server import MODEL, model_server, ogx_server, stored
from protection import KEY
from test_frameworks import check_that_nothing_is_left
from truth import Gateway, Server

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

CREATORS = ["create", "OpenAI", "pydantic-ai", "pydantic-ai, tool", "agno"]
"""Some ways to create: one run takes seconds."""


@pytest.mark.timeout(600)
async def test_ogx_has_nothing_left_that_runs(tmp_path: Path, postgres, capsys: pytest.CaptureFixture[str]) -> None:
    async def active() -> set[str]:
        documents = await stored(postgres.url)
        return {document["id"] for document in documents if document["status"] in {"queued", "in_progress"}}

    chosen = [cell for cell in cells() if cell[0] in CREATORS]
    assert {name for name, _ in chosen} <= {*DRIVERS}
    async with model_server() as model_url, ogx_server(tmp_path, model_url, postgres.url) as url:

        @asynccontextmanager
        async def serve() -> AsyncIterator[Server]:
            async with Gateway(url, MODEL, active).serve() as gateway:
                yield gateway
                await free_workers(url, await gateway.running())

        found = {
            name: await run_all(chosen, PROTECTIONS[name], serve) for name in ("guard", "watch and sweep", "without")
        }
    with capsys.disabled():
        print(f"\n{table(found)}")  # noqa: T201
    check_that_nothing_is_left(found)


async def free_workers(url: str, names: list[str]) -> None:
    """Stop what was left, or others would wait for ever."""

    async def cancel(name: str) -> None:
        async with http.post(f"{url}/responses/{name}/cancel"):
            pass

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        await asyncio.gather(*map(cancel, names))

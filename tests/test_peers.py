"""Against a server that we did not write: Microsoft's own for this protocol, `azure-ai-agentserver-responses`."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from conftest import KEY

from openai_cancel import AsyncSession, BadRequestError, NotFoundError

SERVER = Path(__file__).parent / "servers" / "azure_agent.py"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def base_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The server as a process of its own, ready when it answers."""
    folder = tmp_path_factory.mktemp("agent")
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SERVER), str(folder / "port"),
            stdout=log, stderr=log, env={**os.environ, "HOME": str(folder), "AGENTSERVER_STATE_ROOT": str(folder)},
        )  # fmt: skip
    try:
        while not (folder / "port").exists():
            assert process.returncode is None, (folder / "log").read_text()
            await asyncio.sleep(0.02)
        url = f"http://127.0.0.1:{(folder / 'port').read_text()}"
        async with aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.get(f"{url}/readiness"):
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
        yield url
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


async def create(base_url: str, told: str, *, background: bool = True) -> str:
    body = {"model": "m", "input": told, "background": background}
    async with aiohttp.ClientSession() as http, http.post(f"{base_url}/responses", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return (await answer.json())["id"]


@pytest.fixture
async def session(base_url: str) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(api_key=KEY, base_url=base_url) as session:
        yield session


async def finished(session: AsyncSession, identifier: str) -> str:
    while not (response := await session.retrieve(identifier)).is_terminal:
        await asyncio.sleep(0.01)
    return response.status


async def test_in_progress_and_again(session: AsyncSession, base_url: str) -> None:
    identifier = await create(base_url, "run")
    assert identifier.startswith("caresp_")
    assert (await session.retrieve(identifier)).status == "in_progress"
    response = await session.cancel(identifier)
    assert (response.id, response.status, response.output) == (identifier, "cancelled", [])
    assert response.request_id
    assert (await session.cancel(identifier)).status == "cancelled"
    assert (await session.retrieve(identifier)).status == "cancelled"


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_what_is_over(session: AsyncSession, base_url: str, status: str) -> None:
    identifier = await create(base_url, status)
    assert await finished(session, identifier) == status
    with pytest.raises(BadRequestError, match=f"Cannot cancel a {status} response.") as caught:
        await session.cancel(identifier)
    error = caught.value
    assert (error.status, error.type, error.param) == (400, "invalid_request_error", "response_id")
    assert (error.attempts, error.code) == (1, "invalid_request_error")


async def test_what_is_not_in_the_background(session: AsyncSession, base_url: str) -> None:
    identifier = await create(base_url, "completed", background=False)
    with pytest.raises(BadRequestError, match="Cannot cancel a synchronous response."):
        await session.cancel(identifier)


async def test_an_unknown_id(session: AsyncSession, base_url: str) -> None:
    known = await create(base_url, "completed")
    unknown = f"{known[:-1]}{'A' if known[-1] != 'A' else 'B'}"
    with pytest.raises(NotFoundError, match="404"):
        await session.cancel(unknown)


@pytest.mark.parametrize("identifier", ["resp_123", "resp_a+b=", "x" * 465])
async def test_a_malformed_id(session: AsyncSession, identifier: str) -> None:
    with pytest.raises(BadRequestError, match="Malformed identifier."):
        await session.cancel(identifier)


async def test_a_slash_in_an_id_is_decoded_by_the_servers_framework(session: AsyncSession) -> None:
    """Which is why it finds no such route, and answers in plain text."""
    with pytest.raises(NotFoundError, match="404: Not Found"):
        await session.cancel("resp_a/b")

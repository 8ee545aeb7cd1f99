"""Calls against servers that others wrote.

`azure-ai-agentserver-responses` is Microsoft's server for this protocol, and `fastresponses` is one for Open Responses.
The first refuses to cancel a finished response; the second returns it unchanged.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from conftest import KEY
from processes import running

from openai_cancel import AsyncSession, BadRequestError, NotFoundError, Verdict, WaitTimeoutError

pytestmark = pytest.mark.slow

SERVERS = Path(__file__).parent / "servers"


@asynccontextmanager
async def serving(name: str, folder: Path, ready: str, **environment: str) -> AsyncIterator[str]:
    """Run a server in a process, wait until it answers, and yield its address."""
    command = (sys.executable, str(SERVERS / name), str(folder / "port"))
    environment = {**os.environ, "HOME": str(folder), **environment}
    async with AsyncExitStack() as stack:
        with (folder / "log").open("wb") as log:
            process = await stack.enter_async_context(running(*command, stdout=log, stderr=log, env=environment))
        while not (folder / "port").exists():
            assert process.returncode is None, (folder / "log").read_text()
            await asyncio.sleep(0.02)
        url = f"http://127.0.0.1:{(folder / 'port').read_text()}"
        async with aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.get(f"{url}/{ready}"):
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def base_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    folder = tmp_path_factory.mktemp("agent")
    async with serving("azure_agent.py", folder, "readiness", AGENTSERVER_STATE_ROOT=str(folder)) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_responses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    folder = tmp_path_factory.mktemp("open")
    async with serving("open_responses.py", folder, "health", OPEN_RESPONSES_API_KEY=KEY) as url:
        yield f"{url}/v1"


async def create(base_url: str, behaviour: str, *, background: bool = True) -> str:
    body = {"model": "m", "input": behaviour, "background": background}
    key = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=key) as http, http.post(f"{base_url}/responses", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return (await answer.json())["id"]


@pytest.fixture
async def session(base_url: str) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(api_key=KEY, base_url=base_url) as session:
        yield session


async def final_status(session: AsyncSession, identifier: str) -> str:
    while not (response := await session.retrieve(identifier)).is_terminal:
        await asyncio.sleep(0.01)
    return response.status


async def test_a_running_response_can_be_cancelled_twice(session: AsyncSession, base_url: str) -> None:
    identifier = await create(base_url, "run")
    assert identifier.startswith("caresp_")
    assert (await session.retrieve(identifier)).status == "in_progress"
    response = await session.cancel(identifier)
    assert (response.id, response.status, response.output) == (identifier, "cancelled", [])
    assert response.request_id
    assert (await session.cancel(identifier)).status == "cancelled"
    assert (await session.retrieve(identifier)).status == "cancelled"


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_a_finished_response_cannot_be_cancelled(session: AsyncSession, base_url: str, status: str) -> None:
    identifier = await create(base_url, status)
    assert await final_status(session, identifier) == status
    with pytest.raises(BadRequestError, match=f"Cannot cancel a {status} response.") as caught:
        await session.cancel(identifier)
    error = caught.value
    assert (error.status, error.type, error.param) == (400, "invalid_request_error", "response_id")
    assert (error.attempts, error.code) == (1, "invalid_request_error")


async def test_a_foreground_response_cannot_be_cancelled(session: AsyncSession, base_url: str) -> None:
    identifier = await create(base_url, "completed", background=False)
    with pytest.raises(BadRequestError, match="Cannot cancel a synchronous response."):
        await session.cancel(identifier)


async def test_an_unknown_id_is_not_found(session: AsyncSession, base_url: str) -> None:
    known = await create(base_url, "completed")
    unknown = f"{known[:-1]}{'A' if known[-1] != 'A' else 'B'}"
    with pytest.raises(NotFoundError, match="404"):
        await session.cancel(unknown)


@pytest.mark.parametrize("identifier", ["resp_123", "resp_a+b=", "x" * 465])
async def test_a_malformed_id_is_refused(session: AsyncSession, identifier: str) -> None:
    with pytest.raises(BadRequestError, match="Malformed identifier."):
        await session.cancel(identifier)


async def test_an_encoded_slash_in_an_id_matches_no_route(session: AsyncSession) -> None:
    """The framework of the server decodes it, and answers in plain text."""
    with pytest.raises(NotFoundError, match="404: Not Found"):
        await session.cancel("resp_a/b")


@pytest.fixture(params=["azure", "open responses"])
async def peer(
    request: pytest.FixtureRequest, base_url: str, open_responses: str
) -> AsyncIterator[tuple[AsyncSession, str]]:
    """Yield a session with one of the servers, and the address of the server."""
    url = base_url if request.param == "azure" else open_responses
    async with AsyncSession(api_key=KEY, base_url=url) as session:
        yield session, url


class TestStop:
    async def test_a_running_response_can_be_stopped_twice(self, peer: tuple[AsyncSession, str]) -> None:
        session, url = peer
        identifier = await create(url, "run")
        outcome = await session.stop(identifier, confirm=0.1)
        assert (outcome.verdict, outcome.attempts, outcome.error) == (Verdict.CANCELLED, 2, None)
        assert (await session.stop(identifier)).verdict is Verdict.CANCELLED
        assert (await session.retrieve(identifier)).status == "cancelled"

    @pytest.mark.parametrize("status", ["completed", "failed", "incomplete"])
    async def test_a_finished_response_is_already_finished(self, peer: tuple[AsyncSession, str], status: str) -> None:
        session, url = peer
        identifier = await create(url, status)
        assert (await session.wait(identifier, timeout=10)).status == status
        outcome = await session.stop(identifier)
        assert (outcome.verdict, outcome.response.status) == (Verdict.ALREADY_FINISHED, status)

    async def test_a_foreground_response_is_not_background(self, peer: tuple[AsyncSession, str]) -> None:
        session, url = peer
        outcome = await session.stop(await create(url, "completed", background=False))
        assert (outcome.verdict, outcome.stopped) == (Verdict.NOT_BACKGROUND, True)
        assert isinstance(outcome.error, BadRequestError)

    @pytest.mark.parametrize("malformed", ["resp_123", "resp_a+b=", "resp_a/b", "x" * 465])
    async def test_an_unknown_or_malformed_id_is_not_found(
        self, peer: tuple[AsyncSession, str], malformed: str
    ) -> None:
        session, url = peer
        known = await create(url, "completed")
        unknown = f"{known[:-1]}{'0' if known[-1] != '0' else '1'}"
        for identifier in (unknown, malformed):
            assert (await session.stop(identifier)).verdict is Verdict.NOT_FOUND

    async def test_a_wrong_key_is_forbidden(self, open_responses: str) -> None:
        """Only one of the servers checks the key."""
        async with AsyncSession(api_key="wrong", base_url=open_responses) as session:
            assert (await session.stop("resp_123")).verdict is Verdict.FORBIDDEN

    async def test_a_cancel_without_effect_leaves_the_response_still_running(self, open_responses: str) -> None:
        """This server forgets all background tasks but the newest 64. A cancel of an older one has no effect."""
        identifier = await create(open_responses, "run")
        for _ in range(64):
            await create(open_responses, "completed")
        async with AsyncSession(api_key=KEY, base_url=open_responses) as session:
            assert (await session.cancel(identifier)).status == "in_progress"
            outcome = await session.stop(identifier, deadline=2)
        assert (outcome.verdict, outcome.stopped, outcome.error) == (Verdict.STILL_RUNNING, False, None)
        assert outcome.response.status == "in_progress"


class TestGuard:
    async def test_a_timeout_in_the_block_stops_the_response(self, peer: tuple[AsyncSession, str]) -> None:
        session, url = peer
        identifier = await create(url, "run")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), session.guard(identifier) as guard:
                await asyncio.sleep(1000)
        assert guard.outcome.verdict is Verdict.CANCELLED

    async def test_a_wait_that_times_out_stops_the_response(self, peer: tuple[AsyncSession, str]) -> None:
        session, url = peer
        identifier = await create(url, "run")
        with pytest.raises(WaitTimeoutError) as caught:
            await session.wait(identifier, timeout=0.1)
        assert caught.value.outcome.verdict is Verdict.CANCELLED
        assert (await session.retrieve(identifier)).status == "cancelled"

"""Against ogx, which lists responses: what nobody has the ids of is found and stopped.

OPENAI_CANCEL_TEST_SERVERS names the folder in which tests/servers/install.py has installed it.
"""

import asyncio
import json
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from conftest import KEY
from ogx_server import MODEL, model_server, ogx_server, stored
from relay import Relay
from terminal import COMMAND

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("real_servers")]

COUNT = 1000
QUERIES = ("", "limit=2", "limit=0", "limit=101", "order=asc", "order=up", "after=none", "model=none", "x=1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ogx_url(tmp_path_factory: pytest.TempPathFactory, postgres) -> AsyncIterator[str]:
    folder = tmp_path_factory.mktemp("ogx")
    async with model_server() as model_url, ogx_server(folder, model_url, postgres.url) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(ogx_url: str) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(api_key=KEY, base_url=ogx_url) as opened:
        yield opened


async def create(url: str, count: int, **metadata: str) -> None:
    """Create responses in the background, and throw their ids away.

    When 100 are queued, the server answers 400, and stores the response all the same: queued for ever, with an id that
    nobody has seen.
    """
    body = {"model": MODEL, "input": "hi", "background": True, "metadata": metadata}
    places = asyncio.Semaphore(8)

    async def create_one(http: aiohttp.ClientSession) -> None:
        async with places, http.post(f"{url}/responses", json=body) as answer:
            words = await answer.text()
            assert answer.status == 200 or "queue is full" in words, words

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as http, asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(create_one(http))


async def statuses(database: str) -> Counter[str]:
    """Return the number of responses with each status in the server's own store."""
    return Counter(document["status"] for document in await stored(database))


async def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url}
    return await asyncio.to_thread(
        subprocess.run, [COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=50, check=False
    )


def shape(body: dict[str, Any], query: str) -> object:
    """Return what the same list has in common on two servers, or the words about an unknown cursor."""
    if "data" in body:
        assert body["last_id"] == (body["data"][-1]["id"] if body["data"] else "")
        return sorted(body), len(body["data"]), body["has_more"]
    return body if "after" in query else ""


async def test_the_dialect_lists_as_the_server(ogx_url: str) -> None:
    await create(ogx_url, 3)
    async with Emulator(dialect="ogx") as dialect, aiohttp.ClientSession() as http:
        for _ in range(3):
            dialect.add()
        answers = []
        for url in (ogx_url, dialect.base_url):
            got = {}
            for query in QUERIES:
                headers = {"Authorization": f"Bearer {KEY}"}
                async with http.get(f"{url}/responses?{query}", headers=headers) as answer:
                    got[query] = answer.status, shape(await answer.json(), query)
            answers.append(got)
    assert answers[0] == answers[1]


async def test_it_yields_what_the_official_client_gets(session: AsyncSession, ogx_url: str) -> None:
    await create(ogx_url, 5, team="red")
    async with openai.AsyncOpenAI(api_key=KEY, base_url=ogx_url) as official:

        async def listed() -> list[Any]:
            raw = await official.get("/responses", cast_to=object, options={"params": {"limit": 100}})
            return [item for item in raw["data"] if item["metadata"] == {"team": "red"}]

        before, found, after = None, [], []
        while before != after:  # some begin to run meanwhile
            before = await listed()
            found = [response.to_dict() async for response in session.running(metadata={"team": "red"})]
            after = await listed()
    assert found == after
    assert len(found) == 5


async def test_a_creation_whose_answer_was_lost_is_found_by_the_ledger_and_stopped(
    ogx_url: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with (
        Relay(ogx_url) as relay,
        openai.AsyncOpenAI(api_key=KEY, base_url=relay.base_url, max_retries=0) as client,
        Ledger(url) as ledger,
        AsyncSession.from_openai(client, ledger=ledger) as session,
    ):
        relay.fatal = b'"team"'
        session.watch(client)
        with pytest.raises(openai.APIConnectionError):
            await client.responses.create(model="model/m", input="hi", background=True, metadata={"team": "lost"})
        relay.fatal = None
        await asyncio.sleep(2)
        arguments = ("ledger", "reconcile", "--ledger", url, "--older-than", "1s", "--metadata", "team=lost")
        reported = await run(relay.base_url, *arguments)
        stopped = await run(relay.base_url, *arguments, "--stop", "--yes")
        (name,) = {json.loads(done.stdout)["id"] for done in (reported, stopped)}
        assert (reported.returncode, stopped.returncode) == (1, 0), (reported.stderr, stopped.stderr)
        found = [(entry.response_id, entry.state) async for entry in ledger.entries(include_ended=True)]
        assert found == [(name, "cancelled")]
        assert (await session.retrieve(name)).status == "cancelled"


async def test_a_thousand_responses_without_ids_are_found_and_stopped(ogx_url: str, postgres) -> None:
    await create(ogx_url, COUNT, team="blue")
    await asyncio.sleep(6)
    before = await statuses(postgres.url)
    assert before["queued"] + before["in_progress"] >= COUNT
    stopped: set[str] = set()
    for _ in range(10):  # a worker of the server that becomes free may begin with a response that was cancelled
        done = await run(ogx_url, "stop", "--running", "--older-than", "5s", "--yes", "--concurrency", "16")
        stopped |= {json.loads(line)["id"] for line in done.stdout.splitlines()}
        await asyncio.sleep(2)
        after = await statuses(postgres.url)
        if done.returncode == 0 and after["queued"] + after["in_progress"] == 0:
            break
    assert (done.returncode, after["queued"] + after["in_progress"]) == (0, 0), done.stderr
    assert len(stopped) >= COUNT
    assert (await run(ogx_url, "list", "--json")).stdout == ""

"""The examples, and the code in the README, run as they stand."""

import asyncio
import os
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from conftest import KEY

from openai_cancel.emulator import Emulator, Fault

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def environment(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)


async def execute(*command: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run, command,
        env=os.environ, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_script(python: str, create: Callable[..., str]) -> None:
    script, running, over = str(ROOT / "examples" / "script.py"), create(), create(runs_for=0)
    lines = (await execute(python, "-X", "dev", "-W", "error", script, running, over)).splitlines()
    assert lines[0] == f"{running} cancelled "
    assert lines[1].startswith(f"{over} 400: Cannot cancel a completed response.")


async def test_service(server: Emulator, create: Callable[..., str]) -> None:
    app = runpy.run_path(str(ROOT / "examples" / "service.py"))["make_app"]()
    identifier = create()
    async with TestClient(TestServer(app)) as client:
        assert await post(client, identifier) == (200, {"id": identifier, "status": "cancelled"})
        assert await post(client, "resp_none") == (404, {"error": "Response with id 'resp_none' not found."})
        server.faults.append(Fault(status=200, body=b"ok"))
        status, body = await post(client, identifier)
        assert (status, "The body is not JSON" in body["error"]) == (502, True)


async def post(client: TestClient, identifier: str) -> tuple[int, dict[str, str]]:
    async with client.post(f"/runs/{identifier}/cancel") as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
async def test_readme(block: str, python: str, create: Callable[..., str], server: Emulator) -> None:
    identifier = create()
    await execute(python, "-X", "dev", "-W", "error", "-c", block.replace("resp_123", identifier))
    assert server.works[identifier].cancelled or "resp_123" not in block


async def test_the_readme_has_an_async_and_a_blocking_example() -> None:
    assert any("AsyncSession" in block for block in BLOCKS)
    assert any("with Session" in block for block in BLOCKS)

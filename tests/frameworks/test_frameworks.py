"""Nothing is left running, whatever creates it and whatever goes wrong. The examples of frameworks run as they are.

They need the dependency group `frameworks`.
"""

import asyncio
import math
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import KEY
from matrix import PROTECTIONS, Cell, cells, run_all, table
from processes import kept

from openai_cancel.emulator import Emulator, Script

pytestmark = [
    pytest.mark.frameworks,
    # Of clients that are closed, and of generators that nobody reads to their end, as the matrix wants them.
    pytest.mark.filterwarnings("ignore"),
]

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "frameworks").glob("*.py"))
BY_DESIGN = {"SIGKILL"}
"""A guard does not survive its process. A watch does."""


async def run_in_processes(*names: str) -> dict[str, dict[Cell, int | str]]:
    """Run everything with each protection at the same time, in a process each."""
    loop = asyncio.get_running_loop()
    with kept(), ProcessPoolExecutor(len(names), get_context("spawn")) as pool:  # multiprocessing keeps a process, too
        runs = [loop.run_in_executor(pool, run_in_process, name) for name in names]
        return dict(zip(names, await asyncio.gather(*runs), strict=True))


def run_in_process(name: str) -> dict[Cell, int | str]:
    return asyncio.run(run_all(cells(), PROTECTIONS[name]))


@pytest.mark.timeout(1800)
async def test_nothing_is_left_running(capsys: pytest.CaptureFixture[str]) -> None:
    found = await run_in_processes("without", "guard", "watch and sweep")
    with capsys.disabled():
        print(f"\n{table(found)}")  # noqa: T201
    check_that_nothing_is_left(found)


def check_that_nothing_is_left(found: Mapping[str, Mapping[Cell, int | str]]) -> None:
    """Check that each protection leaves nothing running, and that something runs on without one."""
    guarded = {cell: left for cell, left in found["guard"].items() if left and cell[1] not in BY_DESIGN}
    watched = {cell: left for cell, left in found["watch and sweep"].items() if left}
    broken = {cell: left for cell, left in found["without"].items() if isinstance(left, str)}
    assert (guarded, watched, broken) == ({}, {}, {})
    assert any(found["without"].values())


@pytest.fixture
async def server() -> Emulator:
    async with Emulator(api_key=KEY) as server:
        yield server


async def run(path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(150)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
class TestExamples:
    def test_an_example_has_at_most_40_lines(self, path: Path) -> None:
        assert len(path.read_text().splitlines()) <= 40

    async def test_an_example_prints_the_answer(self, path: Path, server: Emulator, monkeypatch) -> None:
        server.script = Script(runs_for=0.1)
        assert await run(path, server, monkeypatch, "100", "How much wood?") == "Forty-two.\n"

    async def test_an_example_stops_its_response_after_a_time_out(
        self, path: Path, server: Emulator, monkeypatch
    ) -> None:
        server.script = Script(runs_for=math.inf)
        assert (await run(path, server, monkeypatch, "3", "How much wood?")).endswith(
            "Timed out. The response was stopped.\n"
        )
        assert [work.status(server.clock()) for work in server.responses.values()] == ["cancelled"]

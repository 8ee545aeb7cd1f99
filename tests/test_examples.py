"""The examples run as they are."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest
import uvicorn
from aiohttp.test_utils import TestClient, TestServer
from conftest import KEY, until
from ledger_database import lapse
from processes import StartProcess
from programs import STRICT, execute
from terminal import COMMAND

from openai_cancel.emulator import Emulator, Fault, Script

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def environment(server: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{Path(COMMAND).parent}", prepend=os.pathsep)


def example(name: str) -> str:
    return str(ROOT / "examples" / f"{name}.py")


def load(name: str) -> ModuleType:
    """Import an example. In what `runpy` runs, a traceback is a warning since CPython 3.15."""
    spec = spec_from_file_location(name, example(name))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_has_at_most_40_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40


async def test_script_stops_each_id_and_prints_its_verdict(python: str, create: Callable[..., str]) -> None:
    running, over = create(), create(runs_for=0)
    ended = await execute(python, *STRICT, example("script"), running, over, "resp_none")
    lines = ended.splitlines()
    assert lines[:2] == [f"{running} cancelled ", f"{over} already_finished "]
    assert lines[2].startswith("resp_none not_found 404: Response with id 'resp_none' not found.")


async def test_worker_stops_a_response_that_times_out(
    python: str, server: Emulator, create: Callable[..., str]
) -> None:
    running, over = create(), create(runs_for=0)
    ended = await execute(python, *STRICT, example("worker"), "0.2", running, over)
    assert ended.splitlines() == [f"{running} timed out: cancelled", f"{over} completed: Forty-two."]
    assert server.responses[running].cancelled


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
async def test_ctrl_c_stops_the_response_on_sigint_and_sigterm(
    server: Emulator, create: Callable[..., str], number: int, status: int, start_process: StartProcess
) -> None:
    running = create()
    process = await start_process(sys.executable, *STRICT, example("ctrl_c"), running, stdout=PIPE, stderr=PIPE)
    assert await process.stdout.readline() == b"in_progress\n"
    process.send_signal(number)
    await process.communicate()
    assert process.returncode == status
    assert server.responses[running].cancelled


async def test_ctrl_c_prints_the_text_of_a_response_that_completes(python: str, create: Callable[..., str]) -> None:
    assert await execute(python, *STRICT, example("ctrl_c"), create(runs_for=0)) == "Forty-two.\n"


async def test_with_openai_stops_the_response_after_the_timeout(python: str, server: Emulator) -> None:
    """Without `-W error`, since the `openai` package warns when it is closed."""
    assert await execute(python, example("with_openai"), "2", "Why?") == "Timed out. The response was stopped.\n"
    (work,) = server.responses.values()
    assert work.cancelled


async def test_with_openai_prints_the_text_of_a_response_that_completes(python: str, server: Emulator) -> None:
    server.script = Script(runs_for=0)
    assert await execute(python, example("with_openai"), "30", "Why?") == "Forty-two.\n"


async def disconnect(url: str, server: Emulator) -> None:
    """Send a request, disconnect before it is answered, and wait until a response is cancelled."""
    async with aiohttp.ClientSession() as client:
        asking = asyncio.create_task(client.get(url))
        await until(lambda: server.received)
        asking.cancel()
        await asyncio.wait({asking})
    await until(lambda: any(work.cancelled for work in server.responses.values()))


async def test_guard_aiohttp_stops_the_response_of_a_client_that_disconnects(
    server: Emulator, create: Callable[..., str]
) -> None:
    app = load("guard_aiohttp").make_app()
    over, running = create(runs_for=0), create()
    async with TestClient(TestServer(app)) as client:  # cancels handlers, as the example asks for
        async with client.get(f"/answers/{over}") as answer:
            assert await answer.json() == {"status": "completed", "text": "Forty-two."}
        server.received.clear()
        await disconnect(str(client.make_url(f"/answers/{running}")), server)


async def test_guard_fastapi_stops_the_response_of_a_client_that_disconnects(
    server: Emulator, create: Callable[..., str]
) -> None:
    app = load("guard_fastapi").app
    over, running = create(runs_for=0), create()
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    uvicorn_server.capture_signals = contextlib.nullcontext  # pytest handles signals
    serving = asyncio.create_task(uvicorn_server.serve())
    await until(lambda: uvicorn_server.started)
    url = f"http://127.0.0.1:{uvicorn_server.servers[0].sockets[0].getsockname()[1]}/answers"
    async with aiohttp.ClientSession() as client, client.get(f"{url}/{over}") as answer:
        assert await answer.json() == {"status": "completed", "text": "Forty-two."}
    server.received.clear()
    await disconnect(f"{url}/{running}", server)
    uvicorn_server.should_exit = True
    await serving


async def test_ledger_guard_leaves_a_response_to_the_sweep_when_it_is_killed(
    python: str, server: Emulator, create: Callable[..., str], tmp_path: Path, start_process: StartProcess
) -> None:
    url, running, over = f"sqlite:///{tmp_path}/ledger.db", create(), create(runs_for=0)
    assert await execute(python, *STRICT, example("ledger_guard"), url, over) == "guarding\ncompleted Forty-two.\n"
    process = await start_process(python, example("ledger_guard"), url, running, stdout=PIPE)
    assert await process.stdout.readline() == b"guarding\n"
    process.kill()
    await process.communicate()
    assert not server.responses[running].cancelled
    await lapse(url)
    ended = await execute(python, "-m", "openai_cancel", "ledger", "sweep", "--ledger", url, "--quiet")
    assert ended == ""
    assert server.responses[running].cancelled


async def test_ledger_script_stops_what_is_over_time(
    python: str, server: Emulator, create: Callable[..., str], tmp_path: Path
) -> None:
    url, late, new = f"sqlite:///{tmp_path}/ledger.db", create(), create()
    assert await execute(python, *STRICT, example("ledger_script"), url, late) == f"{late} tracked\n"
    await lapse(url)
    assert await execute(python, *STRICT, example("ledger_script"), url, new) == f"{late} cancelled\n{new} tracked\n"
    assert server.responses[late].cancelled
    assert not server.responses[new].cancelled


async def test_watch_openai_leaves_its_responses_to_the_sweep_when_it_is_killed(
    python: str, server: Emulator, tmp_path: Path, start_process: StartProcess
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    process = await start_process(python, example("watch_openai"), url, "Why?", "How?", stdout=PIPE)
    printed = {(await process.stdout.readline()).decode().removesuffix(" runs\n") for _ in range(2)}
    process.kill()
    await process.communicate()
    await lapse(url)
    await execute(python, "-m", "openai_cancel", "ledger", "sweep", "--ledger", url, "--quiet")
    assert {name for name, work in server.responses.items() if work.cancelled} == printed
    server.script = Script(runs_for=0)
    assert (await execute(python, example("watch_openai"), url, "Why?")).endswith("Forty-two.\n")


async def test_service_cancels_a_response_and_passes_errors_on(server: Emulator, create: Callable[..., str]) -> None:
    app = load("service").make_app()
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

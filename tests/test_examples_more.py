"""The examples that need another package or another server run as they are."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError
from conftest import KEY, until
from ledger_database import lapse
from processes import StartProcess, running_beside
from programs import STRICT, execute

from openai_cancel.emulator import Emulator, Script
from openai_cancel.ledger import Ledger

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def environment(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)


async def printed(*arguments: object, status: int = 0, complaints: str = "") -> list[str]:
    """Run Python, and return the lines that it prints. For the other arguments, see `execute`."""
    return (await execute(sys.executable, *arguments, status=status, complaints=complaints)).splitlines()


def test_example_tests_and_the_notebook_have_at_most_40_lines() -> None:
    for path in EXAMPLES.rglob("test_*.py"):
        assert len(path.read_text().splitlines()) <= 40
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    assert sum(len(cell["source"]) for cell in cells) <= 40


async def test_bulk_incident_writes_the_ids_left_for_a_second_run(
    tmp_path: Path, server: Emulator, create: Callable[..., str]
) -> None:
    running = [create() for _ in range(20)]
    ids, left = tmp_path / "ids", tmp_path / "left"
    ids.write_text("\n".join([*running, "", create(runs_for=0), "resp_none", "a\x01b"]))
    lines = await printed(
        *STRICT, EXAMPLES / "bulk_incident.py", ids, left, status=1, complaints="a\x01b unknown .* cannot be .*"
    )
    assert lines[0].split() == ["20", "cancelled"]
    assert sorted(line.split()[1] for line in lines[1:]) == ["already_finished", "not_found", "unknown"]
    assert left.read_text() == "a\x01b\n"
    assert all(server.responses[response_id].cancelled for response_id in running)
    left.write_text(running[0])
    assert await printed(*STRICT, EXAMPLES / "bulk_incident.py", left, ids) == ["       1 cancelled"]
    assert ids.read_text() == ""


async def test_vllm_prints_the_first_response_and_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Emulator(dialect="vllm") as server:
        over, *running = [server.add(Script(runs_for=seconds)) for seconds in (0, 600, 600)]
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        lines = await printed(*STRICT, EXAMPLES / "vllm.py", running[0], over, running[1])
        assert lines[0] == "Forty-two."
        assert sorted(lines[1:]) == sorted(f"{name} already_finished" for name in server.responses)
        assert all(server.responses[name].cancelled for name in running)


async def test_litellm_matches_outcomes_to_the_ids_that_were_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Emulator(dialect="litellm") as server:
        inner = [server.add(Script(resumes_after=0.1)), server.add(Script(runs_for=0))]
        shown = [server.dialect.show_id(name) for name in inner]
        ids = tmp_path / "ids"
        ids.write_text(f"{shown[0]} a question\n{shown[1]} another one\n")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        lines = await printed(*STRICT, EXAMPLES / "litellm.py", "0.2", ids)
    assert set(lines) == {"a question: cancelled, with a new id", "another one: already_finished, with a new id"}
    assert server.responses[inner[0]].cancels == 2


@pytest.fixture
async def azure(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Emulator]:
    async with Emulator(dialect="azure", script=Script(resumes_after=0.1)) as server:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.base_url.removesuffix("/v1"))
        yield server


TOKENS = """
import itertools
numbers = itertools.count(1)
def token():
    return f"token-{next(numbers)}"
"""


async def test_azure_entra_sends_a_new_token_with_each_attempt(
    azure: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = azure.add()
    (tmp_path / "tokens.py").write_text(TOKENS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TOKEN_FUNCTION", "tokens:token")
    assert await printed(*STRICT, EXAMPLES / "azure_entra.py", "0.2", running) == [f"{running} cancelled "]
    assert azure.responses[running].cancels == 2
    sent = [request.headers["authorization"] for request in azure.received]
    assert sent == [f"Bearer token-{number}" for number in range(1, len(sent) + 1)]


async def test_azure_entra_uses_a_managed_identity(azure: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Microsoft's package, and a token endpoint like that of Azure App Service."""

    async def identity(request: web.Request) -> web.Response:
        assert request.headers["X-IDENTITY-HEADER"] == "secret"
        resource = request.query["resource"]
        token = {"access_token": f"token-for-{resource}", "expires_on": "4102444800", "token_type": "Bearer"}
        return web.json_response({**token, "resource": resource})

    app = web.Application()
    app.add_routes([web.get("/token", identity)])
    async with TestServer(app) as identities:
        monkeypatch.setenv("IDENTITY_ENDPOINT", str(identities.make_url("/token")))
        monkeypatch.setenv("IDENTITY_HEADER", "secret")
        running = azure.add()
        # Without `-W error`, for warnings of the other package.
        assert await printed(EXAMPLES / "azure_entra.py", "0.2", running) == [f"{running} cancelled "]
    sent = {request.headers["authorization"] for request in azure.received}
    assert sent == {"Bearer token-for-https://cognitiveservices.azure.com"}


async def test_opentelemetry_tracing_prints_a_span_per_stop_and_request(create: Callable[..., str]) -> None:
    running = create()
    lines = await printed(EXAMPLES / "opentelemetry_tracing.py", running, "resp_none")
    spans = list(map(json.loads, lines))
    stop, lost = (span for span in spans if span["name"] == "stop_response")
    assert stop["attributes"]["gen_ai.response.id"] == running
    assert [span["attributes"]["openai_cancel.verdict"] for span in (stop, lost)] == ["cancelled", "not_found"]
    assert [span["status"]["status_code"] for span in (stop, lost)] == ["UNSET", "ERROR"]
    requests = [span["parent_id"] for span in spans if span["name"] in {"GET", "POST"}]
    assert requests == [stop["context"]["span_id"], *[lost["context"]["span_id"]] * (len(requests) - 1)]
    assert len(requests) > 1


@contextmanager
def celery_worker(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """Run a Celery worker in another process, with a folder as the broker; yield a client for it."""
    folder = tmp_path / "broker"
    folder.mkdir()
    settings = {
        "broker_url": "filesystem://",
        "broker_transport_options": {
            "data_folder_in": str(folder),
            "data_folder_out": str(folder),
            "control_folder": str(tmp_path / "control"),
        },
        "result_backend": f"file://{tmp_path}",
        "worker_hijack_root_logger": False,
    }
    (tmp_path / "celeryconfig.py").write_text("\n".join(f"{name} = {value!r}" for name, value in settings.items()))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{EXAMPLES}")
    command = [sys.executable, "-m", "celery", "-A", module, "worker", "--concurrency=2", "--without-mingle"]
    # Without coverage, which is lost when the forked processes are killed, and slows them down.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    with (
        (tmp_path / "log").open("wb") as log,
        # A clean shutdown would take seconds.
        running_beside([*command, "--without-gossip"], cwd=tmp_path, env=environment, stdout=log, stderr=log),
        Celery(module, broker=settings["broker_url"], backend=settings["result_backend"]) as app,
    ):
        app.conf.update(settings)
        yield app


@pytest.fixture
def celery(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    with celery_worker(request.param, tmp_path, monkeypatch) as app:
        yield app


@pytest.mark.parametrize("celery", ["task_queue"], indirect=True)
async def test_task_queue_stops_the_response_of_a_task_that_ends_early(
    celery: Celery, server: Emulator, create: Callable[..., str]
) -> None:
    over, late, revoked = create(runs_for=0), create(), create()
    done = celery.send_task("task_queue.answer", [over])
    ends = celery.send_task("task_queue.answer", [late], soft_time_limit=1)
    assert await asyncio.to_thread(done.get, timeout=20) == "Forty-two."
    ended = celery.send_task("task_queue.answer", [revoked])
    await until(lambda: any(revoked in request.path for request in server.received))
    celery.control.revoke(ended.id, terminate=True, signal="SIGUSR1")
    with pytest.raises(SoftTimeLimitExceeded):
        await asyncio.to_thread(ends.get, timeout=20)
    with pytest.raises((SoftTimeLimitExceeded, TaskRevokedError)):  # from the task, or earlier from the worker
        await asyncio.to_thread(ended.get, timeout=20)
    assert server.responses[late].cancelled
    await until(lambda: server.responses[revoked].cancelled)


@pytest.fixture
def ledger_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("OPENAI_CANCEL_LEDGER", url)
    return url


@pytest.mark.parametrize("celery", ["ledger_tasks"], indirect=True)
async def test_ledger_tasks_sweep_the_response_of_a_worker_process_that_is_killed(
    ledger_url: str, celery: Celery, server: Emulator, create: Callable[..., str]
) -> None:
    over, running = create(runs_for=0), create()
    done = celery.send_task("ledger_tasks.answer", [over])
    assert await asyncio.to_thread(done.get, timeout=20) == "Forty-two."
    celery.send_task("ledger_tasks.answer", [running])
    await until(lambda: any(running in request.path for request in server.received))
    async with Ledger(ledger_url) as ledger:
        (entry,) = [entry async for entry in ledger.entries()]
    assert (entry.response_id, entry.state) == (running, "tracked")
    os.kill(int(entry.owner.split(":")[1]), signal.SIGKILL)  # Celery starts another one
    await lapse(ledger_url)
    swept = celery.send_task("ledger_tasks.sweep")
    assert await asyncio.to_thread(swept.get, timeout=20) == {running: "cancelled"}
    assert server.responses[running].cancelled


async def test_prometheus_metrics_counts_what_had_to_be_stopped(
    python: str, server: Emulator, create: Callable[..., str], start_process: StartProcess
) -> None:
    over, late, port = create(runs_for=0), create(), free_port()
    process = await start_process(
        python, str(EXAMPLES / "prometheus_metrics.py"), str(port), over, late, stdout=subprocess.PIPE
    )
    async for line in process.stdout:
        if line == b"done\n":
            break
    async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/metrics") as answer:
        text = await answer.text()
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130
    assert 'openai_cancel_outcomes_total{verdict="cancelled"} 1.0' in text
    assert 'openai_cancel_stop_seconds_count{stopped="True"} 1.0' in text
    assert server.responses[late].cancelled


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_the_example_tests_pass(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(
        "-W", "error", "-p", "no:cacheprovider", EXAMPLES / "pytest_fixture", timeout=30
    )
    result.assert_outcomes(passed=3)

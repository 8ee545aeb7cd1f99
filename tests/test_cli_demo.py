"""The command `demo`."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import until
from terminal import Terminal

from openai_cancel.cli import demo_parts
from openai_cancel.cli.demo_process import guard_for_a_minute
from openai_cancel.cli.lines import Line, line_of
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger
from openai_cancel.outcome import Outcome


@pytest.mark.slow
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

    async def waits(stage: demo_parts.Stage) -> None:
        seen.append(stage.server.add())
        os.write(keys, b"\n")
        await asyncio.Event().wait()

    async def ends(stage: demo_parts.Stage) -> None:
        await stage.pause()
        seen.append("last")

    monkeypatch.setattr(demo_parts, "PARTS", {"First": waits, "Last": ends})
    monkeypatch.setattr(demo_parts, "PAUSE", 0.01)
    assert await asyncio.to_thread(demo_parts.show_parts, fast=False) == 0
    assert seen[1:] == ["last"]
    assert "Press Enter to skip to the next part" in capsys.readouterr().out


async def test_a_part_that_fails_fails_the_demo(run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_: demo_parts.Stage) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_parts, "PARTS", {"First": fails})
    assert (await run("demo"))[0] == 1


async def test_without_the_extra_for_ledgers_the_demo_says_what_to_install(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_parts, "PARTS", {"Last": demo_parts.show_ledger})
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


async def test_the_bar_of_the_demo_shows_what_is_under_way(run, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[dict[str, Callable[[], int]]] = []
    seen: list[int] = []

    def note(outcome: Outcome) -> Line:
        seen.append(bars[0]["under_way"]())
        return line_of(outcome)

    monkeypatch.setattr(demo_parts, "Bar", lambda *_, **functions: bars.append(functions))
    monkeypatch.setattr(demo_parts, "line_of", note)
    monkeypatch.setattr(demo_parts, "PARTS", {"Many": demo_parts.show_bulk})
    assert (await run("demo", "--fast"))[0] == 0
    assert (len(seen), seen[-1], bars[0]["under_way"]()) == (200, 1, 0)
    assert max(seen) > 1


@pytest.mark.slow
async def test_ctrl_c_quits_the_demo_and_leaves_no_process() -> None:
    async with Terminal("demo") as terminal:
        await terminal.shows("Cancel a response")
        terminal.press("\n")
        await terminal.shows("A run that fails")
        terminal.press("\x03")
        assert await terminal.end() == 130
    assert "Stop many" not in terminal.screen

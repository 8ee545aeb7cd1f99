"""The command `ledger reconcile`."""

import asyncio
import json
import math
import os
import signal
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aged import add_aged
from conftest import KEY, QuickClock
from ledger_database import without_table
from terminal import COMMAND, Terminal

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.ledger import Ledger


@pytest.fixture
async def server(clock: QuickClock) -> AsyncIterator[Emulator]:
    """An emulator that lists, with a clock that stands still."""
    script = Script(runs_for=math.inf)
    async with Emulator(script=script, clock=clock.monotonic, dialect="ogx") as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_CANCEL_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def add(server: Emulator, clock: QuickClock):
    """Put a response into the emulator that was created some time ago; gives its id."""

    def add(age: float = 120.0, **options: Any) -> str:
        return add_aged(server, clock, age, **options)

    return add


async def track(url: str, server: Emulator, *names: str) -> None:
    async with Ledger(url) as ledger:
        session = AsyncSession(api_key=KEY, base_url=server.base_url)
        await ledger.track_many(names, session=session, ttl=900)


async def states(url: str) -> dict[str, str]:
    async with Ledger(url) as ledger:
        return {entry.response_id: entry.state async for entry in ledger.entries(include_ended=True)}


class TestReports:
    async def test_differences_are_json_lines_and_what_is_over_is_struck_off(
        self, run, url: str, server: Emulator, add, tmp_path: Path
    ) -> None:
        lost, tracked, over = add(team="red"), add(), add(runs_for=0)
        await track(url, server, tracked, over)
        for more in (["--dry-run"], ["--log", str(tmp_path / "log")]):
            status, out, err = await run("ledger", "reconcile", *more)
            lines = [json.loads(line) for line in out.splitlines()]
            assert (status, "in all" in err) == (1, True)
            assert [(line["id"], line["kind"], line["action"], line["settled"]) for line in lines] == [
                (lost, "unknown", None, False),
                (over, "ended", None if "--dry-run" in more else "strike_off", True),
            ]
        assert (lines[0]["metadata"], lines[0]["status"], lines[1]["verdict"]) == (
            {"team": "red"}, "in_progress", "already_finished"
        )  # fmt: skip
        logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [{**line, "at": ""} for line in logged] == [{**line, "at": ""} for line in lines]
        assert await states(url) == {tracked: "tracked", over: "already_finished"}
        assert (await run("ledger", "reconcile", "--older-than", "1h"))[:2] == (0, "")

    async def test_a_response_that_is_unclear_is_a_problem(self, run, url: str, server: Emulator) -> None:
        await track(url, server, "resp_none")
        status, out, err = await run("ledger", "reconcile", "--quiet")
        assert (status, out) == (1, "")
        assert "resp_none unclear: 404" in err

    @pytest.mark.parametrize(("status", "expected"), [(405, 1), (401, 3)])
    async def test_a_server_that_does_not_list_is_an_error(self, run, server, status: int, expected: int) -> None:
        server.faults = [Fault(on="list", status=status)]
        done, out, err = await run("ledger", "reconcile")
        assert (done, out) == (expected, "")
        assert ("openai-cancel ledger" in err) == (status == 405)

    async def test_a_log_that_cannot_be_written_is_a_failure(self, run, add, url: str) -> None:
        full = Path("/dev/full")
        assert (await run("ledger", "reconcile", "--log", str(full)))[0] == 2  # a device
        add(30)
        assert (await run("ledger", "reconcile"))[0] == 0
        assert await states(url) == {}


async def test_a_database_that_fails_meanwhile_has_the_status_of_databases(run, url: str, add) -> None:
    add()
    await states(url)
    async with without_table(url):
        status, _, err = await run("ledger", "reconcile")
    assert (status, "The ledger's database failed" in err) == (3, True)


class TestUnknown:
    async def test_they_are_adopted(self, run, url: str, add) -> None:
        old, young = add(7200), add()
        command = ("ledger", "reconcile", "--adopt", "--ttl", "15m", "--label", "found=today")
        status, out, _ = await run(*command, "--older-than", "1h")
        assert (status, json.loads(out)["action"]) == (0, "adopt")
        async with Ledger(url) as ledger:
            (entry,) = [entry async for entry in ledger.entries()]
        assert (entry.response_id, entry.labels, round(entry.lease_left)) == (old, {"found": "today"}, 900)
        status, out, _ = await run(*command, "--all")
        assert (status, json.loads(out)["id"]) == (0, young)

    async def test_they_are_stopped_without_a_question_if_that_is_wanted(
        self, run, url: str, server: Emulator, add
    ) -> None:
        red, blue = add(team="red"), add(team="blue")
        status, out, _ = await run("ledger", "reconcile", "--stop", "--metadata", "team=red", "--yes")
        line = json.loads(out)
        assert (status, line["id"], line["action"], line["stopped"]) == (0, red, "stop", True)
        server.faults += [Fault(on=on, status=403) for on in ("cancel", "retrieve")]
        status, out, _ = await run("ledger", "reconcile", "--stop", "--all", "--yes")
        line = json.loads(out)
        assert (status, line["id"], line["settled"], line["error"]["status"]) == (1, blue, False, 403)
        assert await states(url) == {red: "cancelled", blue: "tracked"}

    @pytest.mark.slow
    @pytest.mark.parametrize("answer", ["y", "n"])
    async def test_a_terminal_is_asked_about_those_that_were_found_then(
        self, monkeypatch: pytest.MonkeyPatch, url: str, server: Emulator, *, add, answer: str
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        over, lost = add(runs_for=0), add(team="red")
        await track(url, server, over)
        async with Terminal("ledger", "reconcile", "--stop", "--all", columns=150) as terminal:
            await terminal.shows("[y/N]")
            later = add()
            terminal.press(f"{answer}\n")
            assert await terminal.end() == (0 if answer == "y" else 1)
        assert "1 response runs, created 2 min ago" in terminal.screen
        assert ("unknown, stopped (cancelled)" in terminal.screen) == (answer == "y")
        assert bool(server.responses[lost].cancelled) == (answer == "y")
        assert server.responses[later].cancelled is None
        expected = {over: "already_finished", lost: "cancelled"} if answer == "y" else {over: "tracked"}
        assert await states(url) == expected

    @pytest.mark.slow
    async def test_a_terminal_shows_why_there_is_nothing_to_ask_about(
        self, monkeypatch: pytest.MonkeyPatch, server: Emulator
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        server.faults.append(Fault(on="list", status=403))
        async with Terminal("ledger", "reconcile", "--stop", "--all", columns=150) as terminal:
            assert await terminal.end() == 3
        assert "openai-cancel: 403" in terminal.screen
        assert "Traceback" not in terminal.screen

    @pytest.mark.slow
    async def test_without_unknown_ones_there_is_no_question(
        self, monkeypatch: pytest.MonkeyPatch, url: str, server: Emulator, add
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        over = add(runs_for=0)
        await track(url, server, over)
        async with Terminal("ledger", "reconcile", "--stop", "--all", columns=150) as terminal:
            assert await terminal.end() == 0
        assert "ended, struck off (completed)" in terminal.screen
        assert await states(url) == {over: "already_finished"}

    @pytest.mark.slow
    async def test_ctrl_c_ends_it_and_leaves_what_it_was_stopping_to_sweeps(
        self, url: str, server: Emulator, add
    ) -> None:
        name = add()
        server.faults.append(Fault(on="cancel", delay=math.inf))
        environment = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url}
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "ledger", "reconcile", "--stop", "--all", "--yes"), stdout=PIPE, stderr=PIPE, env=environment
        )
        while not any(request.method == "POST" for request in server.received):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
        assert (process.returncode, b"Traceback" in err) == (143, False)
        assert await states(url) == {name: "tracked"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--adopt", "--stop", "--ttl", "5", "--all"], "--adopt cannot be combined with --stop."),
        (["--adopt", "--all"], "--adopt requires --ttl"),
        (["--ttl", "5"], "--ttl requires --adopt"),
        (["--label", "a=b"], "--label requires --adopt or --stop."),
        (["--stop", "--all", "--yes", "--label", "a"], "'a' is not a label"),
        (["--yes"], "--yes requires --stop."),
        (["--all"], "--all requires --adopt or --stop."),
        (["--stop", "--yes"], "--stop requires a condition, such as --older-than 1h, or --all for everybody's."),
        (["--adopt", "--ttl", "5", "--limit", "3"], "--adopt requires a condition"),
        (["--stop", "--all", "--model", "m"], "--all cannot be combined with --model."),
        (["--stop", "--all"], "without a terminal, use --yes, or --dry-run first"),
        (["--newer-than", "60"], "--newer-than must be more than --older-than, which is 60 s by default."),
        (["--newer-than", "5", "--older-than", "9"], "--older-than must be less than --newer-than"),
        (["--metadata", "red"], "'red' is not metadata"),
        (["--log", "/nonexistent/x"], "/nonexistent/x: No such file"),
    ],
)
async def test_options_that_cannot_work_are_refused_before_anything_is_sent(
    run, server: Emulator, arguments: list[str], words: str
) -> None:
    status, out, err = await run("ledger", "reconcile", *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert server.received == []

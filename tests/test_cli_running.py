"""The commands `list` and `stop --running`: what a server lists as running."""

import json
import math
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aged import add_aged
from conftest import KEY, QuickClock
from terminal import Terminal

from openai_cancel import AsyncSession, Response
from openai_cancel.cli import running
from openai_cancel.cli.durations import format_duration
from openai_cancel.cli.running import FoundResponses, RunningSource
from openai_cancel.converter import response_hook
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.models.response import record_call


@pytest.fixture
async def server(clock: QuickClock) -> AsyncIterator[Emulator]:
    """An emulator that lists, with a clock that stands still."""
    script = Script(runs_for=math.inf)
    async with Emulator(script=script, clock=clock.monotonic, dialect="ogx") as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "RECHECK_DELAY", 0.001)


@pytest.fixture
def add(server: Emulator, clock: QuickClock):
    """Put a response into the emulator that was created some time ago; gives its id."""

    def add(age: float = 0.0, **options: Any) -> str:
        return add_aged(server, clock, age, **options)

    return add


def states(server: Emulator) -> dict[str, str]:
    return {name: work.status(server.clock()) for name, work in server.responses.items()}


class TestList:
    async def test_responses_are_json_lines_that_stop_reads(self, run, add, tmp_path: Path) -> None:
        old, new = add(7200, team="red"), add(5)
        add(9, runs_for=0)
        status, out, err = await run("list")
        assert (status, err) == (0, "")
        assert [json.loads(line) for line in out.splitlines()] == [
            {
                "id": name,
                "status": "in_progress",
                "created_at": 1_700_000_000 - age,
                "age": age,
                "model": "emulated",
                "background": True,
                "metadata": metadata,
            }
            for name, age, metadata in ((new, 5, {}), (old, 7200, {"team": "red"}))
        ]
        (tmp_path / "found").write_text(out)
        status, out, _ = await run("stop", "--file", str(tmp_path / "found"))
        assert (status, out.count('"cancelled"')) == (0, 4)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--older-than", "1h"], ["old"]),
            (["--newer-than", "1h"], ["new", "red"]),
            (["--metadata", "team=red"], ["red"]),
            (["--metadata", "team=red", "--metadata", "job=7"], []),
            (["--model", "emulated", "--limit", "1"], ["new"]),
            (["--model", "another"], []),
            (["--status", "completed", "--status", "queued"], ["over"]),
        ],
    )
    async def test_options_are_conditions(self, run, add, arguments: list[str], expected: list[str]) -> None:
        names = {add(7200): "old", add(5): "new", add(30, team="red"): "red", add(60, runs_for=0): "over"}
        _, out, _ = await run("list", "--json", *arguments)
        assert [names[json.loads(line)["id"]] for line in out.splitlines()] == expected

    @pytest.mark.parametrize(("status", "expected"), [(405, 1), (401, 3)])
    async def test_a_server_that_does_not_list_is_an_error(self, run, server, status: int, expected: int) -> None:
        server.faults = [Fault(on="list", status=status)]
        done, out, err = await run("list")
        assert (done, out) == (expected, "")
        assert ("openai-cancel ledger" in err) == (status == 405)

    async def test_a_table_can_be_written_into_a_pipe(self, run, add) -> None:
        name = add(7200)
        assert name in (await run("list", "--no-json"))[1].splitlines()[-1].split()

    @pytest.mark.slow
    async def test_a_terminal_shows_a_table(self, add, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        name = add(7200, team="red\x1b[2J", job="7")
        async with Terminal("list", columns=150) as terminal:
            assert await terminal.end() == 0
        shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.screen)
        assert re.search(rf"{name} +in_progress +2 h +emulated +team=red.x1b\[2J, job=7", shown)
        assert shown.split()[:5] == ["id", "status", "age", "model", "metadata"]


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["stop", "--older-than", "1h"], "--older-than requires --running."),
            (["stop", "x", "--status", "queued"], "--status requires --running."),
            (["stop", "x", "--limit", "5"], "--limit requires --running."),
            (["stop", "x", "--all"], "--all requires --running."),
            (["stop", "x", "--yes"], "--yes requires --running."),
            (["stop", "--running", "x", "--all"], "leave out ids and --file"),
            (["stop", "--running", "--all", "--file", "x"], "leave out ids and --file"),
            (["stop", "--running"], "requires a condition, such as --older-than 1h, or --all"),
            (["stop", "--running", "--limit", "5", "--status", "queued"], "requires a condition"),
            (["stop", "--running", "--all", "--model", "m"], "--all cannot be combined with --model."),
            (["stop", "--running", "--all", "--yes", "--resume"], "--resume requires the --log"),
            (["stop", "--running", "--all"], "without a terminal, use --yes, or --dry-run first"),
            (["stop", "--running", "--all", "--yes", "--log", "/nonexistent/x"], "/nonexistent/x: No such file"),
            (["list", "--metadata", "red"], "'red' is not metadata: write --metadata NAME=VALUE."),
            (["list", "--older-than", "5", "--newer-than", "5"], "--older-than must be less than --newer-than"),
        ],
    )
    async def test_options_that_cannot_work_are_refused_before_anything_is_sent(
        self, run, server: Emulator, arguments: list[str], words: str
    ) -> None:
        status, out, err = await run(*arguments)
        assert (status, out) == (2, "")
        assert words in err
        assert server.received == []


class TestStop:
    async def test_everything_that_matches_is_stopped_once(self, run, add, server: Emulator) -> None:
        old = [add(7200 + place) for place in range(120)]
        new = add(5)
        status, out, err = await run("stop", "--running", "--older-than", "1h", "--yes")
        outcomes = [json.loads(line) for line in out.splitlines()]
        assert status == 0
        assert sorted(outcome["id"] for outcome in outcomes) == sorted(old)
        assert {server.responses[name].cancels for name in old} == {1}
        assert states(server)[new] == "in_progress"
        assert "120" in err

    @pytest.mark.parametrize(("times", "expected"), [(1, 0), (2, 0), (9, 1)])
    async def test_what_runs_again_although_it_was_stopped_is_stopped_once_more(
        self, run, add, server: Emulator, times: int, expected: int
    ) -> None:
        name = add(5)
        items = [{"id": name, "status": "in_progress"}, {"id": "resp_new", "status": "queued"}]
        again = Fault(on="list", status=200, body={"data": items, "has_more": False})
        server.faults = [Fault(on="list"), *[again] * times]
        status, out, err = await run("stop", "--running", "--all", "--yes")
        assert status == expected
        assert [json.loads(line)["id"] for line in out.splitlines()] == [name] * min(times + 1, 3)
        assert err.count("running again after they were stopped: 1") == min(times, 3)
        assert re.search(r"cancelled +1\b", err)  # the response counts once
        assert re.search(r"in all +1 ", err)

    async def test_what_runs_again_is_stopped_although_the_log_says_that_it_was(
        self, run, add, server: Emulator, clock: QuickClock, tmp_path: Path
    ) -> None:
        arguments = ["stop", "--running", "--all", "--yes", "--log", f"{tmp_path}/log", "--resume"]
        name = add(5, script=Script(runs_for=math.inf, resumes_after=60, resumes=1))
        assert json.loads((await run(*arguments))[1])["verdict"] == "cancelled"
        clock.now += 61
        assert states(server)[name] == "in_progress"
        assert json.loads((await run(*arguments))[1])["verdict"] == "cancelled"
        assert states(server)[name] == "cancelled"

    @pytest.mark.parametrize(
        "conditions", [["--status", "queued", "--all"], ["--newer-than", "7s"], ["--limit", "1", "--all"]]
    )
    async def test_what_runs_again_is_found_although_its_status_and_age_have_changed(
        self, run, add, server: Emulator, conditions: list[str]
    ) -> None:
        name = add(5)
        queued = {"id": name, "status": "queued", "created_at": int(time.time()) - 5}
        again = {"id": name, "status": "in_progress", "created_at": int(time.time()) - 9}
        older = {"id": "resp_other", "status": "in_progress", "created_at": int(time.time()) - 3}
        server.faults = [
            Fault(on="list", status=200, body={"data": [queued], "has_more": False}),
            Fault(on="list", status=200, body={"data": [older, again], "has_more": False}),
        ]
        status, out, err = await run("stop", "--running", "--yes", *conditions)
        assert (status, [json.loads(line)["id"] for line in out.splitlines()]) == (0, [name, name])
        assert "running again after they were stopped: 1" in err

    async def test_a_dry_run_asks_nothing_and_stops_nothing(self, run, add, server: Emulator) -> None:
        name = add(5)
        status, out, err = await run("stop", "--running", "--all", "--dry-run")
        assert (status, json.loads(out)["verdict"]) == (1, "still_running")
        assert "running again" not in err
        assert ["?" in request.path for request in server.received] == [True, False]  # one list
        assert states(server)[name] == "in_progress"

    async def test_a_log_is_written_and_resumed(self, run, add, tmp_path: Path) -> None:
        file = tmp_path / "log"
        log = str(file)
        first = add(5)
        assert (await run("stop", "--running", "--all", "--yes", "--log", log))[0] == 0
        again = add(5)
        # The server shows what was stopped as running again.
        status, out, err = await run(
            "stop", "--running", "--all", "--yes", "--status", "in_progress", "--status", "cancelled", "--log", log,
            "--resume",
        )  # fmt: skip
        assert (status, json.loads(out)["id"]) == (0, again)
        assert "stopped earlier" in err
        assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [first, again]

    async def test_what_does_not_run_in_the_background_is_left_out(self, run, add, server: Emulator) -> None:
        name = add(5)
        item = {"id": "resp_sync", "status": "in_progress", "created_at": 1, "background": False}
        listed = {"data": [item, {"id": name, "status": "in_progress", "created_at": 1}], "has_more": False}
        server.faults = [Fault(on="list", status=200, body=listed)]
        status, out, err = await run("stop", "--running", "--all", "--yes")
        assert (status, json.loads(out)["id"]) == (0, name)
        assert "1 more do not run in the background" in err

    @pytest.mark.parametrize(("status", "expected"), [(405, 1), (401, 3)])
    async def test_a_list_that_fails_is_an_error(self, run, server: Emulator, status: int, expected: int) -> None:
        server.faults = [Fault(on="list", status=status)]
        done, out, err = await run("stop", "--running", "--all", "--yes")
        assert (done, out) == (expected, "")
        assert "There may be more responses than those that were found." in err

    async def test_a_list_that_fails_later_stops_what_was_found(self, run, add, server: Emulator) -> None:
        for place in range(150):
            add(place)
        server.faults = [Fault(on="list"), Fault(on="list", status=403)]  # the first one does nothing
        status, out, err = await run("stop", "--running", "--all", "--yes")
        assert (status, len(out.splitlines())) == (3, 100)
        assert "403" in err


class TestSource:
    """A run ends its source when it is interrupted, or when the server rejects the key."""

    @pytest.mark.parametrize("ahead", [False, True])
    async def test_no_more_ids_are_yielded_after_its_end(self, server: Emulator, add, ahead: bool) -> None:  # noqa: FBT001
        for place in range(150):
            add(place)
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            source = RunningSource(session.running, session.running, skip=lambda _: True)
            if ahead:
                await source.read_ahead()
            names = []
            async with aclosing(source.read()) as found:
                async for name in found:
                    names.append(name)
                    if len(names) == 3:
                        source.end()
        assert (len(names), source.yielded, source.total) == (3, 3, 150 if ahead else None)
        assert len(server.received) == (3 if ahead else 1)

    @pytest.mark.parametrize("ahead", [False, True])
    async def test_only_responses_that_have_ended_are_skipped(self, server: Emulator, add, ahead: bool) -> None:  # noqa: FBT001
        add(5, runs_for=0)
        running = add(6)
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            select = partial(session.running, statuses=["in_progress", "completed"])
            source = RunningSource(select, select, skip=lambda _: True)
            if ahead:
                await source.read_ahead()
            async with aclosing(source.read()) as found:
                assert [name async for name in found] == [running]
        assert (source.yielded, source.skipped) == (1, 1)


class TestQuestion:
    @pytest.fixture(autouse=True)
    def environment(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

    @pytest.mark.slow
    async def test_yes_stops_what_was_shown(self, add, server: Emulator) -> None:
        for place in range(30):
            add(7200 + place, team="red" if place % 3 else "blue")
        async with Terminal("stop", "--running", "--older-than", "1h", columns=150) as terminal:
            await terminal.shows("[y/N]")
            assert not any(request.method == "POST" for request in server.received)
            late = add(7200)
            terminal.press("y\n")
            assert await terminal.end() == 0
        shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.screen)
        assert shown.count("in_progress") == 20
        assert "… and 10 more" in shown
        assert "30 responses run, created 2 h ago" in shown
        assert "metadata: team=red (20), team=blue (10)" in shown
        assert "Stop all of them?" in shown
        assert [name for name, status in states(server).items() if status != "cancelled"] == [late]

    @pytest.mark.slow
    @pytest.mark.parametrize("answer", ["n\n", "\n", "\x04"])
    async def test_anything_else_stops_nothing(self, add, server: Emulator, answer: str) -> None:
        add(5)
        async with Terminal("stop", "--running", "--all") as terminal:
            await terminal.shows("Stop it? [y/N]")
            terminal.press(answer)
            assert await terminal.end() == 1
        assert "nothing was stopped" in terminal.screen
        assert {*states(server).values()} == {"in_progress"}

    @pytest.mark.slow
    async def test_control_c_at_the_question_stops_nothing(self, add, server: Emulator) -> None:
        add(5)
        async with Terminal("stop", "--running", "--all") as terminal:
            await terminal.shows("[y/N]")
            terminal.press("\x03")
            assert await terminal.end() == 128 + signal.SIGINT
        assert {*states(server).values()} == {"in_progress"}

    @pytest.mark.slow
    async def test_nothing_found_needs_no_question(self) -> None:
        async with Terminal("stop", "--running", "--all") as terminal:
            assert await terminal.end() == 0
        assert "no running response was found" in terminal.screen


class TestFindings:
    @staticmethod
    def found(*responses: Response) -> list[str]:
        findings = FoundResponses()
        for response in responses:
            findings.note(response)
        return findings.describe()

    def test_ages_are_a_range(self) -> None:
        responses = [response_hook()({"id": f"r{age}"}) for age in (70, 7, 300)]
        for response, age in zip(responses, (70, 7, 300), strict=True):
            record_call(response, age=age)
        assert self.found(*responses)[0] == "3 responses run, created 7 s to 5 min ago"
        assert self.found(responses[0]) == ["1 response runs, created 70 s ago", "metadata: none (1)"]

    def test_the_most_frequent_metadata_is_named(self) -> None:
        make = response_hook()
        responses = [make({"id": f"r{place}", "metadata": {"user": f"u{place}", "team": "a"}}) for place in range(9)]
        assert self.found(*responses, make({"id": "x"})) == [
            "10 responses run, of unknown age",
            "metadata: team=a (9), user=u0 (1), user=u1 (1), user=u2 (1), user=u3 (1), 5 more values, none (1)",
        ]

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172800, "2 d")],
    )
    def test_ages_are_in_the_largest_unit_of_which_there_are_two(self, seconds: float, words: str) -> None:
        assert format_duration(seconds) == words

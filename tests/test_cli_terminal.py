"""The command on a terminal: what it draws, and the keys that end it."""

import json
import math
import re
import time
from pathlib import Path

import pytest
from conftest import KEY, QuickClock, until
from terminal import COMMAND, Terminal

from openai_cancel.emulator import Emulator, Fault

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def environment(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)


class TestScreen:
    async def test_responses_that_are_arguments_are_shown_one_by_one(self, create) -> None:
        running, over = create(), create(runs_for=0)
        async with Terminal("stop", running, over, "resp_[red]") as terminal:
            assert await terminal.end() == 1
        assert f"{running}  cancelled\r\n" in terminal.screen
        assert f"{over}  already finished (completed)\r\n" in terminal.screen
        assert "resp_[red]  not found: 404: Response with id 'resp_[red]' not found." in terminal.screen

    async def test_a_run_over_a_file_draws_its_progress_and_shows_only_problems(
        self, server: Emulator, create, tmp_path: Path
    ) -> None:
        server.faults += [Fault()] * 5 + [Fault(delay=0.3)] * 3
        file = tmp_path / "ids"
        file.write_text("\n".join(["# some", *(create() for _ in range(8)), "resp_none", "two words"]))
        async with Terminal("stop", "--file", str(file)) as terminal:
            assert await terminal.end() == 1
        assert "━" in terminal.screen
        assert "under way" in terminal.screen
        assert "/s" in terminal.screen
        assert "resp_none  not found" in terminal.screen
        assert re.search(r"line\s+11:\s+contains\s+a\s+space", terminal.screen)
        assert re.search(r"in all +9", terminal.screen)
        assert "\x1b[32m" in terminal.screen  # green

    async def test_no_color_is_respected(self, create) -> None:
        async with Terminal("stop", create(), NO_COLOR="1") as terminal:
            assert await terminal.end() == 0
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", terminal.screen)

    async def test_a_dumb_terminal_shows_lines_and_totals_alone(self, create) -> None:
        async with Terminal("stop", identifier := create(), TERM="dumb") as terminal:
            assert await terminal.end() == 0
        first, second, third, _ = terminal.screen.split("\r\n")
        assert (first, second.split(), third.split()[:3]) == (
            f"{identifier}  cancelled",
            ["cancelled", "1"],
            ["in", "all", "1"],
        )

    @pytest.mark.parametrize("arguments", [["--quiet"], ["--json"]])
    async def test_quiet_and_json_draw_no_progress(self, create, arguments: list[str]) -> None:
        async with Terminal("stop", create(), *arguments) as terminal:
            assert await terminal.end() == 0
        assert "\x1b" not in terminal.screen.replace("\x1b[32mcancelled", "").replace("\x1b[0m", "").replace(
            "\x1b[2m", ""
        )
        assert ("{" in terminal.screen) == (arguments == ["--json"])


class TestStopScreen:
    async def test_one_response_has_a_spinner_with_its_status_and_its_age(self, server: Emulator, create) -> None:
        identifier = create()
        body = {"id": identifier, "status": "cancelling", "created_at": time.time() - 3600}
        server.faults += [Fault(on="cancel", status=200, body=body)]
        async with Terminal("stop", identifier) as terminal:
            await terminal.shows(f"{identifier}  cancelling  1:00:0")
            server.responses[identifier].cancelled = server.clock()
            assert await terminal.end() == 0
        assert f"{identifier}  cancelled\r\n" in terminal.screen
        assert re.search(r"in all +1", terminal.screen)


class TestWaitScreen:
    async def test_one_response_has_a_spinner_with_its_status_and_its_age(self, clock: QuickClock, create) -> None:
        clock.now = time.time() - 3600
        identifier = create(runs_for=60)
        async with Terminal("wait", identifier, "--poll", "0.25") as terminal:
            await terminal.shows(f"{identifier}  in_progress  1:00:0")
            clock.now += 60
            assert await terminal.end() == 0
        assert "⠋" in terminal.screen
        assert f"{identifier}  completed\r\n" in terminal.screen
        assert "in all" not in terminal.screen

    async def test_many_responses_are_counted_by_status_with_the_oldest(
        self, clock: QuickClock, create, tmp_path: Path
    ) -> None:
        clock.now = time.time() - 7200
        oldest = create(runs_for=60)
        clock.now += 3600
        file = tmp_path / "ids"
        others = [*(create(queued_for=60, runs_for=60) for _ in range(3)), create(runs_for=0)]
        file.write_text("".join(f"{name}\n" for name in [oldest, *others]))
        async with Terminal("wait", "--file", str(file), "--poll", "0.25") as terminal:
            await terminal.shows("waiting 3:  queued 3")
            assert "in_progress" not in terminal.screen.rsplit("waiting 3", 1)[1]
            clock.now += 60
            await terminal.shows("waiting 3:  in_progress 3")
            clock.now += 60
            assert await terminal.end() == 0
        assert "2/5" in terminal.screen
        assert "3 waiting" in terminal.screen
        assert re.search(r"oldest 1:00:\d\d: resp_", terminal.screen)
        assert re.search(r"completed +5", terminal.screen)
        assert f"{oldest}  completed" not in terminal.screen

    async def test_the_line_of_an_argument_goes_into_the_pipe(self, create, tmp_path: Path) -> None:
        over, running, out = create(runs_for=0), create(), tmp_path / "out"
        async with Terminal("wait", over, running, "--timeout", "0.3", into=out) as terminal:
            assert await terminal.end() == 1
        assert out.read_text() == f"{over}  completed\n"
        assert f"openai-cancel: '{running}': {running} did not end within 0.3 s: its status was" in terminal.screen

    async def test_ctrl_c_says_of_each_response_that_it_was_stopped(self, server: Emulator, create) -> None:
        identifiers = [create(), create()]
        async with Terminal("wait", *identifiers) as terminal:
            await terminal.shows("waiting 2:  in_progress 2")
            terminal.press("\x03")
            assert await terminal.end() == 130
        for name in identifiers:
            assert f"openai-cancel: {name} was stopped (cancelled) when the wait ended\r\n" in terminal.screen
            assert server.responses[name].cancelled


class TestSignals:
    async def test_ctrl_c_finishes_the_responses_under_way(self, server: Emulator, create, tmp_path: Path) -> None:
        server.faults += [Fault(delay=0.5)] * 4
        identifiers = [create() for _ in range(100)]
        log = tmp_path / "log"
        async with Terminal("stop", *identifiers, "--concurrency", "4", "--log", str(log)) as terminal:
            await until(lambda: len(server.received) == 4)
            terminal.press("\x03")
            await terminal.shows("finishing the 4 responses under way; press Ctrl-C again to quit at once")
            assert await terminal.end() == 130
        assert "openai-cancel: interrupted: run the same command with --resume to continue" in terminal.screen
        assert {json.loads(line)["id"] for line in log.read_text().splitlines()} == set(identifiers[:4])
        assert len(server.received) == 4
        assert re.search(r"in all +4", terminal.screen)

    async def test_one_response_under_way_is_one(self, server: Emulator, create) -> None:
        for command, words in (("stop", "finishing the response under way"), ("wait", "was stopped (cancelled)")):
            server.received.clear()
            server.faults += [Fault(delay=0.5)]
            async with Terminal(command, create()) as terminal:
                await until(lambda: len(server.received) == 1)
                terminal.press("\x03")
                await terminal.shows(words)
                assert await terminal.end() == 130

    async def test_a_second_ctrl_c_quits_at_once(self, server: Emulator, create) -> None:
        server.faults += [Fault(delay=math.inf)] * 4
        async with Terminal("stop", *[create() for _ in range(100)], "--concurrency", "4") as terminal:
            await until(lambda: len(server.received) == 4)
            terminal.press("\x03")
            await terminal.shows("finishing")
            terminal.press("\x03")
            assert await terminal.end() == 130
        assert re.search(r"in all +0", terminal.screen)

    @pytest.mark.parametrize("source", ["arguments", "file"])
    async def test_a_run_outlives_its_terminal_if_it_is_told_to(
        self, server: Emulator, create, tmp_path: Path, source: str
    ) -> None:
        file, ids = tmp_path / "ids", [create() for _ in range(8)]
        file.write_text("\n".join(ids))
        server.faults += [Fault(delay=0.5)] * 8
        script = ("-c", 'trap "" HUP; exec "$@"', "sh", COMMAND, "stop", "--concurrency", "4")
        async with Terminal(*script, *([f"--file={file}"] if source == "file" else ids), program="sh") as terminal:
            await until(lambda: len(server.received) == 4)
            terminal.hang_up()
            await terminal.process.wait()
        assert all(work.cancelled for work in server.responses.values())

    async def test_sigterm_finishes_the_responses_under_way(self, server: Emulator, create) -> None:
        server.faults += [Fault(delay=0.2)] * 2
        async with Terminal("stop", "-", "--json") as terminal:
            terminal.press(f"{create()}\n{create()}\n")
            await until(lambda: len(server.received) == 2)
            terminal.process.terminate()
            assert await terminal.end() == 143
        assert terminal.screen.count('"stopped":true') == 2


class TestAskKey:
    @pytest.mark.parametrize("typed", ["sk-typed-by-hand\n", " sk-typed-by-hand \n"])
    async def test_the_key_that_is_typed_is_sent_and_not_shown(self, server: Emulator, create, typed: str) -> None:
        async with Terminal("stop", create(), "--ask-key", "--quiet", OPENAI_API_KEY="") as terminal:
            await terminal.shows("API key: ")
            terminal.press(typed)
            assert await terminal.end() == 0
        assert server.received[0].headers["authorization"] == "Bearer sk-typed-by-hand"
        assert "typed" not in terminal.screen

    async def test_a_key_that_cannot_be_one_is_refused_by_the_name_of_the_option(self, server: Emulator) -> None:
        async with Terminal("stop", "x", "--ask-key") as terminal:
            await terminal.shows("API key: ")
            terminal.press("Bearer sk-typed\n")
            assert await terminal.end() == 3
        assert "openai-cancel: The key from --ask-key " in terminal.screen
        assert "typed" not in terminal.screen
        assert not server.received

    async def test_ctrl_c_at_the_prompt_quits(self) -> None:
        async with Terminal("stop", "x", "--ask-key") as terminal:
            await terminal.shows("API key: ")
            terminal.press("\x03")
            assert await terminal.end() == 130

"""The command: `cancel`, usage and help, and how it runs as a process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from conftest import KEY, until
from processes import StartProcess
from terminal import COMMAND

from openai_cancel import cli
from openai_cancel.emulator import Emulator, Fault


class TestCancel:
    async def test_the_status_is_0_if_all_are_cancelled(self, run, create) -> None:
        first, second = create(), create()
        assert await run("cancel", first, second) == (0, f"{first}  cancelled\n{second}  cancelled\n", "")

    async def test_json_lines_hold_the_response_or_the_error(self, run, create, server: Emulator) -> None:
        identifier = create()
        status, out, _ = await run("cancel", identifier, "resp_none", "--json")
        assert status == 1
        stopped, missing = map(json.loads, out.splitlines())
        assert (stopped["id"], stopped["status"]) == (identifier, "cancelled")
        assert stopped["response"] == server.responses[identifier].document(0)
        assert missing["id"] == "resp_none"
        assert (missing["error"]["type"], missing["error"]["status"], missing["error"]["code"]) == (
            "NotFoundError",
            404,
            None,
        )
        assert missing["error"]["request_id"].startswith("req_")

    async def test_the_status_is_1_if_one_is_not_cancelled(self, run, create, server: Emulator) -> None:
        status, out, err = await run("cancel", "resp_none", identifier := create())
        assert (status, out) == (1, f"{identifier}  cancelled\n")
        assert err.startswith("openai-cancel: 'resp_none': 404: Response with id 'resp_none' not found.")
        assert len(err.splitlines()) == 1
        server.faults.append(Fault(status=200, body={"id": "x", "status": "cancelling"}))
        assert await run("cancel", "x") == (1, "x  cancelling\n", "")

    async def test_a_response_that_has_ended_already_counts_as_stopped(self, run, create) -> None:
        over, foreground = create(runs_for=0, becomes="failed"), create(background=False)
        status, out, err = await run("cancel", over, foreground)
        assert (status, err) == (0, "")
        assert out.splitlines() == [
            f"{over}  failed  (Cannot cancel a failed response.)",
            f"{foreground}  completed  (Cannot cancel a synchronous response.)",
        ]
        status, out, _ = await run("cancel", over, "--json")
        assert (status, json.loads(out)["status"]) == (0, "failed")

    async def test_an_answer_that_is_not_a_response_is_a_json_line_too(self, run, server: Emulator) -> None:
        server.faults.append(Fault(status=200, body=b"ok"))
        status, out, _ = await run("cancel", "x", "--json")
        assert status == 1
        assert set(json.loads(out)["error"]) == {"type", "message"}

    @pytest.mark.parametrize("name", ["..", "resp_1,", "'resp_1'", "https://platform.openai.com/logs/resp_1"])
    async def test_an_invalid_id_is_a_usage_error(self, run, server: Emulator, name: str) -> None:
        for command in ("cancel", "stop", "wait"):
            status, _, err = await run(command, "resp_0", name)
            assert (status, err) == (2, f"openai-cancel: {name!r} cannot be a response id\n")
        assert not server.received

    async def test_an_id_that_looks_like_an_option_can_follow_two_dashes(self, run) -> None:
        status, _, err = await run("cancel", "--", "-x")
        assert (status, "'-x' not found" in err) == (1, True)

    async def test_a_key_that_the_server_rejects_is_status_3(self, run, server: Emulator) -> None:
        server.faults.append(Fault(status=401, body={"error": {"message": "Bad key."}}))
        status, _, err = await run("cancel", "x")
        assert (status, "401: Bad key." in err) == (3, True)

    async def test_json_lines_are_valid_json_whatever_the_server_sends(self, run, server: Emulator) -> None:
        server.faults += [
            Fault(status=200, body=b'{"id": "x", "status": "completed", "top_p": NaN}'),
            Fault(status=200, body=b'{"id": "x", "status": "completed", "user": "\\ud800"}'),
        ]
        _, out, _ = await run("cancel", "x", "y", "--json")
        first, second = map(orjson.loads, out.replace("\\ud800", "half").splitlines())
        assert (first["response"]["top_p"], second["response"]["user"]) == (None, "half")

    @pytest.mark.slow
    async def test_ctrl_c_ends_a_cancel_without_a_traceback(
        self, server: Emulator, start_process: StartProcess
    ) -> None:
        server.faults.append(Fault(delay=float("inf")))
        process = await start_process(
            COMMAND, "cancel", "x", "--base-url", server.base_url,
            env={**os.environ, "OPENAI_API_KEY": KEY}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await until(lambda: server.received)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, err) == (130, b"openai-cancel: interrupted\n")


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["cancel"], "requires an argument"),
            (["nonsense"], "Unknown command"),
            (["cancel", "x", "--bogus"], "Unknown option"),
            (["emulate", "--port", "x"], "unable to convert"),
            (["emulate", "--port", "70000"], "Must be <= 65535"),
            (["emulate", "--runs-for", "-1"], "Must be >= 0"),
            (["emulate", "--dialect", "x"], "Choose one of openai, azure, vllm"),
        ],
    )
    async def test_a_usage_error_is_one_line_and_status_2(self, run, arguments: list[str], words: str) -> None:
        status, out, err = await run(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err

    async def test_a_single_dash_is_standard_input_only_for_commands_that_read_ids(self, run) -> None:
        status, _, err = await run("cancel", "-")
        assert (status, err.count("\n"), "Unknown option" in err) == (2, 1, True)
        assert (await run("stop", "--log", "-"))[0] == 2
        assert (await run())[0] == 0

    async def test_the_version_is_printed(self, run) -> None:
        assert await run("--version") == (0, "1.0.0\n", "")


class TestEntryPoints:
    @pytest.mark.parametrize("module", ["openai_cancel", "openai_cancel.cli"])
    def test_the_package_runs_as_a_module(self, python: str, module: str) -> None:
        done = subprocess.run([python, "-m", module, "--version"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "1.0.0\n")

    def test_main_takes_the_arguments_of_the_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["openai-cancel", "--version"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0

    def test_without_its_extra_the_command_says_what_to_install(self, python: str) -> None:
        script = "import sys; sys.modules['cyclopts'] = None; import openai_cancel.cli"
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert done.stderr == "openai-cancel: cyclopts is not installed: pip install 'openai-cancel[cli]'\n"


class TestOutputThatIsLost:
    @pytest.mark.slow
    async def test_a_reader_that_leaves_early_does_not_end_the_work(self, server: Emulator, create) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        done = await asyncio.to_thread(
            subprocess.run, [COMMAND, "cancel", create(), create(), "--base-url", server.base_url],
            env={**os.environ, "OPENAI_API_KEY": KEY}, stdout=writing, stderr=subprocess.PIPE, timeout=50, check=False,
        )  # fmt: skip
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, b"openai-cancel: the rest of the output is lost: Broken pipe\n")
        assert all(work.cancelled for work in server.responses.values())

    @pytest.mark.slow
    async def test_a_reader_of_lines_for_people_may_leave_too(self, server: Emulator, create) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        command = [COMMAND, "stop", "resp_none", create(), create(), "--no-json", "--concurrency", "1"]
        done = await asyncio.to_thread(
            subprocess.run, command, env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url},
            stdout=writing, stderr=subprocess.PIPE, timeout=50, check=False,
        )  # fmt: skip
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, b"openai-cancel: the rest of the output is lost: Broken pipe\n")
        assert all(work.cancelled for work in server.responses.values())

    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    @pytest.mark.parametrize("option", ["--json", "--no-json"])
    async def test_a_disk_that_is_full_is_a_failure_although_the_work_is_done(
        self, server: Emulator, create, option: str
    ) -> None:
        done = await asyncio.to_thread(
            subprocess.run, ["sh", "-c", '"$@" >/dev/full', "sh", COMMAND, "stop", create(), option],
            env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url}, stderr=subprocess.PIPE,
            timeout=50, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith(b"openai-cancel: the rest of the output is lost: No space left on device\n")
        assert all(work.cancelled for work in server.responses.values())

    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_demo_that_cannot_be_written_fails_on_one_line(self) -> None:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run([COMMAND, "demo"], stdout=full, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (1, b"openai-cancel: cannot write: No space left on device\n")

    @pytest.mark.slow
    @pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "2>&1 >/dev/full", ">&- 2>&-"])
    async def test_complaints_that_cannot_be_written_do_not_end_the_work(
        self, server: Emulator, create, closed: str
    ) -> None:
        ids = [create(), create()]
        done = await asyncio.to_thread(
            subprocess.run, ["sh", "-c", f'"$@" {closed}', "sh", COMMAND, "cancel", "resp_none", *ids],
            env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url}, capture_output=True,
            timeout=50, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert all(server.responses[identifier].cancelled for identifier in ids)

    @pytest.mark.slow
    @pytest.mark.usefixtures("run")
    async def test_complaints_do_not_go_to_standard_output_if_standard_error_is_closed(self) -> None:
        done = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", '"$0" cancel resp_none 2>&-', COMMAND],
            capture_output=True,
            timeout=50,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")

    @pytest.mark.slow
    async def test_text_that_the_terminal_cannot_show_is_escaped(self, server: Emulator, create) -> None:
        server.faults.append(Fault(status=200, body=b'{"id": "x", "status": "d\\u00e9j\\u00e0 \\ud800"}'))
        identifier = create()
        done = await asyncio.to_thread(
            subprocess.run, [COMMAND, "cancel", "x", identifier],
            env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url, "PYTHONIOENCODING": "ascii"},
            capture_output=True, timeout=50, check=False,
        )  # fmt: skip
        assert done.stdout.decode().splitlines() == ["x  d\\xe9j\\xe0 \\ud800", f"{identifier}  cancelled"]
        assert (done.returncode, done.stderr) == (1, b"")

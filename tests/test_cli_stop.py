"""The commands `stop` and `status`, with output into a pipe."""

import asyncio
import importlib
import json
import math
import os
import subprocess
from pathlib import Path

import pytest
from conftest import KEY, until
from processes import StartProcess
from terminal import COMMAND

from openai_cancel import AsyncSession
from openai_cancel.cli.ids import Source
from openai_cancel.cli.run import Run
from openai_cancel.cli.run_output import RunOutput
from openai_cancel.emulator import Emulator, Fault


class TestStop:
    async def test_outcomes_are_json_lines_and_the_totals_a_table(self, run, create) -> None:
        over, running = create(runs_for=0), create()
        status, out, err = await run("stop", over, running, "resp_none")
        outcomes = {document.pop("id"): document for document in map(json.loads, out.splitlines())}
        assert status == 1
        assert {name: (each["verdict"], each["stopped"]) for name, each in outcomes.items()} == {
            over: ("already_finished", True),
            running: ("cancelled", True),
            "resp_none": ("not_found", False),
        }
        assert err.split() == [
            *["cancelled", "1", "already", "finished", "1", "not", "found", "1", "in", "all", "3", "in"],
            *err.split()[-3:],
        ]

    async def test_quiet_prints_nothing_if_all_are_stopped(self, run, create) -> None:
        identifier = create()
        status, out, err = await run("stop", identifier, "--quiet", "--deadline", "5", "--confirm", "0.01")
        assert (status, out, err) == (0, "", "")

    async def test_a_dry_run_and_status_send_only_gets(self, run, server: Emulator, create) -> None:
        status, out, _ = await run("stop", "--dry-run", create())
        assert (status, json.loads(out)["verdict"]) == (1, "still_running")
        status, out, _ = await run("status", create(runs_for=0))
        assert (status, json.loads(out)["status"]) == (0, "completed")
        assert {request.method for request in server.received} == {"GET"}

    async def test_a_key_that_the_server_rejects_ends_the_run(self, run, server: Emulator, create) -> None:
        server.faults += [Fault(status=401, body={"error": {"message": "Bad key."}})] * 200
        status, out, err = await run("stop", *[create() for _ in range(100)], "--concurrency", "4")
        assert status == 3
        assert 1 <= out.count("\n") < 10
        assert err.count("The server rejects the key. The remaining ids are not tried.") == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "No ids: pass ids, or use --file, or - for standard input."),
            (["x", "--resume"], "--resume requires the --log of the earlier run."),
            (["x", ".."], "'..' cannot be a response id"),
            (["--file", "/none"], "/none: No such file or directory"),
            (["x", "--log", "/dev/null"], "/dev/null: a log must be a regular file"),
            (["x", "--concurrency", "0"], "Must be >= 1"),
            (["x", "--deadline", "0"], "greater than 0"),
        ],
    )
    async def test_a_usage_error_is_one_line_and_sends_nothing(
        self, run, server: Emulator, arguments: list[str], words: str
    ) -> None:
        status, out, err = await run("stop", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err
        assert not server.received

    async def test_a_cancellation_that_no_signal_caused_is_raised(self, server: Emulator, create) -> None:
        server.faults.append(Fault(delay=math.inf))
        run = Run(RunOutput(as_json=False, quiet=True, show_stopped=True))
        session = AsyncSession(base_url=server.base_url, api_key=KEY)
        with Source([create()], [], complain=print, skip=run.skips) as source:
            task = asyncio.create_task(run.handle_all(source, session, session.stop_many))
            await until(lambda: server.received)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert run.status == 0  # no response has an outcome


class TestFiles:
    async def test_a_bad_line_in_a_file_is_reported_and_the_others_are_stopped(
        self, run, create, tmp_path: Path
    ) -> None:
        identifiers = [create() for _ in range(100)]
        file = tmp_path / "ids.csv"
        file.write_text("response_id,x\n" + "".join(f"{name},1\n" for name in identifiers) + "..,2\n")
        status, out, err = await run("stop", "-f", str(file))
        assert status == 1
        assert {json.loads(line)["id"] for line in out.splitlines()} == set(identifiers)
        assert f"openai-cancel: {file}, line 102: '..' cannot be a response id\n" in err
        assert "bad lines" in err

    async def test_a_carriage_return_ends_a_line(self, run, create, tmp_path: Path) -> None:
        file = tmp_path / "ids"
        file.write_bytes(f"id;job\r{create()};7\r\n{create()};8\n".encode())
        status, out, _ = await run("stop", "--file", str(file))
        assert (status, len(out.splitlines())) == (0, 2)

    async def test_each_line_of_standard_input_is_answered_as_it_arrives(
        self, server: Emulator, create, start_process: StartProcess
    ) -> None:
        process = await start_process(
            COMMAND, "stop", "-", env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        for _ in range(3):
            identifier = create()
            process.stdin.write(f"{identifier}\n".encode())
            assert json.loads(await process.stdout.readline())["id"] == identifier
        process.stdin.close()
        assert await process.wait() == 0


class TestLog:
    async def test_a_resumed_run_skips_the_ids_that_the_log_shows_as_stopped(
        self, run, server: Emulator, create, tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        first, second = create(), create()
        assert (await run("stop", first, "resp_none", "--log", str(log), "--resume"))[0] == 1
        server.received.clear()
        status, out, err = await run("stop", first, second, second, "resp_none", "--log", str(log), "--resume")
        assert status == 1
        assert sorted({json.loads(line)["id"] for line in out.splitlines()}) == sorted([second, "resp_none"])
        assert "stopped earlier" in err
        assert not any(first in request.path for request in server.received)
        assert (await run("stop", first, second, "--log", str(log), "--resume", "-q"))[0] == 0

    @pytest.mark.slow
    async def test_a_run_that_was_killed_can_be_resumed(
        self, run, server: Emulator, create, tmp_path: Path, start_process: StartProcess
    ) -> None:
        identifiers = [create() for _ in range(300)]
        file, log = tmp_path / "ids", tmp_path / "log"
        file.write_text("\n".join(identifiers))
        arguments = ["stop", "--file", str(file), "--log", str(log), "--resume"]
        process = await start_process(
            COMMAND, *arguments, "--quiet", env={**os.environ, "OPENAI_API_KEY": KEY},
        )  # fmt: skip
        await until(lambda: len(server.received) > 100)
        process.kill()
        await process.wait()
        before = log.read_text().count("\n")
        status, out, _ = await run(*arguments)
        assert status == 0
        assert out.count("\n") == 300 - before < 300
        assert all(server.responses[identifier].cancelled for identifier in identifiers)
        assert {json.loads(line)["id"] for line in log.read_text().splitlines()} == set(identifiers)

    async def test_a_log_that_cannot_be_written_is_reported_and_fails_the_run(
        self, server: Emulator, create, tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        done = await asyncio.to_thread(
            subprocess.run, ["sh", "-c", 'ulimit -f 0; trap "" XFSZ; exec "$@"', "sh", COMMAND, "stop", create(),
            "--log", str(log)], env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url},
            capture_output=True, timeout=50, check=False,
        )  # fmt: skip
        assert (done.returncode, json.loads(done.stdout)["stopped"]) == (1, True)
        assert b"the log is incomplete from here on: File too large" in done.stderr


@pytest.mark.usefixtures("run")
class TestShell:
    async def shell(self, script: str, *arguments: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", script, COMMAND, *arguments],
            env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "script", ['"$0" stop "$1" >&-', '"$0" stop "$1" 2>/dev/full', '"$0" stop "$1" --quiet >/dev/full 2>&1']
    )
    async def test_the_status_is_0_even_if_the_output_cannot_be_written(self, create, script: str) -> None:
        assert (await self.shell(script, create()))[0] == 0

    @pytest.mark.slow
    async def test_the_log_of_a_run_cannot_be_its_input(self, create, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text(json.dumps({"id": create(), "stopped": False}) + "\n")
        status, _, err = await self.shell('"$0" stop --file "$1" --log "$1" --resume', str(log))
        words = f"openai-cancel: {log} is one of the files of ids: use another file for --log.\n"
        assert (status, err) == (2, words)
        other = tmp_path / "other"
        other.touch()
        assert (await self.shell('"$0" stop --file "$1" --log "$2"', str(log), str(other)))[0] == 0


async def test_a_server_that_cannot_be_reached_ends_the_run_early(
    run, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int, tmp_path: Path
) -> None:
    module = importlib.import_module("openai_cancel.cli.run")  # `cli.run` is a function, too
    monkeypatch.setattr(module, "GIVE_UP_AFTER", 0.1)
    ids, log = tmp_path / "ids", tmp_path / "log"
    ids.write_text("".join(f"resp_{number}\n" for number in range(500)))
    base_url = f"http://127.0.0.1:{unused_tcp_port}/v1"
    status, _, err = await run("stop", "--file", str(ids), "--log", str(log), "--base-url", base_url)
    assert status == 1
    assert "Connection refused. The remaining ids are not tried." in err
    assert log.read_text() == ""  # so that --resume tries all of them

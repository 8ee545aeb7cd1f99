"""The command: what it prints, and its exit status."""

import asyncio
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

import orjson
import pytest
from conftest import KEY, until

from openai_cancel import AsyncSession, cli
from openai_cancel.cli import commands
from openai_cancel.cli.ids import Source
from openai_cancel.cli.report import Report
from openai_cancel.emulator import Emulator, Fault

COMMAND = str(Path(sys.executable).with_name("openai-cancel"))


class TestCancel:
    async def test_all_stopped(self, run, create) -> None:
        first, second = create(), create()
        assert await run("cancel", first, second) == (0, f"{first}  cancelled\n{second}  cancelled\n", "")

    async def test_json(self, run, create, server: Emulator) -> None:
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

    async def test_some_not(self, run, create, server: Emulator) -> None:
        status, out, err = await run("cancel", "resp_none", identifier := create())
        assert (status, out) == (1, f"{identifier}  cancelled\n")
        assert err.startswith("openai-cancel: 'resp_none': 404: Response with id 'resp_none' not found.")
        assert len(err.splitlines()) == 1
        server.faults.append(Fault(status=200, body={"id": "x", "status": "cancelling"}))
        assert await run("cancel", "x") == (1, "x  cancelling\n", "")

    async def test_what_is_over_already_is_stopped(self, run, create) -> None:
        over, foreground = create(runs_for=0, becomes="failed"), create(background=False)
        status, out, err = await run("cancel", over, foreground)
        assert (status, err) == (0, "")
        assert out.splitlines() == [
            f"{over}  failed  (Cannot cancel a failed response.)",
            f"{foreground}  completed  (Cannot cancel a synchronous response.)",
        ]
        status, out, _ = await run("cancel", over, "--json")
        assert (status, json.loads(out)["status"]) == (0, "failed")

    async def test_no_answer_as_json(self, run, server: Emulator) -> None:
        server.faults.append(Fault(status=200, body=b"ok"))
        status, out, _ = await run("cancel", "x", "--json")
        assert status == 1
        assert set(json.loads(out)["error"]) == {"type", "message"}

    async def test_an_id_that_cannot_be(self, run) -> None:
        status, _, err = await run("cancel", "..")
        assert (status, err.count("\n")) == (2, 1)
        assert "cannot be a response id" in err

    async def test_an_id_that_looks_like_an_option(self, run) -> None:
        status, _, err = await run("cancel", "--", "-x")
        assert (status, "'-x' not found" in err) == (1, True)

    async def test_credentials(self, run, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        server.faults.append(Fault(status=401, body={"error": {"message": "Bad key."}}))
        status, _, err = await run("cancel", "x")
        assert (status, "401: Bad key." in err) == (3, True)
        monkeypatch.delenv("OPENAI_API_KEY")
        status, _, err = await run("cancel", "x")
        assert (status, "set OPENAI_API_KEY" in err) == (3, True)

    async def test_another_server(self, run, monkeypatch: pytest.MonkeyPatch, server: Emulator) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
        assert (await run("cancel", "x", "--base-url", server.base_url))[0] == 1
        assert len(server.received) == 1
        status, _, err = await run("cancel", "x", "--base-url", "ftp://x")
        assert (status, "base_url must be an http" in err) == (3, True)


class TestStop:
    async def test_json_into_a_pipe(self, run, create) -> None:
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

    async def test_all_stopped(self, run, create) -> None:
        identifier = create()
        status, out, err = await run("stop", identifier, "--quiet", "--deadline", "5", "--confirm", "0.01")
        assert (status, out, err) == (0, "", "")

    async def test_dry_run(self, run, server: Emulator, create) -> None:
        status, out, _ = await run("stop", "--dry-run", create())
        assert (status, json.loads(out)["verdict"]) == (1, "still_running")
        status, out, _ = await run("status", create(runs_for=0))
        assert (status, json.loads(out)["status"]) == (0, "completed")
        assert {request.method for request in server.received} == {"GET"}

    async def test_a_file(self, run, create, tmp_path: Path) -> None:
        identifiers = [create() for _ in range(100)]
        file = tmp_path / "ids.csv"
        file.write_text("response_id,x\n" + "".join(f"{name},1\n" for name in identifiers) + "..,2\n")
        status, out, err = await run("stop", "-f", str(file))
        assert status == 1
        assert {json.loads(line)["id"] for line in out.splitlines()} == set(identifiers)
        assert f"openai-cancel: {file}, line 102: '..' cannot be a response id\n" in err
        assert "bad lines" in err

    async def test_standard_input(self, server: Emulator, create) -> None:
        process = await asyncio.create_subprocess_exec(
            COMMAND, "stop", "-", env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        for _ in range(3):  # it answers to each line as it comes
            identifier = create()
            process.stdin.write(f"{identifier}\n".encode())
            assert json.loads(await process.stdout.readline())["id"] == identifier
        process.stdin.close()
        assert await process.wait() == 0

    async def test_resume(self, run, server: Emulator, create, tmp_path: Path) -> None:
        log = tmp_path / "log"
        first, second = create(), create()
        assert (await run("stop", first, "resp_none", "--log", str(log), "--resume"))[0] == 1
        server.received.clear()
        status, out, err = await run("stop", first, second, second, "resp_none", "--log", str(log), "--resume")
        assert status == 1
        assert sorted({json.loads(line)["id"] for line in out.splitlines()}) == sorted([second, "resp_none"])
        assert "stopped before" in err
        assert not any(first in request.path for request in server.received)
        assert (await run("stop", first, second, "--log", str(log), "--resume", "-q"))[0] == 0

    async def test_a_run_that_was_killed_goes_on(self, run, server: Emulator, create, tmp_path: Path) -> None:
        identifiers = [create() for _ in range(300)]
        file, log = tmp_path / "ids", tmp_path / "log"
        file.write_text("\n".join(identifiers))
        arguments = ["stop", "--file", str(file), "--log", str(log), "--resume"]
        process = await asyncio.create_subprocess_exec(
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

    async def test_a_key_that_is_refused_is_not_tried_for_ever(self, run, server: Emulator, create) -> None:
        server.faults += [Fault(status=401, body={"error": {"message": "Bad key."}})] * 200
        status, out, err = await run("stop", *[create() for _ in range(100)], "--concurrency", "4")
        assert status == 3
        assert 1 <= out.count("\n") < 10
        assert err.count("The key is refused, and no more ids are tried.") == 1

    async def test_a_log_that_cannot_be_written(self, server: Emulator, create, tmp_path: Path) -> None:
        log = tmp_path / "log"
        done = await asyncio.to_thread(
            subprocess.run, ["sh", "-c", 'ulimit -f 0; trap "" XFSZ; exec "$@"', "sh", COMMAND, "stop", create(),
            "--log", str(log)], env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url},
            capture_output=True, check=False,
        )  # fmt: skip
        assert (done.returncode, json.loads(done.stdout)["stopped"]) == (1, True)
        assert b"the log is not complete from here on: File too large" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "Give ids, or --file, or - for the standard input."),
            (["x", "--resume"], "--resume needs the --log of the run before."),
            (["x", ".."], "'..' cannot be a response id"),
            (["--file", "/none"], "/none: No such file or directory"),
            (["x", "--log", "/dev/null"], "/dev/null: a log must be a regular file"),
            (["x", "--concurrency", "0"], "Must be >= 1"),
            (["x", "--deadline", "0"], "greater than 0"),
        ],
    )
    async def test_usage(self, run, server: Emulator, arguments: list[str], words: str) -> None:
        status, out, err = await run("stop", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err
        assert not server.received


async def test_a_cancel_that_no_signal_sent(server: Emulator, create) -> None:
    server.faults.append(Fault(delay=math.inf))
    run = commands._Run(Report(as_json=False, quiet=True, each=True), None, None)
    session = AsyncSession(base_url=server.base_url, api_key=KEY)
    with Source([create()], [], complain=print, passes=run.passes) as run.source:
        task = asyncio.create_task(run.run(session, session.stop_many))
        await until(lambda: server.received)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert run.status == 0  # of nothing


class Terminal:
    """A command on a terminal of its own, with keys to press and a screen to read."""

    def __init__(self, *arguments: str, columns: int = 100, **environment: str) -> None:
        self._arguments = arguments
        self._environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
        self.screen = ""

    async def __aenter__(self) -> Self:
        self._keys, terminal = os.openpty()
        self.process = await asyncio.create_subprocess_exec(
            # Who leads a session and opens a terminal is controlled by it.
            "sh", "-c", 'exec "$@" 0<>"$0" 1>&0 2>&0', os.ttyname(terminal), COMMAND, *self._arguments,
            env=self._environment, start_new_session=True,
        )  # fmt: skip
        asyncio.get_running_loop().add_reader(self._keys, self._read)
        self._terminal = terminal
        return self

    def _read(self) -> None:
        self.screen += os.read(self._keys, 65536).decode()

    async def __aexit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        asyncio.get_running_loop().remove_reader(self._keys)
        os.close(self._keys)
        os.close(self._terminal)

    def press(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    async def shows(self, words: str) -> None:
        await until(lambda: words in self.screen)

    async def end(self) -> int:
        status = await self.process.wait()
        await asyncio.sleep(0.01)
        return status


class TestTerminal:
    @pytest.fixture(autouse=True)
    def environment(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

    async def test_a_few(self, create) -> None:
        running, over = create(), create(runs_for=0)
        async with Terminal("stop", running, over, "resp_[red]") as terminal:
            assert await terminal.end() == 1
        assert f"{running}  cancelled\r\n" in terminal.screen
        assert f"{over}  already finished (completed)\r\n" in terminal.screen
        assert "resp_[red]  not found: 404: Response with id 'resp_[red]' not found." in terminal.screen

    async def test_a_file(self, server: Emulator, create, tmp_path: Path) -> None:
        server.faults += [Fault()] * 5 + [Fault(delay=0.3)] * 3
        file = tmp_path / "ids"
        file.write_text("\n".join(["# some", *(create() for _ in range(8)), "resp_none", "two words"]))
        async with Terminal("stop", "--file", str(file)) as terminal:
            assert await terminal.end() == 1
        assert "━" in terminal.screen
        assert "under way" in terminal.screen
        assert "/s" in terminal.screen
        assert "resp_none  not found" in terminal.screen
        assert "line 11: holds a space" in terminal.screen
        assert re.search(r"in all +9", terminal.screen)
        assert "\x1b[32m" in terminal.screen  # green

    async def test_no_colour(self, create) -> None:
        async with Terminal("stop", create(), NO_COLOR="1") as terminal:
            assert await terminal.end() == 0
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", terminal.screen)

    @pytest.mark.parametrize("arguments", [["--quiet"], ["--json"]])
    async def test_no_bar(self, create, arguments: list[str]) -> None:
        async with Terminal("stop", create(), *arguments) as terminal:
            assert await terminal.end() == 0
        assert "\x1b" not in terminal.screen.replace("\x1b[32mcancelled", "").replace("\x1b[0m", "").replace(
            "\x1b[2m", ""
        )
        assert ("{" in terminal.screen) == (arguments == ["--json"])

    async def test_ctrl_c_finishes_what_is_under_way(self, server: Emulator, create, tmp_path: Path) -> None:
        server.faults += [Fault(delay=0.5)] * 4
        identifiers = [create() for _ in range(100)]
        log = tmp_path / "log"
        async with Terminal("stop", *identifiers, "--concurrency", "4", "--log", str(log)) as terminal:
            await until(lambda: len(server.received) == 4)
            terminal.press("\x03")
            await terminal.shows("finishing the 4 that are under way; Ctrl-C again leaves at once")
            assert await terminal.end() == 130
        assert {json.loads(line)["id"] for line in log.read_text().splitlines()} == set(identifiers[:4])
        assert len(server.received) == 4
        assert re.search(r"in all +4", terminal.screen)

    async def test_a_second_ctrl_c_leaves_at_once(self, server: Emulator, create) -> None:
        server.faults += [Fault(delay=math.inf)] * 4
        async with Terminal("stop", *[create() for _ in range(100)], "--concurrency", "4") as terminal:
            await until(lambda: len(server.received) == 4)
            terminal.press("\x03")
            await terminal.shows("finishing")
            terminal.press("\x03")
            assert await terminal.end() == 130
        assert re.search(r"in all +0", terminal.screen)

    async def test_sigterm_finishes_too(self, server: Emulator, create) -> None:
        server.faults += [Fault(delay=0.2)] * 2
        async with Terminal("stop", "-", "--json") as terminal:
            terminal.press(f"{create()}\n{create()}\n")
            await until(lambda: len(server.received) == 2)
            terminal.process.terminate()
            assert await terminal.end() == 143
        assert terminal.screen.count('"stopped":true') == 2

    async def test_a_key_that_is_asked_for(self, server: Emulator, create) -> None:
        async with Terminal("stop", create(), "--ask-key", "--quiet", OPENAI_API_KEY="") as terminal:
            await terminal.shows("API key: ")
            terminal.press("sk-typed-by-hand\n")
            assert await terminal.end() == 0
        assert server.received[0].headers["authorization"] == "Bearer sk-typed-by-hand"
        assert "typed" not in terminal.screen

    async def test_ctrl_c_at_the_question(self) -> None:
        async with Terminal("stop", "x", "--ask-key") as terminal:
            await terminal.shows("API key: ")
            terminal.press("\x03")
            assert await terminal.end() == 130


class TestWait:
    async def test_until_they_are_over(self, run, create) -> None:
        over, cut = create(runs_for=0), create(runs_for=0, becomes="incomplete")
        status, out, err = await run("wait", over, cut)
        assert (status, sorted(out.splitlines()), err) == (
            0, sorted([f"{over}  completed", f"{cut}  incomplete"]), ""
        )  # fmt: skip
        status, out, _ = await run("wait", over, "--json")
        assert json.loads(out)["response"]["status"] == "completed"

    async def test_too_long(self, run, server: Emulator, create) -> None:
        running = create()
        status, _, err = await run("wait", running, "--timeout", "0.1", "--on-abandon", "leave")
        assert (status, server.responses[running].cancelled) == (1, None)
        assert f"openai-cancel: '{running}': " in err
        status, out, _ = await run("wait", running, "--timeout", "0.1", "--json")
        assert (status, json.loads(out)["error"]["type"]) == (1, "WaitTimeoutError")
        assert server.responses[running].cancelled

    async def test_ctrl_c_stops_them(self, server: Emulator, create) -> None:
        identifiers = [create(), create()]
        process = await asyncio.create_subprocess_exec(
            COMMAND, "wait", *identifiers, "--base-url", server.base_url,
            env={**os.environ, "OPENAI_API_KEY": KEY}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await until(lambda: len(server.received) >= 2)
        server.faults += [Fault(on="cancel", status=400), Fault(on="retrieve", status=400)]
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 130
        assert [server.responses[name].cancelled for name in identifiers].count(None) == 1
        assert re.search(rb"openai-cancel: resp_\w+ was not stopped \(unknown: 400", err), err

    async def test_usage(self, run) -> None:
        assert (await run("wait"))[0] == 2
        assert (await run("wait", ".."))[0] == 2


class TestConnection:
    async def test_a_key_from_a_file(self, run, server: Emulator, create, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text("sk-from-a-file\n")
        assert (await run("cancel", create(), "--key-file", str(file)))[0] == 0
        assert server.received[0].headers["authorization"] == "Bearer sk-from-a-file"

    @pytest.mark.parametrize(
        ("content", "words"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "is no text")]
    )
    async def test_a_file_without_a_key(self, run, tmp_path: Path, content: bytes, words: str) -> None:
        file = tmp_path / "key"
        file.write_bytes(content)
        status, _, err = await run("cancel", "x", "--key-file", str(file))
        assert (status, err) == (3, f"openai-cancel: The key cannot be read: {file} {words}.\n")

    async def test_azure(self, run, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
        endpoint = server.base_url.removesuffix("/v1")
        await run("cancel", "x", "--azure", endpoint, "--api-version", "2025-03-01-preview")
        assert server.received[0].headers["api-key"] == KEY
        assert "api-version=2025-03-01-preview" in server.received[0].path

    async def test_organization_and_project(self, run, server: Emulator, create) -> None:
        await run("cancel", create(), "--organization", "org-1", "--project", "proj-1")
        headers = server.received[0].headers
        assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "proj-1")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--api-key", "sk-oh-no"], "can be read in the list of processes"),
            (["--key-file", "/none"], "The key cannot be read: /none: No such file or directory."),
            (["--api-version", "x"], "--api-version is for --azure."),
            (["--azure", "https://x", "--base-url", "y"], "--azure goes without --base-url"),
            (["--ask-key"], "--ask-key needs a terminal"),
        ],
    )
    def test_what_cannot_work(self, arguments: list[str], words: str) -> None:
        done = subprocess.run(
            [COMMAND, "stop", "x", *arguments], capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, "OPENAI_API_KEY": KEY},
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
        assert words in done.stderr
        assert "sk-oh-no" not in done.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_shell_completes_it(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": shutil.which("bash")}
    subprocess.run([COMMAND, "--install-completion"], env=environment, check=True, capture_output=True)
    (script,) = tmp_path.rglob("bash-completion/completions/openai-cancel")
    function = subprocess.run(
        ["bash", "-c", f". {script}; complete -p openai-cancel"],
        env=environment, check=True, capture_output=True, text=True,
    ).stdout.split("-F ")[1].split()[0]  # fmt: skip
    ask = f'. {script}; COMP_WORDS=(openai-cancel st); COMP_CWORD=1; {function}; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], env=environment, check=True, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == ["status", "stop"]


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
    async def test_what_is_wrong_is_one_line(self, run, arguments: list[str], words: str) -> None:
        status, out, err = await run(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err

    @pytest.mark.parametrize("arguments", [["--help"], [], ["cancel", "--help"]])
    async def test_help(self, run, arguments: list[str]) -> None:
        status, out, _ = await run(*arguments)
        assert status == 0
        assert "Exit status: 0 all stopped" in out

    async def test_version(self, run) -> None:
        assert await run("--version") == (0, "1.0.0\n", "")


async def test_demo(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # which it does not need
    status, out, err = await run("demo")
    assert (status, err) == (0, "")
    states = [line.split()[-1] for line in out.splitlines() if line.startswith(("create", "session."))]
    assert states == ["queued", "in_progress", "cancelled", "cancelled", "response."]
    assert "400 Cannot cancel a completed response." in out
    assert "before  Response(id='resp_" in out


async def test_emulate_until_ctrl_c() -> None:
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        "emulate",
        "--port",
        "0",
        "--runs-for",
        "5",
        "--dialect",
        "mistralrs",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    line = (await process.stdout.readline()).decode()
    settings = dict(part.split("=") for part in line.split())
    done = await asyncio.to_thread(
        subprocess.run,
        [COMMAND, "cancel", "resp_none"],
        env={**os.environ, **settings},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"Response with id 'resp_none' not found" in done.stderr
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"openai-cancel: interrupted\n")


async def test_emulate_on_a_port_that_is_taken(run, server: Emulator) -> None:
    port = server.base_url.removesuffix("/v1").rpartition(":")[2]
    status, _, err = await run("emulate", "--port", port)
    assert status == 3
    assert err.startswith("openai-cancel: The emulator cannot listen there:")
    assert err.count("\n") == 1


async def test_ctrl_c_during_a_cancel(server: Emulator) -> None:
    server.faults.append(Fault(delay=float("inf")))
    process = await asyncio.create_subprocess_exec(
        COMMAND, "cancel", "x", "--base-url", server.base_url,
        env={**os.environ, "OPENAI_API_KEY": KEY}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await until(lambda: server.received)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"openai-cancel: interrupted\n")


async def test_a_reader_that_leaves_early(server: Emulator, create) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = await asyncio.to_thread(
        subprocess.run, [COMMAND, "cancel", create(), create(), "--base-url", server.base_url],
        env={**os.environ, "OPENAI_API_KEY": KEY}, stdout=writing, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"openai-cancel: the output is lost from here on: Broken pipe\n")
    assert all(work.cancelled for work in server.responses.values())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([COMMAND, "demo"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"openai-cancel: cannot write: No space left on device\n")


@pytest.mark.parametrize("module", ["openai_cancel", "openai_cancel.cli"])
def test_as_a_module(python: str, module: str) -> None:
    done = subprocess.run([python, "-m", module, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1.0.0\n")


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "2>&1 >/dev/full", ">&- 2>&-"])
async def test_complaints_that_nobody_can_read(server: Emulator, create, closed: str) -> None:
    ids = [create(), create()]
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", f'"$@" {closed}', "sh", COMMAND, "cancel", "resp_none", *ids],
        env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert all(server.responses[identifier].cancelled for identifier in ids)


async def test_words_that_the_terminal_cannot_show(server: Emulator, create) -> None:
    server.faults.append(Fault(status=200, body=b'{"id": "x", "status": "d\\u00e9j\\u00e0 \\ud800"}'))
    identifier = create()
    done = await asyncio.to_thread(
        subprocess.run, [COMMAND, "cancel", "x", identifier],
        env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url, "PYTHONIOENCODING": "ascii"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.stdout.decode().splitlines() == ["x  d\\xe9j\\xe0 \\ud800", f"{identifier}  cancelled"]
    assert (done.returncode, done.stderr) == (1, b"")


async def test_json_is_json(run, server: Emulator) -> None:
    server.faults += [
        Fault(status=200, body=b'{"id": "x", "status": "completed", "top_p": NaN}'),
        Fault(status=200, body=b'{"id": "x", "status": "completed", "user": "\\ud800"}'),
    ]
    _, out, _ = await run("cancel", "x", "y", "--json")
    first, second = map(orjson.loads, out.replace("\\ud800", "half").splitlines())
    assert (first["response"]["top_p"], second["response"]["user"]) == (None, "half")


async def test_emulate_at_a_name_that_is_none(run) -> None:
    status, _, err = await run("emulate", "--host", "a" * 70)
    assert (status, err.count("\n")) == (3, 1)


def test_main_takes_the_arguments_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["openai-cancel", "--version"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0


def test_without_its_extra_it_says_what_to_install(python: str) -> None:
    script = "import sys; sys.modules['cyclopts'] = None; import openai_cancel.cli"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == "openai-cancel: cyclopts is not installed: pip install 'openai-cancel[cli]'\n"


class TestRough:
    """What a shell, a system or a file may do to a run."""

    async def shell(self, script: str, *arguments: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", script, COMMAND, *arguments],
            env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    @pytest.mark.usefixtures("run")
    async def test_nowhere_to_write(self, create) -> None:
        """What was done is done, and the status says so, whoever reads of it."""
        for script in ('"$0" stop "$1" >&-', '"$0" stop "$1" 2>/dev/full', '"$0" stop "$1" --quiet >/dev/full 2>&1'):
            assert (await self.shell(script, create()))[0] == 0

    @pytest.mark.usefixtures("run")
    async def test_the_log_of_a_run_is_not_its_input(self, create, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text(json.dumps({"id": create(), "stopped": False}) + "\n")
        status, _, err = await self.shell('"$0" stop --file "$1" --log "$1" --resume', str(log))
        assert (status, err) == (2, f"openai-cancel: {log} is read from already: give --log another file.\n")
        other = tmp_path / "other"
        other.touch()
        assert (await self.shell('"$0" stop --file "$1" --log "$2"', str(log), str(other)))[0] == 0

    async def test_a_carriage_return_in_the_first_line(self, run, create, tmp_path: Path) -> None:
        file = tmp_path / "ids"
        file.write_bytes(b"resp_a\rb\n" + create().encode())
        status, out, err = await run("stop", "--file", str(file), "--json")
        assert (status, len(out.splitlines()), "line 1" in err) == (1, 1, True)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.usefixtures("run")
    async def test_a_signal_stops_what_is_waited_for(self, server: Emulator, create, number: int) -> None:
        identifier = create()
        process = await asyncio.create_subprocess_exec(
            COMMAND, "wait", identifier, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        await until(lambda: server.received)
        process.send_signal(number)
        _, err = await process.communicate()
        assert (process.returncode, err) == (128 + number, b"")
        assert server.responses[identifier].cancelled

    async def test_a_minus_is_the_standard_input_only_where_ids_are_read(self, run) -> None:
        status, _, err = await run("cancel", "-")
        assert (status, err.count("\n"), "Unknown option" in err) == (2, 1, True)
        assert (await run("stop", "--log", "-"))[0] == 2
        assert (await run())[0] == 0

    @pytest.mark.usefixtures("run")
    async def test_a_server_does_not_write_on_the_terminal(self, server: Emulator, create) -> None:
        words = "\x1b]0;owned\x07\n\x1b[2J"
        server.faults += [Fault(on="retrieve", status=403, body={"error": {"message": words}})]
        server.faults += [Fault(on="cancel", status=403, body={"error": {"message": words}})]
        status, _, err = await self.shell('"$0" wait "$1"', create())
        assert (status, err.count("\n"), "\x1b" in err) == (3, 1, False)

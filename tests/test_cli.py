"""The command: what it prints, and its exit status."""

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

from openai_cancel import cli
from openai_cancel.emulator import Emulator, Fault

COMMAND = str(Path(sys.executable).with_name("openai-cancel"))


@pytest.fixture
def run(server: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in a thread, since it has an event loop of its own; gives status, output, and complaints."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("COLUMNS", "100")

    async def run(*arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(cli.run, arguments)
        return status, *capsys.readouterr()

    return run


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
        assert stopped["response"] == server.works[identifier].document(0)
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
        assert await run("--version") == (0, "0.1.0\n", "")


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
    assert all(work.cancelled for work in server.works.values())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([COMMAND, "demo"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"openai-cancel: cannot write: No space left on device\n")


@pytest.mark.parametrize("module", ["openai_cancel", "openai_cancel.cli"])
def test_as_a_module(python: str, module: str) -> None:
    done = subprocess.run([python, "-m", module, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0.1.0\n")


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "2>&1 >/dev/full", ">&- 2>&-"])
async def test_complaints_that_nobody_can_read(server: Emulator, create, closed: str) -> None:
    ids = [create(), create()]
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", f'"$@" {closed}', "sh", COMMAND, "cancel", "resp_none", *ids],
        env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert all(server.works[identifier].cancelled for identifier in ids)


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

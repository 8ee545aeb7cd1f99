"""The command `wait`."""

import asyncio
import importlib
import json
import math
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import KEY, until
from processes import StartProcess
from terminal import COMMAND

from openai_cancel.emulator import Emulator, Fault


async def test_responses_that_end_are_shown_with_their_status(run, create) -> None:
    over, cut = create(runs_for=0), create(runs_for=0, becomes="incomplete")
    status, out, err = await run("wait", over, cut)
    assert (status, sorted(out.splitlines()), err) == (0, sorted([f"{over}  completed", f"{cut}  incomplete"]), "")
    status, out, _ = await run("wait", over, "--json")
    assert json.loads(out)["response"]["status"] == "completed"


async def test_a_response_that_takes_too_long_is_stopped_unless_told_to_leave_it(run, server: Emulator, create) -> None:
    running = create()
    status, _, err = await run("wait", running, "--timeout", "0.1", "--on-abandon", "leave")
    assert (status, server.responses[running].cancelled) == (1, None)
    assert f"openai-cancel: '{running}': " in err
    status, out, _ = await run("wait", running, "--timeout", "0.1", "--json")
    assert (status, json.loads(out)["error"]["type"]) == (1, "WaitTimeoutError")
    assert server.responses[running].cancelled


@pytest.mark.slow
async def test_ctrl_c_stops_the_responses_and_says_which_were_stopped(
    server: Emulator, create, start_process: StartProcess
) -> None:
    identifiers = [create(), create()]
    process = await start_process(
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
    assert re.search(rb"openai-cancel: resp_\w+ was stopped \(cancelled\) when the wait ended", err), err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("run")
async def test_a_signal_stops_the_response(server: Emulator, create, number: int, start_process: StartProcess) -> None:
    identifier = create()
    process = await start_process(COMMAND, "wait", identifier, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    await until(lambda: server.received)
    process.send_signal(number)
    _, err = await process.communicate()
    said = f"openai-cancel: {identifier} was stopped (cancelled) when the wait ended\n"
    assert (process.returncode, err.decode()) == (128 + number, said)
    assert server.responses[identifier].cancelled


async def test_a_time_out_says_of_each_response_whether_it_was_stopped(run, server: Emulator, create) -> None:
    running = create()
    status, out, err = await run("wait", running, "--timeout", "0.1")
    assert (status, out) == (1, "")
    assert "did not end within 0.1 s" in err
    assert "It was stopped (cancelled)." in err
    server.faults += [Fault(on="cancel", status=403)] * 9
    _, _, err = await run("wait", create(), "--timeout", "0.1")
    assert "It was not stopped (forbidden: 403" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cancel", "fate"), [(200, "It was stopped (cancelled)."), (403, "It was not stopped (forbidden")]
)
async def test_a_server_that_refuses_the_looks_has_the_response_stopped(
    run, server: Emulator, create, cancel: int, fate: str
) -> None:
    server.faults += [Fault(on="retrieve", status=403)] * 3
    if cancel == 403:
        server.faults += [Fault(on="cancel", status=403), Fault(on="retrieve", status=403)]
    status, _, err = await run("wait", create())
    assert (status, fate in err) == (3, True), err


async def test_a_time_out_reports_the_stop_as_json(run, create) -> None:
    _, out, _ = await run("wait", create(), "--timeout", "0.1", "--json")
    document = json.loads(out)
    assert document["error"]["type"] == "WaitTimeoutError"
    assert document["outcome"] == {"verdict": "cancelled", "stopped": True}
    assert document["status"] == "cancelled"
    _, out, _ = await run("wait", create(), "--timeout", "0.1", "--json", "--on-abandon", "leave")
    assert "outcome" not in json.loads(out)


async def test_a_server_that_does_not_answer_at_first_ends_the_run(
    run, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int, tmp_path: Path
) -> None:
    module = importlib.import_module("openai_cancel.cli.wait")  # `cli.wait` is a function, too
    monkeypatch.setattr(module, "GIVE_UP_AFTER", 0.1)
    log = tmp_path / "log"
    base_url = f"http://127.0.0.1:{unused_tcp_port}/v1"
    status, _, err = await run("wait", "resp_1", "resp_2", "--log", str(log), "--base-url", base_url)
    assert (status, log.read_text()) == (1, "")  # so that --resume tries all of them
    assert err.endswith("Connection refused. The remaining ids are not tried.\n")


async def test_without_ids_or_with_an_invalid_id_it_is_a_usage_error(run) -> None:
    assert (await run("wait"))[0] == 2
    assert (await run("wait", ".."))[0] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("run")
async def test_a_message_of_the_server_cannot_control_the_terminal(server: Emulator, create) -> None:
    words = "\x1b]0;owned\x07\n\x1b[2J"
    server.faults += [Fault(on="retrieve", status=403, body={"error": {"message": words}})] * 3
    server.faults += [Fault(on="cancel", status=403, body={"error": {"message": words}})]
    done = await asyncio.to_thread(
        subprocess.run, [COMMAND, "wait", create()], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr.count("\n"), "\x1b" in done.stderr) == (3, 1, False)


class TestFiles:
    async def test_into_a_pipe_the_ends_of_responses_of_a_file_are_json_lines(
        self, run, create, tmp_path: Path
    ) -> None:
        over, cut = create(runs_for=0), create(runs_for=0, becomes="incomplete")
        file = tmp_path / "ids"
        file.write_text(f"{over}\n{cut}\n\ntwo words\n")
        status, out, err = await run("wait", "--file", str(file))
        documents = {document["id"]: document for document in map(json.loads, out.splitlines())}
        assert (status, documents.keys()) == (1, {over, cut})
        assert {name: (each["status"], each["stopped"]) for name, each in documents.items()} == {
            over: ("completed", True),
            cut: ("incomplete", True),
        }
        assert documents[over]["response"]["id"] == over
        assert f"{file}, line 4: contains a space" in err
        assert "completed 1 incomplete 1 bad lines 1 in all 2 in " in " ".join(err.split())

    @pytest.mark.slow
    async def test_ids_can_come_through_a_pipe(self, server: Emulator, create, start_process: StartProcess) -> None:
        process = await start_process(
            COMMAND, "wait", "-", "--quiet", "--json",
            env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        for _ in range(2):
            identifier = create(runs_for=0)
            process.stdin.write(f"{identifier}\n".encode())
            assert json.loads(await process.stdout.readline())["id"] == identifier
        process.stdin.close()
        assert (await process.stderr.read(), await process.wait()) == (b"", 0)

    async def test_a_resumed_run_waits_only_for_responses_that_had_not_ended(
        self, run, server: Emulator, create, tmp_path: Path
    ) -> None:
        over, stopped, left = create(runs_for=0), create(), create()
        log = tmp_path / "log"
        arguments = ("--log", str(log), "--resume", "--timeout", "0.1")
        assert (await run("wait", over, *arguments[:3]))[0] == 0
        assert (await run("wait", stopped, *arguments))[0] == 1
        assert (await run("wait", left, *arguments, "--on-abandon", "leave"))[0] == 1
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [(line["id"], line["stopped"]) for line in lines] == [(over, True), (stopped, True), (left, False)]
        server.received.clear()
        status, out, _ = await run("wait", over, stopped, left, *arguments, "--on-abandon", "leave", "--json")
        assert (status, [json.loads(line)["id"] for line in out.splitlines()]) == (1, [left])
        assert all(left in request.path for request in server.received)

    async def test_the_log_of_a_wait_can_be_resumed_by_stop(
        self, run, server: Emulator, create, tmp_path: Path
    ) -> None:
        over, running = create(runs_for=0), create()
        log = tmp_path / "log"
        await run("wait", over, "--log", str(log))
        await run("wait", running, "--log", str(log), "--timeout", "0.1", "--on-abandon", "leave")
        status, out, _ = await run("stop", over, running, "--log", str(log), "--resume")
        assert (status, [json.loads(line)["id"] for line in out.splitlines()]) == (0, [running])
        assert server.responses[running].cancelled

    async def test_a_key_that_the_server_rejects_ends_the_run(self, run, server: Emulator, create) -> None:
        server.faults += [Fault(status=401, body={"error": {"message": "Bad key."}})] * 200
        status, _, err = await run("wait", *[create() for _ in range(20)], "--concurrency", "2")
        assert status == 3
        assert err.count("The server rejects the key. The remaining ids are not tried.") == 1
        assert err.count("401: Bad key.") < 10


class TestLimits:
    @pytest.mark.parametrize(
        ("limit", "words"),
        [
            ("--queued-timeout", "was still queued after 0.05 s (--queued-timeout). It was stopped (cancelled)."),
            ("--stalled-timeout", "made no progress for 0.05 s (--stalled-timeout)"),
        ],
    )
    async def test_a_limit_is_named_by_its_option(self, run, create, limit: str, words: str) -> None:
        status, out, err = await run("wait", create(queued_for=math.inf), limit, "0.05", "--poll", "0.25")
        assert (status, out, words in err) == (1, "", True)
        _, out, _ = await run("wait", create(queued_for=math.inf), limit, "0.05", "--poll", "0.25", "--json")
        assert f"({limit})" in json.loads(out)["error"]["message"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "No ids: pass ids, or use --file, or - for standard input."),
            (["x", "--resume"], "--resume requires the --log of the earlier run."),
            (["x", "--timeout", "-1"], "greater than 0"),
            (["x", "--timeout", "nan"], "greater than 0"),
            (["x", "--poll", "0.2"], "--poll must be at least 0.25 s, not 0.2."),
            (["x", "--poll", "inf"], "--poll must be finite"),
            (["x", "--queued-timeout", "0"], "greater than 0"),
            (["x", "--queued-timeout", "inf"], "--queued-timeout must be finite"),
            (["x", "--stalled-timeout", "inf"], "--stalled-timeout must be finite"),
            (
                ["x", "--timeout", "1m", "--queued-timeout", "2m"],
                "--queued-timeout (120 s) must not be longer than --timeout (60 s).",
            ),
            (
                ["x", "--timeout", "1", "--stalled-timeout", "2"],
                "--stalled-timeout (2 s) must not be longer than --timeout (1 s).",
            ),
            (["x", "--concurrency", "0"], "Must be >= 1"),
        ],
    )
    async def test_a_limit_that_cannot_work_is_a_usage_error_that_names_its_option(
        self, run, server: Emulator, arguments: list[str], words: str
    ) -> None:
        status, out, err = await run("wait", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err
        assert "_timeout" not in err
        assert not server.received


class TestSignals:
    """Ctrl-C and SIGTERM end all waits. Each response is reported and logged."""

    @pytest.fixture
    async def interrupt(self, server: Emulator, start_process: StartProcess):
        async def interrupt(*arguments: str, after: int) -> tuple[int, list[dict], str]:
            process = await start_process(
                COMMAND, "wait", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url},
            )  # fmt: skip
            await until(lambda: len(server.received) >= after)
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
            return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()

        return interrupt

    @pytest.mark.slow
    async def test_the_responses_of_a_file_are_stopped_reported_and_logged(
        self, server: Emulator, create, tmp_path: Path, interrupt
    ) -> None:
        identifiers = [create() for _ in range(5)]
        file, log = tmp_path / "ids", tmp_path / "log"
        file.write_text("\n".join(identifiers))
        status, documents, err = await interrupt("--file", str(file), "--log", str(log), after=5)
        assert (status, all(server.responses[name].cancelled for name in identifiers)) == (130, True)
        assert {document["id"] for document in documents} == set(identifiers)
        logged = [json.loads(line) for line in log.read_text().splitlines()]
        assert [document | {"at": ""} for document in logged] == [document | {"at": ""} for document in documents]
        document = documents[0]
        assert document["status"] == "cancelled"
        assert document["error"] == {"type": "AbandonedError", "message": "The wait was interrupted."}
        assert (document["stopped"], document["outcome"]) == (True, {"verdict": "cancelled", "stopped": True})
        assert "openai-cancel: stopping the 5 responses that have not ended\n" in err
        assert re.search(r"interrupted +5", err)

    @pytest.mark.slow
    async def test_responses_that_are_to_be_left_run_on(self, server: Emulator, create, interrupt) -> None:
        running = create()
        status, _, err = await interrupt(running, "--on-abandon", "leave", after=1)
        assert (status, err) == (130, f"openai-cancel: {running} was left running\n")
        assert not server.responses[running].cancelled

    @pytest.mark.slow
    async def test_another_signal_does_not_keep_responses_from_being_stopped(
        self, server: Emulator, create, start_process: StartProcess
    ) -> None:
        running = create()
        server.faults.append(Fault(on="cancel", delay=0.3, status=200, body={"id": running, "status": "cancelled"}))
        process = await start_process(
            COMMAND, "wait", running, stderr=subprocess.PIPE,
            env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url},
        )  # fmt: skip
        await until(lambda: server.received)
        process.send_signal(signal.SIGTERM)
        await until(lambda: server.received[-1].method == "POST")
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
        assert (process.returncode, b"was stopped (cancelled)" in err) == (143, True)

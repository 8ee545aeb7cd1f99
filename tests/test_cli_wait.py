"""The command `wait`."""

import asyncio
import json
import os
import re
import signal
import subprocess

import pytest
from conftest import KEY, until
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


async def test_ctrl_c_stops_the_responses_and_says_which_were_stopped(server: Emulator, create) -> None:
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
    assert re.search(rb"openai-cancel: resp_\w+ was stopped \(cancelled\) when the wait ended", err), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("run")
async def test_a_signal_stops_the_response(server: Emulator, create, number: int) -> None:
    identifier = create()
    process = await asyncio.create_subprocess_exec(
        COMMAND, "wait", identifier, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
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


async def test_a_time_out_reports_the_stop_as_json(run, create) -> None:
    _, out, _ = await run("wait", create(), "--timeout", "0.1", "--json")
    document = json.loads(out)
    assert document["error"]["type"] == "WaitTimeoutError"
    assert document["outcome"] == {"verdict": "cancelled", "stopped": True}
    _, out, _ = await run("wait", create(), "--timeout", "0.1", "--json", "--on-abandon", "leave")
    assert "outcome" not in json.loads(out)


async def test_without_ids_or_with_an_invalid_id_it_is_a_usage_error(run) -> None:
    assert (await run("wait"))[0] == 2
    assert (await run("wait", ".."))[0] == 2


@pytest.mark.usefixtures("run")
async def test_a_message_of_the_server_cannot_control_the_terminal(server: Emulator, create) -> None:
    words = "\x1b]0;owned\x07\n\x1b[2J"
    server.faults += [Fault(on="retrieve", status=403, body={"error": {"message": words}})] * 3
    server.faults += [Fault(on="cancel", status=403, body={"error": {"message": words}})]
    done = await asyncio.to_thread(
        subprocess.run, [COMMAND, "wait", create()], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr.count("\n"), "\x1b" in done.stderr) == (3, 1, False)

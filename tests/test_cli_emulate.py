"""The command `emulate`."""

import asyncio
import os
import signal
import subprocess

import pytest
from processes import StartProcess
from terminal import COMMAND

from openai_cancel.emulator import Emulator


@pytest.mark.slow
async def test_the_emulator_runs_until_ctrl_c(start_process: StartProcess) -> None:
    process = await start_process(
        COMMAND, "emulate", "--port", "0", "--runs-for", "5", "--dialect", "mistralrs",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    line = (await process.stdout.readline()).decode()
    settings = dict(part.split("=") for part in line.split())
    done = await asyncio.to_thread(
        subprocess.run,
        [COMMAND, "cancel", "resp_none"],
        env={**os.environ, **settings},
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert b"Response with id 'resp_none' not found" in done.stderr
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"openai-cancel: interrupted\n")


async def test_the_emulator_cannot_listen_on_a_port_that_is_taken(run, server: Emulator) -> None:
    port = server.base_url.removesuffix("/v1").rpartition(":")[2]
    status, _, err = await run("emulate", "--port", port)
    assert status == 3
    assert err.startswith(f"openai-cancel: Cannot listen on 127.0.0.1, port {port}: ")
    assert err.count("\n") == 1


async def test_an_empty_host_is_refused_because_it_would_be_every_address(run, server: Emulator) -> None:
    taken = server.base_url.removesuffix("/v1").rpartition(":")[2]
    said = "openai-cancel: --host must not be empty: for all addresses of this machine, pass 0.0.0.0.\n"
    assert await run("emulate", "--host", "", "--port", taken) == (2, "", said)


async def test_the_emulator_cannot_listen_on_an_invalid_host(run) -> None:
    status, _, err = await run("emulate", "--host", "a" * 70)
    assert (status, err.count("\n")) == (3, 1)
    assert err.startswith("openai-cancel: Cannot listen on aaaa")

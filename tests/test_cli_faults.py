"""The faults, the key and the log of `emulate`."""

import asyncio
import logging
import math
import os
import signal

import aiohttp
import pytest
from conftest import KEY, until
from processes import StartProcess
from terminal import COMMAND

from openai_cancel import AsyncSession
from openai_cancel.cli.exit_status import UsageError
from openai_cancel.cli.faults import read_faults
from openai_cancel.emulator import DIALECTS, Emulator, Fault


@pytest.mark.parametrize(
    ("text", "count", "fields"),
    [
        ("503", 1, {"on": None, "status": 503}),
        ("cancel:503*2", 2, {"on": "cancel", "status": 503}),
        ("retrieve:2s", 1, {"on": "retrieve", "delay": 2.0, "status": None, "cut": None}),
        ("0.5s+429+retry-after=1.5*3", 3, {"delay": 0.5, "status": 429}),
        ("hang", 1, {"delay": math.inf}),
        ("cut", 1, {"cut": "connection", "act": False}),
        ("create:lost", 1, {"on": "create", "cut": "connection", "act": True}),
        ("200+cut-body", 1, {"status": 200, "cut": "body"}),
        ("cut-body", 1, {"status": None, "cut": "body"}),
    ],
)
def test_a_fault_is_read(text: str, count: int, fields: dict[str, object]) -> None:
    faults = read_faults(text)
    assert len(faults) == count
    assert {name: getattr(faults[0], name) for name in fields} == fields


def test_an_answer_has_the_headers_and_the_body_of_its_kind() -> None:
    (failure,), (page,), (redirect,), (busy,) = map(read_faults, ["503", "502+html", "302", "429+retry-after=1.5"])
    assert failure.body["error"]["message"] == "The emulator was told to fail."
    assert page.headers == {"content-type": "text/html"}
    assert "<h1>502</h1>" in page.body
    assert redirect.headers["location"] == "/elsewhere"
    assert (busy.headers["retry-after-ms"], busy.headers["retry-after"]) == ("1500", "2")
    (exact,), (huge,) = (
        read_faults("429+retry-after=1234.567"),
        read_faults(f"{'9' * 400}s+429+retry-after={'9' * 400}"),
    )
    assert exact.headers["retry-after-ms"] == "1234567"
    assert (huge.delay, huge.headers["retry-after"]) == (1e9, "1000000000")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "write [OPERATION:]WHAT[+WHAT][*COUNT], such as cancel:503*2"),
        ("503*", "write [OPERATION:]WHAT[+WHAT][*COUNT], such as cancel:503*2"),
        ("stop:503", "stop is no operation: use create, retrieve, cancel, delete, list, or leave it out for any"),
        ("503*0", "the count must be 1 to 100,000"),
        ("503*999999999", "the count must be 1 to 100,000"),
        ("cancel:5o3", "'5o3' is none of a status such as 503, a delay such as 2s, retry-after=SECONDS, html, hang, "),
        ("cancel:503+", "'' is none of a status such as 503"),
        ("cut+503", "cut sends no answer: leave out the rest"),
        ("hang+lost", "hang sends no answer: leave out the rest"),
        ("html", "html and retry-after need a status, such as 503+html"),
        ("503+404", "404 is the second of its kind: leave out one of them"),
        ("2s+503+3s", "3s is the second of its kind: leave out one of them"),
        ("503+retry-after=1+retry-after=2", "retry-after=2 is the second of its kind: leave out one of them"),
        ("retry-after=2", "html and retry-after need a status, such as 503+html"),
    ],
)
def test_what_is_no_fault_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_faults(text)
    assert str(caught.value).startswith(f"--fault {text}: {problem}")


async def test_a_wrong_fault_and_an_empty_key_are_usage_errors(run) -> None:
    assert await run("emulate", "--fault", "nonsense") == (2, "", f"openai-cancel: {_problem('nonsense')}\n")
    assert (await run("emulate", "--api-key", ""))[2] == "openai-cancel: --api-key must not be empty.\n"


def _problem(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_faults(text)
    return str(caught.value)


async def test_the_help_lists_every_dialect(run) -> None:
    _, out, _ = await run("emulate", "--help")
    assert not {name for name in DIALECTS if name not in out}


class TestRequestLog:
    @pytest.fixture(autouse=True)
    def level(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "openai_emulator")

    async def test_each_request_has_a_line_without_its_key(self, server: Emulator, create, caplog) -> None:
        name = create()
        server.faults += [Fault(on="cancel", status=503, headers={"retry-after-ms": "1"}), Fault(cut="connection")]
        async with AsyncSession(base_url=f"{server.base_url}?token=sk-query", api_key=KEY) as session:
            await session.cancel(name)
        async with aiohttp.ClientSession() as client:
            await client.get(f"{server.base_url}/responses/{name}?stream=false", headers={"api-key": KEY})
            await client.get(f"{server.base_url}/elsewhere?a%0Ab=1", headers={"api-key": KEY})
        path = f"/v1/responses/{name}"
        assert [record.getMessage() for record in caplog.records if record.name == "openai_emulator"] == [
            f"POST {path}/cancel?token=*** 503 (a fault)",
            f"POST {path}/cancel?token=*** cut (a fault)",
            f"POST {path}/cancel?token=*** 200",
            f"GET {path}?stream=false 200",
            "GET /v1/elsewhere?a%0Ab=*** 404",
        ]
        assert KEY not in caplog.text
        assert "sk-query" not in caplog.text

    async def test_a_client_that_leaves_has_a_line(self, server: Emulator, caplog) -> None:
        server.faults.append(Fault(delay=math.inf))
        async with aiohttp.ClientSession() as client:
            with pytest.raises(TimeoutError):
                await client.get(f"{server.base_url}/responses/x", timeout=aiohttp.ClientTimeout(0.1))
        await until(lambda: "GET /v1/responses/x: the client has left before the answer" in caplog.text)


@pytest.mark.slow
async def test_a_wrong_key_and_a_broken_gateway_can_be_tried_without_code(
    python: str, start_process: StartProcess
) -> None:
    script = "from openai_cancel.cli import main; main()"
    emulator = await start_process(
        python, "-c", script, "emulate", "--port", "0", "--api-key", KEY, "--fault", "cancel:502+html",
        "--log-requests", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    variable, _, base_url = (await emulator.stdout.readline()).decode().strip().partition("=")
    environment = {**os.environ, variable: base_url}
    for key, words in ((KEY, b"not_found"), ("wrong", b"forbidden")):
        stop = await start_process(
            COMMAND, "stop", "resp_none", env={**environment, "OPENAI_API_KEY": key},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert words in (await stop.communicate())[0]
    emulator.send_signal(signal.SIGINT)
    _, err = await emulator.communicate()
    assert b"POST /v1/responses/resp_none/cancel 502 (a fault)\n" in err
    assert b"POST /v1/responses/resp_none/cancel 401\n" in err
    assert KEY.encode() not in err

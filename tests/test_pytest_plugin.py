"""The plugin, in runs of pytest of their own, as its users have it.

In the run of this suite it is switched off (`-p no:openai_cancel`, in pyproject.toml): pytest imports plugins before it
measures coverage, and with this one would come the package, whose definitions would count as never run. The runs here
are processes, which coverage's `patch = ["subprocess"]` measures from their first line.
"""

import subprocess

import pytest

import openai_cancel.emulator

pytest_plugins = ["pytester"]

SETTINGS = """
[pytest]
addopts = --strict-markers --strict-config
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

ALL_KINDS = """
import os
import time

import aiohttp
import anyio
import openai
import pytest

from openai_cancel import APIStatusError, AsyncSession, AuthenticationError, ConflictError, Session, Verdict
from openai_cancel.emulator import Fault, Script

USED = []


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_plain(openai_emulator):
    running = openai_emulator.add()
    openai_emulator.faults.append(Fault(status=503, headers={"retry-after-ms": "1"}))
    with Session() as session:
        assert session.cancel(running).status == "cancelled"
    assert openai_emulator.responses[running].status(time.time()) == "cancelled"
    assert [request.path for request in openai_emulator.received] == [f"/v1/responses/{running}/cancel"] * 2
    USED.append(openai_emulator.base_url)


def test_it_is_gone_after_the_test():
    assert not {"OPENAI_BASE_URL", "OPENAI_API_KEY", "NO_PROXY"} & os.environ.keys()
    with pytest.raises(ConnectionRefusedError):
        __import__("socket").create_connection(("127.0.0.1", int(USED[0].split(":")[2].removesuffix("/v1"))))


@pytest.mark.asyncio
async def test_asyncio(openai_emulator):
    running = openai_emulator.add(Script(runs_for=3600))
    async with AsyncSession() as session:
        assert (await session.stop(running)).verdict is Verdict.CANCELLED


@pytest.mark.anyio
async def test_anyio(openai_emulator):
    running = openai_emulator.add()
    async with AsyncSession() as session:
        with anyio.move_on_after(0.01):
            async with session.guard(running):
                await anyio.sleep_forever()
    assert openai_emulator.responses[running].cancelled


def test_the_official_client(openai_emulator):
    with openai.OpenAI() as client:
        created = client.responses.create(model="any", input="hi", background=True, metadata={"runs_for": "0"})
    assert (created.status, list(openai_emulator.responses)) == ("completed", [created.id])


@pytest.mark.openai_emulator(dialect="vllm")
class TestMarkers:
    def test_of_the_class(self, openai_emulator):
        with Session() as session:
            with pytest.raises(APIStatusError, match="Cannot cancel a synchronous response"):
                session.cancel(openai_emulator.add(Script(runs_for=0)))

    @pytest.mark.openai_emulator(dialect="ogx", api_key="right", script=Script(runs_for=0))
    def test_of_the_test(self, openai_emulator):
        with Session() as session, pytest.raises(ConflictError):
            session.cancel(openai_emulator.add())
        with Session(api_key="wrong") as session, pytest.raises(AuthenticationError):
            session.retrieve("resp_any")
"""

MISTAKES = """
import socket

import pytest

TAKEN = socket.create_server(("127.0.0.1", 0))


@pytest.mark.openai_emulator(port=TAKEN.getsockname()[1])
def test_a_port_that_is_taken(openai_emulator): ...


@pytest.mark.openai_emulator(dialect="foo")
def test_no_such_dialect(openai_emulator): ...


@pytest.mark.openai_emulator("vllm")
def test_a_marker_that_does_not_say_what_is_vllm(openai_emulator): ...


def test_the_end():
    TAKEN.close()
"""

UNUSED = """
import sys


def test_not_one_of_it_is_imported():
    assert not {"openai_cancel.emulator", "aiohttp.web_runner"} & sys.modules.keys()
"""


@pytest.fixture(autouse=True)
def settings(pytester: pytest.Pytester) -> None:
    pytester.makeini(SETTINGS)


def test_any_kind_of_test_can_use_it(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # which would answer nothing
    pytester.makepyfile(ALL_KINDS)
    pytester.runpytest_subprocess(timeout=30).assert_outcomes(passed=7)


def test_mistakes_are_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MISTAKES)
    result = pytester.runpytest_subprocess(timeout=30)
    result.assert_outcomes(passed=1, errors=3)
    result.stdout.fnmatch_lines(
        ["E *OSError: *address already in use*", "E *no such dialect: 'foo'*", "E *takes 1 positional argument*"]
    )


def test_who_does_not_use_it_pays_for_no_server(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNUSED)
    pytester.runpytest_subprocess(timeout=30).assert_outcomes(passed=1)


def test_the_plugin_itself_imports_nothing_that_pytest_has_not(python: str) -> None:
    script = """
import sys
from _pytest.config import get_config
get_config()
before = set(sys.modules)
exec(open(sys.argv[1]).read())
assert set(sys.modules) == before, set(sys.modules) - before
"""
    path = openai_cancel.__file__.replace("__init__", "pytest_plugin")
    subprocess.run([python, "-c", script, path], check=True)

"""The pytest plugin, as users run it: each test runs pytest in another process.

The plugin is off in this suite (`-p no:openai_cancel`, in pyproject.toml). pytest imports plugins before coverage
starts, and the plugin imports the package, so all its definitions would count as not covered. Coverage measures the
other processes from their first line (`patch = ["subprocess"]`).
"""

import subprocess
import sys

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
import asyncio
import os
import sys
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


def test_a_blocking_test_uses_the_emulator(openai_emulator):
    running = openai_emulator.add()
    openai_emulator.faults.append(Fault(status=503, headers={"retry-after-ms": "1"}))
    with Session() as session:
        assert session.cancel(running).status == "cancelled"
    assert openai_emulator.responses[running].status(time.time()) == "cancelled"
    assert [request.path for request in openai_emulator.received] == [f"/v1/responses/{running}/cancel"] * 2
    USED.append(openai_emulator.base_url)


def test_the_emulator_is_gone_after_its_test():
    assert not {"OPENAI_BASE_URL", "OPENAI_API_KEY", "NO_PROXY"} & os.environ.keys()
    with pytest.raises(ConnectionRefusedError):
        __import__("socket").create_connection(("127.0.0.1", int(USED[0].split(":")[2].removesuffix("/v1"))))


@pytest.mark.asyncio
async def test_an_asyncio_test_uses_the_emulator(openai_emulator):
    running = openai_emulator.add(Script(runs_for=3600))
    async with AsyncSession() as session:
        assert (await session.stop(running)).verdict is Verdict.CANCELLED


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory came with Python 3.12")
@pytest.mark.asyncio
async def test_an_event_loop_with_eager_tasks_uses_the_emulator(openai_emulator):
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    running = [openai_emulator.add() for _ in range(10)]
    async with AsyncSession() as session:
        outcomes = await asyncio.gather(*map(session.stop, running))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.CANCELLED] * 10


@pytest.mark.anyio
async def test_an_anyio_test_uses_the_emulator(openai_emulator):
    running = openai_emulator.add()
    async with AsyncSession() as session:
        with anyio.move_on_after(0.01):
            async with session.guard(running):
                await anyio.sleep_forever()
    assert openai_emulator.responses[running].cancelled


def test_the_official_client_uses_the_emulator(openai_emulator):
    with openai.OpenAI() as client:
        created = client.responses.create(model="any", input="hi", background=True, metadata={"runs_for": "0"})
    assert (created.status, list(openai_emulator.responses)) == ("completed", [created.id])


@pytest.mark.openai_emulator(dialect="vllm")
class TestMarkers:
    def test_the_marker_of_the_class_applies(self, openai_emulator):
        with Session() as session:
            with pytest.raises(APIStatusError, match="Cannot cancel a synchronous response"):
                session.cancel(openai_emulator.add(Script(runs_for=0)))

    @pytest.mark.openai_emulator(runs_for=0, says="Done.", dialect="openai")
    def test_the_marker_takes_options_of_the_script(self, openai_emulator):
        with Session() as session:
            assert session.retrieve(openai_emulator.add()).output_text == "Done."

    @pytest.mark.openai_emulator(dialect="ogx", api_key="right", script=Script(runs_for=0))
    def test_the_marker_of_the_test_takes_precedence(self, openai_emulator):
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
def test_a_port_in_use(openai_emulator): ...


@pytest.mark.openai_emulator(dialect="foo")
def test_an_unknown_dialect(openai_emulator): ...


@pytest.mark.openai_emulator(rate_limit=0)
def test_a_rate_limit_of_zero(openai_emulator): ...


@pytest.mark.openai_emulator("vllm")
def test_a_positional_argument(openai_emulator): ...


@pytest.mark.openai_emulator(tiemout=3)
def test_an_unknown_option(openai_emulator): ...


@pytest.mark.openai_emulator(runs_for=1, script=None)
def test_a_script_and_its_options(openai_emulator): ...


@pytest.mark.openai_emulator(runs_for=-1)
def test_a_negative_time(openai_emulator): ...


def test_cleanup():
    TAKEN.close()
"""

UNUSED = """
import sys


def test_the_emulator_is_not_imported():
    assert not {"openai_cancel.emulator", "aiohttp.web_runner"} & sys.modules.keys()
"""


SKIPPED = int(sys.version_info < (3, 12))
"""The tests in ALL_KINDS that are skipped on this version of Python."""


@pytest.fixture(autouse=True)
def settings(pytester: pytest.Pytester) -> None:
    pytester.makeini(SETTINGS)


@pytest.mark.slow
def test_every_kind_of_test_can_use_the_fixture(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nothing listens there
    pytester.makepyfile(ALL_KINDS)
    pytester.runpytest_subprocess(timeout=30).assert_outcomes(passed=9 - SKIPPED, skipped=SKIPPED)


@pytest.mark.slow
def test_mistakes_in_the_marker_are_reported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MISTAKES)
    result = pytester.runpytest_subprocess(timeout=30)
    result.assert_outcomes(passed=1, errors=7)
    result.stdout.fnmatch_lines(
        [
            "E *OSError: *address already in use*",
            "E *no such dialect: 'foo'*",
            "E *rate_limit must be a number of requests per second above 0*",
            "openai_emulator takes its options by name, such as dialect='vllm'; got 'vllm'.",
            "openai_emulator has no option 'tiemout': choose among host, port, *, queued_for, runs_for, *",
            "openai_emulator: put runs_for into the script, or leave out script=.",
            "E *'runs_for' must be a number of seconds, 0 or more; got -1*",
        ]
    )


@pytest.mark.slow
def test_the_emulator_is_not_imported_until_a_test_uses_the_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNUSED)
    pytester.runpytest_subprocess(timeout=30).assert_outcomes(passed=1)


def test_the_plugin_imports_no_module_that_pytest_does_not_import(python: str) -> None:
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

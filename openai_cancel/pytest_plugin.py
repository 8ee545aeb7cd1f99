"""A pytest plugin with the fixture `openai_emulator`: a server of the Responses API for your own tests.

pytest imports this module in every run where the package is installed, so the emulator is imported only when a test
asks for the fixture.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from openai_cancel.emulator import Emulator


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, which `--strict-markers` requires."""
    config.addinivalue_line(
        "markers",
        'openai_emulator(dialect="openai", runs_for=60, api_key=None, rate_limit=None, ...): options for the fixture '
        "openai_emulator, the same as for openai_cancel.emulator.Emulator and its Script.",
    )


@pytest.fixture
def openai_emulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[Emulator, None, None]:
    """Run a server of the Responses API for one test, async or not.

    ```python
    @pytest.mark.openai_emulator(dialect="vllm")
    def test_nothing_is_left_running(openai_emulator):
        running = openai_emulator.add()
        with Session() as session:
            session.stop(running)  # in place of your own code
        assert openai_emulator.responses[running].cancelled
    ```

    `OPENAI_BASE_URL` and `OPENAI_API_KEY` point to it during the test, so `AsyncSession()` and `openai.OpenAI()` need
    no arguments. The marker `openai_emulator` takes the options of `openai_cancel.emulator.Emulator` and of its
    `Script`, such as `runs_for=1`; the marker closest to the test applies.

    The server's event loop runs in another thread. Use `add`, `responses`, `faults` and `received` at any time, but
    copy a collection before you iterate over it while requests are in progress.
    """
    from openai_cancel.emulator import Emulator  # imports aiohttp's server, which takes a fifth of a second

    marker = request.node.get_closest_marker("openai_emulator")
    if marker and marker.args:
        pytest.fail(
            f"openai_emulator takes its options by name, such as dialect='vllm'; got {marker.args[0]!r}.", pytrace=False
        )
    options: Mapping[str, Any] = _options(marker.kwargs) if marker else {}
    with _running(Emulator(**options)) as emulator:
        monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", options.get("api_key") or "any")
        # The lower-case name takes precedence where both are set.
        no_proxy = "no_proxy" if "no_proxy" in os.environ else "NO_PROXY"
        monkeypatch.setenv(no_proxy, options.get("host", "127.0.0.1"), prepend=",")
        yield emulator


def _options(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of the emulator, with those of its script in a `Script`."""
    from inspect import signature  # as above

    from openai_cancel.emulator import Emulator, Script

    of_emulator, of_script = signature(Emulator).parameters, signature(Script).parameters
    if unknown := [name for name in given if name not in of_emulator and name not in of_script]:
        known = ", ".join([*of_emulator, *of_script])
        pytest.fail(f"openai_emulator has no option {unknown[0]!r}: choose among {known}.", pytrace=False)
    options = {name: value for name, value in given.items() if name in of_emulator}
    script = {name: value for name, value in given.items() if name in of_script}
    if script and "script" in given:
        pytest.fail(f"openai_emulator: put {next(iter(script))} into the script, or leave out script=.", pytrace=False)
    return {**options, "script": Script(**script)} if script else options


@contextmanager
def _running(emulator: Emulator) -> Generator[Emulator, None, None]:
    """Run the emulator in an event loop in another thread."""
    import asyncio  # not every run of pytest imports this and the next
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    started: Future[None] = Future()
    finished: Future[None] = Future()

    async def serve() -> None:
        async with emulator:
            started.set_result(None)
            await asyncio.wrap_future(finished)

    with ThreadPoolExecutor(1, "openai-emulator") as executor:
        serving = executor.submit(asyncio.run, serve())
        wait({started, serving}, return_when=FIRST_COMPLETED)
        try:
            if started.done():
                yield emulator
        finally:
            finished.set_result(None)
            serving.result()  # raises the error that kept it from listening

"""A plugin of pytest: `openai_emulator`, a server of the Responses API for users' own tests.

pytest imports this module wherever the package is installed, for whatever it runs: what the fixture needs is imported
when a test asks for it.
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
    """Make the marker known, as `--strict-markers` asks."""
    config.addinivalue_line(
        "markers",
        'openai_emulator(dialect="openai", script=None, api_key=None, rate_limit=None, ...): how the fixture '
        "openai_emulator behaves; takes the options of openai_cancel.emulator.Emulator.",
    )


@pytest.fixture
def openai_emulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[Emulator, None, None]:
    """A server of the Responses API, of this test alone, for tests that are async and for those that are not.

    ```python
    @pytest.mark.openai_emulator(dialect="vllm")
    def test_that_nothing_runs_on(openai_emulator):
        running = openai_emulator.add()
        ...
        assert openai_emulator.responses[running].cancelled
    ```

    Its event loop runs in a thread of its own. `OPENAI_BASE_URL` and `OPENAI_API_KEY` lead to it as long as the test
    runs, so that an `AsyncSession()`, or an `openai.OpenAI()`, needs no argument. `add`, `responses`, `faults` and
    `received` can be used from the test at any time; copy what is to be gone through while requests are under way.

    See `openai_cancel.emulator.Emulator`, whose options the marker `openai_emulator` takes; of several markers the
    nearest counts.
    """
    from openai_cancel.emulator import Emulator  # with aiohttp's server, a fifth of a second

    marker = request.node.get_closest_marker("openai_emulator")
    arguments: tuple[Any, ...] = marker.args if marker else ()
    options: Mapping[str, Any] = marker.kwargs if marker else {}
    with _running(Emulator(*arguments, **options)) as emulator:
        monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", options.get("api_key") or "any")
        # What is set in lower case counts before the other.
        no_proxy = "no_proxy" if "no_proxy" in os.environ else "NO_PROXY"
        monkeypatch.setenv(no_proxy, options.get("host", "127.0.0.1"), prepend=",")
        yield emulator


@contextmanager
def _running(emulator: Emulator) -> Generator[Emulator, None, None]:
    """The emulator, in an event loop of its own."""
    import asyncio  # this and the next are not there in every run of pytest
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    opened: Future[None] = Future()
    over: Future[None] = Future()

    async def serve() -> None:
        async with emulator:
            opened.set_result(None)
            await asyncio.wrap_future(over)

    with ThreadPoolExecutor(1, "openai-emulator") as threads:
        serving = threads.submit(asyncio.run, serve())
        wait({opened, serving}, return_when=FIRST_COMPLETED)
        try:
            if opened.done():
                yield emulator
        finally:
            over.set_result(None)
            serving.result()  # raises what kept it from listening

"""Fixtures: an emulator on a real socket, and sessions that do not wait for the clock."""

import asyncio
import gc
import itertools
import logging
import math
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import processes
import pytest
from hypothesis import HealthCheck, settings
from manual_clock import ManualClock
from postgres import Postgres, empty, running

from openai_cancel import AsyncSession, Clock
from openai_cancel.cli.app import run as run_command
from openai_cancel.emulator import DIALECTS, Dialect, Emulator, Fault, Script
from openai_cancel.ledger import Ledger

KEY = "sk-secret-of-the-tests"
SHARED = Path(os.environ.get("OPENAI_CANCEL_SHARED", Path(__file__).parents[2] / "shared"))

# The same examples in each run, so that only a change turns it red; `--hypothesis-profile=default` draws others.
# A busy machine takes its time.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

# A shell starts background jobs with SIGINT ignored, which all processes of the tests would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# In asyncio's debug mode, each future keeps the stack of its creation, which takes a third of the time of the tests.
_walk_stack = traceback.walk_stack
traceback.walk_stack = lambda frame: itertools.islice(_walk_stack(frame), 10)

# It also warns of callbacks that take long, as they do on a busy machine. Tests look at the warnings of the package.
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))

# While modules are imported and tests collected, hardly anything becomes garbage.
gc.disable()

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the recorded bodies in {SHARED.name}")


class QuickClock(Clock):
    """A clock whose sleeps take no time, and that draws the longest back-off.

    Attributes:
        now: the time in seconds, which a test may set.
        slept: the seconds of each sleep.
        drawn: the number that `random` returns.
    """

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.slept: list[float] = []
        self.drawn = 1.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def random(self) -> float:
        return self.drawn


class HastyClock(Clock):
    """A clock in which time is real, and that draws the shortest back-off."""

    def random(self) -> float:
        return 0.0


def hasty_session(**options: Any) -> AsyncSession:
    """A session that tries again at once; time and deadlines are real."""
    return AsyncSession(clock=HastyClock(), **options)


class QuickSession(AsyncSession):
    """A session with a clock that takes no time, which is its attribute `clock`."""

    def __init__(self, **options: Any) -> None:
        self.clock: QuickClock = options.setdefault("clock", QuickClock())
        super().__init__(**options)


@asynccontextmanager
async def emulated(
    dialect: str | Dialect, *, key: str = KEY, replicas: int = 1, **options: Any
) -> AsyncIterator[tuple[Emulator, QuickSession]]:
    """Run an emulator with a dialect, whose cancel takes no real time, and a session with the same clock."""
    clock = QuickClock()
    replies = DIALECTS[dialect] if isinstance(dialect, str) else dialect
    replies = attrs.evolve(replies, cancel_takes=0)
    async with (
        Emulator(api_key=KEY, dialect=replies, replicas=replicas, clock=clock.monotonic) as server,
        QuickSession(api_key=key, base_url=server.base_url, clock=clock, **options) as session,
    ):
        yield server, session


def reported(status: str, **headers: str) -> Fault:
    """Return an answer to a retrieve that reports a status."""
    return Fault(on="retrieve", status=200, body={"id": "resp_x", "status": status}, headers=headers)


def cancels(server: Emulator) -> int:
    """Return the number of cancels that a server has received."""
    return sum(request.method == "POST" for request in server.received)


def notes(error: BaseException) -> list[str]:
    """Return the notes of an exception."""
    return getattr(error, "__notes__", [])


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is so."""
    while not condition():
        await asyncio.sleep(0.001)


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """Check that no task outlives a test, and that its own task has no cancellation left."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(5):
        await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
    assert asyncio.current_task().cancelling() == 0


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "AZURE_OPENAI_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


def pytest_configure(config: pytest.Config) -> None:
    """Check for processes that a test leaves behind. Only a plugin also sees the fixtures of the session."""
    config.pluginmanager.register(processes)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking at thousands of tests again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def clock() -> QuickClock:
    return QuickClock()


@pytest.fixture
async def server(clock: QuickClock) -> AsyncIterator[Emulator]:
    """An emulator whose responses run for ever, with a clock that stands still."""
    async with Emulator(script=Script(runs_for=math.inf), clock=clock.monotonic) as emulator:
        yield emulator


@pytest.fixture
async def session(server: Emulator) -> AsyncIterator[QuickSession]:
    async with QuickSession(api_key=KEY, base_url=server.base_url) as quick:
        yield quick


@pytest.fixture
def create(server: Emulator) -> Callable[..., str]:
    """Put a response into the emulator, running for ever unless told otherwise; gives its id."""

    def create(*, background: bool = True, **script: Any) -> str:
        return server.add(Script(**{"runs_for": math.inf, **script}), background=background)

    return create


@pytest.fixture
def python() -> str:
    return sys.executable


@pytest.fixture
def run(server: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in a thread, since it has an event loop of its own; gives status, output, and complaints."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("COLUMNS", "100")

    async def run(*arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(run_command, arguments)
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    found: str = request.getfixturevalue("postgres").url
    await empty(found)
    return found


@pytest.fixture
def ledger_clock() -> ManualClock:
    """The clock of the `ledger`: its heart beats when a test moves it."""
    return ManualClock()


@pytest.fixture
async def ledger(url: str, ledger_clock: ManualClock) -> AsyncIterator[Ledger]:
    async with Ledger(url, labels={"service": "tests"}, clock=ledger_clock) as opened:
        yield opened

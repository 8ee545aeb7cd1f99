"""The sweeper says what it does, in lines that a person and a machine can read."""

import asyncio
import logging
import sys
from functools import partial

import pytest
from conftest import until
from ledger_database import without_table
from ledgers import open_session
from manual_clock import ManualClock

from openai_cancel.cli.output import complain
from openai_cancel.cli.sweeper import Sweeper, speaking
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger
from openai_cancel.records import fields

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def test_it_says_when_it_begins_and_each_round_and_that_it_is_idle_and_when_the_database_fails_and_works(
    url: str, server: Emulator, create, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "openai_cancel.sweeper")
    clock, seen = ManualClock(), []

    async def after(seconds: float) -> None:
        """Let the sweeper sweep again after some seconds."""
        before = len(clock.slept)
        clock.advance(seconds)
        await until(lambda: len(clock.slept) > before)

    async with Ledger(url, lease=0.1) as ledger, open_session(server, ledger) as session:
        sweeper = Sweeper(partial(ledger.sweep, session), seen.append, 30.0, "a ledger", clock)
        await ledger.track_many([create(), create()], session=session, ttl=0.001)
        await asyncio.sleep(0.01)
        task = asyncio.create_task(sweeper.run())
        await until(lambda: clock.slept)
        await after(30)
        await after(30)
        await after(30)
        async with without_table(url):
            await after(30)
            await after(30)
        await after(30)
        await ledger.track(create(), session=session, ttl=0.001)
        await asyncio.sleep(0.01)
        await after(30)
        task.cancel()
        await asyncio.wait([task])
    assert len(seen) == 3
    failure = "the sweep has failed, and is tried again in 30 s: The ledger's database failed: "
    said = [failure if line.startswith("the sweep has failed") else line for line in caplog.messages]
    assert [line.partition(", and running")[0] for line in said if not line.startswith("claimed")] == [
        "sweeping every 30 s: a ledger",
        "2 responses in 0.0 s: 2 cancelled",
        "nothing to stop for 60 s",
        "the ledger fails",
        failure,
        failure,
        "the ledger works again",
        "1 response in 0.0 s: 1 cancelled",
        "the sweeper ends",
    ]


@pytest.mark.parametrize(("quiet", "terminal"), [(False, False), (True, False), (False, True)])
async def test_lines_have_a_time_unless_they_are_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, quiet: bool, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    log = logging.getLogger("openai_cancel.sweeper")
    level, handlers = log.level, [*log.handlers]
    with speaking(quiet=quiet):
        log.info("begins", extra=fields("sweeper_started"))
        log.warning("fails", extra=fields("sweeper_failed"))
        complain("another")
    assert (log.level, log.handlers) == (level, handlers)
    complain("afterwards")
    lines = capsys.readouterr().err.splitlines()
    assert lines.pop() == "openai-cancel: afterwards"
    assert all(line.startswith("openai-cancel: ") == terminal for line in lines)
    assert [line.rpartition(": ")[2] for line in lines] == (["begins"] if not quiet else []) + ["fails", "another"]

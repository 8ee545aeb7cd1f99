"""The sweeper says what it does, in lines that a person and a machine can read."""

import asyncio
import logging
import sys
from functools import partial

import pytest
from conftest import KEY, QuickClock, until
from ledger_database import lapse, without_table
from ledgers import open_session
from manual_clock import ManualClock

from openai_cancel import AsyncSession
from openai_cancel.cli.ledger_state import NEGLECTED, find_neglected
from openai_cancel.cli.output import complain
from openai_cancel.cli.sweeper import Sweeper, showing_log
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger
from openai_cancel.log_events import log_fields

pytestmark = pytest.mark.usefixtures("no_task_is_left")


@pytest.mark.slow
async def test_it_says_when_it_begins_and_each_round_and_that_it_is_idle_and_when_the_database_fails_and_works(
    *,
    url: str,
    ledger: Ledger,
    ledger_clock: ManualClock,
    server: Emulator,
    create,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "openai_cancel.sweeper")
    clock, seen = ManualClock(), []

    async def after(seconds: float) -> None:
        """Let the sweeper sweep again after some seconds."""
        before = len(clock.slept)
        clock.advance(seconds)
        await until(lambda: len(clock.slept) > before)

    async def wait_for_a_lease() -> None:
        """Let the time pass for which a sweep waits for its database."""
        while True:
            await asyncio.sleep(0.001)
            ledger_clock.advance(1)

    async with open_session(server, ledger) as session:
        sweeper = Sweeper(
            partial(ledger.sweep, session),
            seen.append,
            partial(find_neglected, ledger, session),
            30.0,
            "a ledger",
            clock,
        )
        await ledger.track_many([create(), create()], session=session, ttl=0.001)
        await asyncio.sleep(0.01)
        task = asyncio.create_task(sweeper.run())
        await until(lambda: clock.slept)
        await after(30)
        await after(30)
        await after(30)
        async with without_table(url):
            hurry = asyncio.create_task(wait_for_a_lease())
            await after(30)
            await after(30)
            hurry.cancel()
        await after(30)
        await ledger.track(create(), session=session, ttl=0.001)
        await asyncio.sleep(0.01)
        await after(30)
        task.cancel()
        await asyncio.wait([task])
    assert len(seen) == 3
    failure = "sweep failed; retrying in 30 s: The ledger's database failed: "
    # On a busy machine, asyncio's debug mode logs, too.
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("openai_cancel")]
    said = [failure if line.startswith("sweep failed") else line for line in messages]
    assert [line.partition(", and running")[0] for line in said if not line.startswith("claimed")] == [
        "sweeping every 30 s: a ledger",
        "2 responses in 0.0 s: 2 cancelled",
        "nothing to stop for 60 s",
        "the ledger fails",
        failure,
        failure,
        "the ledger works again",
        "1 response in 0.0 s: 1 cancelled",
        "sweeper stopped",
    ]


async def test_it_says_now_and_then_that_nobody_sweeps_the_responses_of_another_account(
    url: str, ledger: Ledger, server: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    async with open_session(server, ledger) as session, AsyncSession(api_key=KEY, account="other") as other:
        await ledger.track("resp_1", session=other, ttl=60)
        await lapse(url)
        look = partial(find_neglected, ledger, session, overdue_for=NEGLECTED)
        task = asyncio.create_task(Sweeper(partial(ledger.sweep, session), print, look, 300.0, "", clock).run())
        for rounds in range(1, 4):
            await until(lambda: len(clock.slept) == rounds)  # noqa: B023 - it is called at once
            clock.advance(300)
        await until(lambda: len(clock.slept) == 4)
        task.cancel()
        await asyncio.wait([task])
    lines = [record.getMessage() for record in caplog.records if record.name == "openai_cancel.sweeper"]
    assert len(lines) == 2
    assert lines[0].startswith("1 response of other accounts or servers is overdue, for ")
    assert lines[0].endswith("account other on https://api.openai.com/v1. Nobody seems to sweep them.")


async def test_a_server_that_cannot_be_reached_does_not_end_it(
    ledger: Ledger, server: Emulator, create, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    async with open_session(server, ledger, clock=QuickClock()) as session:
        await ledger.track(create(), session=session, ttl=0.001)
        await asyncio.sleep(0.01)
        await server.__aexit__(None, None, None)
        look = partial(find_neglected, ledger, session)
        sweep = partial(ledger.sweep, session, give_up_after=30.0)
        task = asyncio.create_task(Sweeper(sweep, print, look, 60.0, "", clock).run())
        await until(lambda: clock.slept)
        clock.advance(60)
        await until(lambda: len(clock.slept) == 2)
        task.cancel()
        await asyncio.wait([task])
    lines = [record.getMessage() for record in caplog.records if record.name == "openai_cancel.sweeper"]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("sweep failed; retrying in 60 s: Cannot connect to ")


@pytest.mark.parametrize(("quiet", "terminal"), [(False, False), (True, False), (False, True)])
async def test_lines_have_a_time_unless_they_are_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, quiet: bool, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    log = logging.getLogger("openai_cancel.sweeper")
    level, handlers = log.level, [*log.handlers]
    with showing_log(quiet=quiet):
        log.info("begins", extra=log_fields("sweeper_started"))
        log.warning("fails", extra=log_fields("sweeper_failed"))
        complain("another")
    assert (log.level, log.handlers) == (level, handlers)
    complain("afterwards")
    lines = capsys.readouterr().err.splitlines()
    assert lines.pop() == "openai-cancel: afterwards"
    assert all(line.startswith("openai-cancel: ") == terminal for line in lines)
    assert [line.rpartition(": ")[2] for line in lines] == (["begins"] if not quiet else []) + ["fails", "another"]

"""A ledger that several processes share: they are killed, they write at once, and their database is restarted."""

import asyncio
import contextlib
import json
import random
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from conftest import KEY
from ledger_database import lapse
from ledgers import beat, cancelled_ids, open_session, states, sweep
from manual_clock import ManualClock
from postgres import Postgres, empty
from processes import StartProcess
from terminal import COMMAND

from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger

pytestmark = pytest.mark.slow


@pytest.fixture
def start_guarding(python: str, server: Emulator, start_process: StartProcess):
    async def start_guarding(url: str, names: Sequence[str]) -> Process:
        script = str(Path(__file__).with_name("guarding.py"))
        process = await start_process(python, script, url, server.base_url, KEY, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        process.stdin.write("\n".join(names).encode())
        process.stdin.close()
        return process

    return start_guarding


@pytest.mark.parametrize("seed", range(2))
async def test_a_sweep_stops_exactly_the_tracked_responses_of_a_killed_process(
    url: str, server: Emulator, create, start_guarding, seed: int
) -> None:
    names = [create() for _ in range(2_000)]  # more than it can guard before it is killed, also on a busy machine
    process = await start_guarding(url, names)
    for _ in range(random.Random(seed).randint(1, 60)):
        assert await process.stdout.readline()
    process.kill()
    await process.communicate()
    async with Ledger(url) as ledger, open_session(server, ledger, account=None) as session:
        before = await states(ledger)
        assert "tracked" in before.values()
        assert await sweep(ledger, session) == {}  # the leases have not lapsed yet
        await lapse(url)
        await sweep(ledger, session)
    stopped = {name for name, work in server.responses.items() if work.cancelled}
    assert stopped == {name for name, state in before.items() if state == "tracked"}


async def test_a_second_sweep_stops_what_a_killed_sweep_has_claimed(
    url: str, server: Emulator, create, monkeypatch: pytest.MonkeyPatch, start_process: StartProcess
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    names = [create() for _ in range(300)]
    async with Ledger(url) as ledger, open_session(server, ledger, account=None) as session:
        await asyncio.gather(*(ledger.track(name, session=session, ttl=60) for name in names))
        await lapse(url)
        process = await start_process(
            COMMAND, "ledger", "sweep", "--json", "--ledger", url, "--concurrency", "8", stdout=PIPE, stderr=PIPE
        )
        for _ in range(60):
            assert await process.stdout.readline()
        process.kill()
        await process.communicate()
        await lapse(url)
        await sweep(ledger, session)
        assert await states(ledger) == dict.fromkeys(names, "cancelled")
    assert set(cancelled_ids(server)) == set(names)


async def test_many_processes_can_write_to_one_file(tmp_path: Path, server: Emulator, create, start_guarding) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    names = [create() for _ in range(8 * 25)]
    processes = [await start_guarding(url, names[start::8]) for start in range(8)]
    for process in processes:
        _, complaints = await process.communicate()
        assert (process.returncode, complaints) == (0, b"")
    async with Ledger(url) as ledger:
        assert await states(ledger) == dict.fromkeys(names, "released")
    assert server.received == []


async def test_a_sweep_survives_a_restart_of_postgresql(postgres: Postgres, server: Emulator, create) -> None:
    await empty(postgres.url)
    names = [create() for _ in range(300)]
    clock = ManualClock()
    running = asyncio.create_task(clock.run())
    async with Ledger(postgres.url, clock=clock) as ledger, open_session(server, ledger, account=None) as session:
        await asyncio.gather(*(ledger.track(name, session=session, ttl=60) for name in names))
        await lapse(postgres.url)
        done = 0
        async with contextlib.aclosing(ledger.sweep(session, batch=20)) as outcomes:
            async for outcome in outcomes:
                assert outcome.stopped
                done += 1
                if done == 50:
                    await asyncio.to_thread(postgres.restart)
        assert done >= 280  # the next sweep gets the 20 of a claim whose answer was lost
        await beat(clock)  # outcomes that were missed are written
        await lapse(postgres.url)
        await sweep(ledger, session)
        assert await states(ledger) == dict.fromkeys(names, "cancelled")
    running.cancel()


@pytest.mark.timeout(300)
async def test_two_hosts_stop_each_of_ten_thousand_guarded_responses_once(
    postgres: Postgres, server: Emulator, create, monkeypatch: pytest.MonkeyPatch, start_process: StartProcess
) -> None:
    """Heartbeats renew the leases meanwhile, and lock the rows for a moment each time."""
    await empty(postgres.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    names, other = [create() for _ in range(10_000)], create()
    stop = (COMMAND, "ledger", "stop", "--label", "job=7", "--json", "--ledger", postgres.url, "--account", "tests")
    async with (
        Ledger(postgres.url, lease=1.5, labels={"job": "7"}, timeout=60) as ledger,
        Ledger(postgres.url, labels={"job": "8"}) as theirs,
        open_session(server, ledger) as session,
        open_session(server, theirs) as their_session,
        their_session.guard(other),
    ):
        async with AsyncExitStack() as guards:
            for start in range(0, len(names), 1000):
                await guards.enter_async_context(session.guard(*names[start : start + 1000]))
            hosts = [await start_process(*stop, stdout=PIPE, stderr=PIPE) for _ in range(2)]
            printed = await asyncio.gather(*(host.communicate() for host in hosts))
        assert [host.returncode for host in hosts] == [0, 0], printed[0][1] + printed[1][1]
        by_host = [[json.loads(line)["id"] for line in out.splitlines()] for out, _ in printed]
        assert all(by_host)
        assert sorted(by_host[0] + by_host[1]) == sorted(names)
        assert sorted(cancelled_ids(server)) == sorted(names)
        assert await states(ledger) == {**dict.fromkeys(names, "cancelled"), other: "tracked"}

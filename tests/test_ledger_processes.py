"""A ledger among processes: they are killed, they write at once, and their database is restarted."""

import asyncio
import contextlib
import random
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import KEY
from postgres import Postgres, empty
from terminal import COMMAND
from test_ledger import cancels, client, lapse, states, swept

from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger


async def guarding(python: str, url: str, server: Emulator, names: Sequence[str]) -> Process:
    script = str(Path(__file__).with_name("guarding.py"))
    process = await asyncio.create_subprocess_exec(
        python, script, url, server.base_url, KEY, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    process.stdin.write("\n".join(names).encode())
    process.stdin.close()
    return process


@pytest.mark.parametrize("seed", range(2))
async def test_a_guard_is_killed(python: str, url: str, server: Emulator, create, seed: int) -> None:
    """Whenever that is: all that was recorded and not released is stopped, and nothing else."""
    names = [create() for _ in range(200)]
    process = await guarding(python, url, server, names)
    for _ in range(random.Random(seed).randint(1, 60)):
        assert await process.stdout.readline()
    process.kill()
    await process.communicate()
    async with Ledger(url) as ledger, client(server, ledger, account=None) as session:
        before = await states(ledger)
        assert "tracked" in before.values()
        assert await swept(ledger, session) == {}  # there is a lease yet
        await lapse(ledger)
        await swept(ledger, session)
    stopped = {name for name, work in server.responses.items() if work.cancelled}
    assert stopped == {name for name, state in before.items() if state == "tracked"}


async def test_a_sweeper_is_killed(url: str, server: Emulator, create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    names = [create() for _ in range(300)]
    async with Ledger(url) as ledger, client(server, ledger, account=None) as session:
        await asyncio.gather(*(ledger.track(name, session=session, ttl=60) for name in names))
        await lapse(ledger)
        process = await asyncio.create_subprocess_exec(
            COMMAND, "ledger", "sweep", "--json", "--ledger", url, "--concurrency", "8", stdout=PIPE, stderr=PIPE
        )
        for _ in range(60):
            assert await process.stdout.readline()
        process.kill()
        await process.communicate()
        await lapse(ledger)
        await swept(ledger, session)
        assert await states(ledger) == dict.fromkeys(names, "cancelled")
    assert set(cancels(server)) == set(names)


async def test_many_processes_write_to_one_file(python: str, tmp_path: Path, server: Emulator, create) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    names = [create() for _ in range(8 * 25)]
    processes = [await guarding(python, url, server, names[start::8]) for start in range(8)]
    for process in processes:
        _, complaints = await process.communicate()
        assert (process.returncode, complaints) == (0, b"")
    async with Ledger(url) as ledger:
        assert await states(ledger) == dict.fromkeys(names, "released")
    assert server.received == []


async def test_postgresql_is_restarted_in_the_middle(postgres: Postgres, server: Emulator, create) -> None:
    await empty(postgres.url)
    names = [create() for _ in range(300)]
    async with Ledger(postgres.url) as ledger, client(server, ledger, account=None) as session:
        await asyncio.gather(*(ledger.track(name, session=session, ttl=60) for name in names))
        await lapse(ledger)
        done = 0
        async with contextlib.aclosing(ledger.sweep(session, batch=20)) as outcomes:
            async for outcome in outcomes:
                assert outcome.stopped
                done += 1
                if done == 50:
                    await asyncio.to_thread(postgres.restart)
        assert done >= 280  # a claim of 20 whose answer was lost must lapse first, and is the next sweep's
        await ledger._open_book.renew()
        await lapse(ledger)
        await swept(ledger, session)
        assert await states(ledger) == dict.fromkeys(names, "cancelled")

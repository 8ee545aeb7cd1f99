"""The work of two newcomers, from the first command to the end: a backend with deploys, a platform with two roles."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import KEY, until
from ledger_database import execute, lapse
from ledgers import states
from postgres import Postgres
from processes import running
from roles import OWNER, SERVICE, quoted, two_roles
from terminal import COMMAND
from web_hosts import ask, host, left

from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TESTS = Path(__file__).parent
IN_FLIGHT = 5


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_backend_that_is_deployed_anew_leaves_nothing_running_and_counts_what_it_has_stopped(
    server: Emulator, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_CANCEL_LEDGER", url)
    command = ("-m", "uvicorn", "--port", "0", "--timeout-graceful-shutdown", "1", "deployed_app:app")
    async with host(server, command) as service, Ledger(url) as ledger:
        names = [server.add() for _ in range(IN_FLIGHT)]
        asking = await ask(service, server, *(f"/plain/{name}" for name in names))
        async with aiohttp.ClientSession() as client, client.get(f"{service.url}/measured") as answer:
            assert await answer.json() == {"openai_cancel.guard.responses": IN_FLIGHT}
        assert (await ledger.stats()).by_state == {"tracked": IN_FLIGHT}
        await service.terminated()
        await asyncio.gather(*asking)
        assert left(server) == []
        counted = json.loads(next(line for line in service.lines if line.startswith("{")))
        assert counted["outcomes"] == {"cancelled": IN_FLIGHT}
        assert counted["measured"] == {"openai_cancel.outcomes": IN_FLIGHT, "openai_cancel.guard.responses": 0}
        stats = await ledger.stats()
        assert (stats.open, stats.by_state) == (0, {"cancelled": IN_FLIGHT})


@pytest.fixture
def environment(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)


def with_ledger(url: str) -> dict[str, Any]:
    """Return the options of a process that uses a ledger."""
    variables = {**os.environ, "OPENAI_CANCEL_LEDGER": url, "PYTHONUNBUFFERED": "1"}
    return {"env": variables, "stdout": PIPE, "stderr": PIPE}


async def openai_cancel(*arguments: str, ledger: str) -> tuple[int, str]:
    """Run the command, and return its exit status and everything that it prints."""
    async with running(COMMAND, *arguments, **with_ledger(ledger)) as process:
        out, err = await process.communicate()
    return process.returncode, (out + err).decode()


@pytest.mark.usefixtures("environment")
async def test_a_platform_rolls_a_ledger_out_with_two_roles_and_a_fleet_of_sweepers(
    server: Emulator, postgres: Postgres
) -> None:
    async with two_roles(postgres.url) as roles:
        # The service is deployed before the migration has run, and is told what is missing.
        status, words = await openai_cancel("ledger", "sweep", ledger=roles.service)
        assert (status, "run `openai-cancel ledger init` as the role that is to own them" in words) == (3, True)
        status, words = await openai_cancel("ledger", "init", ledger=roles.owner)
        status, words = await openai_cancel("ledger", "check", ledger=roles.service)
        assert (status, "GRANT SELECT, INSERT, UPDATE, DELETE ON openai_cancel_responses" in words) == (3, True)
        # The migration job.
        assert await openai_cancel("ledger", "init", "--grant", SERVICE, ledger=roles.owner) == (
            0, f"The tables are ready.\n{SERVICE} may use them.\n",
        )  # fmt: skip
        owned = f"SELECT count(*) FROM pg_tables WHERE tableowner = '{OWNER}' AND tablename LIKE 'openai_cancel_%'"
        assert await execute(roles.admin, owned) == [(2,)]
        # A service is killed with responses under way.
        watching = (sys.executable, str(TESTS / "watching.py"), roles.service, server.base_url, KEY)
        async with running(*watching, **with_ledger(roles.service)) as service:
            printed = {(await service.stdout.readline()).decode().strip() for _ in range(20)}
            service.send_signal(signal.SIGKILL)
            await service.communicate()
        assert service.returncode == -signal.SIGKILL
        async with Ledger(roles.service) as ledger:  # a response may be missing whose creation was not answered yet
            recorded = set(await states(ledger))
        assert recorded >= printed
        await lapse(roles.admin)
        assert (await openai_cancel("ledger", "check", "--overdue", "1s", ledger=roles.service))[0] == 1
        # Two sweepers share the work.
        sweep = (COMMAND, "ledger", "sweep", "--every", "0.2s", "--json")
        options = with_ledger(roles.service)
        async with running(*sweep, **options) as one, running(*sweep, **options) as other:
            for sweeper in (one, other):
                assert b"sweeping every 0.2 s: Ledger postgresql://" in await sweeper.stderr.readline()
            await until(lambda: not recorded & set(left(server)))
            async with Ledger(roles.service) as ledger, asyncio.timeout(30):
                while (await ledger.stats(include_ended=False)).open:
                    await asyncio.sleep(0.05)
                assert await states(ledger) == dict.fromkeys(recorded, "cancelled")
            said = b""
            for sweeper in (one, other):
                sweeper.send_signal(signal.SIGTERM)
                out, _ = await sweeper.communicate()
                assert sweeper.returncode == 128 + signal.SIGTERM
                said += out
        assert {json.loads(line)["id"] for line in said.splitlines()} == recorded
        cancels = [request.path.split("/")[3] for request in server.received if request.path.endswith("/cancel")]
        assert sorted(cancels) == sorted(recorded)  # each of them once
        assert await openai_cancel("ledger", "check", "--overdue", "1s", ledger=roles.service) == (
            0, "ok: 0 open, 0 overdue\n",
        )  # fmt: skip
        status, document = await openai_cancel("ledger", "stats", ledger=roles.service)
        assert (status, json.loads(document)["by_state"]) == (0, {"cancelled": len(recorded)})
        with pytest.raises(Exception, match="must be owner of"):
            await execute(roles.service, f"ALTER TABLE openai_cancel_responses OWNER TO {quoted(SERVICE)}")

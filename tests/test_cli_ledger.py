"""The command `ledger`."""

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE
from functools import partial
from pathlib import Path

import pytest
from conftest import KEY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from test_cli import COMMAND, Terminal

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.schema import RESPONSES

pytestmark = pytest.mark.usefixtures("run", "url")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_CANCEL_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    return f"sqlite:///{tmp_path}/ledger.db"


async def track(url: str, server: Emulator, *names: str, ttl: float = 0.001, account: str | None = None) -> None:
    async with Ledger(url) as ledger:
        session = AsyncSession(api_key=KEY, base_url=server.base_url, account=account)
        for name in names:
            await ledger.track(name, session=session, ttl=ttl)


async def states(url: str) -> dict[str, str]:
    async with Ledger(url) as ledger:
        return {entry.response_id: entry.state async for entry in ledger.entries(include_ended=True)}


class TestSweep:
    async def test_once(self, run, url: str, server: Emulator, create) -> None:
        running, later, other = create(), create(), create()
        await track(url, server, running, "resp_none")
        await track(url, server, later, ttl=60)
        await track(url, server, other, account="another")
        status, out, err = await run("ledger", "sweep")
        outcomes = {line["id"]: line["verdict"] for line in map(json.loads, out.splitlines())}
        assert outcomes == {running: "cancelled", "resp_none": "not_found"}
        assert (status, "in all  " in err) == (1, True)
        assert (await run("ledger", "sweep", "--once"))[:2] == (0, "")
        assert (await run("ledger", "sweep", "--account", "another", "--quiet")) == (0, "", "")
        assert await states(url) == {
            running: "cancelled", "resp_none": "not_found", later: "tracked", other: "cancelled"
        }  # fmt: skip

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_every(self, url: str, server: Emulator, create, number: int) -> None:
        """A database that fails does not end it; a signal does, at once."""
        statement = "ALTER TABLE {} RENAME TO {}".format
        first, second = create(), create()
        await track(url, server, first)
        process = await asyncio.create_subprocess_exec(
            COMMAND, "ledger", "sweep", "--every", "0.05s", "--lease", "0.1", "--json", stdout=PIPE, stderr=PIPE
        )
        assert json.loads(await process.stdout.readline())["id"] == first
        async with Ledger(url) as ledger:
            for old, new in ((RESPONSES.name, "away"), ("away", RESPONSES.name)):
                await ledger._open_book.do(partial(AsyncConnection.execute, statement=text(statement(old, new))))
                if new == "away":
                    assert b"no such table" in await process.stderr.readline()
        await track(url, server, second)
        assert json.loads(await process.stdout.readline())["id"] == second
        process.send_signal(number)
        _, err = await process.communicate()
        assert process.returncode == 128 + number
        assert b"Traceback" not in err

    async def test_a_signal_in_the_middle_gives_back(self, url: str, server: Emulator, create) -> None:
        running = create()
        await track(url, server, running)
        server.faults.append(Fault(delay=float("inf")))
        process = await asyncio.create_subprocess_exec(COMMAND, "ledger", "sweep", stdout=PIPE, stderr=PIPE)
        while not server.received:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 143
        assert await states(url) == {running: "tracked"}

    async def test_a_database_that_fails(self, run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_CANCEL_LEDGER", "postgresql://127.0.0.1:1/d")
        status, _, err = await run("ledger", "sweep")
        assert (status, err.count("\n")) == (3, 1)
        assert "Connect call failed" in err

    async def test_a_table_that_is_gone(self, run, url: str) -> None:
        async with Ledger(url) as ledger:
            await ledger._open_book.do(lambda connection: connection.execute(text(f"DROP TABLE {RESPONSES.name}")))
        status, _, err = await run("ledger", "sweep", "--lease", "0.1")
        assert (status, "no such table" in err) == (3, True)

    async def test_options_that_do_not_go_together(self, run) -> None:
        for wrong in (
            ["--once", "--every", "5s"],
            ["--every=0s"],
            ["--every", "x"],
            ["--every", "nan"],
            ["--max-attempts", "0"],
        ):
            status, out, err = await run("ledger", "sweep", *wrong)
            assert (status, out, err.count("\n")) == (2, "", 1)


class TestEntries:
    async def test_add_list_release_purge(self, run) -> None:
        status, out, err = await run("ledger", "add", "resp_1", "resp_2", "--ttl", "15m", "--label", "job=7=8")
        assert (status, out, err) == (0, "", "")
        (first, second) = map(json.loads, (await run("ledger", "list"))[1].splitlines())
        assert (first["id"], first["state"], first["labels"]) == ("resp_1", "tracked", {"job": "7=8"})
        assert 890 < second["lease_left"] <= 900
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+\+00:00", second["created"])
        status, out, err = await run("ledger", "release", "resp_1", "resp_3")
        assert (status, out, err) == (1, "", "openai-cancel: 'resp_3' is not in the ledger, or over.\n")
        assert (await run("ledger", "release", "resp_2"))[0] == 0
        assert (await run("ledger", "list"))[:2] == (0, "")
        assert len((await run("ledger", "list", "--all"))[1].splitlines()) == 2
        assert (await run("ledger", "purge", "--older-than", "7d"))[1] == "0 forgotten\n"
        assert (await run("ledger", "purge", "--older-than", "0.000001s"))[1] == "2 forgotten\n"

    @pytest.mark.parametrize(("written", "seconds"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604800)])
    async def test_durations(self, run, written: str, seconds: float) -> None:
        assert (await run("ledger", "add", "resp_1", "--ttl", written))[0] == 0
        (entry,) = map(json.loads, (await run("ledger", "list"))[1].splitlines())
        assert seconds - 10 < entry["lease_left"] <= seconds

    async def test_a_bad_duration(self, run) -> None:
        for wrong in ("fortnight", "", "5 parsecs"):
            status, _, err = await run("ledger", "add", "resp_1", "--ttl", wrong)
            assert (status, "or such as 30s, 15m, 2h, 7d" in err) == (2, True)

    async def test_on_a_terminal(self, run, url: str, server: Emulator) -> None:
        await track(url, server, "resp_late", ttl=60)
        await track(url, server, "resp_denied")
        server.faults += [Fault(status=403, body={"error": {"message": "No\x1b."}})] * 2
        assert (await run("ledger", "sweep"))[0] == 1
        await track(url, server, "resp_lapsed")
        async with Terminal("ledger", "list") as terminal:
            await terminal.process.wait()
            await terminal.shows("resp_lapsed  tracked, lapsed")
            assert re.search(r"resp_late  tracked, \d+ s left", terminal.screen)
            assert re.search(r"resp_denied  tracked, \d+ s left: 403: No\\x1b\.", terminal.screen)

    async def test_bad_arguments(self, run, monkeypatch: pytest.MonkeyPatch) -> None:
        assert (await run("ledger", "add", "resp_1", "--ttl", "5m", "--label", "job"))[0] == 2
        assert (await run("ledger", "add", "resp_1"))[0] == 2
        status, _, err = await run("ledger", "add", "..", "--ttl", "5m")
        assert (status, "cannot be a response id" in err) == (3, True)
        status, _, err = await run("ledger", "list", "--ledger", "mysql://x")
        assert (status, "cannot be kept in" in err) == (3, True)
        monkeypatch.delenv("OPENAI_CANCEL_LEDGER")
        status, _, err = await run("ledger", "list")
        assert (status, "set OPENAI_CANCEL_LEDGER" in err) == (3, True)
        monkeypatch.setitem(sys.modules, "openai_cancel.ledger", None)
        assert (await run("ledger", "list", "--ledger", "sqlite:///x"))[0] == 3

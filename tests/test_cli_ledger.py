"""The commands of `ledger`."""

import asyncio
import json
import re
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest
from conftest import KEY, until
from processes import StartProcess
from terminal import COMMAND, Terminal

from openai_cancel import AsyncSession
from openai_cancel.cli.options import State
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.selection import STATES

pytestmark = pytest.mark.usefixtures("run", "url")

TABLE = "openai_cancel_responses"
STAMPED = re.compile(r"20\d\d-\d\d-\d\dT[\d:.]+\+00:00 openai-cancel: ")
"""The beginning of a line of a service."""


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_CANCEL_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    return f"sqlite:///{tmp_path}/ledger.db"


async def track(url: str, server: Emulator, *names: str, ttl: float = 0.001, account: str | None = None) -> None:
    async with Ledger(url) as ledger:
        session = AsyncSession(api_key=KEY, base_url=server.base_url, account=account)
        for name in names:
            await ledger.track(name, session=session, ttl=ttl)


def execute(url: str, statement: str) -> None:
    """Run a statement on the database of a ledger."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database, database:
        database.execute(statement)


async def read_to(stream: asyncio.StreamReader, words: str) -> list[bytes]:
    """Read lines up to one with these words."""
    lines = []
    async for line in stream:
        lines.append(line)
        if words in line.decode():
            return lines
    pytest.fail(f"it has ended without {words}: {lines}")


async def states(url: str) -> dict[str, str]:
    async with Ledger(url) as ledger:
        return {entry.response_id: entry.state async for entry in ledger.entries(include_ended=True)}


class TestSweep:
    async def test_responses_of_the_account_with_an_expired_lease_are_stopped(
        self, run, url: str, server: Emulator, create
    ) -> None:
        running, later, other = create(), create(), create()
        await track(url, server, running, "resp_none")
        await track(url, server, later, ttl=60)
        await track(url, server, other, account="another")
        status, out, err = await run("ledger", "sweep")
        outcomes = {line["id"]: line["verdict"] for line in map(json.loads, out.splitlines())}
        assert outcomes == {running: "cancelled", "resp_none": "not_found"}
        assert (status, "in all  " in err) == (0, True)  # nothing is left to do for an id that is unknown
        assert re.search(
            r"1 response of other accounts or servers is overdue, for \d s at most, and not swept here: "
            r"account another on http://127", err
        )  # fmt: skip
        assert (await run("ledger", "sweep", "--once"))[:2] == (0, "")
        assert (await run("ledger", "sweep", "--account", "another", "--quiet")) == (0, "", "")
        assert await states(url) == {
            running: "cancelled", "resp_none": "tracked", later: "tracked", other: "cancelled"
        }  # fmt: skip # a server may not know a young response yet, so it is tried again

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_a_repeated_sweep_survives_a_failing_database_and_ends_at_a_signal(
        self, url: str, server: Emulator, create, number: int, start_process: StartProcess
    ) -> None:
        first, second = create(), create()
        await track(url, server, first)
        process = await start_process(
            COMMAND, "ledger", "sweep", "--every", "0.05s", "--lease", "1", "--json", stdout=PIPE, stderr=PIPE
        )
        assert json.loads(await process.stdout.readline())["id"] == first
        while await states(url) != {first: "cancelled"}:  # the outcome is printed before it is recorded
            await asyncio.sleep(0.01)
        execute(url, f"ALTER TABLE {TABLE} RENAME COLUMN account TO away")
        err = await read_to(process.stderr, "no such column")
        assert b"sweeping every 0.05 s: Ledger sqlite:///" in err[0]
        assert err[1].endswith(b"openai-cancel: claimed 1 response\n")
        assert any(line.endswith(b" s: 1 cancelled\n") for line in err)
        execute(url, f"ALTER TABLE {TABLE} RENAME COLUMN away TO account")
        await track(url, server, second)
        await read_to(process.stdout, second)  # on a busy machine, the lease of the first may have lapsed
        process.send_signal(number)
        _, rest = await process.communicate()
        assert process.returncode == 128 + number
        lines = b"".join([*err, rest]).decode().splitlines()
        assert all(STAMPED.match(line) for line in lines)
        assert lines[-1].endswith("sweeper stopped")
        assert any(line.endswith("the ledger works again") for line in lines)

    async def test_a_server_that_cannot_be_reached_ends_it(
        self, run, url: str, server: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules["openai_cancel.cli.ledger"], "GIVE_UP_AFTER", 0.1)
        await track(url, server, *(f"resp_{number}" for number in range(200)))
        await server.__aexit__(None, None, None)
        for command in (("sweep",), ("stop", "--state=tracked"), ("stop", "--state=tracked", "--dry-run")):
            status, out, err = await run("ledger", *command)
            assert (status, out) == (1, "")
            assert err.count(" The remaining responses are not tried.\n") == 1

    async def test_the_line_of_a_repeated_sweep_that_cannot_start_has_a_time(self, run, tmp_path: Path) -> None:
        status, _, err = await run("ledger", "sweep", "--every", "30s", "--ledger", f"sqlite:///{tmp_path}")
        assert status == 3
        assert STAMPED.match(err)
        assert "unable to open database file" in err

    @pytest.mark.slow
    async def test_a_repeated_sweep_that_is_interrupted_logs_what_it_has_stopped(
        self, url: str, server: Emulator, create, start_process: StartProcess
    ) -> None:
        await track(url, server, create(), create())
        server.faults.append(Fault(delay=float("inf")))
        process = await start_process(COMMAND, "ledger", "sweep", "--every", "30s", stdout=PIPE, stderr=PIPE)
        await process.stdout.readline()
        process.terminate()
        out, err = await process.communicate()
        assert b"in all" not in out + err
        assert [line.rpartition(b": ")[2] for line in err.splitlines()[-2:]] == [b"1 cancelled", b"sweeper stopped"]

    @pytest.mark.slow
    async def test_a_signal_returns_the_responses_to_the_ledger(
        self, url: str, server: Emulator, create, start_process: StartProcess
    ) -> None:
        running = create()
        await track(url, server, running)
        server.faults.append(Fault(delay=float("inf")))
        process = await start_process(COMMAND, "ledger", "sweep", stdout=PIPE, stderr=PIPE)
        await until(lambda: server.received)
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 143
        assert await states(url) == {running: "tracked"}

    async def test_a_database_that_cannot_be_reached_is_one_line_and_status_3(
        self, run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_CANCEL_LEDGER", "postgresql://127.0.0.1:1/d")
        status, _, err = await run("ledger", "sweep")
        assert (status, err.count("\n")) == (3, 1)
        assert "Connection refused" in err

    async def test_a_missing_column_is_status_3(self, run, url: str, server: Emulator) -> None:
        await track(url, server)
        execute(url, f"ALTER TABLE {TABLE} RENAME COLUMN account TO away")
        status, _, err = await run("ledger", "sweep", "--lease", "0.1")
        assert (status, "no such column" in err) == (3, True)

    async def test_wrong_options_are_one_line_and_status_2(self, run) -> None:
        for wrong in (
            ["--once", "--every", "5s"],
            ["--every=0s"],
            ["--every", "x"],
            ["--every", "nan"],
            ["--max-attempts", "0"],
        ):
            status, out, err = await run("ledger", "sweep", *wrong)
            assert (status, out, err.count("\n")) == (2, "", 1)


class TestStop:
    async def test_responses_with_a_label_are_stopped(self, run, url: str, server: Emulator, create) -> None:
        mine, other = create(), create()
        assert (await run("ledger", "add", mine, "resp_none", "--ttl", "1h", "--label", "job=7"))[0] == 0
        assert (await run("ledger", "add", other, "--ttl", "1h", "--label", "job=8"))[0] == 0
        stop = ["ledger", "stop", "--label", "job=7", "--json"]
        status, out, err = await run(*stop, "--dry-run")
        verdicts = {line["id"]: line["verdict"] for line in map(json.loads, out.splitlines())}
        assert verdicts == {mine: "still_running", "resp_none": "not_found"}
        assert not server.responses[mine].cancelled
        assert (await run(*stop, "--older-than", "1h"))[:2] == (0, "")
        status, out, err = await run(*stop, "--state", "tracked")
        verdicts = {line["id"]: line["verdict"] for line in map(json.loads, out.splitlines())}
        assert verdicts == {mine: "cancelled", "resp_none": "not_found"}
        assert (status, "in all  " in err) == (0, True)
        assert (await states(url))[other] == "tracked"
        assert await run("ledger", "stop", "--state", "tracked", "--quiet", "--label", "job=8") == (0, "", "")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "No condition: use --label, --state or --older-than"),
            (["--state", "released"], "--state must be tracked or stopping: responses that are released have ended."),
            (["--label", "job"], "'job' is not a label: write --label NAME=VALUE."),
        ],
    )
    async def test_conditions_that_cannot_work_are_usage_errors(self, run, arguments: list[str], words: str) -> None:
        status, out, err = await run("ledger", "stop", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err

    def test_the_states_of_the_option_are_those_of_a_ledger(self) -> None:
        assert get_args(State) == STATES


class TestEntries:
    async def test_responses_can_be_added_listed_released_and_purged(self, run) -> None:
        status, out, err = await run("ledger", "add", "resp_1", "resp_2", "--ttl", "15m", "--label", "job=7=8")
        assert (status, out, err) == (0, "", "")
        listed = map(json.loads, (await run("ledger", "list"))[1].splitlines())
        first, second = sorted(listed, key=lambda line: line["id"])
        assert (first["id"], first["state"], first["labels"]) == ("resp_1", "tracked", {"job": "7=8"})
        assert 890 < second["lease_left"] <= 900
        assert second["expires"] is None
        status, out, err = await run("ledger", "release", "resp_1", "resp_3")
        assert (status, out, err) == (1, "", "openai-cancel: 'resp_3' is not in the ledger, or has ended.\n")
        assert (await run("ledger", "release", "resp_2"))[0] == 0
        assert (await run("ledger", "list"))[:2] == (0, "")
        lines = (await run("ledger", "list", "--all", "--no-json"))[1].splitlines()
        assert sorted(lines) == ["resp_1  released  job=7=8", "resp_2  released  job=7=8"]
        assert len((await run("ledger", "list", "--all"))[1].splitlines()) == 2
        assert (await run("ledger", "purge", "--older-than", "7d"))[1] == "0 deleted\n"
        assert (await run("ledger", "purge", "--older-than", "0.000001s"))[1] == "2 deleted\n"

    async def test_times_are_of_one_format(self, run, url: str, server: Emulator, create) -> None:
        async with (
            Ledger(url) as ledger,
            AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger, ledger_required=True) as session,
            session.guard(create(), max_age=60),
        ):
            line = json.loads((await run("ledger", "list"))[1])
        for moment in ("created", "changed", "expires"):
            assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:]+\.\d{3}\+00:00", line[moment])

    @pytest.mark.slow
    async def test_ids_are_read_from_files_and_from_standard_input(
        self, run, tmp_path: Path, start_process: StartProcess
    ) -> None:
        (tmp_path / "ids.txt").write_text("resp_1\nresp_2\n")
        (tmp_path / "more.csv").write_text("id,name\nresp_3,x\n,y\n")
        status, out, err = await run(
            "ledger", "add", "resp_0", "--file", f"{tmp_path}/ids.txt", "-f", f"{tmp_path}/more.csv", "--ttl", "1h"
        )
        assert (status, out) == (1, "4 recorded\n")
        assert f"{tmp_path}/more.csv: 1 row has no id: line 3" in err
        piped = await start_process(
            COMMAND, "ledger", "add", "-", "--ttl", "1h", "--label", "job=7", stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert await piped.communicate(b"resp_1\nresp_2\n") == (b"2 recorded\n", b"")
        listed = map(json.loads, (await run("ledger", "list", "--label", "job=7"))[1].splitlines())
        assert sorted(line["id"] for line in listed) == ["resp_1", "resp_2"]
        assert len((await run("ledger", "list", "--state", "tracked"))[1].splitlines()) == 4
        assert await run("ledger", "list", "--older-than", "1h") == (0, "", "")
        release = await start_process(COMMAND, "ledger", "release", "-", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert await release.communicate(b"resp_1\n") == (b"", b"")
        status, out, err = await run("ledger", "release", "--file", f"{tmp_path}/more.csv")
        assert (status, out) == (1, "")
        assert f"{tmp_path}/more.csv: 1 row has no id: line 3" in err
        purge = ["ledger", "purge", "--older-than", "0.000001s"]
        assert (await run(*purge, "--state", "cancelled"))[1] == "0 deleted\n"
        assert (await run(*purge, "--label", "job=8"))[1] == "0 deleted\n"
        assert (await run(*purge, "--label", "job=7"))[1] == "1 deleted\n"

    @pytest.mark.parametrize(("written", "seconds"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604800)])
    async def test_a_duration_may_have_a_unit(self, run, written: str, seconds: float) -> None:
        assert (await run("ledger", "add", "resp_1", "--ttl", written))[0] == 0
        (entry,) = map(json.loads, (await run("ledger", "list"))[1].splitlines())
        assert seconds / 2 < entry["lease_left"] <= seconds

    async def test_a_duration_that_cannot_be_read_is_a_usage_error(self, run) -> None:
        for wrong in ("fortnight", "", "5 parsecs"):
            status, _, err = await run("ledger", "add", "resp_1", "--ttl", wrong)
            assert (status, "or a duration such as 30s, 15m, 2h or 7d" in err) == (2, True)

    @pytest.mark.slow
    async def test_on_a_terminal_the_list_is_for_people(self, run, url: str, server: Emulator) -> None:
        await track(url, server, "resp_late", ttl=60)
        await track(url, server, "resp_denied")
        server.faults += [Fault(status=403, body={"error": {"message": "No\x1b."}})] * 2
        assert (await run("ledger", "sweep"))[0] == 1
        await track(url, server, "resp_lapsed")
        async with Terminal("ledger", "list") as terminal:
            await terminal.process.wait()
            await terminal.shows("resp_lapsed  tracked, lease expired")
            assert re.search(r"resp_late  tracked, \d+ s left", terminal.screen)
            assert re.search(r"resp_denied  tracked, \d+ s left: 403: No\\x1b\.", terminal.screen)
        assert (await run("ledger", "release", "resp_late"))[0] == 0
        async with Terminal("ledger", "list", "--all") as terminal:
            await terminal.process.wait()
            await terminal.shows("resp_late  released\r\n")

    @pytest.mark.parametrize(
        ("arguments", "status", "words"),
        [
            (["add", "resp_1", "--ttl", "5m", "--label", "job"], 2, "'job' is not a label: write --label NAME=VALUE."),
            (["add", "resp_1", "--ttl", "5m", "--label", "a=\n"], 3, "--label must not contain line breaks"),
            (["add", "resp_1"], 2, "--ttl"),
            (["add", "--ttl", "5m"], 2, "No ids: pass ids, or use --file"),
            (["add", "--file", "/nowhere", "--ttl", "5m"], 2, "/nowhere: No such file or directory"),
            (["list", "--label", "job"], 2, "'job' is not a label"),
            (["list", "--state", "gone"], 2, "--state"),
            (["purge", "--older-than", "1d", "--label", "a=\n"], 3, "--label must not contain line breaks"),
            (["purge", "--older-than", "1d", "--state", "stopping"], 2, "in which responses have ended, not stopping."),
            (["add", "..", "--ttl", "5m"], 2, "'..' cannot be a response id"),
            (["release", ".."], 2, "'..' cannot be a response id"),
            (["release"], 2, "No ids: pass ids, or use --file"),
            (["release", "resp_1", "--account", ""], 3, "--account must not be empty."),
            (["release", "resp_1", "--account", "a\nb"], 3, "--account must not contain line breaks"),
            (["list", "--ledger", "mysql://x"], 3, "--ledger: A ledger cannot be kept in 'mysql'"),
        ],
    )
    async def test_a_wrong_argument_is_named_by_its_option(
        self, run, arguments: list[str], status: int, words: str
    ) -> None:
        done, out, err = await run("ledger", *arguments)
        assert (done, out, err.count("\n")) == (status, "", 1)
        assert words in err

    async def test_the_url_of_the_ledger_can_be_wrong_or_missing_in_the_environment(
        self, run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_CANCEL_LEDGER", "nonsense")
        status, _, err = await run("ledger", "list")
        assert (status, err.startswith("openai-cancel: OPENAI_CANCEL_LEDGER: ")) == (3, True)
        monkeypatch.delenv("OPENAI_CANCEL_LEDGER")
        expected = "openai-cancel: No ledger: set OPENAI_CANCEL_LEDGER, or use --ledger.\n"
        assert await run("ledger", "list") == (3, "", expected)

    async def test_without_its_extra_the_ledger_is_status_3(self, run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openai_cancel.ledger", None)
        assert (await run("ledger", "list", "--ledger", "sqlite:///x"))[0] == 3

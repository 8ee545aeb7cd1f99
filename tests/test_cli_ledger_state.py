"""The commands of `ledger` about all of it: `init`, `stats` and `check`, and how a sweep speaks of others."""

import json
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import KEY
from ledger_database import execute, lapse
from postgres import Postgres
from prometheus_client.parser import text_string_to_metric_families
from roles import SERVICE, two_roles
from terminal import Terminal

from openai_cancel import AsyncSession
from openai_cancel.cli import app
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_CANCEL_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    return f"sqlite:///{tmp_path}/ledger.db"


async def track(url: str, server: Emulator, account: str, *names: str) -> None:
    """Record responses whose leases have lapsed long ago."""
    async with Ledger(url) as ledger:
        session = AsyncSession(api_key=KEY, base_url=server.base_url, account=account)
        await ledger.track_many(names, session=session, ttl=60)
    await lapse(url, *names)


@pytest.mark.usefixtures("url")
def test_a_closed_standard_output_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert [app.run(["ledger", command]) for command in ("init", "stats", "list")] == [0, 0, 0]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("url", ["{}", "file:{}?mode=rwc&uri=true", "file://{}?uri=true", "{}/folder/x"])
@pytest.mark.parametrize(
    "command",
    [
        ["check"],
        ["list"],
        ["stats", "--prometheus"],
        ["purge", "--older-than", "1d"],
        ["release", "resp_1"],
        ["stop", "--label", "job=7"],
    ],
)
async def test_a_file_that_does_not_exist_is_an_error_and_is_not_created(
    run, command: list[str], url: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong name.db"
    database = f"sqlite:///{url.format(quote(str(path)) if 'file:' in url else path)}"
    status, out, err = await run("ledger", *command, "--ledger", database)
    assert (status, out) == (3, "")
    assert f"There is no ledger at {url.format(path) if 'folder' in url else path} (" in err
    assert await run("ledger", *command, "--ledger", database) == (3, "", err)  # it was not created
    if "folder" not in url:
        assert (await run("ledger", "init", "--ledger", database))[0] == 0
        assert (await run("ledger", *command, "--ledger", database))[0] in {0, 1}


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p@secret?@host/db", "postgresql://me:***@host/db"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("sk-proj-secret-secret", "Unexpected arguments: ***."),
        ("resp_123", "Unexpected arguments: resp_123."),
    ],
)
async def test_an_argument_in_the_wrong_place_shows_no_secret(run, argument: str, shown: str) -> None:
    status, out, err = await run("ledger", "check", argument)
    assert (status, out, "secret" in err) == (2, "", False)
    assert shown in err


class TestInit:
    async def test_the_owner_creates_the_tables_and_a_service_needs_no_more_rights(
        self, run, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with two_roles(postgres.url) as roles:
            monkeypatch.setenv("OPENAI_CANCEL_LEDGER", roles.service)
            status, out, err = await run("ledger", "list")
            assert (status, out) == (3, "")
            assert "may not create the tables: run `openai-cancel ledger init`" in err
            assert await run("ledger", "init", "--grant", SERVICE, "--ledger", roles.owner) == (
                0, f"The tables are ready.\n{SERVICE} may use them.\n", "",
            )  # fmt: skip
            assert (await run("ledger", "add", "resp_1", "--ttl", "1h"))[0] == 0
            assert len((await run("ledger", "list"))[1].splitlines()) == 1
            assert (await run("ledger", "init"))[:2] == (0, "The tables are ready.\n")
            status, out, err = await run("ledger", "init", "--grant", "pg_monitor")
            assert (status, out) == (3, "")
            assert "run `openai-cancel ledger init --grant` as the role that owns the tables" in err

    async def test_sqlite_has_no_roles(self, run, url: str) -> None:
        assert await run("ledger", "init") == (0, "The tables are ready.\n", "")
        assert await execute(url, "SELECT version FROM openai_cancel_schema") == [(2,)]
        status, _, err = await run("ledger", "init", "--grant", "service")
        assert (status, "Only PostgreSQL has roles" in err) == (3, True)


class TestStats:
    async def test_a_pipe_gets_json_and_prometheus_gets_its_format(self, run, url: str, server: Emulator) -> None:
        await track(url, server, "a", "resp_1", "resp_2")
        document = json.loads((await run("ledger", "stats"))[1])
        assert (document["open"], document["overdue"], document["by_state"]) == (2, 2, {"tracked": 2})
        assert json.loads((await run("ledger", "stats", "--json", "--open-only"))[1])["open"] == 2
        text = (await run("ledger", "stats", "--prometheus"))[1]
        names = [family.name for family in text_string_to_metric_families(text)]
        assert names[:2] == ["openai_cancel_ledger_responses", "openai_cancel_ledger_overdue"]
        assert (await run("ledger", "stats", "--json", "--prometheus"))[0] == 2

    @pytest.mark.slow
    @pytest.mark.usefixtures("run")
    async def test_a_terminal_gets_lines_for_people(self, url: str, server: Emulator) -> None:
        await track(url, server, "a")
        async with Terminal("ledger", "stats") as terminal:
            await terminal.process.wait()
            await terminal.shows("states   none")
        await track(url, server, "a", "resp_1", "resp_2")
        async with Ledger(url) as ledger:
            session = AsyncSession(api_key=KEY, base_url=server.base_url, account="b")
            await ledger.track("resp_3", session=session, ttl=60)
            await ledger.release("resp_3", session=session)
        async with Terminal("ledger", "stats") as terminal:
            await terminal.process.wait()
            await terminal.shows("open     2, the oldest for ")
            await terminal.shows(" d at most")
            await terminal.shows(f"a  {server.base_url}  tracked  2, 2 overdue")
            await terminal.shows(f"b  {server.base_url}  released  1\r\n")

    async def test_a_list_can_be_of_what_is_overdue(self, run, url: str, server: Emulator) -> None:
        await track(url, server, "a", "resp_1")
        assert (await run("ledger", "add", "resp_2", "--ttl", "1h"))[0] == 0
        (line,) = (await run("ledger", "list", "--overdue"))[1].splitlines()
        assert json.loads(line)["id"] == "resp_1"


class TestCheck:
    async def test_it_fails_if_responses_are_overdue_for_long(self, run, url: str, server: Emulator) -> None:
        await track(url, server, "a")
        assert await run("ledger", "check") == (0, "ok: 0 open, 0 overdue\n", "")
        await track(url, server, "a", "resp_1")
        status, out, err = await run("ledger", "check")
        assert (status, out) == (1, "")
        assert err.startswith("openai-cancel: 1 response is overdue, for ")
        assert err.endswith(f" d at most: account a on {server.base_url}\n")
        assert await run("ledger", "check", "--overdue", "40000d") == (0, "ok: 1 open, 1 overdue\n", "")

    async def test_a_database_that_cannot_be_reached_is_status_3(self, run) -> None:
        assert (await run("ledger", "check", "--ledger", "postgresql://127.0.0.1:1/d"))[0] == 3


class TestSweep:
    async def test_it_names_the_accounts_whose_responses_it_leaves(self, run, url: str, server: Emulator) -> None:
        for name in ("a", "b", "c", "d", "e"):
            await track(url, server, name, f"resp_{name}")
        status, out, err = await run("ledger", "sweep", "--quiet")
        assert (status, out) == (0, "")
        assert err.startswith("openai-cancel: 5 responses of other accounts or servers are overdue, for ")
        where = [f"account {name} on {server.base_url}" for name in "abc"]
        assert err.endswith(f"not swept here: {'; '.join(where)}; 2 more. Nobody seems to sweep them.\n")

    @pytest.mark.parametrize(("status", "expected"), [(404, 0), (403, 1), (503, 1)])
    async def test_the_exit_status_says_whether_responses_may_still_run(
        self, run, url: str, server: Emulator, status: int, expected: int
    ) -> None:
        await track(url, server, "a", "resp_1")
        server.faults += [Fault(status=status, headers={"x-should-retry": "false"}) for _ in range(40)]
        options = ("--account", "a", "--quiet", "--deadline", "1")
        assert (await run("ledger", "sweep", *options))[0] == expected

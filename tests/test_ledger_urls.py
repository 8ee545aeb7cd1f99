"""The URLs of databases: what operators write is honoured, or refused with a reason before anything is used."""

import socket
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import until
from ledger_database import execute
from postgres import Postgres, empty
from relay import Relay

from openai_cancel import ConfigurationError, LedgerError
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.table import MIGRATIONS


def socket_folder(postgres: Postgres) -> str:
    return postgres.url.partition("host=")[2]


async def sessions(url: str) -> list[str]:
    """Return the names of the applications that are connected to a server."""
    found = await execute(url, "SELECT application_name FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    return [name for (name,) in found]


class TestPostgreSQL:
    @pytest.mark.parametrize(
        "form",
        [
            "postgres://postgres@/postgres?host={folder}",
            "postgresql+psycopg://postgres@/postgres?host={folder}",
            "postgresql://postgres@{quoted}/postgres",
            "postgresql://postgres@/nowhere?host={folder}&dbname=postgres",
            "postgresql://?host={folder}&user=postgres&dbname=postgres",
            "postgresql://postgres@%2Fnone,{quoted}/postgres?connect_timeout=3&load_balance_hosts=disable",
            "postgresql://postgres@%2Fnone:1,{quoted}:5432/postgres?target_session_attrs=primary",
            "postgresql://postgres@{quoted}/postgres?channel_binding=prefer&sslmode=require&gssencmode=disable",
            "postgresql://postgres@{quoted}/postgres?keepalives_idle=5&tcp_user_timeout=1000&client_encoding=UTF-8",
        ],
    )
    async def test_forms_of_libpq_are_understood(self, postgres: Postgres, form: str) -> None:
        await empty(postgres.url)
        folder = socket_folder(postgres)
        async with Ledger(form.format(folder=folder, quoted=folder.replace("/", "%2F"))):
            assert await execute(postgres.url, "SELECT version FROM openai_cancel_schema") == [(1 + len(MIGRATIONS),)]

    async def test_options_reach_the_server(self, postgres: Postgres) -> None:
        await empty(postgres.url)
        await execute(postgres.url, "CREATE SCHEMA IF NOT EXISTS elsewhere")
        options = "application_name=billing&options=-c%20search_path%3Delsewhere"
        async with Ledger(f"{postgres.url}&{options}"):
            assert "billing" in await sessions(postgres.url)
            assert await execute(postgres.url, "SELECT version FROM elsewhere.openai_cancel_schema") == [
                (1 + len(MIGRATIONS),)
            ]
        await execute(postgres.url, "DROP SCHEMA elsewhere CASCADE")

    async def test_a_session_has_a_name_unless_the_operator_names_it(
        self, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Ledger(postgres.url):
            assert "openai-cancel" in await sessions(postgres.url)
        monkeypatch.setenv("PGAPPNAME", "from the environment")
        async with Ledger(postgres.url):
            assert "from the environment" in await sessions(postgres.url)

    async def test_a_service_file_is_read(
        self, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "pg_service.conf"
        file.write_text(f"[ledger]\nhost={socket_folder(postgres)}\nuser=postgres\ndbname=postgres\n")
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        ledger = Ledger("postgresql:///?service=ledger")
        assert repr(ledger) == "<Ledger postgresql:///?service=ledger>"
        async with ledger:
            pass
        with pytest.raises(ConfigurationError, match='definition of service "nothing" not found'):
            Ledger("postgresql:///?service=nothing")

    @pytest.mark.parametrize(
        ("rest", "variables", "places"),
        [
            ("u@g:1,h:2/d", {}, ("g,h", None, "1,2")),
            ("u@/d?hostaddr=127.0.0.1,127.0.0.2", {}, (None, "127.0.0.1,127.0.0.2", "5432")),
            ("/?service=ledger", {}, ("g,h", None, "1,2")),
            ("i,j/?service=ledger&port=3", {}, ("i,j", None, "3")),
            ("/d", {"PGSERVICE": "ledger"}, ("g,h", None, "1,2")),
            ("/d?port=3,4", {"PGHOST": "i,j"}, ("i,j", None, "3,4")),
            ("/d", {"PGHOSTADDR": "127.0.0.1,127.0.0.2", "PGPORT": "3"}, (None, "127.0.0.1,127.0.0.2", "3")),
        ],
    )
    async def test_each_of_several_hosts_has_its_turn_whoever_names_them(
        self,
        rest: str,
        variables: dict[str, str],
        places: tuple[str | None, ...],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        file = tmp_path / "pg_service.conf"
        file.write_text("[ledger]\nhost=g,h\nport=1,2\nuser=u\ndbname=d\n")
        for name, value in {"PGSERVICEFILE": str(file), **variables}.items():
            monkeypatch.setenv(name, value)
        used: list[dict[str, Any]] = []

        def connect(**options: Any) -> None:
            used.append(options)
            raise psycopg.OperationalError

        monkeypatch.setattr(psycopg, "connect", connect)
        with pytest.raises(LedgerError):
            await Ledger(f"postgresql://{rest}", timeout=8).open()
        (options,) = used
        assert (*(options.get(name) for name in ("host", "hostaddr", "port")), options["connect_timeout"]) == (
            *places,
            4,
        )

    @pytest.mark.slow
    async def test_a_host_of_a_service_that_does_not_answer_leaves_time_for_the_next_one(
        self, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await empty(postgres.url)
        file = tmp_path / "pg_service.conf"
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            hosts = f"host=127.0.0.1,{socket_folder(postgres)}\nport={port},5432"
            file.write_text(f"[ledger]\n{hosts}\nuser=postgres\ndbname=postgres\n")
            async with Ledger("postgresql:///?service=ledger", timeout=8) as ledger:
                assert (await ledger.stats()).open == 0

    def test_ports_for_other_hosts_than_there_are_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGPORT", "1,2")
        with pytest.raises(ConfigurationError, match="or what it refers to, names 2 ports for 1 hosts"):
            Ledger("postgresql://u@h/d")

    async def test_encryption_that_is_required_is_required(self, postgres: Postgres) -> None:
        async with Relay(postgres.url) as relay:
            with pytest.raises(LedgerError, match="server does not support SSL, but SSL was required"):
                await Ledger(f"{relay.base_url}?sslmode=require").open()

    @pytest.mark.parametrize(
        ("rest", "words"),
        [
            ("h/d?sslmod=require", "libpq, the library of PostgreSQL, has no option 'sslmod'"),
            ("h/d?command_timeout=5", "has no option 'command_timeout'"),
            ("h/d?ssl=require", r"Use sslmode=…\."),
            ("h/d?a", "not the URL of a PostgreSQL database"),
            ("h/d?x.y=1", r"user@host/database\.$"),
            ("h/d?sslmode=maybe", 'invalid sslmode value: "maybe"'),
            ("h/d?channel_binding=maybe", "invalid channel_binding value"),
            ("h/d?target_session_attrs=writer", "invalid target_session_attrs value"),
            ("h/d?sslmode=prefer&sslrootcert=system", "weak sslmode"),
            ("h/d?target_session_attrs=standby", "A ledger writes: target_session_attrs must be"),
            ("h/d?replication=database", "remove `replication`"),
            ("h/d?client_encoding=latin1", "remove client_encoding"),
            ("h/d?connect_timeout=soon", "connect_timeout in the URL of a ledger must be a number"),
            ("h:port/d", "port in the URL of a ledger must be a number"),
            ("/d?host=h&port=\u0665432", "port in the URL of a ledger must be a number"),
            ("g:1,h:2/d?host=i", "The URL of a ledger, or what it refers to, names 2 ports for 1 hosts"),
            ("h/d%00", "not the URL of a PostgreSQL database"),
        ],
    )
    def test_what_cannot_be_honoured_is_refused_at_once(self, rest: str, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words) as caught:
            Ledger(f"postgresql://u:s3cr3t@{rest}")
        assert "s3cr3t" not in str(caught.value)

    def test_an_option_is_not_quoted_if_it_may_be_a_part_of_the_password(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            Ledger("postgresql://u:pass/?word@h/d")
        assert "word" not in str(caught.value)

    @pytest.mark.parametrize("variable", ["gssencmode=require", "sslmode=verify-full", "require_auth=scram-sha-256"])
    def test_options_are_not_tried_on_the_socket_that_checks_them(self, variable: str) -> None:
        Ledger(f"postgresql://h/d?{variable}")

    @pytest.mark.parametrize(
        ("rest", "shown"),
        [
            ("u:secret@h/d", "u:***@h/d"),
            ("u@g:1,h:2/d?sslmode=require", "u@g:1,h:2/d"),
            ("u@g,h/d?port=5", "u@g:5,h:5/d"),
            ("u@/d?hostaddr=127.0.0.1,127.0.0.2&port=1,2", "u@:1,:2/d"),
            ("[::1]:5/d?password=secret", ":***@[::1]:5/d"),
            ("%2Frun%2Fdb/d", "%2Frun%2Fdb/d"),
        ],
    )
    def test_the_repr_has_no_password(self, rest: str, shown: str) -> None:
        assert repr(Ledger(f"postgres://{rest}")) == f"<Ledger postgresql://{shown}>"


class TestSQLite:
    @pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
    async def test_options_of_sqlite_are_honoured(self, tmp_path: Path, scheme: str) -> None:
        async with Ledger(f"{scheme}:///file:{tmp_path}/ledger.db?mode=rwc&uri=true"):
            assert (tmp_path / "ledger.db").exists()
        await until(lambda: not (tmp_path / "ledger.db-wal").exists())

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("sqlite://", "in memory"),
            ("sqlite:///:memory:", "in memory"),
            ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
            ("sqlite:///file::memory:?uri=true", "in memory"),
            ("sqlite:///file::memory:?cache=shared&uri=true", "in memory"),
            ("sqlite:///file:?uri=true", "in memory"),
            ("sqlite:///file:/x.db?vfs=memdb&uri=true", "in memory"),
            ("sqlite:///what?.db", "has no option '.db'"),
            ("sqlite:///ledger.db?timeout", "has no option 'timeout'"),
            ("sqlite:///ledger.db?timeout=", "has no option 'timeout'"),
            ("sqlite:///\udcff.db", "not the URL of a file"),
            ("sqlite:///a\x00b.db", "not the URL of a file"),
            ("sqlite:///ledger.db?mode=ro", r"like sqlite:///file:ledger\.db\?mode=rw&uri=true"),
            ("sqlite:///ledger.db?timeout=5", "has no option 'timeout'"),
            ("sqlite://ledger.db", "in memory"),
            ("sqlite://folder/ledger.db", "has no host: write sqlite:///"),
            ("sqlite://u:s3cr3t@h:port/d", "not the URL of a file"),
        ],
    )
    def test_what_cannot_be_honoured_is_refused_at_once(self, url: str, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words) as caught:
            Ledger(url)
        assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+asyncpg://u:s3cr3t@h/d", "does not use the driver 'asyncpg' but 'psycopg': write postgresql://"),
        ("postgres+psycopg2://u:s3cr3t@h/d", "does not use the driver 'psycopg2' but 'psycopg': write postgres://"),
        ("sqlite+aiosqlite:///ledger.db", "does not use the driver 'aiosqlite' but 'pysqlite': write sqlite://"),
    ],
)
def test_another_driver_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        Ledger(url)
    assert "s3cr3t" not in str(caught.value)

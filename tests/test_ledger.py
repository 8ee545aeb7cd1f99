"""A ledger used by hand, its arguments, and what it must not reveal, on SQLite and on PostgreSQL."""

import asyncio
import math
import subprocess
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import KEY
from ledger_database import execute
from ledgers import open_session
from sqlalchemy import select

from openai_cancel import AsyncSession, ConfigurationError, LedgerError, SessionStateError
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger
from openai_cancel.ledger.table import RESPONSES


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


class TestArguments:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (5, "must be a string"),
            ("", "not the URL"),
            ("ledger.db", "not the URL"),
            ("mysql://u:secret@h/d", "cannot be kept in 'mysql'"),
        ],
    )
    def test_a_url_of_another_kind_of_database_is_refused(self, bad: object, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words) as caught:
            Ledger(bad)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("options", [{"lease": 0}, {"timeout": math.nan}, {"labels": {"a": 1}}])
    def test_options_that_cannot_work_are_refused(self, options: dict[str, object]) -> None:
        with pytest.raises(ConfigurationError):
            Ledger("sqlite:///ledger.db", **options)

    async def test_a_session_refuses_what_is_not_a_ledger_or_an_account(self) -> None:
        with pytest.raises(ConfigurationError, match="ledger must be an openai_cancel.ledger.Ledger, not str"):
            AsyncSession(api_key=KEY, ledger="sqlite:///ledger.db")
        for account in ("", 5, "a\nb"):
            with pytest.raises(ConfigurationError, match="account must be a non-empty string"):
                AsyncSession(api_key=KEY, account=account)


class TestStates:
    async def test_a_ledger_works_only_while_it_is_open_and_opens_only_once(
        self, server: Emulator, tmp_path: Path
    ) -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        unopened = AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger)
        with pytest.raises(SessionStateError, match="The ledger is not open"):
            unopened.guard("resp_1")
        with pytest.raises(SessionStateError, match="The ledger is not open"):
            ledger.sweep(unopened)
        async with ledger:
            with pytest.raises(SessionStateError, match="opened only once"):
                await ledger.open()
        with pytest.raises(SessionStateError, match="opened only once"):
            await ledger.open()
        await ledger.close()

    async def test_a_ledger_works_only_in_its_own_event_loop(self, ledger: Ledger) -> None:
        async def work() -> None:
            with pytest.raises(SessionStateError, match="another event loop"):
                await ledger.release("resp_1", session=AsyncSession(api_key=KEY))
            with pytest.raises(SessionStateError, match="another event loop"):
                async with AsyncSession(api_key=KEY, ledger=ledger):
                    pass
            with pytest.raises(SessionStateError, match="another event loop"):
                await ledger.close()

        await asyncio.to_thread(asyncio.run, work())

    def test_an_import_without_the_extra_says_what_to_install(self, python: str) -> None:
        script = "import sys; sys.modules['sqlalchemy'] = None; import openai_cancel.ledger"
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=50, check=False)
        assert done.stderr.splitlines()[-1] == (
            "ModuleNotFoundError: sqlalchemy is not installed: pip install 'openai-cancel[ledger]'"
        )


class TestSecrets:
    async def test_no_row_contains_the_key_even_if_the_server_repeats_it(
        self, server: Emulator, ledger: Ledger, url: str, create
    ) -> None:
        echo = Fault(status=403, headers={"x-request-id": KEY}, body={"error": {"message": f"Bad key {KEY}"}})
        server.faults += [echo] * 2
        async with open_session(server, ledger, headers={"X-More": KEY}) as session:
            with pytest.raises(ZeroDivisionError):
                async with session.guard(create()):
                    raise ZeroDivisionError
        (row,) = await execute(url, select(RESPONSES))
        assert "Bad key ***" in repr(row)
        assert KEY not in repr(row)

    async def test_no_error_contains_the_password_of_the_database(self, caplog: pytest.LogCaptureFixture) -> None:
        password = "pass-of-u"
        with pytest.raises(LedgerError) as caught:
            await Ledger(f"postgresql://u:{password}@127.0.0.1:1/d").open()
        shown = traceback.TracebackException.from_exception(caught.value)
        assert password not in "".join(shown.format()) + caplog.text

    async def test_the_repr_does_not_contain_the_password(self) -> None:
        assert repr(Ledger("postgresql://u:secret@h/d")) == "<Ledger postgresql://u:***@h/d>"


class TestAccounts:
    def test_a_fingerprint_distinguishes_accounts_without_revealing_their_keys(self) -> None:
        def account(**options: object) -> str:
            return AsyncSession(**{"api_key": KEY, **options}).account

        accounts = [
            account(),
            account(api_key="another"),
            account(organization="o"),
            account(project="o"),
            account(api_key=lambda: KEY),
            account(api_key=lambda: KEY, organization="o"),
        ]
        assert len(set(accounts)) == len(accounts)
        assert account() == accounts[0]
        assert account(api_key=lambda: "another") == accounts[4]
        assert not any(KEY in found or len(found) != 32 for found in accounts)
        assert account(account="team") == "team"

    def test_a_fingerprint_includes_a_key_that_is_passed_as_a_header(self) -> None:
        one = AsyncSession(headers={"Authorization": "Bearer one"}).account
        assert one != AsyncSession(headers={"Authorization": "Bearer two"}).account

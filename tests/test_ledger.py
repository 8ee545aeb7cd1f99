"""A ledger used by hand, its arguments, and what it must not reveal, on SQLite and on PostgreSQL."""

import asyncio
import math
import subprocess
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import KEY
from ledger_database import execute, lapse
from ledgers import entries, open_session, states, sweep
from sqlalchemy import select, update

from openai_cancel import AsyncSession, ConfigurationError, LedgerError, Session, SessionStateError, Verdict
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger
from openai_cancel.ledger import ledger as ledger_module
from openai_cancel.ledger.table import RESPONSES


@pytest.fixture
async def session(server: Emulator, ledger: Ledger) -> AsyncIterator[AsyncSession]:
    async with open_session(server, ledger) as opened:
        yield opened


class TestTracking:
    async def test_a_tracked_response_is_stopped_after_its_time_unless_it_is_released(
        self, session, ledger: Ledger, url: str, create
    ) -> None:
        running, other = create(), create()
        await ledger.track(running, session=session, ttl=900, labels={"job": "7"})
        await ledger.track(other, session=session, ttl=900)
        entry = (await entries(ledger))[running]
        assert (entry.state, entry.owner, entry.labels) == ("tracked", None, {"service": "tests", "job": "7"})
        assert 890 < entry.lease_left <= 900
        assert await sweep(ledger, session) == {}
        await lapse(url, running)
        assert await sweep(ledger, session) == {running: Verdict.CANCELLED}
        assert await ledger.release(other, session=session)
        assert not await ledger.release(other, session=session)
        assert not await ledger.release("resp_none", session=session)
        assert await states(ledger) == {running: "cancelled", other: "released"}

    async def test_a_response_that_was_stopped_can_be_tracked_again(
        self, session, ledger: Ledger, url: str, create
    ) -> None:
        running = create()
        await ledger.track(running, session=session, ttl=1)
        await lapse(url)
        assert await sweep(ledger, session) == {running: Verdict.CANCELLED}
        await ledger.track(running, session=session, ttl=60)
        entry = (await entries(ledger))[running]
        assert (entry.state, entry.attempts, entry.request_id) == ("tracked", 0, None)

    async def test_ids_and_labels_may_contain_any_printable_text(self, session, ledger: Ledger) -> None:
        name = "résp/+=%2F'\";--" + "😀" * 2000
        await ledger.track(name, session=session, ttl=60, labels={"key's": "“words”"})
        (entry,) = [entry async for entry in ledger.entries()]
        assert (entry.response_id, entry.labels["key's"]) == (name, "“words”")

    async def test_entries_are_read_in_pages(self, session, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger_module, "PAGE_SIZE", 3)
        names = [f"resp_{number}" for number in range(7)]
        async with session.guard(*names[:4]):
            for name in names[4:]:
                await ledger.track(name, session=session, ttl=60)
            assert sorted([entry.response_id async for entry in ledger.entries()]) == names
        assert sorted([entry.response_id async for entry in ledger.entries()]) == names[4:]
        assert len([entry async for entry in ledger.entries(include_ended=True)]) == 7

    async def test_purge_deletes_old_rows_of_responses_that_ended(
        self, session, ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ledger_module, "PAGE_SIZE", 3)
        async with session.guard(*(f"resp_{number}" for number in range(7))):
            pass
        await ledger.track("resp_open", session=session, ttl=60)
        assert await ledger.purge(older_than=60) == 0
        await execute(url, update(RESPONSES).values(changed=0.0))
        assert await ledger.purge(older_than=60) == 7
        assert await states(ledger) == {"resp_open": "tracked"}


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

    async def test_arguments_of_methods_that_cannot_work_are_refused(self, session, ledger: Ledger) -> None:
        with pytest.raises(ConfigurationError, match="ttl must be"):
            await ledger.track("resp_1", session=session, ttl=0)
        with pytest.raises(ConfigurationError, match="response id"):
            await ledger.track("..", session=session, ttl=1)
        for labels in ({"a": 1}, {1: "a"}, {"a": "b\n"}, "ab", {"a\0": "b"}):
            with pytest.raises(ConfigurationError, match="labels must be"):
                await ledger.track("resp_1", session=session, ttl=1, labels=labels)
        for name in ("batch", "max_attempts", "concurrency", "deadline", "confirm"):
            with pytest.raises(ConfigurationError, match=name):
                ledger.sweep(session, **{name: 0})
        with pytest.raises(ConfigurationError, match="max_retries"):
            ledger.sweep(session, max_retries=-1)
        with pytest.raises(ConfigurationError, match="older_than"):
            await ledger.purge(older_than=-1)

    async def test_a_blocking_session_is_refused_with_the_way_out(self, session, ledger: Ledger) -> None:
        blocking = Session(api_key="sk-1", base_url=session.base_url)
        for call in (
            lambda: ledger.track("resp_1", session=blocking, ttl=1),
            lambda: ledger.release("resp_1", session=blocking),
            lambda: anext(ledger.sweep(blocking)),
        ):
            with pytest.raises(ConfigurationError, match="an AsyncSession, not Session.*`openai-cancel ledger`"):
                await call()

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
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
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

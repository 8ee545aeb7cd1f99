"""`AsyncSession`: opening and closing, its representation, and what it refuses."""

import asyncio
import copy
import gc
import pickle
import warnings
from pathlib import Path

import aiohttp
import openai
import pytest
import trio
from conftest import KEY, QuickClock, QuickSession, until

from openai_cancel import (
    APIConnectionError,
    AsyncSession,
    ConfigurationError,
    InvalidResponseIdError,
    Response,
    Session,
    SessionStateError,
)
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger


class TestOpening:
    async def test_a_call_before_the_session_is_open_is_refused(self) -> None:
        with pytest.raises(SessionStateError, match="not open: use `async with AsyncSession"):
            await AsyncSession(api_key=KEY).cancel("x")

    async def test_a_session_can_be_opened_and_closed_by_hand(self, server: Emulator, create) -> None:
        session = await AsyncSession(api_key=KEY, base_url=server.base_url).open()
        assert repr(session) == f"<AsyncSession {server.base_url} open>"
        with pytest.raises(SessionStateError, match="opened only once"):
            await session.open()
        assert (await session.cancel(create())).status == "cancelled"
        await session.close()
        assert repr(session) == f"<AsyncSession {server.base_url} closed>"

    async def test_a_session_can_be_used_in_one_event_loop_only(self, session: QuickSession) -> None:
        for call in (session.cancel, lambda _: session.close()):
            with pytest.raises(SessionStateError, match="another event loop: open one in each loop"):
                await asyncio.to_thread(asyncio.run, call("x"))

    async def test_a_session_for_an_openai_client_uses_its_server_and_key(self, server: Emulator, create) -> None:
        async with (
            openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url) as client,
            AsyncSession.from_openai(client) as session,
        ):
            assert (await session.cancel(create())).status == "cancelled"


class TestTrio:
    def test_a_session_of_asyncio_is_refused_and_a_blocking_one_works_in_a_thread(self, unused_tcp_port: int) -> None:
        trio.run(open_in_trio, f"http://127.0.0.1:{unused_tcp_port}")

    async def test_a_session_is_refused_by_a_guest_too(self, unused_tcp_port: int) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        trio.lowlevel.start_guest_run(
            open_in_trio,
            f"http://127.0.0.1:{unused_tcp_port}",
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda outcome: (outcome.unwrap(), done.set()),
        )
        async with asyncio.timeout(20):
            await done.wait()


async def open_in_trio(base_url: str) -> None:
    session = AsyncSession(api_key=KEY, base_url=base_url)
    with pytest.raises(SessionStateError, match="An AsyncSession needs asyncio: .* in trio.to_thread.run_sync"):
        await session.open()
    with Session(api_key=KEY, base_url=base_url, max_retries=0) as blocking, pytest.raises(APIConnectionError):
        await trio.to_thread.run_sync(blocking.cancel, "resp_1")


class TestClosing:
    async def test_a_closed_session_cannot_be_used_or_opened_again(self, server: Emulator) -> None:
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            pass
        with pytest.raises(SessionStateError, match="closed: create another one"):
            await session.cancel("x")
        with pytest.raises(SessionStateError, match="opened only once"):
            await session.open()
        await session.close()

    async def test_a_session_that_was_never_open_can_be_closed(self) -> None:
        session = AsyncSession(api_key=KEY)
        assert repr(session) == "<AsyncSession https://api.openai.com/v1 not open>"
        await session.close()
        with pytest.raises(SessionStateError, match="closed"):
            await session.cancel("x")

    async def test_closing_ends_a_call_that_is_under_way(self, server: Emulator) -> None:
        server.faults.append(Fault(delay=float("inf")))
        session = await QuickSession(api_key=KEY, base_url=server.base_url).open()
        call = asyncio.create_task(session.cancel("x"))
        await until(lambda: server.received)
        await session.close()
        with pytest.raises(SessionStateError, match="is closed"):
            await call

    @pytest.mark.parametrize("owner", ["session", "client"])
    async def test_closing_ends_a_call_that_resolves_the_name_of_the_server(
        self, owner: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """aiohttp cancels the resolution, although nobody has cancelled the task that waits for it."""
        resolving = asyncio.Event()

        class Resolver(aiohttp.abc.AbstractResolver):
            def __init__(self, **_: object) -> None:
                pass

            async def resolve(self, *_: object, **__: object) -> list[aiohttp.abc.ResolveResult]:
                resolving.set()
                await asyncio.Event().wait()
                raise AssertionError

            async def close(self) -> None:
                pass

        monkeypatch.setattr("aiohttp.connector.DefaultResolver", Resolver)
        monkeypatch.setattr("openai_cancel.transport.ThreadResolver", Resolver)
        client = aiohttp.ClientSession() if owner == "client" else None
        session = await AsyncSession(api_key="any", base_url="http://host.invalid", client_session=client).open()
        call = asyncio.create_task(session.cancel("x"))
        await resolving.wait()
        await (session if client is None else client).close()
        with pytest.raises(SessionStateError, match="closed"):
            await call
        await session.close()

    async def test_nothing_is_sent_after_closing_even_if_the_callers_client_stays_open(self, server: Emulator) -> None:
        class ClosingClock(QuickClock):
            async def sleep(self, _: float) -> None:
                await session.close()

        server.faults.append(Fault(status=503))
        async with (
            aiohttp.ClientSession() as client,
            QuickSession(api_key=KEY, base_url=server.base_url, client_session=client, clock=ClosingClock()) as session,
        ):
            with pytest.raises(SessionStateError, match="closed"):
                await session.cancel("x")
        assert len(server.received) == 1


class TestForgettingToClose:
    async def test_an_open_session_warns_when_it_is_collected(self) -> None:
        async def forget() -> None:
            await AsyncSession(api_key=KEY).open()

        with pytest.warns(ResourceWarning) as caught:
            await forget()
            gc.collect()
        assert "unclosed <AsyncSession https://api.openai.com/v1 open>: use `async with`" in str(caught[0].message)
        assert KEY not in str([warning.message for warning in caught])
        with warnings.catch_warnings(action="ignore"):  # the warnings hold the session and aiohttp's, which warns too
            caught.clear()
            gc.collect()

    def test_a_session_that_was_never_opened_is_collected_without_a_warning(self) -> None:
        AsyncSession(api_key=KEY)
        gc.collect()

    def test_a_constructor_that_failed_leaves_nothing_that_warns(self) -> None:
        with pytest.raises(ConfigurationError):
            AsyncSession()
        gc.collect()


class TestTheObject:
    @pytest.mark.parametrize("clone", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_a_session_cannot_be_pickled_or_copied(self, clone) -> None:
        with pytest.raises(TypeError, match="cannot be pickled or copied: it holds a key"):
            clone(AsyncSession(api_key=KEY))

    def test_a_session_without_settings_has_a_repr(self) -> None:
        assert repr(AsyncSession.__new__(AsyncSession)) == "<AsyncSession ? not open>"

    def test_a_session_tells_its_base_url_without_the_query(self) -> None:
        assert AsyncSession(api_key=KEY, base_url="https://host/v1/?a=b").base_url == "https://host/v1"

    def test_a_session_identifies_a_response_by_its_id(self) -> None:
        session = AsyncSession(api_key=KEY)
        assert session.identify("resp_1") == session.identify(Response(id="resp_1")) == "resp_1"
        with pytest.raises(InvalidResponseIdError):
            session.identify("..")


class TestRefusedArguments:
    async def test_an_unknown_option_of_a_call_is_a_type_error(self, session: QuickSession) -> None:
        with pytest.raises(TypeError, match="tiemout"):
            await session.cancel("x", tiemout=1)

    def test_the_client_of_another_library_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="client_session must be an aiohttp.ClientSession, not object"):
            AsyncSession(api_key=KEY, client_session=object())

    async def test_wait_knows_two_ways_to_abandon_a_response(self, session: QuickSession) -> None:
        with pytest.raises(ConfigurationError, match="on_abandon must be 'stop' or 'leave', not 'pause'"):
            await session.wait("x", on_abandon="pause")

    @pytest.mark.parametrize("max_retries", [-1, 1.5])
    async def test_a_number_of_retries_that_cannot_work_is_refused_by_every_call(
        self, session: QuickSession, server: Emulator, max_retries: object
    ) -> None:
        with pytest.raises(ConfigurationError, match="max_retries must be a whole number"):
            session.guard("resp_1", max_retries=max_retries)
        with pytest.raises(ConfigurationError, match="max_retries must be a whole number"):
            session.stop_many(["resp_1"], max_retries=max_retries)
        for call in (session.cancel, session.retrieve, session.stop, session.wait):
            with pytest.raises(ConfigurationError, match="max_retries must be a whole number"):
                await call("resp_1", max_retries=max_retries)
        assert server.received == []

    @pytest.mark.parametrize("ids", ["resp_1", b"resp_1", 5, None])
    def test_stop_many_takes_an_iterable_of_ids_and_not_one_id(self, ids: object) -> None:
        with pytest.raises(ConfigurationError, match="stop_many takes an iterable of ids, such as a list, not"):
            AsyncSession(api_key=KEY).stop_many(ids)


class TestLedger:
    async def test_a_session_opens_and_closes_a_ledger_that_is_not_open(self, server: Emulator, tmp_path: Path) -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        async with AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger):
            pass
        with pytest.raises(SessionStateError):
            await ledger.track("resp_1", session=AsyncSession(api_key=KEY), ttl=60)

    async def test_a_session_leaves_a_ledger_open_that_was_open(self, server: Emulator, tmp_path: Path) -> None:
        async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
            async with AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger) as session:
                pass
            await ledger.track("resp_1", session=session, ttl=60)
            assert [entry.response_id async for entry in ledger.entries()] == ["resp_1"]

    async def test_a_guard_records_its_response_in_the_ledger(self, server: Emulator, tmp_path: Path) -> None:
        async with (
            Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
            AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger, account="batch") as session,
            session.guard("resp_1"),
        ):
            [entry] = [entry async for entry in ledger.entries()]
        assert (entry.response_id, entry.account, entry.base_url) == ("resp_1", "batch", server.base_url)

    async def test_a_session_whose_ledger_cannot_be_opened_is_closed(self, server: Emulator, tmp_path: Path) -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        await ledger.close()
        session = AsyncSession(api_key=KEY, base_url=server.base_url, ledger=ledger)
        with pytest.raises(SessionStateError):
            await session.open()
        assert repr(session).endswith(" closed>")


class TestAccount:
    def test_an_account_that_was_passed_in_is_used_as_it_is(self) -> None:
        assert AsyncSession(api_key=KEY, account="batch").account == "batch"

    def test_the_fingerprint_differs_by_key_organization_and_project_and_does_not_contain_them(self) -> None:
        options = [{}, {"api_key": "another-key"}, {"organization": "org_1"}, {"project": "org_1"}]
        accounts = [AsyncSession(**{"api_key": KEY, **each}).account for each in options]
        assert len(set(accounts)) == len(options)
        assert AsyncSession(api_key=KEY).account == accounts[0]
        assert not any(KEY in account or "org_1" in account for account in accounts)

    def test_a_key_function_does_not_change_the_account(self) -> None:
        first, second = (AsyncSession(api_key=function).account for function in (lambda: "a", lambda: "b"))
        assert first == second

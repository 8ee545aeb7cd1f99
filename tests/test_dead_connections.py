"""Connections that died without a word: their requests are sent again on fresh ones, in time."""

import asyncio
import math
import time
from contextlib import suppress

import aiohttp
import pytest
from conftest import KEY, hasty_session
from relay import Relay

from openai_cancel import APITimeoutError, AsyncSession, Clock, Verdict, pool
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.wire import Request


async def warm(session: AsyncSession, server: Emulator, ids: list[str]) -> None:
    """Leave one idle connection in the pool for each id."""
    server.faults += [Fault(delay=0.05)] * len(ids)  # so that none waits for another one's connection
    with pytest.MonkeyPatch.context() as patience:
        patience.setattr(pool, "REUSED_ANSWER_TIMEOUT", 30.0)  # a busy machine answers late
        await asyncio.gather(*(session.retrieve(name) for name in ids))


@pytest.fixture
async def relay(server: Emulator):
    async with Relay(server.base_url) as relay:
        yield relay


@pytest.fixture(params=["own connections", "connections of a caller's client"])
async def client(request: pytest.FixtureRequest):
    """The option for the client of a session."""
    if request.param == "own connections":
        yield {}
    else:
        async with aiohttp.ClientSession() as client_session:
            yield {"client_session": client_session}


@pytest.mark.parametrize("dead", [1, 20])
class TestWithDeadConnectionsInThePool:
    @pytest.fixture(autouse=True)
    def impatience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool, "REUSED_ANSWER_TIMEOUT", 0.4)  # dead connections use up all of it

    async def test_a_cancel_reaches_the_server_with_its_second_attempt(
        self, relay: Relay, server: Emulator, create, client, dead: int
    ) -> None:
        ids = [create() for _ in range(dead)]
        async with hasty_session(api_key=KEY, base_url=relay.base_url, **client, deadline=20) as session:
            await warm(session, server, ids)
            relay.freeze()
            response = await session.cancel(ids[0])
        assert (response.status, response.attempts) == ("cancelled", 2)
        assert relay.connections == dead + 1

    async def test_a_guard_starts_with_a_fresh_connection(
        self, relay: Relay, server: Emulator, create, client, *, dead: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("openai_cancel.guarded_responses.TRUSTED_FOR", 0.0)
        ids = [create() for _ in range(dead)]
        async with AsyncSession(api_key=KEY, base_url=relay.base_url, **client) as session:
            await warm(session, server, ids)
            relay.freeze()
            began = time.monotonic()
            with pytest.raises(ZeroDivisionError) as caught:
                async with session.guard(*ids, grace=10) as guard:
                    _ = 1 / 0
            assert time.monotonic() - began < 5
        assert {outcome.verdict for outcome in guard.outcomes.values()} == {Verdict.CANCELLED}
        assert not hasattr(caught.value, "__notes__")

    @pytest.mark.slow
    async def test_a_guard_that_trusts_a_connection_has_time_for_a_fresh_one(
        self, relay: Relay, server: Emulator, create, client, dead: int
    ) -> None:
        ids = [create() for _ in range(dead)]
        async with hasty_session(api_key=KEY, base_url=relay.base_url, **client) as session:
            await warm(session, server, ids)
            relay.freeze()
            with pytest.raises(ZeroDivisionError):
                async with session.guard(ids[0], grace=2) as guard:
                    _ = 1 / 0
        assert guard.outcome.verdict is Verdict.CANCELLED

    @pytest.mark.slow
    async def test_stop_many_stops_all(self, relay: Relay, server: Emulator, create, client, dead: int) -> None:
        ids = [create() for _ in range(dead)]
        async with hasty_session(api_key=KEY, base_url=relay.base_url, **client) as session:
            await warm(session, server, ids)
            relay.freeze()
            verdicts = [outcome.verdict async for outcome in session.stop_many(ids, deadline=20)]
        assert verdicts == [Verdict.CANCELLED] * dead


async def test_an_answer_should_begin_within_the_patience_of_the_pool(
    relay: Relay, server: Emulator, create, client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "REUSED_ANSWER_TIMEOUT", 0.1)
    name = create()
    async with hasty_session(
        api_key=KEY, base_url=relay.base_url, **client, timeout=math.inf, deadline=math.inf
    ) as session:
        await warm(session, server, [name])
        relay.freeze()
        assert (await session.cancel(name)).attempts == 2


async def test_without_another_attempt_a_used_connection_has_the_whole_time(
    relay: Relay, server: Emulator, create, client
) -> None:
    name = create()
    async with hasty_session(api_key=KEY, base_url=relay.base_url, **client, timeout=0.3, max_retries=0) as session:
        await warm(session, server, [name])
        relay.freeze()
        with pytest.raises(APITimeoutError, match=r"No complete answer within 0\.3 s"):
            await session.cancel(name)
        assert (await session.cancel(name)).status == "cancelled"  # the timeout has dropped the idle connections


async def test_the_error_says_that_the_connection_may_be_dead(relay: Relay, server: Emulator, create) -> None:
    class Hesitant(Clock):
        def random(self) -> float:
            return 1.0  # the back-off, half a second, would exceed the deadline

    name = create()
    async with AsyncSession(api_key=KEY, base_url=relay.base_url, deadline=0.5, clock=Hesitant()) as session:
        await warm(session, server, [name])
        relay.freeze()
        with pytest.raises(APITimeoutError, match=r"within 0\.\d+ s on a reused connection, which may be dead"):
            await session.cancel(name)


class TestASlowServer:
    @pytest.mark.slow
    async def test_it_is_not_taken_for_a_dead_connection_again_and_again(
        self, server: Emulator, create, client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pool, "REUSED_ANSWER_TIMEOUT", 0.1)
        name = create()
        async with hasty_session(api_key=KEY, base_url=server.base_url, **client) as session:
            await session.retrieve(name)
            server.faults += [Fault(delay=0.2)] * 4
            assert [(await session.retrieve(name)).attempts for _ in range(3)] == [2, 1, 1]
            assert [(await session.retrieve(name)).attempts for _ in range(2)] == [1, 1]

    async def test_a_body_that_takes_long_is_read_to_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool, "REUSED_ANSWER_TIMEOUT", 0.2)
        body = b'{"id": "resp_1", "status": "cancelled"}'

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\n"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                    await asyncio.sleep(0.4)
                    writer.write(body)
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with hasty_session(api_key=KEY, base_url=url) as session:
            assert [(await session.cancel("x")).attempts for _ in range(2)] == [1, 1]
        listener.close()


async def test_connections_that_were_used_just_now_are_kept_by_a_guard(relay: Relay, create) -> None:
    name = create()
    async with AsyncSession(api_key=KEY, base_url=relay.base_url) as session:
        await session.retrieve(name)
        with pytest.raises(ZeroDivisionError):
            async with session.guard(name):
                _ = 1 / 0
    assert relay.connections == 1


async def test_the_idle_connections_of_a_callers_client_stay_open_and_are_not_used_by_a_guard(
    relay: Relay, create
) -> None:
    name = create()
    async with (
        aiohttp.ClientSession() as client,
        AsyncSession(api_key=KEY, base_url=relay.base_url, client_session=client) as session,
    ):
        await session.retrieve(name)
        with pytest.raises(ZeroDivisionError):
            async with session.guard(name) as guard:
                _ = 1 / 0
        assert guard.outcome.verdict is Verdict.CANCELLED
        assert relay.connections == 2
        async with client.get(f"{relay.base_url}/responses/{name}", headers={"Authorization": f"Bearer {KEY}"}) as got:
            assert got.status == 200
    assert relay.connections == 2


async def test_an_exchange_of_its_own_may_use_a_connection_again(relay: Relay) -> None:
    async with AsyncSession(api_key=KEY, base_url=relay.base_url) as session:
        for _ in range(2):
            answer = await session.caller.transport.send(Request("GET", f"{relay.base_url}/responses/x", {}))
            assert answer.status == 404
    assert relay.connections == 1

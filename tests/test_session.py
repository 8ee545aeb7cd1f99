"""`AsyncSession`: its calls, its retries, its life, and being cancelled."""

import asyncio
import copy
import gc
import logging
import math
import pickle
import traceback
import warnings

import aiohttp
import pytest
from conftest import KEY, QuickClock, QuickSession, until

from openai_cancel import (
    APIConnectionError,
    APITimeoutError,
    AsyncSession,
    AuthenticationError,
    BadRequestError,
    Clock,
    ConfigurationError,
    ConflictError,
    InternalServerError,
    InvalidResponseIdError,
    NotFoundError,
    RateLimitError,
    ResponseDecodeError,
    SessionStateError,
)
from openai_cancel.emulator import Emulator, Fault

HANG = Fault(delay=math.inf)
BUSY = Fault(status=503, body={"error": {"message": "Overloaded."}})


class TestCalls:
    async def test_cancel(self, session: QuickSession, server: Emulator, create) -> None:
        identifier = create()
        assert (await session.retrieve(identifier)).status == "in_progress"
        response = await session.cancel(identifier)
        assert (response.id, response.status, response.output) == (identifier, "cancelled", [])
        assert response.request_id == "req_00000000000000000000000000000002"
        assert (await session.retrieve(response)).status == "cancelled"
        assert [request.method for request in server.received] == ["GET", "POST", "GET"]
        assert server.received[1].path == f"/v1/responses/{identifier}/cancel"
        assert server.received[1].body == b""

    async def test_what_the_server_refuses(self, session: QuickSession, create) -> None:
        with pytest.raises(BadRequestError, match="400: Cannot cancel a completed response"):
            await session.cancel(create(runs_for=0))
        with pytest.raises(BadRequestError, match="Cannot cancel a synchronous response"):
            await session.cancel(create(background=False))
        with pytest.raises(NotFoundError, match="Response with id 'resp_none' not found") as caught:
            await session.cancel("resp_none")
        assert caught.value.attempts == 1
        assert session.clock.slept == []

    async def test_an_id_that_is_refused_is_never_sent(self, session: QuickSession, server: Emulator) -> None:
        with pytest.raises(InvalidResponseIdError):
            await session.cancel("..")
        assert server.received == []

    async def test_options_of_a_call(self, session: QuickSession, server: Emulator, create) -> None:
        await session.cancel(create(), headers={"X-A": "1"}, query={"q": "a b"})
        assert server.received[0].headers["x-a"] == "1"
        assert server.received[0].path.endswith("/cancel?q=a+b")

    @pytest.mark.parametrize(
        "options",
        [{"timeout": 0}, {"timeout": math.nan}, {"deadline": -1}, {"max_retries": -1}, {"headers": {"a": "\n"}}],
    )
    async def test_options_that_cannot_be_are_refused_before_sending(self, session, server, options) -> None:
        with pytest.raises(ConfigurationError):
            await session.cancel("x", **options)
        assert server.received == []

    async def test_an_unknown_option(self, session: QuickSession) -> None:
        with pytest.raises(TypeError, match="tiemout"):
            await session.cancel("x", tiemout=1)

    async def test_a_wrong_key(self) -> None:
        async with Emulator(api_key="right") as server, AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            with pytest.raises(AuthenticationError, match="Incorrect API key provided") as caught:
                await session.cancel("x")
        assert caught.value.code == "invalid_api_key"
        assert KEY not in "".join(traceback.format_exception(caught.value))


class TestKeys:
    async def test_a_function_is_asked_for_each_attempt(self, server: Emulator, create) -> None:
        keys = iter(["first-key", "second-key"])

        async def provide() -> str:
            return next(keys)

        server.faults.append(BUSY)
        async with QuickSession(api_key=provide, base_url=server.base_url) as session:
            await session.cancel(create())
        sent = [request.headers["authorization"] for request in server.received]
        assert sent == ["Bearer first-key", "Bearer second-key"]

    async def test_azure_with_a_token_provider(self, server: Emulator) -> None:
        async with AsyncSession.azure(server.base_url, token_provider=lambda: "token", max_retries=0) as session:
            with pytest.raises(NotFoundError):
                await session.retrieve("x")
        assert server.received[0].headers["authorization"] == "Bearer token"

    async def test_what_it_gives_is_checked_and_not_sent(self, server: Emulator) -> None:
        async with QuickSession(api_key=lambda: f"{KEY}\n", base_url=server.base_url) as session:
            with pytest.raises(ConfigurationError, match="the api_key function returned begins or ends") as caught:
                await session.cancel("x")
        assert server.received == []
        assert KEY not in str(caught.value)

    async def test_what_it_raises_is_the_callers_own(self, server: Emulator) -> None:
        def broken() -> str:
            raise TimeoutError("the vault is asleep")

        async with QuickSession(api_key=broken, base_url=server.base_url) as session:
            with pytest.raises(TimeoutError, match="the vault is asleep"):
                await session.cancel("x")
            assert session.clock.slept == []

    async def test_one_that_hangs_is_bounded_as_an_attempt_is(self, server: Emulator) -> None:
        async def hang() -> str:
            await asyncio.Event().wait()
            raise AssertionError

        async with QuickSession(api_key=hang, base_url=server.base_url) as session:
            with pytest.raises(APITimeoutError, match=r"No complete answer within 0.01 s"):
                await session.cancel("x", timeout=0.01, max_retries=1)
            assert len(session.clock.slept) == 1


class TestRetries:
    @pytest.mark.parametrize(
        "fault",
        [
            BUSY,
            Fault(status=429, body={"error": {"message": "Slow down."}}),
            Fault(status=408),
            Fault(status=500, body=b"<html>"),
            Fault(status=409, headers={"x-should-retry": "true"}),
            Fault(cut="connection"),
            Fault(status=200, body=b'{"id": "x"}', cut="body"),
            Fault(raw=b"nonsense\r\n\r\n"),
        ],
    )
    async def test_what_passes(self, session: QuickSession, server: Emulator, create, fault: Fault) -> None:
        server.faults += [fault, fault]
        assert (await session.cancel(create())).status == "cancelled"
        assert session.clock.slept == [0.5, 1.0]

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            (Fault(status=400), BadRequestError),
            (Fault(status=409), ConflictError),
            (Fault(status=429, body={"error": {"message": "Quota.", "code": "insufficient_quota"}}), RateLimitError),
            (Fault(status=503, headers={"x-should-retry": "false"}), InternalServerError),
            (Fault(status=200, body=b"ok"), ResponseDecodeError),
        ],
    )
    async def test_what_does_not(self, session: QuickSession, server: Emulator, fault: Fault, kind) -> None:
        server.faults.append(fault)
        with pytest.raises(kind):
            await session.cancel("x")
        assert len(server.received) == 1

    async def test_it_gives_up_with_the_last_error(self, session: QuickSession, server: Emulator) -> None:
        server.faults += [BUSY] * 4 + [Fault(status=500, body=b"The last one.")]
        with pytest.raises(InternalServerError, match="The last one") as caught:
            await session.cancel("x")
        assert caught.value.attempts == 5
        assert session.clock.slept == [0.5, 1.0, 2.0, 4.0]

    @pytest.mark.parametrize("max_retries", [0, 1, 2])
    async def test_as_often_as_the_call_says(self, session: QuickSession, server: Emulator, max_retries: int) -> None:
        server.faults += [BUSY] * 9
        with pytest.raises(InternalServerError):
            await session.cancel("x", max_retries=max_retries)
        assert len(server.received) == max_retries + 1

    async def test_as_the_server_asks(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [
            Fault(status=429, headers={"retry-after-ms": "1500"}),
            Fault(status=503, headers={"retry-after": "9"}),
        ]
        await session.cancel(create())
        assert session.clock.slept == [1.5, 9.0]

    async def test_within_the_deadline(self, session: QuickSession, server: Emulator) -> None:
        server.faults += [Fault(status=429, headers={"retry-after": "25"})] * 9
        with pytest.raises(RateLimitError) as caught:
            await session.cancel("x")
        assert session.clock.slept == [25.0, 25.0]
        assert caught.value.attempts == 3
        with pytest.raises(RateLimitError):
            await session.cancel("x", deadline=20)
        assert len(session.clock.slept) == 2

    async def test_an_attempt_never_outlives_the_deadline(self, session: QuickSession, server: Emulator) -> None:
        server.faults += [HANG, HANG]
        with pytest.raises(APITimeoutError, match=r"No complete answer within the deadline of 0.02 s"):
            await session.cancel("x", timeout=30, deadline=0.02, max_retries=0)

    async def test_time_outs_are_tried_again(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [HANG, Fault(delay=math.inf, act=True)]
        assert (await session.cancel(create(), timeout=0.4)).status == "cancelled"
        assert len(session.clock.slept) == 2

    async def test_no_limit_at_all(self, session: QuickSession, create) -> None:
        assert (await session.cancel(create(), timeout=math.inf, deadline=math.inf)).status == "cancelled"

    async def test_a_time_out_covers_the_body(self) -> None:
        async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            try:
                await asyncio.Event().wait()
            finally:
                writer.close()

        listener = await asyncio.start_server(drip, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with QuickSession(api_key=KEY, base_url=url) as other:
            with pytest.raises(APITimeoutError) as caught:
                await other.cancel("x", timeout=0.05, max_retries=0)
        assert isinstance(caught.value.__cause__, TimeoutError)
        listener.close()
        await cancel_others()

    async def test_the_real_clock_sleeps(self, server: Emulator, create) -> None:
        server.faults.append(Fault(status=503, headers={"retry-after-ms": "1"}))
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            assert (await session.cancel(create())).status == "cancelled"


class TestLife:
    async def test_before_it_is_open(self) -> None:
        with pytest.raises(SessionStateError, match="not open: use `async with AsyncSession"):
            await AsyncSession(api_key=KEY).cancel("x")

    async def test_after_it_is_closed(self, server: Emulator) -> None:
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            pass
        with pytest.raises(SessionStateError, match="closed: create another one"):
            await session.cancel("x")
        with pytest.raises(SessionStateError, match="opened only once"):
            await session.open()
        await session.close()

    async def test_opened_and_closed_by_hand(self, server: Emulator, create) -> None:
        session = await AsyncSession(api_key=KEY, base_url=server.base_url).open()
        assert repr(session) == f"<AsyncSession {server.base_url} open>"
        with pytest.raises(SessionStateError, match="opened only once"):
            await session.open()
        assert (await session.cancel(create())).status == "cancelled"
        await session.close()
        assert repr(session) == f"<AsyncSession {server.base_url} closed>"

    async def test_closed_before_it_was_open(self) -> None:
        session = AsyncSession(api_key=KEY)
        assert repr(session) == "<AsyncSession https://api.openai.com/v1 not open>"
        await session.close()
        with pytest.raises(SessionStateError, match="closed"):
            await session.cancel("x")

    async def test_from_another_event_loop(self, session: QuickSession) -> None:
        for call in (session.cancel, lambda _: session.close()):
            with pytest.raises(SessionStateError, match="another event loop: open one in each loop"):
                await asyncio.to_thread(asyncio.run, call("x"))

    async def test_closed_while_a_call_is_under_way(self, server: Emulator) -> None:
        server.faults.append(HANG)
        session = await QuickSession(api_key=KEY, base_url=server.base_url).open()
        call = asyncio.create_task(session.cancel("x"))
        await until(lambda: server.received)
        await session.close()
        with pytest.raises(SessionStateError, match="is closed"):
            await call

    @pytest.mark.parametrize("who", ["session", "client"])
    async def test_closed_while_the_name_of_the_server_is_looked_up(
        self, who: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """aiohttp cancels the look-up, and nobody has cancelled the task that waits for it."""
        looked_up = asyncio.Event()

        class Resolver(aiohttp.abc.AbstractResolver):
            def __init__(self, **_: object) -> None:
                pass

            async def resolve(self, *_: object, **__: object) -> list[aiohttp.abc.ResolveResult]:
                looked_up.set()
                await asyncio.Event().wait()
                raise AssertionError

            async def close(self) -> None:
                pass

        monkeypatch.setattr("aiohttp.connector.DefaultResolver", Resolver)
        monkeypatch.setattr("openai_cancel.transport.ThreadResolver", Resolver)
        client = aiohttp.ClientSession() if who == "client" else None
        session = await AsyncSession(api_key="any", base_url="http://host.invalid", client_session=client).open()
        call = asyncio.create_task(session.cancel("x"))
        await looked_up.wait()
        await (session if client is None else client).close()
        with pytest.raises(SessionStateError, match="closed"):
            await call
        await session.close()

    async def test_closed_between_two_attempts(self, server: Emulator) -> None:
        """A client of the caller's stays open, and yet no more is sent through it."""

        class Closing(QuickClock):
            async def sleep(self, _: float) -> None:
                await session.close()

        server.faults.append(BUSY)
        async with (
            aiohttp.ClientSession() as client,
            QuickSession(api_key=KEY, base_url=server.base_url, client_session=client, clock=Closing()) as session,
        ):
            with pytest.raises(SessionStateError, match="closed"):
                await session.cancel("x")
        assert len(server.received) == 1

    @pytest.mark.parametrize("clone", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_it_cannot_be_pickled_or_copied(self, clone) -> None:
        with pytest.raises(TypeError, match="cannot be pickled or copied: it holds a key"):
            clone(AsyncSession(api_key=KEY))

    def test_a_repr_before_it_is_made(self) -> None:
        assert repr(AsyncSession.__new__(AsyncSession)) == "<AsyncSession ? not open>"

    async def test_forgotten(self) -> None:
        async def forget() -> None:
            await AsyncSession(api_key=KEY).open()

        with pytest.warns(ResourceWarning) as caught:
            await forget()
            gc.collect()
        assert "unclosed <AsyncSession https://api.openai.com/v1 open>: use `async with`" in str(caught[0].message)
        assert KEY not in str([warning.message for warning in caught])
        with warnings.catch_warnings(action="ignore"):  # what holds the session holds aiohttp's, which warns as well
            caught.clear()
            gc.collect()

    def test_never_opened_is_fine(self) -> None:
        AsyncSession(api_key=KEY)
        gc.collect()

    def test_a_failed_constructor_is_silent_afterwards(self) -> None:
        with pytest.raises(ConfigurationError):
            AsyncSession()
        gc.collect()

    def test_a_client_of_another_library(self) -> None:
        with pytest.raises(ConfigurationError, match="client_session must be an aiohttp.ClientSession, not object"):
            AsyncSession(api_key=KEY, client_session=object())

    async def test_from_openai(self, server: Emulator, create) -> None:
        import openai

        async with (
            openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url) as client,
            AsyncSession.from_openai(client) as session,
        ):
            assert (await session.cancel(create())).status == "cancelled"


class TestBeingCancelled:
    @pytest.mark.parametrize("moment", ["key", "answer", "body", "pause", "pool"])
    async def test_at_every_wait_it_ends_at_once_and_leaves_nothing(self, server: Emulator, moment: str) -> None:
        reached = asyncio.Event()

        class Pausing(Clock):
            async def sleep(self, _: float) -> None:
                reached.set()
                await asyncio.Event().wait()

        async def provide() -> str:
            if moment == "key":
                reached.set()
                await asyncio.Event().wait()
            return KEY

        before = asyncio.all_tasks()
        server.faults += {
            "key": [],
            "answer": [HANG],
            "body": [Fault(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", delay=0)],
            "pause": [BUSY],
            "pool": [HANG] * 101,
        }[moment]
        async with AsyncSession(
            api_key=provide, base_url=server.base_url, timeout=math.inf, clock=Pausing()
        ) as session:
            calls = [asyncio.create_task(session.cancel("x")) for _ in range(101 if moment == "pool" else 1)]
            if moment in {"answer", "body", "pool"}:
                await until(lambda: len(server.received) >= len(calls) - (moment == "pool"))
            else:
                await reached.wait()
            for call in calls:
                assert call.cancel()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            if moment == "body":  # the emulator closes behind half a body, which may be seen first
                assert isinstance(ended[0], asyncio.CancelledError)
            else:
                assert all(isinstance(one, asyncio.CancelledError) for one in ended)
            assert all(call.cancelled() for call in calls)
        assert asyncio.all_tasks() - before <= {task for task in asyncio.all_tasks() if "aiohttp" in repr(task)}

    async def test_a_time_out_around_it_is_the_callers(self, session: QuickSession, server: Emulator) -> None:
        server.faults.append(HANG)
        task = asyncio.current_task()
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.02):
                await session.cancel("x")
        assert not isinstance(caught.value, APITimeoutError)
        assert task.cancelling() == 0

    async def test_our_time_out_leaves_no_cancellation_behind(self, session: QuickSession, server: Emulator) -> None:
        server.faults.append(HANG)
        with pytest.raises(APITimeoutError):
            await session.cancel("x", timeout=0.01, max_retries=0)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)

    async def test_the_session_works_on_after_it(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults.append(HANG)
        call = asyncio.create_task(session.cancel("x"))
        await until(lambda: server.received)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await session.cancel(create())).status == "cancelled"


async def test_many_at_once(session: QuickSession, create) -> None:
    identifiers = [create() for _ in range(300)]
    responses = await asyncio.gather(*map(session.cancel, identifiers))
    assert [response.id for response in responses] == identifiers
    assert {response.status for response in responses} == {"cancelled"}


async def test_the_key_shows_nowhere(server: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.faults += [Fault(status=400, body=f"You sent {KEY}".encode()), Fault(cut="connection")]
    async with QuickSession(api_key=KEY, base_url=server.base_url, max_retries=0) as session:
        for kind in (BadRequestError, APIConnectionError):
            with pytest.raises(kind) as caught:
                await session.cancel("x")
            shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
            assert KEY not in "".join(shown.format())
            assert KEY not in repr(caught.value.__cause__)
        assert KEY not in repr(session) + repr(vars(session))
    assert KEY not in caplog.text


def errors() -> list[object]:
    return [thing for thing in gc.get_objects() if type(thing) is BadRequestError]


async def test_a_failure_keeps_nothing_alive(session: QuickSession, server: Emulator) -> None:
    """An error whose traceback holds the frame that holds the error waits for the garbage collector."""
    server.faults.append(Fault(status=400))
    gc.collect()
    before = len(errors())
    gc.disable()
    try:
        with pytest.raises(BadRequestError):
            await session.cancel("x")
        assert len(errors()) == before
    finally:
        gc.enable()


async def cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

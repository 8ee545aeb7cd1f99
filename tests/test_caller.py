"""`Caller`: one call of the API with its retries, its time limits and its log."""

import asyncio
import gc
import logging
import math
import traceback

import pytest
from conftest import KEY, QuickSession, until

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
    Response,
    ResponseDecodeError,
)
from openai_cancel.emulator import Emulator, Fault

HANG = Fault(delay=math.inf)
UNAVAILABLE = Fault(status=503, body={"error": {"message": "Overloaded."}})


class TestCancelAndRetrieve:
    async def test_each_call_returns_the_response_as_the_server_reports_it(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        identifier = create()
        assert (await session.retrieve(identifier)).status == "in_progress"
        response = await session.cancel(identifier)
        assert (response.id, response.status, response.output) == (identifier, "cancelled", [])
        assert response.request_id == "req_00000000000000000000000000000002"
        assert (await session.retrieve(response)).status == "cancelled"
        assert [request.method for request in server.received] == ["GET", "POST", "GET"]
        assert server.received[1].path == f"/v1/responses/{identifier}/cancel"
        assert server.received[1].body == b""

    async def test_a_refusal_of_the_server_is_raised_and_not_retried(self, session: QuickSession, create) -> None:
        with pytest.raises(BadRequestError, match="400: Cannot cancel a completed response"):
            await session.cancel(create(runs_for=0))
        with pytest.raises(BadRequestError, match="Cannot cancel a synchronous response"):
            await session.cancel(create(background=False))
        with pytest.raises(NotFoundError, match="Response with id 'resp_none' not found") as caught:
            await session.cancel("resp_none")
        assert caught.value.attempts == 1
        assert session.clock.slept == []

    async def test_an_id_that_is_no_path_segment_is_never_sent(self, session: QuickSession, server: Emulator) -> None:
        with pytest.raises(InvalidResponseIdError):
            await session.cancel("..")
        assert server.received == []

    async def test_a_wrong_key_is_reported_without_showing_it(self) -> None:
        async with Emulator(api_key="right") as server, AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            with pytest.raises(AuthenticationError, match="Incorrect API key provided") as caught:
                await session.cancel("x")
        assert caught.value.code == "invalid_api_key"
        assert KEY not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.slow
    async def test_300_calls_at_once_each_get_their_own_response(self, session: QuickSession, create) -> None:
        identifiers = [create() for _ in range(300)]
        responses = await asyncio.gather(*map(session.cancel, identifiers))
        assert [response.id for response in responses] == identifiers
        assert {response.status for response in responses} == {"cancelled"}


class TestOptions:
    async def test_headers_and_query_of_a_call_are_sent(self, session: QuickSession, server: Emulator, create) -> None:
        await session.cancel(create(), headers={"X-A": "1"}, query={"q": "a b"})
        assert server.received[0].headers["x-a"] == "1"
        assert server.received[0].path.endswith("/cancel?q=a+b")

    @pytest.mark.parametrize(
        "options",
        [{"timeout": 0}, {"timeout": math.nan}, {"deadline": -1}, {"max_retries": -1}, {"headers": {"a": "\n"}}],
    )
    async def test_an_option_that_cannot_work_is_refused_before_sending(self, session, server, options) -> None:
        with pytest.raises(ConfigurationError):
            await session.cancel("x", **options)
        assert server.received == []

    def test_without_options_the_caller_stays_the_same(self) -> None:
        caller = AsyncSession(api_key=KEY).caller
        assert caller.with_options() is caller

    @pytest.mark.parametrize(
        ("options", "policy"), [({"deadline": 7}, (4, 7)), ({"max_retries": 0}, (0, 60.0)), ({"timeout": 7}, (4, 60.0))]
    )
    def test_one_option_leaves_the_other_limits_as_they_are(self, options: dict, policy: tuple) -> None:
        caller = AsyncSession(api_key=KEY).caller.with_options(**options)
        assert (caller.policy.max_retries, caller.policy.deadline) == policy
        assert caller.timeout == options.get("timeout", 30.0)

    async def test_a_caller_takes_a_deadline_and_retries_for_one_call(
        self, session: QuickSession, server: Emulator
    ) -> None:
        server.faults += [UNAVAILABLE] * 9
        with pytest.raises(InternalServerError) as caught:
            await session.caller.retrieve("x", max_retries=1)
        assert caught.value.attempts == 2
        with pytest.raises(InternalServerError) as caught:
            await session.caller.retrieve("x", deadline=0.1)
        assert caught.value.attempts == 1
        with pytest.raises(InternalServerError) as caught:
            await session.caller.cancel("x", deadline=0.1)
        assert caught.value.attempts == 1


class TestKeyFunction:
    async def test_a_key_function_is_called_for_each_attempt(self, server: Emulator, create) -> None:
        keys = iter(["first-key", "second-key"])

        async def provide() -> str:
            return next(keys)

        server.faults.append(UNAVAILABLE)
        async with QuickSession(api_key=provide, base_url=server.base_url) as session:
            await session.cancel(create())
        sent = [request.headers["authorization"] for request in server.received]
        assert sent == ["Bearer first-key", "Bearer second-key"]

    async def test_a_token_provider_for_azure_is_sent_as_a_bearer_token(self, server: Emulator) -> None:
        async with AsyncSession.azure(server.base_url, token_provider=lambda: "token", max_retries=0) as session:
            with pytest.raises(NotFoundError):
                await session.retrieve("x")
        assert server.received[0].headers["authorization"] == "Bearer token"

    async def test_a_value_that_cannot_be_a_key_is_not_sent(self, server: Emulator) -> None:
        async with QuickSession(api_key=lambda: f"{KEY}\n", base_url=server.base_url) as session:
            with pytest.raises(ConfigurationError, match="the api_key function returned begins or ends") as caught:
                await session.cancel("x")
        assert server.received == []
        assert KEY not in str(caught.value)

    async def test_an_exception_of_a_key_function_is_raised_without_a_retry(self, server: Emulator) -> None:
        def broken() -> str:
            raise TimeoutError("the vault is asleep")

        async with QuickSession(api_key=broken, base_url=server.base_url) as session:
            with pytest.raises(TimeoutError, match="the vault is asleep"):
                await session.cancel("x")
            assert session.clock.slept == []

    async def test_a_function_that_hangs_is_ended_by_the_time_out_of_the_attempt(self, server: Emulator) -> None:
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
            UNAVAILABLE,
            Fault(status=429, body={"error": {"message": "Slow down."}}),
            Fault(status=408),
            Fault(status=500, body=b"<html>"),
            Fault(status=409, headers={"x-should-retry": "true"}),
            Fault(cut="connection"),
            Fault(status=200, body=b'{"id": "x"}', cut="body"),
            Fault(raw=b"nonsense\r\n\r\n"),
        ],
    )
    async def test_a_transient_failure_is_retried_with_back_off(
        self, session: QuickSession, server: Emulator, create, fault: Fault
    ) -> None:
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
    async def test_a_final_failure_is_not_retried(
        self, session: QuickSession, server: Emulator, fault: Fault, kind
    ) -> None:
        server.faults.append(fault)
        with pytest.raises(kind):
            await session.cancel("x")
        assert len(server.received) == 1

    async def test_the_last_error_is_raised_when_the_retries_are_used_up(
        self, session: QuickSession, server: Emulator
    ) -> None:
        server.faults += [UNAVAILABLE] * 4 + [Fault(status=500, body=b"The last one.")]
        with pytest.raises(InternalServerError, match="The last one") as caught:
            await session.cancel("x")
        assert caught.value.attempts == 5
        assert session.clock.slept == [0.5, 1.0, 2.0, 4.0]

    @pytest.mark.parametrize("max_retries", [0, 1, 2])
    async def test_max_retries_of_a_call_limits_its_attempts(
        self, session: QuickSession, server: Emulator, max_retries: int
    ) -> None:
        server.faults += [UNAVAILABLE] * 9
        with pytest.raises(InternalServerError):
            await session.cancel("x", max_retries=max_retries)
        assert len(server.received) == max_retries + 1

    async def test_the_wait_between_attempts_is_the_one_that_the_server_asks_for(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        server.faults += [
            Fault(status=429, headers={"retry-after-ms": "1500"}),
            Fault(status=503, headers={"retry-after": "9"}),
        ]
        await session.cancel(create())
        assert session.clock.slept == [1.5, 9.0]

    async def test_the_system_clock_sleeps_between_attempts(self, server: Emulator, create) -> None:
        server.faults.append(Fault(status=503, headers={"retry-after-ms": "1"}))
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            assert (await session.cancel(create())).status == "cancelled"


class TestTimeLimits:
    async def test_no_retry_starts_after_the_deadline(self, session: QuickSession, server: Emulator) -> None:
        server.faults += [Fault(status=429, headers={"retry-after": "25"})] * 9
        with pytest.raises(RateLimitError) as caught:
            await session.cancel("x")
        assert session.clock.slept == [25.0, 25.0]
        assert caught.value.attempts == 3
        with pytest.raises(RateLimitError):
            await session.cancel("x", deadline=20)
        assert len(session.clock.slept) == 2

    async def test_an_attempt_ends_at_the_deadline(self, session: QuickSession, server: Emulator) -> None:
        server.faults += [HANG, HANG]
        with pytest.raises(APITimeoutError, match=r"No complete answer within the deadline of 0.02 s"):
            await session.cancel("x", timeout=30, deadline=0.02, max_retries=0)

    async def test_an_attempt_that_times_out_is_retried(self, session: QuickSession, server: Emulator, create) -> None:
        server.faults += [HANG, Fault(delay=math.inf, act=True)]
        assert (await session.cancel(create(), timeout=0.4)).status == "cancelled"
        assert len(session.clock.slept) == 2

    async def test_infinite_limits_are_accepted(self, session: QuickSession, create) -> None:
        assert (await session.cancel(create(), timeout=math.inf, deadline=math.inf)).status == "cancelled"

    async def test_the_time_out_covers_the_body(self) -> None:
        left = asyncio.Event()

        async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            await reader.read()  # until the client leaves
            writer.close()
            left.set()

        listener = await asyncio.start_server(stall, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with QuickSession(api_key=KEY, base_url=url) as session:
            with pytest.raises(APITimeoutError) as caught:
                await session.cancel("x", timeout=0.05, max_retries=0)
        assert isinstance(caught.value.__cause__, TimeoutError)
        await left.wait()
        listener.close()


class TestCancelledTasks:
    @pytest.mark.parametrize("moment", ["key", "answer", "body", "pause", "pool"])
    async def test_a_cancelled_call_ends_at_once_wherever_it_waits(self, server: Emulator, moment: str) -> None:
        reached = asyncio.Event()

        class PausingClock(Clock):
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
            "pause": [UNAVAILABLE],
            "pool": [HANG] * 101,
        }[moment]
        async with AsyncSession(
            api_key=provide, base_url=server.base_url, timeout=math.inf, clock=PausingClock()
        ) as session:
            calls = [asyncio.create_task(session.cancel("x")) for _ in range(101 if moment == "pool" else 1)]
            if moment in {"answer", "body", "pool"}:
                await until(lambda: len(server.received) >= len(calls) - (moment == "pool"))
            else:
                await reached.wait()
            for call in calls:
                assert call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert all(call.cancelled() for call in calls)
        assert asyncio.all_tasks() - before <= {task for task in asyncio.all_tasks() if "aiohttp" in repr(task)}

    async def test_a_time_out_around_a_call_is_not_turned_into_an_api_error(
        self, session: QuickSession, server: Emulator
    ) -> None:
        server.faults.append(HANG)
        task = asyncio.current_task()
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.02):
                await session.cancel("x")
        assert not isinstance(caught.value, APITimeoutError)
        assert task.cancelling() == 0

    async def test_the_time_out_of_a_call_does_not_leave_its_task_cancelled(
        self, session: QuickSession, server: Emulator
    ) -> None:
        server.faults.append(HANG)
        with pytest.raises(APITimeoutError):
            await session.cancel("x", timeout=0.01, max_retries=0)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)

    async def test_a_session_works_on_after_a_cancelled_call(
        self, session: QuickSession, server: Emulator, create
    ) -> None:
        server.faults.append(HANG)
        call = asyncio.create_task(session.cancel("x"))
        await until(lambda: server.received)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await session.cancel(create())).status == "cancelled"


class TestLog:
    """Each attempt is one line at the DEBUG level, without any text of the server."""

    @pytest.fixture(autouse=True)
    def debug(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, logger="openai_cancel")

    @pytest.mark.parametrize(
        ("fault", "line"),
        [
            (
                Fault(status=200, body={"id": "resp_x", "status": "cancelling"}, headers={"x-request-id": "r"}),
                "cancel resp_x: attempt 1: cancelling (request id: r)",
            ),
            (
                Fault(status=200, body={"id": "resp_x", "status": "dancing"}, headers={"x-request-id": "r"}),
                "cancel resp_x: attempt 1: another status (request id: r)",
            ),
            (
                Fault(status=409, body={"error": {"message": "Text."}}, headers={"x-request-id": "r"}),
                "cancel resp_x: attempt 1: ConflictError 409 (request id: r)",
            ),
            (Fault(cut="connection"), "cancel resp_x: attempt 1: APIConnectionError (request id: None)"),
        ],
    )
    async def test_a_line_names_the_call_the_attempt_and_its_result(
        self, server: Emulator, caplog: pytest.LogCaptureFixture, fault: Fault, line: str
    ) -> None:
        server.faults.append(fault)
        async with QuickSession(api_key=KEY, base_url=server.base_url, max_retries=0) as session:
            await asyncio.gather(session.cancel("resp_x"), return_exceptions=True)
        assert [record.message for record in caplog.records if record.name == "openai_cancel"] == [line]

    async def test_a_retry_and_an_id_in_an_object_are_logged_too(
        self, session: QuickSession, server: Emulator, create, caplog: pytest.LogCaptureFixture
    ) -> None:
        identifier = create()
        server.faults.append(UNAVAILABLE)
        await session.retrieve(Response(id=identifier))
        first, second = [record.message for record in caplog.records if record.name == "openai_cancel"]
        assert first.startswith(f"retrieve {identifier}: attempt 1: InternalServerError 503 (")
        assert second.startswith(f"retrieve {identifier}: attempt 2: in_progress (")

    async def test_the_key_is_neither_in_the_log_nor_in_the_error(
        self, server: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
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


async def test_a_failed_call_leaves_no_reference_cycle(session: QuickSession, server: Emulator) -> None:
    """An error whose traceback holds the frame that holds the error would wait for the garbage collector."""

    def living_errors() -> int:
        return sum(type(thing) is BadRequestError for thing in gc.get_objects())

    server.faults.append(Fault(status=400))
    gc.collect()
    before = living_errors()
    gc.disable()
    try:
        with pytest.raises(BadRequestError):
            await session.cancel("x")
        assert living_errors() == before
    finally:
        gc.enable()

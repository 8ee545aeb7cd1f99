"""The emulator answers as OpenAI and Azure do: their official clients work with it."""

import asyncio
import io
import json
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import attrs
import openai
import pytest
from conftest import KEY, QuickClock, until

from openai_cancel import AsyncSession, InternalServerError
from openai_cancel.emulator import DIALECTS, Dialect, Emulator, Fault, Script


@pytest.fixture
async def client(server: Emulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client:
        yield client


@pytest.fixture
async def http(server: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        base_url=f"{server.base_url}/", headers={"Authorization": f"Bearer {KEY}"}
    ) as http:
        yield http


class TestOfficialClient:
    """The `openai` package creates, retrieves, cancels and deletes responses."""

    async def test_a_running_response_is_cancelled_and_stays_cancelled(self, client: openai.AsyncOpenAI) -> None:
        created = await client.responses.create(model="m", input="hi", background=True)
        assert (created.status, created.background) == ("queued", True)
        cancelled = await client.responses.cancel(created.id)
        assert (cancelled.id, cancelled.status, cancelled.output, cancelled.usage) == (
            created.id,
            "cancelled",
            [],
            None,
        )
        assert (await client.responses.cancel(created.id)).status == "cancelled"
        assert (await client.responses.retrieve(created.id)).status == "cancelled"

    async def test_a_response_is_queued_then_runs_then_completes(
        self, client: openai.AsyncOpenAI, clock: QuickClock
    ) -> None:
        metadata = {"queued_for": "2", "runs_for": "5", "says": "Hello."}
        created = await client.responses.create(model="m", input="hi", background=True, metadata=metadata)
        assert (created.status, created.metadata) == ("queued", metadata)
        clock.now += 2
        assert (await client.responses.retrieve(created.id)).status == "in_progress"
        clock.now += 5
        completed = await client.responses.retrieve(created.id)
        assert (completed.status, completed.output_text, completed.usage.total_tokens) == ("completed", "Hello.", 123)
        assert completed.completed_at == created.created_at + 7
        completed.model_validate(completed.model_dump(), strict=True)

    @pytest.mark.parametrize("becomes", ["completed", "failed", "incomplete"])
    async def test_an_ended_response_cannot_be_cancelled(self, client: openai.AsyncOpenAI, becomes: str) -> None:
        created = await client.responses.create(
            model="m", input="hi", background=True, metadata={"runs_for": "0", "becomes": becomes}
        )
        assert created.status == becomes
        assert (created.error is not None) is (becomes == "failed")
        assert (created.incomplete_details is not None) is (becomes == "incomplete")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.cancel(created.id)
        assert caught.value.body == {
            "message": f"Cannot cancel a {becomes} response.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }

    async def test_a_synchronous_response_cannot_be_cancelled(self, client: openai.AsyncOpenAI) -> None:
        created = await client.responses.create(model="m", input="hi")
        assert (created.status, created.output_text) == ("completed", "Forty-two.")
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response."):
            await client.responses.cancel(created.id)

    async def test_an_unknown_id_is_not_found(self, client: openai.AsyncOpenAI) -> None:
        for call in (client.responses.cancel, client.responses.retrieve, client.responses.delete):
            with pytest.raises(openai.NotFoundError, match="Response with id 'resp_none' not found.") as caught:
                await call("resp_none")
            assert caught.value.request_id.startswith("req_")

    async def test_a_deleted_response_is_not_found(self, client: openai.AsyncOpenAI) -> None:
        created = await client.responses.create(model="m", input="hi", background=True)
        await client.responses.delete(created.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(created.id)

    async def test_a_wrong_key_is_refused_and_masked_in_the_message(self) -> None:
        async with Emulator(api_key="right") as server:
            async with openai.AsyncOpenAI(api_key="sk-wrong-but-long", base_url=server.base_url) as client:
                with pytest.raises(
                    openai.AuthenticationError, match=r"Incorrect API key provided: sk-wrong\*\*\*\*\*long"
                ) as caught:
                    await client.responses.cancel("x")
                assert caught.value.code == "invalid_api_key"
            async with openai.AsyncOpenAI(api_key="short", base_url=server.base_url) as client:
                with pytest.raises(openai.AuthenticationError, match=r"provided: short\."):
                    await client.responses.cancel("x")
            async with openai.AsyncOpenAI(api_key="right", base_url=server.base_url) as client:
                with pytest.raises(openai.NotFoundError):
                    await client.responses.cancel("x")


class TestAzure:
    """The emulator also serves the paths of Azure."""

    @pytest.fixture
    async def azure(self) -> AsyncIterator[Emulator]:
        quick = attrs.evolve(DIALECTS["azure"], cancel_takes=0)
        async with Emulator(dialect=quick, script=Script(runs_for=math.inf)) as server:
            yield server

    async def test_an_azure_session_cancels_a_response(self) -> None:
        async with (
            Emulator(dialect="azure") as server,
            AsyncSession.azure(server.base_url.removesuffix("/v1"), api_key="k") as session,
        ):
            response = await session.cancel(server.add())
        assert (response.id, response.status) == (next(iter(server.responses)), "cancelled")
        [received] = server.received
        assert (received.path, received.headers["api-key"]) == (f"/openai/v1/responses/{response.id}/cancel", "k")

    @pytest.mark.parametrize(
        ("version", "path"),
        [
            (None, "/openai/v1/responses/{}"),
            ("preview", "/openai/v1/responses/{}?api-version=preview"),
            ("2025-04-01-preview", "/openai/responses/{}?api-version=2025-04-01-preview"),
        ],
    )
    async def test_every_api_version_has_its_path(self, azure: Emulator, version: str | None, path: str) -> None:
        identifier = azure.add()
        endpoint = azure.base_url.removesuffix("/v1")
        async with AsyncSession.azure(endpoint, api_key="k", api_version=version) as session:
            assert (await session.retrieve(identifier)).status == "in_progress"
        assert [received.path for received in azure.received] == [path.format(identifier)]

    async def test_the_official_azure_client_creates_cancels_and_deletes(self, azure: Emulator) -> None:
        endpoint = azure.base_url.removesuffix("/v1")
        async with openai.AsyncAzureOpenAI(
            azure_endpoint=endpoint, api_key="k", api_version="2025-04-01-preview", max_retries=0
        ) as client:
            created = await client.responses.create(model="m", input="hi", background=True)
            assert (await client.responses.cancel(created.id)).status == "cancelled"
            assert (await client.responses.retrieve(created.id)).status == "cancelled"
            await client.responses.delete(created.id)
        assert azure.responses == {}
        assert {received.path.partition("/responses")[0] for received in azure.received} == {"/openai"}

    async def test_faults_strike_requests_to_azure_paths(self, azure: Emulator) -> None:
        azure.faults.append(Fault(on="cancel", status=503))
        identifier = azure.add()
        endpoint = azure.base_url.removesuffix("/v1")
        async with AsyncSession.azure(endpoint, api_key="k", max_retries=0) as session:
            await session.retrieve(identifier)
            with pytest.raises(InternalServerError):
                await session.cancel(identifier)
        assert (azure.faults, azure.responses[identifier].cancelled) == ([], None)

    @pytest.mark.parametrize("path", ["/responses/x", "/v2/responses/x", "/openai/v2/responses/x"])
    async def test_other_paths_are_not_found(self, azure: Emulator, path: str) -> None:
        url = azure.base_url.removesuffix("/v1") + path
        async with aiohttp.ClientSession(headers={"api-key": "k"}) as http, http.get(url) as answer:
            assert (answer.status, await answer.text()) == (404, "404: Not Found")


class TestServer:
    async def test_a_request_without_a_key_is_refused(self, server: Emulator) -> None:
        async with aiohttp.ClientSession() as http, http.get(f"{server.base_url}/responses/x") as answer:
            assert answer.status == 401
            assert "You didn't provide an API key." in (await answer.json())["error"]["message"]

    async def test_a_key_in_the_azure_header_is_accepted(self, server: Emulator) -> None:
        async with (
            aiohttp.ClientSession(headers={"api-key": KEY}) as http,
            http.get(f"{server.base_url}/responses/x") as answer,
        ):
            assert answer.status == 404

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"{", "could not parse the JSON body"),
            (b"[]", "could not parse the JSON body"),
            (b"\xff", "could not parse the JSON body"),
            (b"{}", "Missing required parameter: 'model'"),
            (b'{"model": "m", "background": true, "store": false}', "Background mode requires 'store'"),
            (b'{"model": "m", "metadata": ["runs_for"]}', "Invalid 'metadata': expected an object of strings."),
            (b'{"model": "m", "metadata": {"runs_for": 1}}', "Invalid 'metadata': expected an object of strings."),
            (b'{"model": "m", "metadata": {"runs_for": "long"}}', "Invalid 'metadata': could not convert"),
            (
                b'{"model": "m", "metadata": {"runs_for": "-inf"}}',
                "Invalid 'metadata': 'runs_for' must be a number of seconds",
            ),
            (
                b'{"model": "m", "metadata": {"runs_for": "nan"}}',
                "Invalid 'metadata': 'runs_for' must be a number of seconds",
            ),
            (
                b'{"model": "m", "metadata": {"queued_for": "nan"}}',
                "'queued_for' must be a number of seconds, 0 or more",
            ),
            (b'{"model": "m", "metadata": {"becomes": "cancelled"}}', "Invalid 'metadata': 'becomes' must be one of"),
        ],
    )
    async def test_an_invalid_create_is_refused(self, http: aiohttp.ClientSession, body: bytes, words: str) -> None:
        async with http.post("responses", data=body) as answer:
            assert answer.status == 400
            error = (await answer.json())["error"]
        assert words in error["message"]
        assert error["type"] == "invalid_request_error"

    async def test_requests_are_recorded_as_they_were_sent(self, server: Emulator, http: aiohttp.ClientSession) -> None:
        async with http.post("responses", json={"model": "m"}, headers={"X-A": "1"}):
            pass
        [received] = server.received
        assert (received.method, received.path, received.headers["x-a"]) == ("POST", "/v1/responses", "1")
        assert json.loads(received.body) == {"model": "m"}

    async def test_a_request_of_two_megabytes_is_accepted(self, http: aiohttp.ClientSession) -> None:
        body = io.BytesIO(json.dumps({"model": "m", "input": "x" * 2_000_000}).encode())
        async with http.post("responses", data=body) as answer:
            assert answer.status == 200

    async def test_a_port_in_use_raises_an_os_error(self, server: Emulator) -> None:
        port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
        with pytest.raises(OSError, match="address already in use"):
            async with Emulator(port=port):
                pytest.fail("It listens on a port that is in use.")

    async def test_it_listens_on_an_ipv6_address(self) -> None:
        async with Emulator(host="::1") as server, aiohttp.ClientSession() as http:
            assert server.base_url.startswith("http://[::1]:")
            async with http.get(f"{server.base_url}/responses/x") as answer:
                assert answer.status == 401

    async def test_leaving_an_emulator_that_was_never_entered_does_nothing(self) -> None:
        await Emulator().__aexit__(None, None, None)


class TestFaults:
    async def test_each_fault_strikes_one_request_in_order(self, server: Emulator, http: aiohttp.ClientSession) -> None:
        server.faults += [Fault(status=503), Fault(status=429, headers={"X-A": "1"}, body={"a": 1}), Fault(body="text")]
        seen = []
        for _ in range(4):
            async with http.get("responses/x") as answer:
                seen.append((answer.status, answer.headers.get("x-a"), (await answer.read())[:8]))
        assert seen == [(503, None, b""), (429, "1", b'{"a": 1}'), (404, None, b'{"error"'), (404, None, b'{"error"')]

    async def test_a_fault_waits_for_its_operation(self, server: Emulator, http, create) -> None:
        server.faults.append(Fault(on="cancel", status=503))
        identifier = create()
        async with http.get(f"responses/{identifier}") as answer:
            assert answer.status == 200
        async with http.post(f"responses/{identifier}/cancel") as answer:
            assert answer.status == 503
        assert server.responses[identifier].cancelled is None

    @pytest.mark.parametrize("cut", ["connection", "body"])
    async def test_a_request_takes_effect_although_its_answer_is_lost(
        self, server: Emulator, http, create, cut
    ) -> None:
        server.faults.append(Fault(act=True, cut=cut))
        identifier = create()
        with pytest.raises(aiohttp.ClientError):
            async with http.post(f"responses/{identifier}/cancel") as answer:
                await answer.read()
        assert server.responses[identifier].cancelled is not None

    async def test_a_body_is_cut_in_the_middle(self, server: Emulator, http: aiohttp.ClientSession) -> None:
        server.faults.append(Fault(status=200, body=b"12345678", cut="body"))
        async with http.get("responses/x") as answer:
            assert await answer.content.readany() == b"1234"
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()

    async def test_a_delayed_request_gets_its_real_answer(
        self, server: Emulator, http: aiohttp.ClientSession, create
    ) -> None:
        server.faults.append(Fault(delay=0.001))
        async with http.get(f"responses/{create()}") as answer:
            assert answer.status == 200

    async def test_a_hanging_request_ends_when_its_client_disconnects(
        self, server: Emulator, http: aiohttp.ClientSession
    ) -> None:
        server.faults.append(Fault(delay=math.inf))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), http.get("responses/x"):
                pass
        async with http.get("responses/x") as answer:
            assert answer.status == 404


class TestRateLimit:
    """On a clock that moves only when a test moves it."""

    @asynccontextmanager
    async def limited(self, rate: float | None, clock: QuickClock) -> AsyncIterator[Callable[[], Awaitable[str]]]:
        """Run an emulator; yield a function that sends a request and returns its `retry-after`, or "" if accepted."""
        async with (
            Emulator(rate_limit=rate, clock=clock.monotonic) as server,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        ):
            name = server.add()

            async def send() -> str:
                async with http.get(f"{server.base_url}/responses/{name}") as answer:
                    error = (await answer.json())["error"]
                    assert (answer.status, error and error["code"]) in {(200, None), (429, "rate_limit_exceeded")}
                    assert (answer.status == 429) == ("retry-after" in answer.headers)
                    return answer.headers.get("retry-after", "")

            yield send

    @pytest.mark.parametrize(
        ("rate", "wait"),
        [(0.001, "1000"), (0.1, "10"), (0.3, "4"), (0.5, "2"), (2 / 3, "2"), (0.999, "2"), (1, "1"), (1.5, "1")],
    )
    async def test_a_request_is_accepted_after_the_wait_that_retry_after_says(
        self, clock: QuickClock, rate: float, wait: str
    ) -> None:
        async with self.limited(rate, clock) as send:
            for _ in range(3):
                assert await send() == ""
                assert await send() == wait
                clock.now += int(wait)

    async def test_retry_after_counts_down_while_the_client_waits(self, clock: QuickClock) -> None:
        waits = []
        async with self.limited(0.1, clock) as send:
            for _ in range(12):
                waits.append(await send())
                clock.now += 1
        assert waits == ["", "9", "8", "7", "6", "5", "4", "3", "2", "1", "", "9"]

    async def test_refused_requests_do_not_delay_the_next_one(self, clock: QuickClock) -> None:
        async with self.limited(0.5, clock) as send:
            assert await send() == ""
            for _ in range(200):
                assert await send() in {"1", "2"}
                clock.now += 0.01
            assert await send() == ""

    async def test_the_requests_of_one_second_are_accepted_at_once(self, clock: QuickClock) -> None:
        async with self.limited(5, clock) as send:
            clock.now += 3600  # adds no more than the bucket holds
            assert [await send() for _ in range(7)] == ["", "", "", "", "", "1", "1"]

    async def test_a_clock_that_is_set_back_does_not_stop_the_refill(self, clock: QuickClock) -> None:
        async with self.limited(0.5, clock) as send:
            assert await send() == ""
            clock.now -= 3600
            assert await send() == "2"
            clock.now += 2
            assert await send() == ""

    @pytest.mark.parametrize("rate", [None, math.inf])
    async def test_none_and_infinity_mean_no_limit(self, clock: QuickClock, rate: float | None) -> None:
        async with self.limited(rate, clock) as send:
            assert [await send() for _ in range(20)] == [""] * 20

    @pytest.mark.parametrize("rate", [0, 0.0, -1, -math.inf, math.nan, 5e-324, "5", True])
    def test_a_rate_that_is_not_a_number_above_0_is_refused(self, rate: float) -> None:
        with pytest.raises(
            ValueError, match=r"rate_limit must be .* above 0, such as 0.5 .* or None for no limit; got"
        ):
            Emulator(rate_limit=rate)


class TestArguments:
    """Arguments are checked when an object is created, before anything runs."""

    @pytest.mark.parametrize("host", ["", None])
    def test_a_host_is_a_name_or_an_address(self, host) -> None:
        with pytest.raises(ValueError, match="host must be an address such as '127.0.0.1', or '0.0.0.0' for all; got"):
            Emulator(host=host)

    @pytest.mark.parametrize("port", [-1, 65536, 80.0, math.nan, "80", True, None])
    def test_a_port_out_of_range_is_refused(self, port: int) -> None:
        with pytest.raises(ValueError, match="port must be a whole number from 0 to 65535, where 0 picks a free port"):
            Emulator(port=port)

    @pytest.mark.parametrize("clock", [None, 5.0])
    def test_a_clock_that_is_no_function_is_refused(self, clock) -> None:
        with pytest.raises(TypeError, match="clock must be a function that returns seconds since the epoch; got"):
            Emulator(clock=clock)

    def test_a_script_of_another_type_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"script must be a Script, such as Script\(runs_for=5\), or None; got"):
            Emulator(script={"runs_for": 5})

    @pytest.mark.parametrize("dialect", [None, 5, ["vllm"]])
    def test_a_dialect_of_another_type_is_refused(self, dialect) -> None:
        with pytest.raises(TypeError, match="dialect must be a name or a Dialect; got"):
            Emulator(dialect=dialect)

    def test_an_unknown_dialect_is_refused_and_the_known_ones_are_listed(self) -> None:
        with pytest.raises(ValueError, match=f"no such dialect: 'foo'; choose one of {', '.join(DIALECTS)}"):
            Emulator(dialect="foo")

    @pytest.mark.parametrize("seconds", [-1, -math.inf, math.nan, "5", True, None])
    @pytest.mark.parametrize("name", ["queued_for", "runs_for", "resumes_after"])
    def test_a_time_of_a_script_that_is_not_0_seconds_or_more_is_refused(self, name: str, seconds) -> None:
        with pytest.raises(ValueError, match=f"'{name}' must be a number of seconds, 0 or more; got {seconds!r}"):
            Script(**{name: seconds})

    def test_a_script_with_an_unknown_final_status_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'becomes' must be one of 'completed', 'failed', 'incomplete'; got 'canc"):
            Script(becomes="cancelled")

    @pytest.mark.parametrize("seconds", [-1, math.nan])
    def test_a_time_of_a_fault_or_dialect_that_is_not_0_seconds_or_more_is_refused(self, seconds: float) -> None:
        with pytest.raises(ValueError, match="'delay' must be a number of seconds"):
            Fault(delay=seconds)
        with pytest.raises(ValueError, match="'cancel_takes' must be a number of seconds"):
            Dialect(cancel={}, cancel_takes=seconds)
        with pytest.raises(ValueError, match="'cancelling_for' must be a number of seconds"):
            Dialect(cancel={}, cancelling_for=seconds)

    def test_a_fault_with_an_unknown_operation_or_cut_is_refused(self) -> None:
        with pytest.raises(
            ValueError, match="'on' must be one of 'create', 'retrieve', 'cancel', 'delete', 'list', None; got"
        ):
            Fault(on="stop")
        with pytest.raises(ValueError, match="'cut' must be one of 'connection', 'body', None; got 'head'"):
            Fault(cut="head")


class TestAttributes:
    """Attributes that a test can read and replace on a running emulator."""

    async def test_a_new_script_applies_to_responses_created_from_then_on(
        self, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        before = server.add()
        server.script = Script(runs_for=0, says="Done.")
        after = server.add()
        created = await client.responses.create(model="m", input="hi", background=True)
        statuses = [(await client.responses.retrieve(name)).status for name in (before, after)]
        assert (statuses, created.status, created.output_text) == (["in_progress", "completed"], "completed", "Done.")

    async def test_the_clock_is_the_one_that_was_passed(self, server: Emulator, clock: QuickClock) -> None:
        work = server.responses[server.add()]
        assert (server.clock(), work.started) == (clock.now, clock.now)
        clock.now += 5
        work.cancel(server.clock())
        assert (work.cancelled, work.status(server.clock())) == (clock.now, "cancelled")

    async def test_the_dialect_is_the_one_that_was_named_or_passed(self) -> None:
        own = attrs.evolve(DIALECTS["vllm"], cancel_takes=1)
        assert (Emulator().dialect, Emulator(dialect="vllm").dialect) == (DIALECTS["openai"], DIALECTS["vllm"])
        assert Emulator(dialect=own).dialect is own

    async def test_the_dialect_translates_between_the_ids_in_replies_and_in_responses(self) -> None:
        async with Emulator(dialect="litellm") as server:
            name = server.add()
            shown = server.dialect.show_id(name)
            async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
                response = await session.cancel(shown)
        assert len({name, shown, response.id}) == 3
        assert server.dialect.read_id(response.id) == server.dialect.read_id(shown) == name
        assert server.responses[name].cancelled


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory came with Python 3.12")
class TestEagerTasks:
    """In an event loop where `create_task` runs the task at once, up to its first wait."""

    @pytest.fixture
    async def server(self, clock: QuickClock) -> AsyncIterator[Emulator]:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with Emulator(script=Script(runs_for=math.inf), clock=clock.monotonic, rate_limit=1000) as server:
            yield server
        asyncio.get_running_loop().set_task_factory(None)

    async def test_many_responses_are_created_and_cancelled_at_once(
        self, server: Emulator, client: openai.AsyncOpenAI
    ) -> None:
        async def run() -> str:
            created = await client.responses.create(model="m", input="hi", background=True)
            return (await client.responses.cancel(created.id)).status

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run()) for _ in range(20)]
        assert [task.result() for task in tasks] == ["cancelled"] * 20
        assert len(server.received) == 40

    async def test_each_error_has_its_own_message_and_request_id(self, client: openai.AsyncOpenAI) -> None:
        async def fail(name: str) -> tuple[str, str]:
            with pytest.raises(openai.NotFoundError) as caught:
                await client.responses.cancel(name)
            return caught.value.message, caught.value.request_id

        errors = await asyncio.gather(*(fail(f"resp_{number}") for number in range(20)))
        assert all(f"'resp_{number}'" in message for number, (message, _) in enumerate(errors))
        assert len({request_id for _, request_id in errors}) == 20

    async def test_faults_delay_hang_and_cut_requests(
        self, server: Emulator, http: aiohttp.ClientSession, create: Callable[..., str]
    ) -> None:
        name = create()
        server.faults += [Fault(delay=0.001), Fault(delay=math.inf), Fault(act=True, cut="connection"), Fault(raw=b"?")]
        async with http.get(f"responses/{name}") as answer:
            assert answer.status == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), http.get(f"responses/{name}"):
                pass
        for _ in range(2):
            with pytest.raises(aiohttp.ClientError):
                async with http.post(f"responses/{name}/cancel"):
                    pass
        assert (server.faults, server.responses[name].cancels) == ([], 1)

    async def test_a_request_that_hangs_ends_when_the_emulator_is_left(self, server: Emulator) -> None:
        server.faults.append(Fault(delay=math.inf))
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
            hanging = asyncio.create_task(http.get(f"{server.base_url}/responses/x"))
            await until(lambda: server.received)
            await server.__aexit__(None, None, None)
            with pytest.raises(aiohttp.ClientError):
                await hanging

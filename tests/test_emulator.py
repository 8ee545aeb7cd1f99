"""The emulator is honest: OpenAI's own client finds its way, and the states and errors are OpenAI's to the letter."""

import asyncio
import io
import json
import math
from collections.abc import AsyncIterator

import aiohttp
import attrs
import openai
import pytest
from conftest import KEY, Clock

from openai_cancel import AsyncSession, InternalServerError
from openai_cancel.emulator import DIALECTS, Emulator, Fault, Script


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
    """The newest `openai` package creates, retrieves, cancels and deletes."""

    async def test_cancel(self, client: openai.AsyncOpenAI) -> None:
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

    async def test_from_queued_to_completed(self, client: openai.AsyncOpenAI, clock: Clock) -> None:
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
    async def test_what_is_over_cannot_be_cancelled(self, client: openai.AsyncOpenAI, becomes: str) -> None:
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

    async def test_what_is_not_in_the_background(self, client: openai.AsyncOpenAI) -> None:
        created = await client.responses.create(model="m", input="hi")
        assert (created.status, created.output_text) == ("completed", "Forty-two.")
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response."):
            await client.responses.cancel(created.id)

    async def test_an_unknown_id(self, client: openai.AsyncOpenAI) -> None:
        for call in (client.responses.cancel, client.responses.retrieve, client.responses.delete):
            with pytest.raises(openai.NotFoundError, match="Response with id 'resp_none' not found.") as caught:
                await call("resp_none")
            assert caught.value.request_id.startswith("req_")

    async def test_delete(self, client: openai.AsyncOpenAI) -> None:
        created = await client.responses.create(model="m", input="hi", background=True)
        await client.responses.delete(created.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(created.id)

    async def test_a_wrong_key(self) -> None:
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
    """The API is where Azure has it, too, so that what is made for Azure need not be told otherwise."""

    @pytest.fixture
    async def azure(self) -> AsyncIterator[Emulator]:
        quick = attrs.evolve(DIALECTS["azure"], cancel_takes=0)
        async with Emulator(dialect=quick, script=Script(runs_for=math.inf)) as server:
            yield server

    async def test_a_session_as_it_is_made_for_azure(self) -> None:
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
    async def test_versions_of_the_api(self, azure: Emulator, version: str | None, path: str) -> None:
        identifier = azure.add()
        endpoint = azure.base_url.removesuffix("/v1")
        async with AsyncSession.azure(endpoint, api_key="k", api_version=version) as session:
            assert (await session.retrieve(identifier)).status == "in_progress"
        assert [received.path for received in azure.received] == [path.format(identifier)]

    async def test_the_official_client_for_it(self, azure: Emulator) -> None:
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

    async def test_faults_strike_there_as_well(self, azure: Emulator) -> None:
        azure.faults.append(Fault(on="cancel", status=503))
        identifier = azure.add()
        endpoint = azure.base_url.removesuffix("/v1")
        async with AsyncSession.azure(endpoint, api_key="k", max_retries=0) as session:
            await session.retrieve(identifier)
            with pytest.raises(InternalServerError):
                await session.cancel(identifier)
        assert (azure.faults, azure.responses[identifier].cancelled) == ([], None)

    @pytest.mark.parametrize("path", ["/responses/x", "/v2/responses/x", "/openai/v2/responses/x"])
    async def test_nothing_is_anywhere_else(self, azure: Emulator, path: str) -> None:
        url = azure.base_url.removesuffix("/v1") + path
        async with aiohttp.ClientSession(headers={"api-key": "k"}) as http, http.get(url) as answer:
            assert (answer.status, await answer.text()) == (404, "404: Not Found")


class TestChecks:
    async def test_no_key(self, server: Emulator) -> None:
        async with aiohttp.ClientSession() as http, http.get(f"{server.base_url}/responses/x") as answer:
            assert answer.status == 401
            assert "You didn't provide an API key." in (await answer.json())["error"]["message"]

    async def test_azures_header(self, server: Emulator) -> None:
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
            (b'{"model": "m", "stream": true}', "does not stream"),
            (b'{"model": "m", "metadata": ["runs_for"]}', "Invalid 'metadata': expected an object of strings."),
            (b'{"model": "m", "metadata": {"runs_for": 1}}', "Invalid 'metadata': expected an object of strings."),
            (b'{"model": "m", "metadata": {"runs_for": "long"}}', "Invalid 'metadata': could not convert"),
            (b'{"model": "m", "metadata": {"runs_for": "-inf"}}', "Invalid 'metadata': 'runs_for' must be >= 0"),
            (b'{"model": "m", "metadata": {"runs_for": "nan"}}', "Invalid 'metadata': 'runs_for' must be >= 0"),
            (b'{"model": "m", "metadata": {"becomes": "cancelled"}}', "Invalid 'metadata': 'becomes' must be in"),
        ],
    )
    async def test_what_cannot_be_created(self, http: aiohttp.ClientSession, body: bytes, words: str) -> None:
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

    async def test_a_large_request(self, http: aiohttp.ClientSession) -> None:
        body = io.BytesIO(json.dumps({"model": "m", "input": "x" * 2_000_000}).encode())
        async with http.post("responses", data=body) as answer:
            assert answer.status == 200

    async def test_a_port_that_is_taken(self, server: Emulator) -> None:
        port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
        with pytest.raises(OSError, match="address already in use"):
            await Emulator(port=port).__aenter__()

    async def test_an_address_of_the_newer_kind(self) -> None:
        async with Emulator(host="::1") as server, aiohttp.ClientSession() as http:
            assert server.base_url.startswith("http://[::1]:")
            async with http.get(f"{server.base_url}/responses/x") as answer:
                assert answer.status == 401

    async def test_left_before_it_was_entered(self) -> None:
        await Emulator().__aexit__(None, None, None)


class TestFaults:
    async def test_they_strike_once_in_order(self, server: Emulator, http: aiohttp.ClientSession) -> None:
        server.faults += [Fault(status=503), Fault(status=429, headers={"X-A": "1"}, body={"a": 1}), Fault(body="text")]
        seen = []
        for _ in range(4):
            async with http.get("responses/x") as answer:
                seen.append((answer.status, answer.headers.get("x-a"), (await answer.read())[:8]))
        assert seen == [(503, None, b""), (429, "1", b'{"a": 1}'), (404, None, b'{"error"'), (404, None, b'{"error"')]

    async def test_only_the_operation_that_they_are_for(self, server: Emulator, http, create) -> None:
        server.faults.append(Fault(on="cancel", status=503))
        identifier = create()
        async with http.get(f"responses/{identifier}") as answer:
            assert answer.status == 200
        async with http.post(f"responses/{identifier}/cancel") as answer:
            assert answer.status == 503
        assert server.responses[identifier].cancelled is None

    @pytest.mark.parametrize("cut", ["connection", "body"])
    async def test_a_lost_answer_to_a_request_that_took_effect(self, server: Emulator, http, create, cut) -> None:
        server.faults.append(Fault(act=True, cut=cut))
        identifier = create()
        with pytest.raises(aiohttp.ClientError):
            async with http.post(f"responses/{identifier}/cancel") as answer:
                await answer.read()
        assert server.responses[identifier].cancelled is not None

    async def test_a_body_that_ends_in_the_middle(self, server: Emulator, http: aiohttp.ClientSession) -> None:
        server.faults.append(Fault(status=200, body=b"12345678", cut="body"))
        async with http.get("responses/x") as answer:
            assert await answer.content.readany() == b"1234"
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()

    async def test_a_delay(self, server: Emulator, http: aiohttp.ClientSession, create) -> None:
        server.faults.append(Fault(delay=0.001))
        async with http.get(f"responses/{create()}") as answer:
            assert answer.status == 200

    async def test_one_that_hangs_ends_with_its_client(self, server: Emulator, http: aiohttp.ClientSession) -> None:
        server.faults.append(Fault(delay=math.inf))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), http.get("responses/x"):
                pass
        async with http.get("responses/x") as answer:
            assert answer.status == 404


def test_a_script_is_checked() -> None:
    with pytest.raises(ValueError, match="'becomes' must be in"):
        Script(becomes="cancelled")

"""The emulator's dialects answer as their servers were recorded; its options play slow and divided stores."""

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs
import pytest
from conftest import KEY, QuickClock

from openai_cancel.emulator import DIALECTS, Dialect, Emulator, Reply, Script

UNKNOWN = "resp_none"
SCRIPTS: dict[str, dict[str, Any]] = {
    "queued": {"queued_for": math.inf},
    "running": {},
    "completed": {"runs_for": 0},
    "failed": {"runs_for": 0, "becomes": "failed"},
    "incomplete": {"runs_for": 0, "becomes": "incomplete"},
    "cancelled": {},
    "synchronous": {"runs_for": 0},
}


class Client:
    """Sends requests to an emulator, and returns the status and the body of the answers."""

    def __init__(self, server: Emulator, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.http = http

    def add(self, state: str) -> str:
        """Create a response in a state; return its id. For the state `unknown`, return an id that no response has."""
        if state == "unknown":
            return UNKNOWN
        script = Script(**{"runs_for": math.inf, **SCRIPTS[state]})
        name = self.server.add(script, background=state != "synchronous")
        if state == "cancelled":
            self.server.responses[name].cancel(self.server.clock())
        return name

    async def cancel(self, name: str) -> tuple[int, Any]:
        return await self.send("POST", f"{name}/cancel")

    async def retrieve(self, name: str) -> tuple[int, Any]:
        return await self.send("GET", name)

    async def send(self, method: str, path: str) -> tuple[int, Any]:
        async with self.http.request(method, f"{self.server.base_url}/responses/{path}") as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text


@asynccontextmanager
async def playing(dialect: str | Dialect, **options: Any) -> AsyncIterator[Client]:
    """Run an emulator of a dialect whose cancels take no time; yield a client of it."""
    ways = DIALECTS[dialect] if isinstance(dialect, str) else dialect
    options.setdefault("clock", QuickClock().monotonic)
    async with (
        Emulator(dialect=attrs.evolve(ways, cancel_takes=0), **options) as server,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
    ):
        yield Client(server, http)


def gist(answer: tuple[int, Any]) -> tuple[int, str]:
    """The status of an answer, and the most telling part of its body."""
    status, body = answer
    if isinstance(body, str):
        return status, body
    error = body.get("error")
    return status, error["message"] if error and status >= 400 else body.get("detail") or body["status"]


CANCELLED = (200, "cancelled")
CANCEL_ANSWERS: dict[str, dict[str, tuple[int, str]]] = {
    "smg": {
        "running": CANCELLED,
        "cancelled": CANCELLED,
        "completed": (400, "Cannot cancel completed response."),
        "failed": (400, "Cannot cancel failed response."),
        "incomplete": (400, "Cannot cancel completed response."),
        "synchronous": (400, "Cannot cancel completed response."),
        "unknown": (404, "Response with id 'resp_none' not found."),
    },
    "smg_http": {
        "running": CANCELLED,
        "cancelled": CANCELLED,
        "completed": (400, "Cannot cancel a completed response."),
        "synchronous": (400, "Cannot cancel a synchronous response."),
        "unknown": (404, "Response with id 'resp_none' not found."),
    },
    "smg_openai": dict.fromkeys(
        ["running", "completed", "cancelled", "synchronous", "unknown"], (501, "Cancel response not implemented")
    ),
    "databricks": dict.fromkeys(
        ["running", "completed", "cancelled", "synchronous", "unknown"], (501, "Cancellation is not yet implemented.")
    ),
    "devui": {
        "queued": CANCELLED,
        "running": CANCELLED,
        "completed": (200, "already_completed"),
        "incomplete": (200, "already_completed"),
        "synchronous": (200, "already_completed"),
        "cancelled": (200, "not_found"),
        "unknown": (200, "not_found"),
    },
    "portkey": {
        "running": (500, "failure"),
        "cancelled": (500, "failure"),
        "completed": (400, "Cannot cancel a completed response."),
        "synchronous": (400, "Cannot cancel a synchronous response."),
        "unknown": (404, "Response with id 'resp_none' not found."),
    },
    "azure_restarted": dict.fromkeys(
        ["running", "completed", "cancelled", "synchronous"], (404, "Response with id '{id}' not found.")
    ),
    "method_not_allowed": dict.fromkeys(
        ["running", "completed", "cancelled", "synchronous", "unknown"], (405, "Method Not Allowed")
    ),
    "no_cancel_route": dict.fromkeys(
        ["running", "completed", "cancelled", "synchronous", "unknown"], (404, "Not Found")
    ),
    "open_responses_server": {"running": CANCELLED},
}
RETRIEVE_ANSWERS: dict[str, dict[str, tuple[int, str]]] = {
    "smg": {
        "running": (200, "in_progress"),
        "synchronous": (200, "completed"),
        "cancelled": CANCELLED,
        "unknown": (404, "No response found with id 'resp_none'"),
    },
    "smg_http": dict.fromkeys(
        ["running", "completed", "cancelled", "synchronous", "unknown"], (404, "No response found with id '{id}'")
    ),
    "smg_openai": {
        "running": (200, "in_progress"),
        "completed": (200, "completed"),
        "unknown": (404, "No response found with id 'resp_none'"),
    },
    "databricks": {
        "running": (200, "in_progress"),
        "completed": (200, "completed"),
        "unknown": (404, "Response not found"),
    },
    "devui": dict.fromkeys(["running", "completed", "cancelled", "unknown"], (404, "Not Found")),
    "portkey": {
        "running": (200, "in_progress"),
        "cancelled": CANCELLED,
        "unknown": (404, "openai error: Response with id 'resp_none' not found."),
    },
    "azure_restarted": dict.fromkeys(["running", "completed", "failed", "cancelled"], (200, "in_progress")),
    "method_not_allowed": {"running": (200, "in_progress"), "completed": (200, "completed")},
    "no_cancel_route": {
        "running": (200, "in_progress"),
        "completed": (200, "completed"),
        "unknown": (404, "Response with id 'resp_none' not found."),
    },
    "open_responses_server": {"running": (200, "in_progress")},
}


def cases(answers: dict[str, dict[str, tuple[int, str]]]) -> list[Any]:
    return [
        pytest.param(dialect, state, answer, id=f"{dialect}-{state}")
        for dialect, states in answers.items()
        for state, answer in states.items()
    ]


@pytest.mark.parametrize(("dialect", "state", "answer"), cases(CANCEL_ANSWERS))
async def test_a_cancel_is_answered_as_the_server_does(dialect: str, state: str, answer: tuple[int, str]) -> None:
    async with playing(dialect) as client:
        name = client.add(state)
        assert gist(await client.cancel(name)) == (answer[0], answer[1].format(id=name))
        if state in {"queued", "running"}:
            cancels = any(reply.cancels for reply in DIALECTS[dialect].cancel.values())
            assert (client.server.responses[name].cancelled is not None) is cancels


@pytest.mark.parametrize(("dialect", "state", "answer"), cases(RETRIEVE_ANSWERS))
async def test_a_retrieve_is_answered_as_the_server_does(dialect: str, state: str, answer: tuple[int, str]) -> None:
    async with playing(dialect) as client:
        name = client.add(state)
        assert gist(await client.retrieve(name)) == (answer[0], answer[1].format(id=name))


class TestBodies:
    async def test_smg_dates_a_cancelled_response_and_reports_a_synchronous_one(self) -> None:
        async with playing("smg") as client:
            name = client.add("running")
            client.server.clock.__self__.now += 5
            _, cancelled = await client.cancel(name)
            _, synchronous = await client.retrieve(client.add("synchronous"))
        assert cancelled["completed_at"] == cancelled["created_at"] + 5
        assert synchronous["background"] is False

    async def test_devui_answers_without_an_id(self) -> None:
        async with playing("devui") as client:
            name = client.add("running")
            assert await client.cancel(name) == (200, {"status": "cancelled", "response_id": name})
            assert await client.cancel("any id") == (200, {"status": "not_found", "response_id": "any id"})

    @pytest.mark.parametrize(("state", "status"), [("running", "in_progress"), ("completed", "completed")])
    async def test_databricks_reports_three_fields(self, state: str, status: str) -> None:
        async with playing("databricks") as client:
            name = client.add(state)
            assert await client.retrieve(name) == (200, {"id": name, "status": status, "attempt_number": 1})

    async def test_portkey_reports_a_failure_and_then_the_cancelled_response(self) -> None:
        async with playing("portkey") as client:
            name = client.add("running")
            assert await client.cancel(name) == (500, {"status": "failure", "message": "Something went wrong"})
            assert gist(await client.retrieve(name)) == CANCELLED

    async def test_litellm_ids_are_url_safe_and_differ_in_every_reply(self) -> None:
        async with playing("litellm") as client:
            name = client.add("running")
            shown = client.server.dialect.show_id(name)
            _, body = await client.cancel(shown)
        assert len({name, shown, body["id"]}) == 3
        assert not set("+/") & set(shown + body["id"])
        assert client.server.dialect.read_id(body["id"]) == name

    @pytest.mark.parametrize("method", ["retrieve", "cancel"])
    async def test_litellm_cannot_decode_an_id_of_another_server(self, method: str) -> None:
        async with playing("litellm") as client:
            status, body = await getattr(client, method)("resp_0123")
        assert status == 400
        words = "You passed in model=None. There are no healthy deployments for this model"
        assert words in body["error"]["message"]
        assert body["error"]["code"] == "400"

    @pytest.mark.parametrize("method", ["retrieve", "cancel"])
    async def test_litellm_does_not_find_a_response_that_is_gone_upstream(self, method: str) -> None:
        async with playing("litellm") as client:
            status, body = await getattr(client, method)(client.server.dialect.show_id("resp_gone"))
        assert (status, body["error"]["code"]) == (404, "404")
        assert "not found" in body["error"]["message"]

    async def test_litellm_fails_to_report_an_incomplete_response(self) -> None:
        async with playing("litellm") as client:
            status, _ = await client.retrieve(client.add("incomplete"))
        assert status == 500

    async def test_litellm_polling_turns_an_incomplete_response_into_a_cancelled_one(self) -> None:
        async with playing("litellm_polling") as client:
            name = client.add("incomplete")
            assert gist(await client.cancel(name)) == CANCELLED
            assert gist(await client.retrieve(name)) == CANCELLED

    @pytest.mark.parametrize(("state", "status"), [("completed", 400), ("unknown", 404)])
    async def test_open_responses_server_announces_a_gzip_body_and_sends_none(self, state: str, status: int) -> None:
        async with playing("open_responses_server") as client:
            url = f"{client.server.base_url}/responses/{client.add(state)}/cancel"
            async with client.http.post(url) as answer:
                assert (answer.status, answer.headers["Content-Encoding"]) == (status, "gzip")
                assert int(answer.headers["Content-Length"]) > 0
                assert answer.headers["X-Request-Id"].startswith("req_")
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()

    @pytest.mark.parametrize("path", ["a%2Fb", "a%2Fb/cancel"])
    async def test_open_responses_server_loses_an_id_with_a_slash(self, path: str) -> None:
        async with playing(attrs.evolve(DIALECTS["open_responses_server"], empties_errors=False)) as client:
            status, body = await client.send("POST" if path.endswith("cancel") else "GET", path)
        assert (status, body["error"]["message"]) == (404, "Not Found")

    async def test_a_reply_may_cancel_and_refuse_at_once(self) -> None:
        ways = attrs.evolve(DIALECTS["openai"], cancel={"in_progress": Reply(502, "Bad Gateway", cancels=True)})
        async with playing(ways) as client:
            name = client.add("running")
            assert gist(await client.cancel(name)) == (502, "Bad Gateway")
            assert gist(await client.retrieve(name)) == CANCELLED


class TestQuery:
    """A dialect that requires a parameter in the query."""

    @pytest.fixture
    def dialect(self) -> Dialect:
        missing = Reply(400, "Missing required query parameter: api-version.", code="MissingApiVersionParameter")
        return attrs.evolve(DIALECTS["azure"], needs_query={"api-version": missing})

    async def test_every_call_without_the_parameter_is_refused(self, dialect: Dialect) -> None:
        async with playing(dialect) as client:
            name = client.add("running")
            for answer in (await client.cancel(name), await client.retrieve(name)):
                assert gist(answer) == (400, "Missing required query parameter: api-version.")
            assert client.server.responses[name].cancelled is None

    async def test_a_call_with_the_parameter_is_answered(self, dialect: Dialect) -> None:
        async with playing(dialect) as client:
            name = client.add("running")
            assert gist(await client.send("GET", f"{name}?api-version=preview")) == (200, "in_progress")
            assert gist(await client.send("POST", f"{name}/cancel?api-version=preview")) == CANCELLED


class TestStoreDelay:
    async def test_a_new_response_is_unknown_until_the_delay_has_passed(self, clock: QuickClock) -> None:
        async with playing("openai", store_delay=3, clock=clock.monotonic) as client:
            name = client.add("running")
            clock.now += 2.9
            for answer in (await client.retrieve(name), await client.cancel(name)):
                assert gist(answer) == (404, f"Response with id '{name}' not found.")
            assert client.server.responses[name].cancelled is None
            clock.now += 0.2
            assert gist(await client.retrieve(name)) == (200, "in_progress")
            assert gist(await client.cancel(name)) == CANCELLED

    async def test_a_create_is_answered_at_once(self, clock: QuickClock) -> None:
        async with playing("openai", store_delay=math.inf, clock=clock.monotonic) as client:
            body = {"model": "m", "input": "hi", "background": True}
            async with client.http.post(f"{client.server.base_url}/responses", json=body) as answer:
                created = await answer.json()
            assert (answer.status, created["status"]) == (200, "queued")
            assert (await client.retrieve(created["id"]))[0] == 404

    async def test_the_delay_can_be_changed(self, clock: QuickClock) -> None:
        async with playing("openai", clock=clock.monotonic) as client:
            name = client.add("running")
            assert (await client.retrieve(name))[0] == 200
            client.server.store_delay = 1
            assert (await client.retrieve(name))[0] == 404

    async def test_a_clock_that_is_set_back_hides_nothing(self, clock: QuickClock) -> None:
        async with playing("openai", clock=clock.monotonic) as client:
            name = client.add("running")
            clock.now -= 3600
            assert (await client.retrieve(name))[0] == 200

    async def test_a_dialect_replies_with_its_own_words(self, clock: QuickClock) -> None:
        async with playing("devui", store_delay=1, clock=clock.monotonic) as client:
            assert gist(await client.cancel(client.add("running"))) == (200, "not_found")

    @pytest.mark.parametrize("seconds", [-1, -math.inf, math.nan, "5", True, None])
    def test_a_delay_that_is_not_0_seconds_or_more_is_refused(self, seconds) -> None:
        with pytest.raises(ValueError, match=f"store_delay must be a number of seconds, 0 or more; got {seconds!r}"):
            Emulator(store_delay=seconds)


class TestReplicas:
    async def test_replicas_take_turns_and_only_one_knows_a_response(self) -> None:
        async with playing("openai", replicas=3) as client:
            names = [client.add("running") for _ in range(3)]
            assert [client.server.responses[name].replica for name in names] == [0, 1, 2]
            statuses = [[(await client.retrieve(name))[0] for _ in range(3)] for name in names]
        assert statuses == [[200, 404, 404], [404, 200, 404], [404, 404, 200]]

    async def test_with_two_replicas_cancels_and_looks_can_alternate_in_step(self) -> None:
        async with playing("openai", replicas=2) as client:
            name = client.add("running")
            statuses = [
                (await client.cancel(name))[0] if turn % 2 == 0 else (await client.retrieve(name))[0]
                for turn in range(6)
            ]
            assert statuses == [404, 200, 404, 200, 404, 200]
            assert client.server.responses[name].cancelled is None
            await client.retrieve(name)  # takes the turn of the replica that does not know it
            assert gist(await client.cancel(name)) == CANCELLED

    async def test_a_response_belongs_to_the_replica_that_answered_the_create(self) -> None:
        async with playing("openai", replicas=2) as client:
            await client.retrieve(UNKNOWN)
            body = {"model": "m", "input": "hi", "background": True}
            async with client.http.post(f"{client.server.base_url}/responses", json=body) as answer:
                name = (await answer.json())["id"]
            assert client.server.responses[name].replica == 1
            assert [(await client.retrieve(name))[0] for _ in range(4)] == [404, 200, 404, 200]

    @pytest.mark.parametrize("replicas", [0, -1, 1.0, math.nan, "2", True, None])
    def test_a_number_of_replicas_below_1_is_refused(self, replicas) -> None:
        with pytest.raises(ValueError, match=f"replicas must be a whole number, 1 or more; got {replicas!r}"):
            Emulator(replicas=replicas)

"""Against servers and gateways that need an environment of their own, and against the dialects that play them.

OPENAI_CANCEL_TEST_SERVERS names the folder in which tests/servers/install.py has installed them. Tests of a server that
is not there are skipped. The gateways have the emulator as their upstream.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from conftest import KEY
from server_processes import SCRIPTS, free_port, installed, running

from openai_cancel import AsyncSession, BadRequestError, InternalServerError, Verdict
from openai_cancel.emulator import Emulator, Fault, Script

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("real_servers")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Emulator]:
    async with Emulator() as server:
        yield server


@pytest.fixture(autouse=True)
def no_faults(upstream: Emulator) -> None:
    upstream.faults.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def portkey_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    file, port, folder = installed("portkey"), free_port(), tmp_path_factory.mktemp("portkey")
    async with running(folder, "node", file, "--headless", f"--port={port}", port=port) as url:
        yield f"{url}/v1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway_url(tmp_path_factory: pytest.TempPathFactory, upstream: Emulator) -> AsyncIterator[str]:
    python, port = installed("open_responses_server"), free_port()
    command = ("-m", "uvicorn", "open_responses_server.api_controller:app", "--host", "127.0.0.1")
    folder = tmp_path_factory.mktemp("gateway")
    internal = upstream.base_url.removesuffix("/v1")
    async with running(
        folder, python, *command, "--port", str(port), port=port, OPENAI_BASE_URL_INTERNAL=internal
    ) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def devui_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    python, folder = installed("devui"), tmp_path_factory.mktemp("devui")
    script = str(SCRIPTS / "devui_agent.py")
    async with running(folder, python, script, str(folder / "port"), DEVUI_AUTH_TOKEN=KEY) as url:
        yield f"{url}/v1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def databricks_url(tmp_path_factory: pytest.TempPathFactory, request) -> AsyncIterator[str]:
    python, folder = installed("databricks"), tmp_path_factory.mktemp("databricks")
    database = request.getfixturevalue("postgres").url.replace("postgresql:", "postgresql+psycopg:", 1)
    script = str(SCRIPTS / "databricks_agent.py")
    options = {"DATABASE": database, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/traces.db"}
    async with running(folder, python, script, str(folder / "port"), **options) as url:
        yield url


@asynccontextmanager
async def working(upstream: Emulator, http: aiohttp.ClientSession) -> AsyncIterator[str]:
    """Run a worker for SMG: it describes itself and its model, and passes other requests on to the emulator."""
    described = {"/v1/models": {"data": [{"id": "m", "object": "model"}]}, "/model_info": {"model_path": "m"}}

    async def answer(request: web.Request) -> web.Response:
        if "/responses" not in request.path:
            return web.json_response(described.get(request.path, {}))
        url = f"{upstream.base_url.removesuffix('/v1')}{request.path_qs}"
        body = await request.read() or None
        async with http.request(request.method, url, data=body) as passed:
            return web.Response(status=passed.status, body=await passed.read(), content_type=passed.content_type)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@asynccontextmanager
async def smg(folder: Path, worker: str, *options: str) -> AsyncIterator[str]:
    """Run SMG, ready when it has accepted its worker; yield its address."""
    command, port, metrics = installed("smg"), free_port(), free_port()
    listen = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    async with (
        running(folder, command, "launch", "--worker-urls", worker, *listen, *options, port=port) as url,
        aiohttp.ClientSession() as http,
    ):
        while True:
            async with http.post(f"{url}/v1/responses", json={"model": "m", "input": "hi"}) as answer:
                if answer.status in {200, 401}:
                    break
            await asyncio.sleep(0.1)
        yield f"{url}/v1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def smg_http_url(tmp_path_factory: pytest.TempPathFactory, upstream: Emulator, http) -> AsyncIterator[str]:
    async with working(upstream, http) as worker, smg(tmp_path_factory.mktemp("smg"), worker) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def smg_openai_url(tmp_path_factory: pytest.TempPathFactory, upstream: Emulator) -> AsyncIterator[str]:
    worker, folder = upstream.base_url.removesuffix("/v1"), tmp_path_factory.mktemp("smg")
    async with smg(folder, worker, "--backend", "openai") as url:
        yield url


async def ask(http: aiohttp.ClientSession, url: str, name: str, **headers: str) -> dict[str, tuple[int, Any]]:
    """The status and the body of a cancel and of a retrieve, with `ID` in place of the id."""
    answers = {}
    for method, path in [("POST", f"{name}/cancel"), ("GET", name)]:
        async with http.request(
            method, f"{url}/responses/{path}", headers=headers, skip_auto_headers={"Content-Type"}
        ) as answer:
            text = (await answer.text()).replace(name, "ID")
            answers[method] = (answer.status, json.loads(text) if answer.content_type == "application/json" else text)
    return answers


def gist(answers: dict[str, tuple[int, Any]]) -> dict[str, tuple[int, str]]:
    """The statuses of answers, and the most telling part of their bodies."""
    return {
        method: (status, body["error"]["message"] if status >= 400 and "error" in body else body["status"])
        for method, (status, body) in answers.items()
    }


def scripted(state: str) -> Script:
    return Script(runs_for=1000 if state == "running" else 0, becomes="completed" if state == "running" else state)


class TestPortkey:
    """Portkey's gateway turns the 200 of a cancel into a 500."""

    @pytest.fixture
    def headers(self, upstream: Emulator) -> dict[str, str]:
        return {"x-portkey-provider": "openai", "x-portkey-custom-host": upstream.base_url}

    @pytest_asyncio.fixture(loop_scope="module")
    async def session(self, portkey_url: str, headers: dict[str, str]) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(api_key=KEY, base_url=portkey_url, headers=headers) as session:
            yield session

    @pytest.mark.parametrize("state", ["running", "completed", "failed", "unknown"])
    async def test_the_dialect_answers_as_the_gateway(self, portkey_url, headers, upstream, http, state) -> None:
        async with Emulator(dialect="portkey") as dialect:
            names = [
                "resp_none" if state == "unknown" else server.add(scripted(state)) for server in (upstream, dialect)
            ]
            real = await ask(http, portkey_url, names[0], **headers)
            played = await ask(http, dialect.base_url, names[1])
        assert gist(played) == gist(real)

    async def test_a_cancel_fails_although_it_worked(self, session: AsyncSession, upstream: Emulator) -> None:
        name = upstream.add(scripted("running"))
        with pytest.raises(InternalServerError, match="Something went wrong"):
            await session.cancel(name, max_retries=0)
        assert upstream.responses[name].cancelled is not None

    async def test_stop_looks_after_the_first_failure(self, session: AsyncSession, upstream: Emulator) -> None:
        outcome = await session.stop(upstream.add(scripted("running")))
        assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 2)

    @pytest.mark.parametrize("state", ["completed", "failed", "incomplete"])
    async def test_a_response_that_has_ended_is_already_finished(self, session, upstream, state) -> None:
        outcome = await session.stop(upstream.add(scripted(state)))
        assert (outcome.verdict, outcome.response.status) == (Verdict.ALREADY_FINISHED, state)

    async def test_an_unknown_response_is_not_found(self, session: AsyncSession) -> None:
        assert (await session.stop("resp_none")).verdict is Verdict.NOT_FOUND

    async def test_a_guard_stops_its_response(self, session: AsyncSession, upstream: Emulator) -> None:
        name = upstream.add(scripted("running"))
        with pytest.raises(RuntimeError):
            async with session.guard(name) as guard:
                raise RuntimeError
        assert guard.outcome.verdict is Verdict.CANCELLED


class TestOpenResponsesServer:
    """This gateway loses the body of an answer that its upstream has compressed."""

    REFUSAL = Fault(
        on="cancel",
        status=400,
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        body=gzip.compress(json.dumps({"error": {"message": "Cannot cancel a completed response." * 3}}).encode()),
    )

    @pytest_asyncio.fixture(loop_scope="module")
    async def session(self, gateway_url: str) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(api_key=KEY, base_url=gateway_url) as session:
            yield session

    async def test_the_dialect_answers_as_the_gateway(self, gateway_url: str, upstream: Emulator, http) -> None:
        async with Emulator(dialect="open_responses_server") as dialect:
            for server, address in [(upstream, gateway_url), (dialect, dialect.base_url)]:
                upstream.faults = [self.REFUSAL] if server is upstream else []
                path = f"{address}/responses/{server.add(scripted('completed'))}/cancel"
                async with http.post(path, headers={"Accept-Encoding": "gzip"}) as answer:
                    assert (answer.status, answer.headers["Content-Encoding"]) == (400, "gzip")
                    assert int(answer.headers["Content-Length"]) > 0
                    with pytest.raises(aiohttp.ClientPayloadError):
                        await answer.read()

    async def test_a_refusal_without_its_body_keeps_its_status(self, session, upstream: Emulator) -> None:
        upstream.faults = [self.REFUSAL] * 10
        with pytest.raises(BadRequestError) as caught:
            await session.cancel(upstream.add(scripted("completed")))
        assert caught.value.status == 400

    async def test_a_response_that_has_ended_is_already_finished(self, session, upstream: Emulator) -> None:
        upstream.faults = [self.REFUSAL] * 10
        outcome = await session.stop(upstream.add(scripted("completed")))
        assert (outcome.verdict, outcome.response.status) == (Verdict.ALREADY_FINISHED, "completed")

    async def test_a_running_response_is_cancelled(self, session: AsyncSession, upstream: Emulator) -> None:
        outcome = await session.stop(upstream.add(scripted("running")))
        assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 1)

    async def test_an_id_that_the_gateway_cannot_pass_on_is_not_found(self, session: AsyncSession) -> None:
        assert (await session.stop("resp_a/b")).verdict is Verdict.NOT_FOUND


class TestDevUI:
    """The DevUI of Microsoft's agent-framework says in a 200 that it did not cancel."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def session(self, devui_url: str) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(api_key=KEY, base_url=devui_url) as session:
            yield session

    @asynccontextmanager
    async def created(self, http: aiohttp.ClientSession, devui_url: str, told: str) -> AsyncIterator[str]:
        """Create a response; yield its id. It lives as long as its stream is read."""
        async with http.get(f"{devui_url}/entities") as answer:
            [entity] = (await answer.json())["entities"]
        body = {"model": "m", "input": told, "stream": True, "metadata": {"entity_id": entity["id"]}}
        async with http.post(f"{devui_url}/responses", json=body) as answer:
            assert b"response.created" in await answer.content.readline()
            yield answer.headers["X-Response-ID"]

    async def test_the_dialect_answers_as_the_server(self, devui_url: str, http: aiohttp.ClientSession) -> None:
        async with Emulator(dialect="devui") as dialect, self.created(http, devui_url, "run") as name:
            played = dialect.add(scripted("running"))
            for _ in ("running", "cancelled"):
                assert await ask(http, dialect.base_url, played) == await ask(http, devui_url, name)
            assert await ask(http, dialect.base_url, "resp_none") == await ask(http, devui_url, "resp_none")
            assert await ask(http, dialect.base_url, "resp_a%2Fb") == await ask(http, devui_url, "resp_a%2Fb")

    async def test_a_running_response_is_cancelled_once(self, session, devui_url: str, http) -> None:
        async with self.created(http, devui_url, "run") as name:
            outcome = await session.stop(name)
            again = await session.stop(name)
        assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 1)
        assert (again.verdict, again.stopped) == (Verdict.NOT_FOUND, False)
        assert again.attempts <= 2

    async def test_an_unknown_response_is_not_found(self, session: AsyncSession) -> None:
        outcome = await session.stop("resp_none")
        assert outcome.verdict is Verdict.NOT_FOUND
        assert outcome.attempts <= 2

    async def test_stop_with_a_wrong_key(self, devui_url: str) -> None:
        async with AsyncSession(api_key="wrong", base_url=devui_url) as session:
            assert (await session.stop("resp_none")).verdict is Verdict.FORBIDDEN


class TestDatabricks:
    """The server of Databricks' agents has no cancel."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def session(self, databricks_url: str) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(api_key=KEY, base_url=databricks_url) as session:
            yield session

    async def create(self, http: aiohttp.ClientSession, databricks_url: str, told: str) -> str:
        body = {"input": [{"role": "user", "content": told}], "background": True}
        async with http.post(f"{databricks_url}/responses", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return (await answer.json())["id"]

    async def test_the_dialect_answers_as_the_server(self, databricks_url: str, http: aiohttp.ClientSession) -> None:
        async with Emulator(dialect="databricks") as dialect:
            name, played = await self.create(http, databricks_url, "run"), dialect.add(scripted("running"))
            assert await ask(http, dialect.base_url, played) == await ask(http, databricks_url, name)
            assert await ask(http, dialect.base_url, "resp_none") == await ask(http, databricks_url, "resp_none")
            assert await ask(http, dialect.base_url, "resp_a%2Fb") == await ask(http, databricks_url, "resp_a%2Fb")

    async def test_the_error_for_a_running_response_says_that_the_server_cannot_cancel(
        self, session, databricks_url, http
    ) -> None:
        outcome = await session.stop(await self.create(http, databricks_url, "run"))
        assert (outcome.verdict, outcome.attempts) == (Verdict.STILL_RUNNING, 2)
        assert outcome.error.status == 501

    @pytest.mark.parametrize("status", ["completed", "failed"])
    async def test_a_response_that_has_ended_is_already_finished(
        self, session, databricks_url, http, status: str
    ) -> None:
        name = await self.create(http, databricks_url, status)
        assert (await session.wait(name, timeout=20)).status == status
        outcome = await session.stop(name)
        assert (outcome.verdict, outcome.attempts) == (Verdict.ALREADY_FINISHED, 2)

    async def test_an_unknown_response_is_not_found(self, session: AsyncSession) -> None:
        assert (await session.stop("resp_none")).verdict is Verdict.NOT_FOUND


class TestSMG:
    """SMG with HTTP workers passes a cancel on and knows no id; with an OpenAI backend it has no cancel."""

    @pytest.mark.parametrize("state", ["running", "completed", "failed", "unknown"])
    async def test_the_dialect_answers_as_the_gateway(self, smg_http_url: str, upstream, http, state: str) -> None:
        async with Emulator(dialect="smg_http") as dialect:
            names = [
                "resp_none" if state == "unknown" else server.add(scripted(state)) for server in (upstream, dialect)
            ]
            real = await ask(http, smg_http_url, names[0])
            played = await ask(http, dialect.base_url, names[1])
        assert gist(played) == gist(real)

    @pytest.mark.parametrize(
        ("state", "verdict"),
        [
            ("running", Verdict.CANCELLED),
            ("completed", Verdict.ALREADY_FINISHED),
            ("failed", Verdict.ALREADY_FINISHED),
            ("unknown", Verdict.NOT_FOUND),
        ],
    )
    async def test_stop_with_http_workers(self, smg_http_url: str, upstream: Emulator, state: str, verdict) -> None:
        name = "resp_none" if state == "unknown" else upstream.add(scripted(state))
        async with AsyncSession(api_key=KEY, base_url=smg_http_url) as session:
            outcome = await session.stop(name)
        assert outcome.verdict is verdict
        assert outcome.attempts <= 3

    async def create(self, http: aiohttp.ClientSession, url: str) -> str:
        async with http.post(f"{url}/responses", json={"model": "m", "input": "hi"}) as answer:
            assert answer.status == 200, await answer.text()
            return (await answer.json())["id"]

    async def test_the_dialect_answers_as_the_openai_backend(self, smg_openai_url: str, http) -> None:
        async with Emulator(dialect="smg_openai") as dialect:
            for method, real, played in [
                ("POST", f"{await self.create(http, smg_openai_url)}/cancel", f"{dialect.add()}/cancel"),
                ("POST", "resp_none/cancel", "resp_none/cancel"),
                ("GET", "resp_none", "resp_none"),
            ]:
                texts = []
                for url, path in [(smg_openai_url, real), (dialect.base_url, played)]:
                    async with http.request(method, f"{url}/responses/{path}") as answer:
                        body = await answer.text()
                        text = json.loads(body)["error"]["message"] if body.startswith("{") else body
                        texts.append((answer.status, answer.content_type, text))
                assert texts[0] == texts[1]

    async def test_a_response_that_has_ended_on_an_openai_backend_is_already_finished(
        self, smg_openai_url: str, http
    ) -> None:
        name = await self.create(http, smg_openai_url)
        async with AsyncSession(api_key=KEY, base_url=smg_openai_url) as session:
            outcome = await session.stop(name)
        assert (outcome.verdict, outcome.attempts) == (Verdict.ALREADY_FINISHED, 2)

"""The emulator's HTTP side: OpenAI's routes, its checks, and its errors to the letter."""

import json
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import attrs
from aiohttp import web

from openai_cancel.emulator.faults import Fault, Handler
from openai_cancel.emulator.work import TERMINAL, Script, ScriptError, Work


@attrs.frozen
class Received:
    """A request that arrived: its path as it was sent, header names in lower case, its body."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Emulator:
    """A server of the Responses API on a port of this machine.

    ```python
    async with Emulator() as server:
        async with AsyncSession(base_url=server.base_url, api_key="any") as session: ...
    ```

    It needs its event loop: call a blocking `Session` from another thread, or use `openai-cancel emulate`.

    Args:
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        api_key: the only key that is accepted; None accepts any, but not none.
        script: how background responses go, unless a request's `metadata` says otherwise.
        clock: seconds since the epoch, for tests that set the time themselves.

    Attributes:
        base_url: what a client is given, once the server runs.
        works: the responses, by id.
        faults: what goes wrong next: the first that fits a request strikes it and is gone.
        received: every request so far.

    See https://platform.openai.com/docs/api-reference/responses.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        script: Script | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._port = port
        self._api_key = api_key
        self._script = script or Script()
        self._clock = clock
        self.base_url = ""
        self.works: dict[str, Work] = {}
        self.faults: list[Fault] = []
        self.received: list[Received] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        middlewares = [self._record, self._go_wrong, self._authenticate]
        app = web.Application(middlewares=middlewares, client_max_size=64 * 2**20)
        app.add_routes(
            [
                web.post("/v1/responses", self._create, name="create"),
                web.get("/v1/responses/{id}", self._retrieve, allow_head=False, name="retrieve"),
                web.post("/v1/responses/{id}/cancel", self._cancel, name="cancel"),
                web.delete("/v1/responses/{id}", self._delete, name="delete"),
            ]
        )
        # Handlers are cancelled when their client leaves, and when the server closes: a fault may hang for ever.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.base_url = f"http://{host}:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runner:
            await self._runner.cleanup()

    def add(self, script: Script | None = None, *, background: bool = True) -> str:
        """Put a response there without a request; gives its id."""
        work = Work(
            request={"model": "emulated", "input": "", "background": background},
            script=script or self._script,
            started=self._clock(),
        )
        self.works[work.id] = work
        return work.id

    @web.middleware
    async def _record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.method, request.raw_path, headers, await request.read()))
        answer = await handler(request)
        if not answer.prepared:
            answer.headers.setdefault("x-request-id", f"req_{len(self.received):032x}")
        return answer

    @web.middleware
    async def _go_wrong(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        operation = request.match_info.route.name
        for fault in self.faults:
            if fault.on in {None, operation}:
                self.faults.remove(fault)
                return await fault.strike(request, handler)
        return await handler(request)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        key = bearer or request.headers.get("api-key", "")
        if not key:
            return _error(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if "
                "you're accessing the API from your browser and are prompted for a username and password. You can "
                "obtain an API key from https://platform.openai.com/account/api-keys.",
            )
        if key != (self._api_key or key):
            hidden = f"{key[:8]}{'*' * max(len(key) - 12, 4)}{key[-4:]}" if len(key) > 12 else key  # noqa: PLR2004
            return _error(
                401,
                f"Incorrect API key provided: {hidden}. You can find your API key at "
                "https://platform.openai.com/account/api-keys.",
                code="invalid_api_key",
            )
        return await handler(request)

    async def _create(self, request: web.Request) -> web.Response:
        try:
            body: Any = json.loads(await request.read())
        except ValueError:
            body = None
        if body.__class__ is not dict:
            return _error(400, "We could not parse the JSON body of your request.")
        if not isinstance(body.get("model"), str):
            return _error(400, "Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
        if body.get("stream"):
            return _error(400, "The emulator does not stream: leave out 'stream'.", param="stream")
        if body.get("background") is True and body.get("store") is False:
            return _error(400, "Background mode requires 'store' to be true.", param="store")
        try:
            script = self._script.amended(body.get("metadata") or {})
        except ScriptError as error:
            return _error(400, f"Invalid 'metadata': {error}", param="metadata")
        work = Work(request=body, script=script, started=self._clock())
        self.works[work.id] = work
        return web.json_response(work.document(self._clock()))

    async def _retrieve(self, request: web.Request) -> web.Response:
        work = self.works.get(request.match_info["id"])
        return web.json_response(work.document(self._clock())) if work else _not_found(request)

    async def _cancel(self, request: web.Request) -> web.Response:
        work = self.works.get(request.match_info["id"])
        if work is None:
            return _not_found(request)
        if not work.background:
            return _error(400, "Cannot cancel a synchronous response.")
        status = work.status(self._clock())
        if status in TERMINAL - {"cancelled"}:
            return _error(400, f"Cannot cancel a {status} response.")
        if work.cancelled is None:
            work.cancelled = self._clock()
        return web.json_response(work.document(self._clock()))

    async def _delete(self, request: web.Request) -> web.Response:
        work = self.works.pop(request.match_info["id"], None)
        return (
            web.json_response({"id": work.id, "object": "response", "deleted": True}) if work else _not_found(request)
        )


def _not_found(request: web.Request) -> web.Response:
    return _error(404, f"Response with id '{request.match_info['id']}' not found.")


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return web.json_response({"error": error}, status=status)

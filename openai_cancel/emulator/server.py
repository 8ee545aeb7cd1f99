"""The emulator's HTTP side: the routes and the checks of OpenAI, and the answers of the server that it plays."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import attrs
from aiohttp import hdrs, web

from openai_cancel.emulator.dialects import DIALECTS, Dialect, Failure, Reply
from openai_cancel.emulator.faults import Fault, Handler
from openai_cancel.emulator.work import Script, ScriptError, Work

_REQUEST_ID: ContextVar[str] = ContextVar("request_id")

_API = "/{api:v1|openai/v1|openai}/responses"
"""Where OpenAI has it; where Azure has its v1 API, and those of a date."""


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

    Without its `/v1`, the `base_url` is an endpoint for `AsyncSession.azure`.

    It needs its event loop: call a blocking `Session` from another thread, or use `openai-cancel emulate`.

    Args:
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        api_key: the only key that is accepted; None accepts any, but not none.
        script: how background responses go, unless a request's `metadata` says otherwise.
        dialect: which server it plays: one of `DIALECTS`, or a `Dialect` of your own.
        rate_limit: requests a second; what is more, after a second's worth at once, gets a 429. None: no limit.
        clock: seconds since the epoch, for tests that set the time themselves.

    Attributes:
        base_url: what a client is given, once the server runs.
        responses: what was created, by id.
        faults: what goes wrong next: the first that fits a request strikes it and is gone.
        received: every request so far.

    Raises:
        ValueError: there is no such dialect.
        OSError: it cannot listen there; when it is entered.

    See https://platform.openai.com/docs/api-reference/responses.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        script: Script | None = None,
        dialect: str | Dialect = "openai",
        rate_limit: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._port = port
        self._api_key = api_key
        self._script = script or Script()
        if isinstance(dialect, str) and dialect not in DIALECTS:
            raise ValueError(f"no such dialect: {dialect!r}; choose one of {', '.join(DIALECTS)}.")
        self._dialect = DIALECTS[dialect] if isinstance(dialect, str) else dialect
        self._rate_limit = rate_limit
        self._allowance = rate_limit or 0.0  # a bucket that holds a second's worth
        self._filled = clock()
        self._clock = clock
        self.base_url: str = ""
        self.responses: dict[str, Work] = {}
        self.faults: list[Fault] = []
        self.received: list[Received] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        middlewares = [self._record, self._go_wrong, self._authenticate, self._limit]
        app = web.Application(middlewares=middlewares, client_max_size=64 * 2**20)
        app.add_routes(
            [
                web.post(_API, self._create, name="create"),
                web.get(f"{_API}/{{id}}", self._retrieve, allow_head=False, name="retrieve"),
                web.post(f"{_API}/{{id}}/cancel", self._cancel, name="cancel"),
                web.delete(f"{_API}/{{id}}", self._delete, name="delete"),
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
        return self._add({"model": "emulated", "input": "", "background": background}, script or self._script).id

    def _add(self, request: Mapping[str, Any], script: Script) -> Work:
        work = Work(request=request, script=script, started=self._clock(), id=self._dialect.new_id())
        self.responses[work.id] = work
        return work

    @web.middleware
    async def _record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.method, request.raw_path, headers, await request.read()))
        _REQUEST_ID.set(f"req_{len(self.received):032x}")
        answer = await handler(request)
        if not answer.prepared:
            answer.headers.setdefault("x-request-id", _REQUEST_ID.get())
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
        if not key and self._dialect.no_key:
            return self._refuse(self._dialect.no_key, id="", status="", key="")
        if key != (self._api_key or key) and self._dialect.bad_key:
            hidden = f"{key[:8]}{'*' * max(len(key) - 12, 4)}{key[-4:]}" if len(key) > 12 else key  # noqa: PLR2004
            return self._refuse(self._dialect.bad_key, id="", status="", key=hidden)
        return await handler(request)

    @web.middleware
    async def _limit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._rate_limit is not None:
            now = self._clock()
            self._allowance = min(self._rate_limit, self._allowance + (now - self._filled) * self._rate_limit)
            self._filled = now
            if self._allowance < 1:
                answer = self._fail(429, "Rate limit reached for requests.", code="rate_limit_exceeded")
                answer.headers["retry-after"] = "1"
                return answer
            self._allowance -= 1
        return await handler(request)

    async def _create(self, request: web.Request) -> web.Response:
        try:
            body: Any = json.loads(await request.read())
        except ValueError:
            body = None
        if body.__class__ is not dict:
            return self._fail(400, "We could not parse the JSON body of your request.")
        if not isinstance(body.get("model"), str):
            return self._fail(
                400, "Missing required parameter: 'model'.", param="model", code="missing_required_parameter"
            )
        if body.get("stream"):
            return self._fail(400, "The emulator does not stream: leave out 'stream'.", param="stream")
        if body.get("background") is True and body.get("store") is False:
            return self._fail(400, "Background mode requires 'store' to be true.", param="store")
        try:
            script = self._script.amended(body.get("metadata") or {})
        except ScriptError as error:
            return self._fail(400, f"Invalid 'metadata': {error}", param="metadata")
        return self._show(self._add(body, script), self._dialect.create)

    async def _retrieve(self, request: web.Request) -> web.Response:
        work = self._find(request)
        return self._show(work, self._dialect.retrieve) if work else self._deny(request)

    async def _cancel(self, request: web.Request) -> web.Response:
        dialect = self._dialect
        if not dialect.takes_body and (await request.read() or hdrs.CONTENT_TYPE in request.headers):
            return self._fail(400, "A cancel takes no body.")
        work = self._find(request)
        if work is None:
            return self._deny(request)
        status = work.status(self._clock())
        reply = dialect.cancel.get(status if work.background else "not_background", Reply())
        if reply.words is not None:
            return self._refuse(reply, id=request.match_info["id"], status=status, key="")
        if reply.cancels:
            await asyncio.sleep(dialect.cancel_takes)
            if work.status(self._clock()) == status:  # it may have ended meanwhile
                work.cancel(self._clock())
        return self._show(work, {"cancelled": reply.reports} if reply.reports else {})

    async def _delete(self, request: web.Request) -> web.Response:
        work = self._find(request)
        if work is None:
            return self._deny(request)
        del self.responses[work.id]
        return self._json({"id": request.match_info["id"], "object": "response", "deleted": True})

    def _find(self, request: web.Request) -> Work | None:
        return self.responses.get(self._dialect.read_id(request.match_info["id"]))

    def _show(self, work: Work, reports: Mapping[str, str] | None = None) -> web.Response:
        """The response, as the server that is played describes it."""
        dialect, now = self._dialect, self._clock()
        document = {**work.document(now), **dialect.adds, "id": dialect.show_id(work.id)}
        if work.cancelled is not None and work.cancelled <= now < work.cancelled + dialect.cancelling_for:
            document["status"] = "cancelling"
        document["status"] = (reports or {}).get(document["status"], document["status"])
        return self._json({name: value for name, value in document.items() if name not in dialect.lacks})

    def _deny(self, request: web.Request) -> web.Response:
        shown = request.match_info["id"]
        formed = self._dialect.id_form.match(shown)
        reply = self._dialect.unknown if formed or not self._dialect.malformed else self._dialect.malformed
        return self._refuse(reply, id=shown, status="", key="")

    def _refuse(self, reply: Reply, **names: str) -> web.Response:
        words = (reply.words or "").format(**names)
        return (
            web.Response(status=reply.status, text=words)
            if reply.plain
            else self._fail(reply.status, words, code=reply.code)
        )

    def _fail(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> web.Response:
        failure = Failure(status=status, message=message, param=param, code=code, request_id=_REQUEST_ID.get())
        return self._json(self._dialect.error(failure), status=status)

    def _json(self, document: Any, *, status: int = 200) -> web.Response:
        answer = web.json_response(document, status=status)
        if self._dialect.compresses:
            answer.enable_compression(web.ContentCoding.gzip)
        return answer

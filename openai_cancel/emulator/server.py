"""The HTTP server of the emulator: OpenAI's routes and checks, with the answers of the dialect that it plays."""

import asyncio
import itertools
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import attrs
from aiohttp import hdrs, web

from openai_cancel.emulator.checks import check_host, check_port, check_rate_limit, check_replicas, check_store_delay
from openai_cancel.emulator.dialects import (
    DIALECTS,
    NO_ROUTE,
    NOT_BACKGROUND,
    NOT_STREAMED,
    REPORTS,
    TOO_OLD,
    Dialect,
    Failure,
    Reply,
)
from openai_cancel.emulator.documents import describe
from openai_cancel.emulator.faults import Fault, Handler, cut_body
from openai_cancel.emulator.lists import ListError, page
from openai_cancel.emulator.rate_limit import PRECISION, TokenBucket
from openai_cancel.emulator.stream import EventStream
from openai_cancel.emulator.work import Script, ScriptError, Work

_REQUEST_ID = web.RequestKey("request_id", str)
_REPLICA = web.RequestKey("replica", int)
_HAS_FAULT = web.RequestKey("has_fault", bool)

_LOGGED_PARAMETERS = frozenset({"after", "api-version", "include", "limit", "order", "starting_after", "stream"})
"""The parameters of a query whose values are logged. Another one could be a key."""

_API = "/{api:v1|openai/v1|openai}/responses"
"""The paths of OpenAI, of Azure's v1 API, and of Azure's dated API versions."""

_log = logging.getLogger("openai_emulator")  # not a child of the client's logger, whose records a test may check

_MAX_BODY = 64 * 2**20


@attrs.frozen
class Received:
    """A request that the emulator received.

    Attributes:
        method: the HTTP method.
        path: the path and the query, as they were sent.
        headers: the headers, with names in lower case.
        body: the body.
    """

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

    Its `base_url` without the `/v1` is an endpoint for `AsyncSession.azure`.

    The logger `openai_emulator` writes a line for each request (INFO): the method, the path and the status, and
    never the key.

    It runs in the event loop that enters it. Call a blocking `Session` from another thread, or run the emulator with
    `openai-cancel emulate`.

    Args:
        host: the address to listen on.
        port: the port to listen on. 0 picks a free one.
        api_key: the only key that is accepted. None accepts any key.
        script: the course of background responses. The `metadata` of a request can change it for one response.
        dialect: the server to play: a name in `DIALECTS`, or a `Dialect` of your own.
        rate_limit: requests per second, which may be less than 1. As many requests as are allowed in a second, and at
            least one, are accepted at once. Any above that get a 429, whose `retry-after` says how many seconds to
            wait. None or `math.inf` for no limit.
        store_delay: seconds after its creation in which a response is unknown to every request, as in a store that is
            eventually consistent.
        replicas: the number of servers behind this address. They take turns, one request each, and share no store: a
            response is known only to the one that created it. `add` takes a turn, too.
        clock: returns the time in seconds since the epoch. Pass one that a test controls to skip waiting.

    Attributes:
        base_url: the URL to give to a client. It is set when the emulator is entered.
        clock: the clock that was passed, for tests that call `Work.cancel` and `Work.status`.
        dialect: the `Dialect` that the emulator plays, for tests that compare its ids and replies.
        script: the course of background responses. Assign another one to use it for all responses created from then
            on; those that exist keep theirs.
        responses: the responses that exist, by id.
        store_delay: the seconds that were passed. Assign another number at any time.
        faults: the faults to come. Each request takes the first one that matches it off the list.
        received: the requests received so far.

    Raises:
        ValueError: the dialect, the host, the port, the rate limit, the delay or the number of replicas is not valid.
        TypeError: the dialect, the script or the clock has the wrong type.
        OSError: the emulator cannot listen on this host and port. Raised on entering it.

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
        store_delay: float = 0.0,
        replicas: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_host(host)
        check_port(port)
        check_store_delay(store_delay)
        check_replicas(replicas)
        if not callable(clock):
            raise TypeError(f"clock must be a function that returns seconds since the epoch; got {clock!r}")
        if not isinstance(script, Script | None):
            raise TypeError(f"script must be a Script, such as Script(runs_for=5), or None; got {script!r}")
        self._host = host
        self._port = port
        self._api_key = api_key
        self._limit = _token_bucket(rate_limit, clock)
        self._runner: web.AppRunner | None = None
        self._turns = itertools.cycle(range(replicas))
        self.base_url: str = ""
        self.clock: Callable[[], float] = clock
        self.dialect: Dialect = _find_dialect(dialect)
        self.script: Script = script or Script()
        self.store_delay: float = store_delay
        self.responses: dict[str, Work] = {}
        self.faults: list[Fault] = []
        self.received: list[Received] = []

    async def __aenter__(self) -> Self:
        app = web.Application(
            middlewares=[self._record, self._strike, self._empty, self._authenticate, self._limit_rate, self._match],
            client_max_size=_MAX_BODY,
        )
        app.add_routes(
            [
                web.post(_API, self._create, name="create"),
                web.get(_API, self._list, allow_head=False, name="list"),
                web.get(f"{_API}/{{id}}", self._retrieve, allow_head=False, name="retrieve"),
                web.post(f"{_API}/{{id}}/cancel", self._cancel, name="cancel"),
                web.delete(f"{_API}/{{id}}", self._delete, name="delete"),
            ]
        )
        # A fault may wait forever: cancel its handler when the client disconnects and when the server closes.
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
        """Create a response without a request.

        Args:
            script: its course. Defaults to the `script` of the emulator.
            background: whether it runs in the background. If not, it has ended already.

        Returns:
            Its id, a key of `responses`.
        """
        request = {"model": "emulated", "input": "", "background": background}
        return self._add(request, script or self.script, next(self._turns)).id

    def _add(self, request: Mapping[str, Any], script: Script, replica: int) -> Work:
        work = Work(request=request, script=script, started=self.clock(), id=self.dialect.new_id(), replica=replica)
        self.responses[work.id] = work
        return work

    @web.middleware
    async def _record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.method, request.raw_path, headers, await request.read()))
        request[_REQUEST_ID] = f"req_{len(self.received):032x}"
        request[_REPLICA] = next(self._turns)
        try:
            answer = await handler(request)
        except web.HTTPException as error:  # no such path
            _log.info("%s %s %d", request.method, _shown(request), error.status)
            raise
        except asyncio.CancelledError:
            _log.info("%s %s: the client has left before the answer", request.method, _shown(request))
            raise
        is_cut = request.transport is None or request.transport.is_closing()
        said = "cut" if is_cut else answer.status
        _log.info("%s %s %s%s", request.method, _shown(request), said, " (a fault)" if request.get(_HAS_FAULT) else "")
        if not answer.prepared:
            answer.headers.setdefault("x-request-id", request[_REQUEST_ID])
        return answer

    @web.middleware
    async def _empty(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await handler(request)
        if not self.dialect.empties_errors or answer.status < HTTPStatus.BAD_REQUEST:
            return answer
        answer.headers.update({hdrs.CONTENT_ENCODING: "gzip", "x-request-id": request[_REQUEST_ID]})
        return await cut_body(request, answer, 0)

    @web.middleware
    async def _strike(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        operation = request.match_info.route.name
        for fault in self.faults:
            if fault.on in {None, operation}:
                self.faults.remove(fault)
                request[_HAS_FAULT] = True
                return await fault.strike(request, handler)
        return await handler(request)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        key = bearer or request.headers.get("api-key", "")
        if not key and self.dialect.no_key:
            return self._refuse(request, self.dialect.no_key)
        if key != (self._api_key or key) and self.dialect.bad_key:
            return self._refuse(request, self.dialect.bad_key, key=_masked(key))
        return await handler(request)

    @web.middleware
    async def _match(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a request that the dialect does not route."""
        if self.dialect.decodes_slashes and "/" in request.match_info.get("id", ""):
            return self._fail(request, 404, NO_ROUTE)
        for name, reply in self.dialect.needs_query.items():
            if name not in request.query:
                return self._refuse(request, reply)
        return await handler(request)

    @web.middleware
    async def _limit_rate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._limit and (wait := self._limit.take(self.clock())):
            answer = self._fail(request, 429, "Rate limit reached for requests.", code="rate_limit_exceeded")
            # Whole seconds: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
            answer.headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(wait - PRECISION)))
            return answer
        return await handler(request)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        try:
            body: Any = json.loads(await request.read())
        except ValueError:
            body = None
        if body.__class__ is not dict:
            return self._fail(request, 400, "We could not parse the JSON body of your request.")
        if not isinstance(body.get("model"), str):
            message = "Missing required parameter: 'model'."
            return self._fail(request, 400, message, param="model", code="missing_required_parameter")
        background, stream = body.get("background") is True, body.get("stream") is True
        if background and body.get("store") is False:
            return self._fail(request, 400, "Background mode requires 'store' to be true.", param="store")
        conflict = self.dialect.background_stream if background and stream else None
        if conflict and conflict.words is not None:
            return self._refuse(request, conflict)
        try:
            script = self.script.amended(body.get("metadata") or {})
        except ScriptError as error:
            return self._fail(request, 400, f"Invalid 'metadata': {error}", param="metadata")
        work = self._add(body, script, request[_REPLICA])
        return self._stream(work) if stream and not conflict else self._show(work, self.dialect.create)

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        work = self._find(request)
        status = work.status(self.clock()) if work else "unknown"
        reply = self.dialect.retrieve.get(status)
        streams = request.query.get("stream", "").lower() == "true" and self.dialect.replays
        if not (work and streams) or (reply and reply.reports is None):
            return self._answer(request, work, reply, status)
        if refusal := self._refuse_replay(request, work):
            return refusal
        return self._stream(work, int(request.query.get("starting_after", "-1")))

    def _refuse_replay(self, request: web.Request, work: Work) -> web.Response | None:
        """Return the answer if a retrieve cannot stream this response, or None."""
        now, dialect = self.clock(), self.dialect
        if not re.fullmatch("-?[0-9]{1,9}", request.query.get("starting_after", "-1")):
            return self._fail(request, 400, "starting_after must be an integer", param="starting_after")
        if not work.background:
            return self._fail(request, 400, NOT_BACKGROUND, param="stream")
        if not work.streamed or (dialect.forgets_cancelled and work.status(now) == "cancelled"):
            return self._fail(request, 400, NOT_STREAMED, param="stream")
        if now > work.started + dialect.streams_for:
            return self._fail(request, 400, TOO_OLD.format(minutes=round(dialect.streams_for / 60)), param="stream")
        return None

    async def _cancel(self, request: web.Request) -> web.Response:
        dialect = self.dialect
        if not dialect.takes_body and (await request.read() or hdrs.CONTENT_TYPE in request.headers):
            return self._fail(request, 400, "A cancel takes no body.")
        work = self._find(request)
        if work is None:
            return self._answer(request, None, dialect.cancel.get("unknown"), "unknown")
        status = work.status(self.clock())
        reply = dialect.cancel.get(status if work.background else "not_background", REPORTS)
        if reply.cancels:
            await asyncio.sleep(dialect.cancel_takes)
            if work.status(self.clock()) == status:  # unless it ended meanwhile
                work.cancel(self.clock())
                status = "cancelled"
        return self._answer(request, work, reply, status)

    async def _delete(self, request: web.Request) -> web.Response:
        work = self._find(request)
        if work is None:
            return self._refuse_id(request)
        del self.responses[work.id]
        return self._json({"id": request.match_info["id"], "object": "response", "deleted": True})

    async def _list(self, request: web.Request) -> web.Response:
        dialect, now = self.dialect, self.clock()
        if dialect.lists is None:
            return self._refuse(request, dialect.no_list)
        works = [work for work in self.responses.values() if self._shows(request, work)]
        try:
            answer = self._json(page(works, dialect, dialect.lists, request.query, now))
        except ListError as error:
            return self._fail(request, 400, str(error))
        answer.headers[hdrs.DATE] = formatdate(now, usegmt=True)  # the ages of responses are relative to it
        return answer

    def _find(self, request: web.Request) -> Work | None:
        """Return the response that a request is about, unless the replica that it came to does not know it."""
        work = self.responses.get(self.dialect.read_id(request.match_info["id"]))
        return work if work is not None and self._shows(request, work) else None

    def _shows(self, request: web.Request, work: Work) -> bool:
        """Return whether the replica that a request came to knows a response by now."""
        now = self.clock()
        hides = self.dialect.hides_foreground and not work.background and work.is_active(now)
        return work.replica == request[_REPLICA] and not hides and not 0 <= now - work.started < self.store_delay

    def _answer(self, request: web.Request, work: Work | None, reply: Reply | None, status: str) -> web.Response:
        """Answer a retrieve or a cancel.

        Args:
            request: the request.
            work: the response, or None if its id is unknown.
            reply: the dialect's reply, or None for its usual one.
            status: the status of the response.
        """
        if reply and reply.body is not None:
            fields = {"id": request.match_info["id"], "status": status}
            body = {
                name: value.format_map(fields) if isinstance(value, str) else value
                for name, value in reply.body.items()
            }
            return self._json(body, status=reply.status)
        if reply and reply.words is not None:
            return self._refuse(request, reply, status=status)
        if work is None:
            return self._refuse_id(request)
        return self._show(work, {status: reply.reports} if reply and reply.reports else {})

    def _show(self, work: Work, reports: Mapping[str, str]) -> web.Response:
        """Answer with a response, as the dialect describes it.

        Args:
            work: the response.
            reports: the status to report in place of another.
        """
        return self._json(describe(work, self.dialect, self.clock(), reports))

    def _stream(self, work: Work, after: int = -1) -> web.StreamResponse:
        return EventStream(work, self.dialect, self.clock, after=after)

    def _refuse_id(self, request: web.Request) -> web.Response:
        dialect = self.dialect
        if dialect.malformed and not dialect.id_form.match(request.match_info["id"]):
            return self._refuse(request, dialect.malformed)
        return self._refuse(request, dialect.unknown)

    def _refuse(self, request: web.Request, reply: Reply, *, status: str = "", key: str = "") -> web.Response:
        """Answer with the error of a reply."""
        words = (reply.words or "").format(id=request.match_info.get("id", ""), status=status, key=key)
        if reply.plain:
            return web.Response(status=reply.status, text=words)
        return self._fail(request, reply.status, words, code=reply.code)

    def _fail(
        self, request: web.Request, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> web.Response:
        failure = Failure(status=status, message=message, param=param, code=code, request_id=request[_REQUEST_ID])
        return self._json(self.dialect.error(failure), status=status)

    def _json(self, document: Any, *, status: int = 200) -> web.Response:
        answer = web.json_response(document, status=status)
        if self.dialect.compresses:
            answer.enable_compression(web.ContentCoding.gzip)
        return answer


def _find_dialect(dialect: str | Dialect) -> Dialect:
    if isinstance(dialect, Dialect):
        return dialect
    if not isinstance(dialect, str):
        raise TypeError(f"dialect must be a name or a Dialect; got {dialect!r}")
    if dialect not in DIALECTS:
        raise ValueError(f"no such dialect: {dialect!r}; choose one of {', '.join(DIALECTS)}.")
    return DIALECTS[dialect]


def _token_bucket(rate_limit: float | None, clock: Callable[[], float]) -> TokenBucket | None:
    if rate_limit is None or rate_limit == math.inf:
        return None
    check_rate_limit(rate_limit)
    return TokenBucket(rate=rate_limit, updated=clock())


def _shown(request: web.Request) -> str:
    """Return the path and the query of a request, for a log."""
    path, _, _ = request.raw_path.partition("?")
    query = "&".join(
        f"{quote(name)}={quote(value) if name in _LOGGED_PARAMETERS else '***'}"
        for name, value in request.query.items()
    )
    return f"{path}?{query}" if query else path


def _masked(key: str) -> str:
    """Return a key as OpenAI quotes it: its beginning, stars, and its last four characters."""
    start, stars, end = key[:8], len(key) - 12, key[-4:]
    return f"{start}{'*' * max(stars, 4)}{end}" if stars > 0 else key

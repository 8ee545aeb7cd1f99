"""One HTTP exchange over aiohttp: a request in, an answer out, within limits. aiohttp's errors are translated."""

import asyncio
import math
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from http import HTTPStatus
from ssl import SSLContext
from typing import Any

import aiohttp
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL  # aiohttp's own URL type

from openai_cancel.cancellation import TimeoutScheduler, contain
from openai_cancel.certificates import advise, trusted_authorities
from openai_cancel.errors import APIConnectionError, APITimeoutError, OpenAICancelError, SessionStateError, detached
from openai_cancel.pool import Attempt, BorrowedConnections, Pool
from openai_cancel.process import OwnerProcess
from openai_cancel.resolver import ThreadResolver
from openai_cancel.session_loop import in_asyncio
from openai_cancel.settings import Settings
from openai_cancel.wire import Answer, Receiver, Request

_UNWANTED = ("Content-Type",)  # some servers refuse an empty body that is announced as something

# The end of aiohttp's own words in `Bad status line: b'…'`. The server's words after it may contain anything.
# What OpenSSL calls an answer that is not TLS: the second one since 3.2.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"})
_QUOTATION = re.compile(r":|\s*<|\s+b?['\"]")


class Transport:
    """A connection pool. It belongs to the event loop in which it is opened.

    Args:
        settings: the limits, and the trace configs.
        headers: the headers of most requests. As defaults of our own client they cost less.
        client: the caller's client, which is never closed here; None to create one.

    Attributes:
        client: the client, once the pool is open.
        scheduler: the timeouts of its event loop, once the pool is open.
    """

    scheduler: TimeoutScheduler
    client: aiohttp.ClientSession | None = None
    _closed = False
    _streams = 0  # how many streams hold a connection
    _owner: OwnerProcess

    def __init__(self, settings: Settings, headers: Mapping[str, str], client: aiohttp.ClientSession | None) -> None:
        self._settings = settings
        self._headers = headers
        self._foreign_client = client
        # Middlewares and trace configs are foreign code, which may swallow a cancellation.
        self._runs_foreign_code = client is not None or bool(settings.trace_configs)
        connect_timeout = settings.connect_timeout
        # There is no total, because the caller bounds a whole attempt, of which the exchange is a part.
        self._timeout = aiohttp.ClientTimeout(sock_connect=None if math.isinf(connect_timeout) else connect_timeout)
        self._proxy: str | None = None
        self._default_headers: Mapping[str, str] | None = None
        self._pool: Pool | None = None
        self._bodies: set[aiohttp.StreamReader] = set()  # of the streams that are being read
        self._borrowed = BorrowedConnections() if client is not None else None

    def __repr__(self) -> str:
        """Return the state."""
        return f"<{type(self).__name__} {self.state}>"

    @property
    def state(self) -> str:
        """`not open`, `open`, `open in another process` or `closed`."""
        if self._closed or self.client is None:
            return "closed" if self._closed else "not open"
        return "open" if self._owner.is_current else "open in another process"

    @property
    def pool_is_closed(self) -> bool:
        """Whether the pool is closed, by this object or by the owner of the client."""
        return self.client is None or self.client.closed

    def open(self) -> None:
        """Open the pool in the running event loop.

        Raises:
            SessionStateError: it is open, or was closed, or no task of asyncio runs here.
            ConfigurationError: the environment names a proxy that cannot be used.
        """
        if not in_asyncio() or asyncio.current_task() is None:  # trio may also run as a guest of asyncio
            raise SessionStateError(
                "An AsyncSession needs asyncio: in a program with trio, call a Session in trio.to_thread.run_sync."
            )
        if self._closed or self.client is not None:
            if not self._closed:
                self._owner.check()
            raise SessionStateError("A session can be opened only once: create another one.")
        settings, client = self._settings, self._foreign_client
        self._proxy = settings.proxy
        if settings.proxy is None and client is None:
            self._proxy = settings.environment_proxy()
        self.scheduler = TimeoutScheduler()
        if client is None:
            # aiohttp sends the default headers of a client to proxies, too, and the key with them.
            self._default_headers = self._headers if self._proxy is None else None
            self._pool = Pool(
                limit=settings.max_connections, resolver=ThreadResolver(), ssl=self._authorities() or True
            )
            client = aiohttp.ClientSession(
                connector=self._pool,
                trace_configs=list(settings.trace_configs),
                headers=self._default_headers,
                skip_auto_headers=_UNWANTED,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        self._owner = OwnerProcess(lacks="event loop")
        self.client = client

    def _authorities(self) -> SSLContext | None:
        """Return the TLS context if one may be needed: it takes time to make one."""
        urls = (self._settings.base_url, self._proxy or "")
        return trusted_authorities() if any(url.startswith("https:") for url in urls) else None

    async def close(self) -> None:
        """Close the pool, unless the client is the caller's. Closing twice does nothing.

        In the child of a fork, its connections are left alone: they are those of the parent.

        Raises:
            SessionStateError: it was opened in another event loop.
        """
        if self._closed or self.client is None or not self._owner.is_current:
            self._closed = True
            return
        self.check_open()
        self._closed = True
        self.scheduler.close()
        for body in self._bodies:
            # aiohttp would close the connection, and leave its reader waiting.
            body.set_exception(aiohttp.ClientConnectionError("The session was closed"))
        if self._foreign_client is None:
            await self.client.close()

    def check_open(self) -> None:
        """Make sure that a request can be sent from here.

        Raises:
            SessionStateError: the pool is not open, or belongs to another event loop or process.
        """
        if self._closed or self.client is None:
            raise self._state_error()
        self._owner.check()
        if self.scheduler.loop is not asyncio.get_running_loop():
            raise self._state_error()

    def _state_error(self) -> SessionStateError:
        if self._closed:
            return SessionStateError("The session is closed: create another one.")
        if self.client is None:
            return SessionStateError(
                "The session is not open: use `async with AsyncSession() as session:`, or await its open()."
            )
        return SessionStateError("The session was opened in another event loop: open one in each loop.")

    def drop_idle(self, seconds: float) -> None:
        """Close the connections that have been idle for longer than that many seconds.

        The next requests then have fresh connections. Those of a caller's client stay open, and are not used again.
        """
        for connections in (self._pool, self._borrowed):
            if connections is not None:
                connections.drop_idle(seconds)

    def begin_stream(self) -> bool:
        """Take a connection for a stream, and return whether there was one. Half of them are left to others."""
        connector = None if self.client is None else self.client.connector
        limits = [] if connector is None else [limit for limit in (connector.limit, connector.limit_per_host) if limit]
        if limits and self._streams >= min(limits) // 2:
            return False
        self._streams += 1
        return True

    def end_stream(self) -> None:
        """Give back the connection of a stream."""
        self._streams -= 1

    def send(
        self, request: Request, attempt: Attempt | None = None, receiver: Receiver | None = None
    ) -> Coroutine[Any, Any, Answer]:
        """Send a request without a body. Await the result.

        Its URL is sent as it is. Header names are in lower case. A body over the limit is not read.

        Args:
            request: the request.
            attempt: the attempt that this exchange is a part of. It learns whether the connection was used before.
            receiver: takes the body piece by piece if it accepts the answer. The attempt, which it needs, may then take
                as long as it likes. If the receiver needs no more before the body ends, the connection is closed.

        Raises:
            APITimeoutError: no connection within `connect_timeout`.
            APIConnectionError: no usable answer.
            SessionStateError: the caller has closed the `aiohttp.ClientSession`.
        """
        client = self.client
        if client is None or client.closed:
            raise SessionStateError("The session, or the aiohttp.ClientSession that it was given, is closed.")
        exchange = self._exchange(client, request, attempt, receiver)
        return contain(exchange) if self._runs_foreign_code else exchange

    async def _exchange(
        self, client: aiohttp.ClientSession, request: Request, attempt: Attempt | None, receiver: Receiver | None
    ) -> Answer:
        headers, middlewares = self._adapt(client, request)
        response: aiohttp.ClientResponse | None = None
        chunks: list[bytes] = []
        pool, borrowed, task = self._pool, self._borrowed, None
        if pool and attempt:
            task = asyncio.current_task()
            pool.attempts[task] = attempt
        elif borrowed and attempt:
            borrowed.note_request(attempt)
        try:
            async with client.request(
                request.method,
                URL(request.url, encoded=True),
                skip_auto_headers=None if self._foreign_client is None else _UNWANTED,
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=True,
                timeout=self._timeout,
                proxy=self._proxy,
                headers=headers,
                middlewares=middlewares,
            ) as response:
                if attempt and (connections := pool or borrowed):
                    connections.note_answer(attempt)
                if (
                    receiver
                    and attempt
                    and receiver.accepts(Answer(response.status, response.headers, b"", complete=False))
                ):
                    complete = await self._feed(response.content, attempt, receiver)
                else:
                    complete = await self._read(response, chunks)
                if not complete:
                    chunks.clear()
                    response.close()  # the rest of the body may be on its way, so the connection is not used again
                return Answer(response.status, response.headers, b"".join(chunks), complete)
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            # The text of aiohttp's error may contain the URL or a part of the answer, and either may contain a secret.
            # The frames of any error hold the request.
            raise self._translate(error, request.url) from (detached(error) if isinstance(error, OSError) else None)
        finally:
            # The locals of a traceback would show a part of the answer.
            response = None
            chunks.clear()
            if pool and attempt:
                del pool.attempts[task]

    async def _read(self, response: aiohttp.ClientResponse, chunks: list[bytes]) -> bool:
        """Read the body, and return whether it is complete. An error keeps its status if its body cannot be read."""
        content, status = response.content, response.status
        limit = self._settings.max_body_bytes
        room = -1 if (response.content_length or 0) > limit else limit
        del response  # the locals of a traceback would show its headers
        try:
            while room >= 0 and not content.at_eof():
                chunks.append(await content.readany())
                room -= len(chunks[-1])
        except aiohttp.ClientPayloadError:
            if status < HTTPStatus.BAD_REQUEST:
                raise
            return False
        return room >= 0

    async def _feed(self, content: aiohttp.StreamReader, attempt: Attempt, receiver: Receiver) -> bool:
        """Give the body to a receiver until it needs no more. Return False: it has not been kept."""
        attempt.lift()
        self._bodies.add(content)
        try:
            while not content.at_eof():
                if receiver.feed(await content.readany()):
                    break
        finally:
            self._bodies.discard(content)
        return False

    def _adapt(
        self, client: aiohttp.ClientSession, request: Request
    ) -> tuple[Mapping[str, str] | None, Sequence[aiohttp.ClientMiddlewareType] | None]:
        """Return the headers and the middlewares that a client needs for a request."""
        headers = request.headers
        if self._borrowed is None:
            middlewares = (_SendOnce(),) if request.method == "GET" else None
            return None if headers is self._default_headers else headers, middlewares
        more = {name: value for name, value in headers.items() if name != "authorization"}
        # A client's own middlewares run after ours. They are named here, because these take their place.
        ours = (_Authorize(headers), _SendOnce(), _Freshen(self._borrowed.generation))
        return more, (*ours, *getattr(client, "_middlewares", ()))

    def _translate(self, error: Exception, url: str) -> OpenAICancelError:
        host = URL(url, encoded=True).host
        if isinstance(error, aiohttp.ServerTimeoutError):
            return APITimeoutError(f"No connection to {host} within {self._settings.connect_timeout:g} s.")
        if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
            proxy = "the proxy " if self._is_of_proxy(error) else ""
            # A positive number is the system's, whose message says more than asyncio's.
            number = error.os_error.errno or 0
            reason = os.strerror(number) if number > 0 else error.os_error.strerror
            # asyncio says nothing if the connection is closed during the handshake of TLS.
            reason = reason or str(error.os_error) or "The connection was closed before TLS was ready"
            return APIConnectionError(f"Cannot connect to {proxy}{error.host}:{error.port}: {reason}.")
        if isinstance(error, aiohttp.ClientHttpProxyError):
            failure = APIConnectionError(f"The proxy refused to connect to {host}: {error.status} {error.message}.")
            failure.permanent = error.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
            return failure
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch):
            of_proxy = self._is_of_proxy(error)
            owner = f"the proxy {error.host}" if of_proxy else host
            advice = advise(error, own_client=self._pool is not None, of_proxy=of_proxy)
            failure = APIConnectionError(f"The certificate of {owner} is not trusted: {error}. {advice}")
            failure.permanent = True
            return failure
        if isinstance(error, aiohttp.ClientConnectorSSLError):
            return APIConnectionError(self._describe_handshake(error))
        if isinstance(error, OSError):
            text = str(error)
        elif isinstance(error, aiohttp.ServerDisconnectedError):
            text = "Server disconnected"
        else:
            text = re.sub(r"^\d+, message:\s*", "", getattr(error, "message", "") or str(error))
            text = _QUOTATION.split(text, maxsplit=1)[0]
        return APIConnectionError(f"No usable answer from {host}: {' '.join(text.split()) or type(error).__name__}")

    def _describe_handshake(self, error: aiohttp.ClientConnectorError) -> str:
        of_proxy = self._is_of_proxy(error)
        failed = f"The TLS handshake with {'the proxy ' * of_proxy}{error.host}:{error.port} failed: {error.os_error}."
        if getattr(error.os_error, "reason", None) not in _NO_TLS:
            return failed
        return f"{failed} If this port has no TLS, use http:// in the {'URL of the proxy' if of_proxy else 'base URL'}."

    def _is_of_proxy(self, error: aiohttp.ClientConnectorError | aiohttp.ServerFingerprintMismatch) -> bool:
        """Return whether the error is about the connection to the proxy, and not about one through it."""
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            return True
        proxy = URL(self._proxy or "")
        return (proxy.raw_host, proxy.port) == (error.host, error.port)


class _Authorize:
    """A middleware that replaces the credentials of a caller's client with ours.

    These are its `auth`, its headers or, with `trust_env`, those of ~/.netrc. aiohttp refuses to combine them with an
    `Authorization` header.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._authorization = headers.get("authorization")

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        request.headers.popall("Authorization", None)
        if self._authorization is not None:
            request.headers["Authorization"] = self._authorization
        return await handler(request)


class _SendOnce:
    """A middleware that keeps aiohttp from sending a GET again after a disconnect, which would not count as an attempt.

    HTTP allows it: https://www.rfc-editor.org/rfc/rfc9112#section-9.3.1.
    """

    def __init__(self) -> None:
        self._failure: Exception | None = None

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self._failure is not None:
            raise self._failure
        try:
            return await handler(request)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            self._failure = error
            raise


class _Freshen:
    """A middleware that keeps a client from using a connection of an earlier generation.

    A client uses a connection again only for requests with the same headers for the proxy. Without a proxy these are
    not sent. See https://docs.aiohttp.org/en/stable/client_advanced.html#proxy-support.
    """

    def __init__(self, generation: int) -> None:
        self._generation = generation

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self._generation:
            request.proxy_headers = CIMultiDict({"Connection-Generation": str(self._generation)})
        return await handler(request)

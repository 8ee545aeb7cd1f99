"""One HTTP exchange over aiohttp: bytes in, bytes out, within limits; aiohttp's errors become ours."""

import asyncio
import math
import os
import re
from collections.abc import Mapping, Sequence

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.tracing import Trace
from yarl import URL  # aiohttp's own URL type

from openai_cancel.errors import APIConnectionError, APITimeoutError, OpenAICancelError, SessionStateError, detached
from openai_cancel.timeouts import Alarm

CLOSED = "The session, or the aiohttp.ClientSession that it was given, is closed."

_UNWANTED = ("Content-Type",)  # some servers refuse a body that is announced and not there

_PROXY_AUTHENTICATION_REQUIRED = 407

# Where aiohttp's words end and those of the server begin, which may hold anything: `Bad status line: b'…'`.
_QUOTATION = re.compile(r":|\s*<|\s+b?['\"]")


class _Connector(aiohttp.TCPConnector):
    """Does not use a connection again on which something came unasked: it would be taken for the next answer.

    A gateway may time a request out after it was answered, or be made to send one answer too many.
    """

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) and connection.protocol is not None:
            if not connection.protocol.should_close:
                break
            connection.close()
        return connection


class Transport:
    """A connection pool, bound to the event loop that runs when it is made."""

    def __init__(
        self,
        client: aiohttp.ClientSession | None = None,
        *,
        connect_timeout: float,
        max_body_bytes: int,
        proxy: str | None,
        headers: Mapping[str, str] | None = None,
        max_connections: int = 100,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        """Use the caller's `client`, which is never closed here, or make one.

        What most requests have in common, such as `headers`, costs less as a default of our own client. Every request
        is given them all the same.
        """
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.alarm: Alarm = Alarm()
        self._owned = client is None
        # aiohttp sends the defaults of a client to proxies, too, and the key with them.
        self._headers = headers if client is None and proxy is None else None
        self._client = client or aiohttp.ClientSession(
            connector=_Connector(limit=max_connections),
            trace_configs=list(trace_configs),
            headers=self._headers,
            skip_auto_headers=_UNWANTED,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._connect_timeout = connect_timeout
        # No total: the session bounds a whole attempt, of which the exchange is a part.
        self._timeout = aiohttp.ClientTimeout(sock_connect=None if math.isinf(connect_timeout) else connect_timeout)
        self._max_body_bytes = max_body_bytes
        self._proxy = proxy

    @property
    def closed(self) -> bool:
        """Whether the pool is closed, by whomever."""
        return self._client.closed

    async def close(self) -> None:
        """Close the pool, unless it is the caller's."""
        self.alarm.close()
        if self._owned:
            await self._client.close()

    async def send(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes, bool]:
        """Send a request without a body.

        Args:
            method: `GET`, `POST`, …
            url: sent as it is, without decoding or encoding anything in it.
            headers: names in lower case.

        Returns:
            Status, headers, body, and whether that is all of the body: one over the limit is not read.

        Raises:
            APITimeoutError: no connection within `connect_timeout`.
            APIConnectionError: no usable answer.
            SessionStateError: the caller has closed the `aiohttp.ClientSession`.
        """
        if self._client.closed:
            raise SessionStateError(CLOSED)
        more: Mapping[str, str] | None = None if headers is self._headers else headers
        middlewares = None
        if not self._owned:
            more, middlewares = self._over_other_credentials(headers)
        response: aiohttp.ClientResponse | None = None
        chunks: list[bytes] = []
        try:
            async with self._client.request(
                method,
                URL(url, encoded=True),
                skip_auto_headers=None if self._owned else _UNWANTED,
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=True,
                timeout=self._timeout,
                proxy=self._proxy,
                headers=more,
                middlewares=middlewares,
            ) as response:
                room = self._max_body_bytes
                complete = (response.content_length or 0) <= room
                content = response.content
                while complete and not content.at_eof():
                    chunks.append(await content.readany())
                    room -= len(chunks[-1])
                    complete = room >= 0
                if not complete:
                    chunks.clear()
                    response.close()  # more is on its way: the connection cannot be used again
                return response.status, response.headers, b"".join(chunks), complete
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            # aiohttp's text of an answer has the URL in it, or a part of the answer, and either may hold a secret.
            # The frames of any error hold the request as it was written.
            raise self._translate(error, url) from (detached(error) if isinstance(error, OSError) else None)
        finally:
            # A traceback with locals would show what had come of an answer before an error.
            response = None
            chunks.clear()

    def _over_other_credentials(
        self, headers: Mapping[str, str]
    ) -> tuple[Mapping[str, str], Sequence[aiohttp.ClientMiddlewareType]]:
        """A caller's client may have credentials of its own: its `auth`, its headers or, with `trust_env`, ~/.netrc.

        It refuses to combine them with ours, so ours are put in their place behind its back. What its own middlewares
        do comes after that; they must be named here, for these take their place.
        """
        authorization = headers.get("authorization")

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            request.headers.popall("Authorization", None)
            if authorization is not None:
                request.headers["Authorization"] = authorization
            return await handler(request)

        rest = {name: value for name, value in headers.items() if name != "authorization"}
        return rest, (authorize, *getattr(self._client, "_middlewares", ()))

    def _translate(self, error: Exception, url: str) -> OpenAICancelError:
        host = URL(url, encoded=True).host
        if isinstance(error, aiohttp.ServerTimeoutError):
            return APITimeoutError(f"No connection to {host} within {self._connect_timeout:g} s.")
        if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
            proxy = "the proxy " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
            # A positive number is the system's, whose own words for it say more than asyncio's.
            number = error.os_error.errno or 0
            reason = os.strerror(number) if number > 0 else error.os_error.strerror
            return APIConnectionError(f"Cannot connect to {proxy}{error.host}:{error.port}: {reason}.")
        if isinstance(error, aiohttp.ClientHttpProxyError):
            failure = APIConnectionError(f"The proxy refused to connect to {host}: {error.status} {error.message}.")
            failure.permanent = error.status == _PROXY_AUTHENTICATION_REQUIRED
            return failure
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch):
            failure = APIConnectionError(
                f"The certificate of {host} is not trusted: {error}. If a proxy or a private authority made it, "
                "name that authority's certificates in SSL_CERT_FILE."
            )
            failure.permanent = True
            return failure
        if isinstance(error, OSError):
            text = str(error)
        elif isinstance(error, aiohttp.ServerDisconnectedError):
            text = "Server disconnected"
        else:
            text = re.sub(r"^\d+, message:\s*", "", getattr(error, "message", "") or str(error))
            text = _QUOTATION.split(text, maxsplit=1)[0]
        return APIConnectionError(f"No usable answer from {host}: {' '.join(text.split()) or type(error).__name__}")

"""One HTTP exchange over aiohttp: bytes in, bytes out, within limits; aiohttp's errors become ours."""

import asyncio
import math
import os
from collections.abc import Mapping, Sequence

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL  # aiohttp's own URL type

from openai_cancel.errors import APIConnectionError, APITimeoutError, OpenAICancelError, SessionStateError
from openai_cancel.timeouts import Alarm

CLOSED = "The session, or the aiohttp.ClientSession that it was given, is closed."

_UNWANTED = ("Content-Type",)  # some servers refuse a body that is announced and not there

_PROXY_AUTHENTICATION_REQUIRED = 407


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
    ) -> None:
        """Use the caller's `client`, which is never closed here, or make one.

        What most requests have in common, such as `headers`, costs less as a default of our own client.
        """
        self.loop = asyncio.get_running_loop()
        self.alarm = Alarm()
        self._owned = client is None
        self._headers = headers if client is None else None
        self._client = client or aiohttp.ClientSession(
            headers=headers, skip_auto_headers=_UNWANTED, cookie_jar=aiohttp.DummyCookieJar()
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
                chunks: list[bytes] = []
                room = self._max_body_bytes
                complete = (response.content_length or 0) <= room
                content = response.content
                while complete and not content.at_eof():
                    chunk = await content.readany()
                    chunks.append(chunk)
                    room -= len(chunk)
                    complete = room >= 0
                if not complete:
                    chunks.clear()
                    response.close()  # more is on its way: the connection cannot be used again
                return response.status, response.headers, b"".join(chunks), complete
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            # aiohttp's text of an answer has the URL in it, and a query or a proxy's URL may hold a secret.
            cause = None if isinstance(error, aiohttp.ClientResponseError) else error
            raise self._translate(error, url) from cause

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
        text = error.message if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError) else str(error)
        return APIConnectionError(f"No usable answer from {host}: {' '.join(text.split()) or type(error).__name__}")

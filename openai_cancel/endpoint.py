"""`Endpoint`: the calls of the API as it documents them, each with its retries.

See https://platform.openai.com/docs/api-reference/responses.
"""

import asyncio
import logging
import random
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, NoReturn, Self, TypedDict, Unpack

import aiohttp

from openai_cancel.bulk import PACE
from openai_cancel.checks import check_count, check_seconds, hidden
from openai_cancel.errors import APITimeoutError, ConfigurationError, OpenAICancelError, SessionStateError
from openai_cancel.models import Response
from openai_cancel.models.response import TERMINAL
from openai_cancel.retry import RetryPolicy
from openai_cancel.settings import ApiKey, Options, Settings
from openai_cancel.timeouts import Timeout
from openai_cancel.transport import CLOSED, Transport
from openai_cancel.wire import Answer, ResponseId, Wire, decode

_log = logging.getLogger("openai_cancel")
_STATUSES = TERMINAL | {"queued", "in_progress", "cancelling"}  # anything else could be anything, and is not logged


class RequestOptions(TypedDict, total=False):
    """What every request takes, in place of the session's settings or beside them.

    Attributes:
        max_retries: how often a failed attempt is repeated.
        headers: extra request headers.
        query: extra query parameters.
    """

    max_retries: int | None
    headers: Mapping[str, str] | None
    query: Mapping[str, str] | None


class CallOptions(RequestOptions, total=False):
    """What a call takes: `RequestOptions`, and bounds. What is None or not given is as the session has it.

    Attributes:
        timeout: seconds that one attempt may take, from connect to the last byte of the body.
        deadline: seconds that all attempts may take together.
    """

    timeout: float | None
    deadline: float | None


class Endpoint:
    """What an `AsyncSession` is at its base: a server, and its calls `cancel` and `retrieve`. See there."""

    _settings: Settings
    _transport: Transport | None = None
    _closed = False

    # What tests put in place of the clock, of sleeping and of chance.
    _monotonic: Callable[[], float] = staticmethod(time.monotonic)
    _sleep: Callable[[float], Awaitable[None]] = staticmethod(asyncio.sleep)
    _random: Callable[[], float] = staticmethod(random.random)

    def __init__(
        self,
        *,
        api_key: ApiKey | None = None,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        client_session: aiohttp.ClientSession | None = None,
        **options: Unpack[Options],
    ) -> None:
        api_key = hidden(api_key)
        settings = Settings.openai(
            api_key=api_key, base_url=base_url, organization=organization, project=project, **options
        )
        self._configure(settings, client_session)

    @classmethod
    def azure(
        cls,
        endpoint: str | None = None,
        *,
        api_key: ApiKey | None = None,
        token_provider: Callable[[], str | Awaitable[str]] | None = None,
        api_version: str | None = None,
        client_session: aiohttp.ClientSession | None = None,
        **options: Unpack[Options],
    ) -> Self:
        """A session for Azure OpenAI.

        Args:
            endpoint: such as `https://NAME.openai.azure.com`. Default: `AZURE_OPENAI_ENDPOINT`.
            api_key: sent as `api-key`. Default: `AZURE_OPENAI_API_KEY`.
            token_provider: in place of a key, a function that gives an Entra ID token; it is asked before each attempt.
            api_version: a date for the API of that date; without one, the v1 API. Default: `OPENAI_API_VERSION`.
            client_session: as for `AsyncSession`.
            options: see `Options`.

        Raises:
            ConfigurationError: a setting is missing or cannot work.

        See https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle.
        """
        api_key = hidden(api_key)
        settings = Settings.azure(
            endpoint, api_key=api_key, token_provider=token_provider, api_version=api_version, **options
        )
        return cls._from_settings(settings, client_session)

    @classmethod
    def from_openai(
        cls, client: Any, *, client_session: aiohttp.ClientSession | None = None, **options: Unpack[Options]
    ) -> Self:
        """A session for the server that a client of the `openai` package talks to.

        Args:
            client: an `OpenAI`, `AsyncOpenAI`, `AzureOpenAI` or `AsyncAzureOpenAI`. Its key, base URL, organization,
                project, headers and query are taken as they are now.
            client_session: as for `AsyncSession`.
            options: see `Options`.

        Raises:
            ConfigurationError: it is no such client, or it authenticates in a way that cannot be taken over.
        """
        return cls._from_settings(Settings.from_openai(client, **options), client_session)

    @classmethod
    def _from_settings(cls, settings: Settings, client_session: aiohttp.ClientSession | None = None) -> Self:
        session = cls.__new__(cls)
        session._configure(settings, client_session)
        return session

    def _configure(self, settings: Settings, client_session: aiohttp.ClientSession | None) -> None:
        if not isinstance(client_session, aiohttp.ClientSession | None):
            raise ConfigurationError(
                f"client_session must be an aiohttp.ClientSession, not {type(client_session).__name__}."
            )
        if client_session is not None and settings.trace_configs:
            raise ConfigurationError("trace_configs are for a client_session of the session's own: give them to yours.")
        self._settings = settings
        self._client_session = client_session
        self._wire = Wire.from_settings(settings)
        self._policy = RetryPolicy(settings.max_retries, settings.deadline)

    def __repr__(self) -> str:
        """Where the session points, and its state."""
        state = "closed" if self._closed else "open" if self._transport else "not open"
        settings = getattr(self, "_settings", None)  # none where the constructor has failed
        return f"<{type(self).__name__} {settings.base_url if settings else '?'} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A session cannot be pickled or copied: it holds a key and connections. Make another one.")

    @property
    def base_url(self) -> str:
        """Where the API is, without a query."""
        return self._settings.base_url

    @cached_property
    def account(self) -> str:
        """What a ledger calls the account: the name that the session was given, or a fingerprint."""
        return self._settings.fingerprint()

    def identify(self, response_id: ResponseId) -> str:
        """The id as a string.

        Raises:
            InvalidResponseIdError: it cannot be sent.
        """
        self._wire.request("GET", response_id)
        return str(getattr(response_id, "id", response_id))

    async def open(self) -> Self:
        """Bind the session to the running event loop. `async with` does this and closes it again.

        Raises:
            SessionStateError: it is open, or was closed.
        """
        if self._closed or self._transport:
            raise SessionStateError("A session can be opened once: make another one.")
        proxy = self._settings.proxy
        if proxy is None and self._client_session is None:
            proxy = self._settings.environment_proxy()
        self._transport = Transport(
            self._client_session,
            connect_timeout=self._settings.connect_timeout,
            max_body_bytes=self._settings.max_body_bytes,
            proxy=proxy,
            headers=self._wire.headers,
            max_connections=self._settings.max_connections,
            trace_configs=self._settings.trace_configs,
        )
        return self

    async def close(self) -> None:
        """Close the connections. What is under way fails, at the latest before its next attempt.

        Closing twice does nothing.

        Raises:
            SessionStateError: the session belongs to another event loop.
        """
        if self._closed or self._transport is None:
            self._closed = True
            return
        if self._transport.loop is not asyncio.get_running_loop():
            raise self._misused()
        self._closed = True
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if self._transport is not None and not self._closed:
            warnings.warn(
                f"unclosed {self!r}: leave its `async with`, or await its close()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    async def cancel(self, response_id: ResponseId, **options: Unpack[CallOptions]) -> Response:
        """Cancel a background response: `POST /responses/{response_id}/cancel`.

        A response that comes back is the server's word, which need not be `cancelled`: look at its `status`.

        Args:
            response_id: the id, or an object that has it as `.id`.
            options: see `CallOptions`.

        Returns:
            The response as the server describes it after the cancel.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
            SessionStateError: the session is not open, or belongs to another event loop.
            APIStatusError: the server refuses; `BadRequestError` and `ConflictError` often mean that it is over.
            APIConnectionError: no answer, `APITimeoutError` for want of time. The cancel may have arrived all the same.
            ResponseDecodeError: the server accepted, and its answer is no response.

        See https://platform.openai.com/docs/api-reference/responses/cancel.
        """
        try:
            return await self._call("POST", response_id, "/cancel", **options)
        finally:
            del options  # a traceback with locals would show what headers hold

    async def retrieve(self, response_id: ResponseId, **options: Unpack[CallOptions]) -> Response:
        """Ask how a response is: `GET /responses/{response_id}`.

        Args:
            response_id: the id, or an object that has it as `.id`.
            options: see `CallOptions`.

        Returns:
            The response as it is now.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
            SessionStateError: the session is not open, or belongs to another event loop.
            APIStatusError: the server refuses; `NotFoundError` if it does not know the id.
            APIConnectionError: no answer, `APITimeoutError` for want of time.
            ResponseDecodeError: the answer is no response.

        See https://platform.openai.com/docs/api-reference/responses/get.
        """
        try:
            return await self._call("GET", response_id, "", **options)
        finally:
            del options

    async def _call(  # noqa: C901, PLR0912, PLR0915 - one loop, best read in one piece
        self,
        method: str,
        response_id: ResponseId,
        action: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a number of seconds for each attempt, not for the call
        deadline: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Response:
        transport = self._transport
        if self._closed or transport is None or transport.loop is not asyncio.get_running_loop():
            raise self._misused()
        settings = self._settings
        request = self._wire.request(method, response_id, action, headers=headers, query=query)
        headers = None
        limit = settings.timeout if timeout is None else check_seconds("timeout", timeout)
        policy = self._policy
        if max_retries is not None or deadline is not None:
            policy = RetryPolicy(
                policy.max_retries if max_retries is None else check_count("max_retries", max_retries),
                policy.deadline if deadline is None else check_seconds("deadline", deadline),
            )
        pace = PACE.get()
        began = self._monotonic()
        attempts = 0
        while True:
            try:
                sent = await pace.turn(began + policy.deadline) if pace else 0.0
            except APITimeoutError as error:
                error.attempts = attempts
                raise
            bound = min(limit, policy.deadline - (self._monotonic() - began))
            bounded = Timeout(transport.alarm, bound)
            attempts += 1
            try:
                with bounded:
                    signed = request
                    if callable(settings.api_key):
                        signed = self._wire.sign(request, await settings.ask_for_key())
                    response = decode(Answer(*await transport.send(*signed)), signed)
            except OpenAICancelError as error:
                failure = error
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if transport.closed and task and not task.cancelling():
                    # Nobody cancelled this task: closing the pool cancels the look-up of a name that it waits for.
                    raise SessionStateError(CLOSED) from None
                raise
            except TimeoutError as error:
                if not bounded.expired:  # the key function's own
                    raise
                within = f"{limit:g} s" if bound == limit else f"the deadline of {round(policy.deadline, 3):g} s"
                failure = APITimeoutError(f"No complete answer within {within}.")
                failure.__cause__ = error
            else:
                if pace:
                    pace.note(sent, None)
                response.__dict__["attempts"] = attempts  # it is frozen for its users, who do not have it yet
                if _log.isEnabledFor(logging.DEBUG):
                    _log_attempt(method, response_id, response)
                return response
            try:
                failure.attempts = attempts
                if pace:
                    pace.note(sent, failure)
                if _log.isEnabledFor(logging.DEBUG):
                    _log_attempt(method, response_id, failure)
                elapsed = self._monotonic() - began
                delay = policy.delay(failure, attempts=attempts, elapsed=elapsed, random=self._random())
                if delay is None:
                    raise failure
            finally:
                # The failure's traceback holds this frame: together they would wait for the garbage collector.
                del failure
            await self._sleep(delay)
            if self._closed:
                raise self._misused()

    def _misused(self) -> SessionStateError:
        if self._closed:
            return SessionStateError("The session is closed: make another one.")
        if self._transport is None:
            return SessionStateError(
                "The session is not open: use `async with AsyncSession() as session:`, or await its open()."
            )
        return SessionStateError("The session was opened in another event loop: open one in each loop.")


def _log_attempt(method: str, response_id: ResponseId, result: Response | OpenAICancelError) -> None:
    """Note an attempt; of a failure its kind and its status, for its words are a part of the body."""
    status = getattr(result, "status", None)
    if isinstance(result, Response):
        said = str(status) if status in _STATUSES else "another status"
    else:
        said = f"{type(result).__name__} {status}" if status else type(result).__name__
    call, name = "cancel" if method == "POST" else "retrieve", getattr(response_id, "id", response_id)
    request_id: str | None = getattr(result, "request_id", None)
    _log.debug("%s %s: attempt %d: %s (request id: %s)", call, name, result.attempts, said, request_id)

"""`AsyncSession`: every call of this package, for asyncio."""

import asyncio
import math
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import aiohttp

from openai_cancel import bulk
from openai_cancel.abandonment import Abandoned, AbandonmentMonitor
from openai_cancel.caller import Caller
from openai_cancel.checks import check_count, check_seconds
from openai_cancel.clients import Client
from openai_cancel.clock import SYSTEM_CLOCK, Clock
from openai_cancel.errors import ConfigurationError
from openai_cancel.guard import Guard, OnExit, OpenGuards
from openai_cancel.ledger_protocols import SessionLedger, Tracker
from openai_cancel.models import Response
from openai_cancel.outcome import OnOutcome, Outcome
from openai_cancel.secret_values import hidden, hide_options
from openai_cancel.session_loop import CoroutineFunction, SessionLoop
from openai_cancel.settings import ApiKey, Settings
from openai_cancel.stop import stop
from openai_cancel.threads import run_in_thread
from openai_cancel.transport import Transport
from openai_cancel.update_hook import OnUpdate, check_on_update
from openai_cancel.wait import WaitLimits, check_poll, wait
from openai_cancel.wait_many import WaitResult, wait_many
from openai_cancel.watch import Watch
from openai_cancel.wire import ResponseId, Wire


class AsyncSession:
    """A client for one server of the Responses API, for use in one event loop.

    ```python
    async with AsyncSession() as session:
        response = await session.cancel("resp_123")
    ```

    Args:
        api_key: the key, or a function, sync or async, that returns one and is called before each attempt. A sync
            function runs in the event loop and should not block. Defaults to the OPENAI_API_KEY variable.
        base_url: the address of the API, such as `http://localhost:8000/v1`. Defaults to the OPENAI_BASE_URL variable,
            or to OpenAI's.
        organization: the organization. Defaults to the OPENAI_ORG_ID variable.
        project: the project. Defaults to the OPENAI_PROJECT_ID variable.
        headers: extra request headers. They take precedence over those that the session sets. The lines of the
            OPENAI_CUSTOM_HEADERS variable, `Name: value`, are added.
        query: extra query parameters.
        timeout: seconds that one attempt may take, from connect to the last byte of the body. `math.inf`, here and
            below, means no limit.
        connect_timeout: seconds that a new connection may take, including TLS.
        deadline: seconds that all attempts of a `cancel` or `retrieve` may take together. `stop` has its own.
        max_retries: the number of attempts after the first one.
        max_body_bytes: the size of the largest body that is read, in bytes. A larger one is an error.
        max_connections: the maximum number of connections. Further calls wait for one within their `timeout`.
        proxy: the URL of an HTTP proxy. Defaults to the HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY variables.
        trace_configs: callbacks for requests and connections, see
            https://docs.aiohttp.org/en/stable/tracing_reference.html.
        ledger: the `openai_cancel.ledger.Ledger` in which `guard` and `wait` record responses. If it is not open, the
            session opens it, and the last session that uses it closes it.
        ledger_required: whether `guard` and `wait` raise a `LedgerError` if they cannot record a response. Otherwise
            the failure is logged, and they continue.
        account: the name of the account in the ledger; a sweep stops only responses of its own account. Defaults to a
            fingerprint of the key, the organization and the project. Set it if the key changes.
        on_outcome: a function, sync or async, that is called once with each `Outcome`, for example to count them: those
            of `stop`, `stop_many`, `guard`, `wait`, `wait_many`, `watch`, and the sweeps and stops of a ledger. It is
            not called for dry runs, nor for responses that another process has stopped. A sync function runs in the
            event loop and should not block. A stop waits up to a second for an async function, in addition to its
            deadline or `grace`. Then the function continues in the background. It is cancelled after 10 seconds, or
            a second after the session starts to close. Exceptions of the function are logged, and change nothing else.
        client_session: an `aiohttp.ClientSession` for the requests, for example with your own proxies, certificates or
            middlewares. It is never closed here.
        clock: the clock and the source of randomness, for tests.

    Raises:
        ConfigurationError: a setting is missing or cannot work. Nothing was sent.

    A library that builds on a session should hold one, and not subclass it. These arguments change or observe the
    requests of all calls, including `guard` and `stop_many`:

    - `client_session`: an `aiohttp.ClientSession` with your own middlewares, connector, proxies or TLS. A middleware
      sees each attempt: https://docs.aiohttp.org/en/stable/client_middleware_cookbook.html.
    - `trace_configs`: aiohttp's callbacks, to measure requests and connections.
    - `api_key`: a function, for keys that rotate. `headers` and `query`, for each request.
    - `clock`: the clock and the source of randomness.
    - `on_outcome`, to learn of each outcome; `on_update` and `abandoned` of single calls, to see each state, and to end
      a block.

    Methods call each other through `caller`, and never through the session: overriding `cancel` in a subclass changes
    only calls of that `cancel`. Code that makes single calls with retries can use the attribute `caller`. For tests,
    see `openai_cancel.testing` and `openai_cancel.emulator`.
    """

    _caller: Caller
    _open_guards: OpenGuards
    _watches: list[Watch]
    _attached_ledger: SessionLedger | None = None
    _run: Callable[[CoroutineFunction], object] | None = None  # runs it in the session's loop, for threads

    def __init__(
        self,
        *,
        api_key: ApiKey | None = None,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        deadline: float = 60.0,
        max_retries: int = 4,
        max_body_bytes: int = 64 * 2**20,
        max_connections: int = 100,
        proxy: str | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
        ledger: SessionLedger | None = None,
        ledger_required: bool = False,
        account: str | None = None,
        on_outcome: OnOutcome | None = None,
        client_session: aiohttp.ClientSession | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        api_key, base_url, proxy = hidden(api_key), hidden(base_url), hidden(proxy)
        headers, query = hidden(headers), hidden(query)
        settings = Settings.openai(
            api_key=api_key,
            base_url=base_url,
            organization=organization,
            project=project,
            headers=headers,
            query=query,
            timeout=timeout,
            connect_timeout=connect_timeout,
            deadline=deadline,
            max_retries=max_retries,
            max_body_bytes=max_body_bytes,
            max_connections=max_connections,
            proxy=proxy,
            trace_configs=trace_configs,
            ledger=ledger,
            ledger_required=ledger_required,
            account=account,
            on_outcome=on_outcome,
        )
        self._configure(settings, client_session, clock)

    @classmethod
    def azure(
        cls,
        endpoint: str | None = None,
        *,
        api_key: ApiKey | None = None,
        token_provider: Callable[[], str | Awaitable[str]] | None = None,
        api_version: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        deadline: float = 60.0,
        max_retries: int = 4,
        max_body_bytes: int = 64 * 2**20,
        max_connections: int = 100,
        proxy: str | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
        ledger: SessionLedger | None = None,
        ledger_required: bool = False,
        account: str | None = None,
        on_outcome: OnOutcome | None = None,
        client_session: aiohttp.ClientSession | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Self:
        """Create a session for Azure OpenAI. The other arguments are those of `AsyncSession`.

        Args:
            endpoint: such as `https://NAME.openai.azure.com`. Defaults to the AZURE_OPENAI_ENDPOINT variable.
            api_key: sent as `api-key`. Defaults to the AZURE_OPENAI_API_KEY variable.
            token_provider: a function that returns an Entra ID token, instead of a key. It is called before each
                attempt.
            api_version: a date for the API of that date; without one, the v1 API. Defaults to the OPENAI_API_VERSION
                variable.

        Raises:
            ConfigurationError: a setting is missing or cannot work.

        See https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle.
        """
        api_key, token_provider = hidden(api_key), hidden(token_provider)
        endpoint, proxy, headers, query = hidden(endpoint), hidden(proxy), hidden(headers), hidden(query)
        settings = Settings.azure(
            endpoint,
            api_key=api_key,
            token_provider=token_provider,
            api_version=api_version,
            headers=headers,
            query=query,
            timeout=timeout,
            connect_timeout=connect_timeout,
            deadline=deadline,
            max_retries=max_retries,
            max_body_bytes=max_body_bytes,
            max_connections=max_connections,
            proxy=proxy,
            trace_configs=trace_configs,
            ledger=ledger,
            ledger_required=ledger_required,
            account=account,
            on_outcome=on_outcome,
        )
        return cls.__new__(cls)._configure(settings, client_session, clock)

    @classmethod
    def from_openai(
        cls,
        client: Any,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        deadline: float = 60.0,
        max_retries: int = 4,
        max_body_bytes: int = 64 * 2**20,
        max_connections: int = 100,
        proxy: str | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
        ledger: SessionLedger | None = None,
        ledger_required: bool = False,
        account: str | None = None,
        on_outcome: OnOutcome | None = None,
        client_session: aiohttp.ClientSession | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Self:
        """Create a session for the server of an `openai` client. The other arguments are those of `AsyncSession`.

        Args:
            client: an `OpenAI`, `AsyncOpenAI`, `AzureOpenAI` or `AsyncAzureOpenAI`. Its key, base URL, organization,
                project, headers and query are copied as they are now.

        Raises:
            ConfigurationError: it is not such a client, or it authenticates in a way that cannot be copied.
        """
        proxy, headers, query = hidden(proxy), hidden(headers), hidden(query)
        settings = Settings.from_openai(
            client,
            headers=headers,
            query=query,
            timeout=timeout,
            connect_timeout=connect_timeout,
            deadline=deadline,
            max_retries=max_retries,
            max_body_bytes=max_body_bytes,
            max_connections=max_connections,
            proxy=proxy,
            trace_configs=trace_configs,
            ledger=ledger,
            ledger_required=ledger_required,
            account=account,
            on_outcome=on_outcome,
        )
        return cls.__new__(cls)._configure(settings, client_session, clock)

    def _configure(self, settings: Settings, client_session: aiohttp.ClientSession | None, clock: Clock) -> Self:
        if not isinstance(client_session, aiohttp.ClientSession | None):
            raise ConfigurationError(
                f"client_session must be an aiohttp.ClientSession, not {type(client_session).__name__}."
            )
        if client_session is not None and settings.trace_configs:
            raise ConfigurationError("trace_configs cannot be combined with client_session: pass them to that client.")
        wire = Wire.from_settings(settings)
        transport = Transport(settings, wire.headers, client_session)
        self._caller = Caller.from_settings(settings, transport, wire, clock)
        self._open_guards = OpenGuards(settings.base_url)
        self._watches = []
        return self

    def __repr__(self) -> str:
        """Return the base URL and the state."""
        caller = getattr(self, "_caller", None)  # there is none if the constructor has failed
        where = f"{caller.settings.base_url} {caller.transport.state}" if caller else "? not open"
        return f"<{type(self).__name__} {where}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A session cannot be pickled or copied: it holds a key and connections. Create another one.")

    @property
    def base_url(self) -> str:
        """The address of the API, without a query."""
        return self._caller.settings.base_url

    @cached_property
    def account(self) -> str:
        """The name of the account in a ledger: the one that was passed in, or a fingerprint."""
        return self._caller.settings.fingerprint()

    async def load_account(self) -> str:
        """Return `account`. A fingerprint is computed in a thread, because that takes some 40 ms."""
        if "account" not in self.__dict__:  # where a cached property keeps its value
            await run_in_thread(getattr, self, "account", name="openai-cancel-account")
        return self.account

    @property
    def caller(self) -> Caller:
        """The object that makes single calls, for code that is built on top of sessions."""
        return self._caller

    def identify(self, response_id: ResponseId) -> str:
        """Return the id as a string.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
        """
        return self._caller.identify(response_id)

    async def open(self) -> Self:
        """Open the session in the running event loop. `async with` does this, and closes it at the end.

        Raises:
            SessionStateError: the session is open, or was closed; its ledger belongs to another event loop; or no event
                loop of asyncio is running.
            LedgerError: the session opens the ledger, which is required and fails.
            ConfigurationError: the environment names a proxy that cannot be used.
        """
        self._caller.transport.open()
        ledger = self._caller.settings.ledger
        if ledger is not None:
            try:
                await self.load_account()
                await ledger.attach(required=self._caller.settings.ledger_required)
                self._attached_ledger = ledger
            except BaseException:
                await self.close()
                raise
        return self

    async def close(self) -> None:
        """Close the connections. Closing twice does nothing.

        A ledger that a session has opened is closed by the last session that uses it.

        If blocks of guards still run, their responses are stopped first, each within the `grace` of its guard, and
        stops that are under way are finished. Responses that could not be stopped are logged as warnings. Then the
        watches end. A cancellation of the task takes effect after that.

        Other calls that are under way fail before their next attempt at the latest.

        In the child of a fork this leaves everything alone, since it belongs to the parent.

        Raises:
            SessionStateError: the session belongs to another event loop.
        """
        transport = self._caller.transport
        if transport.state == "open in another process":
            await transport.close()
            return
        cancellation = None
        if transport.state == "open":
            transport.check_open()
            cancellation = await self._open_guards.close()
            for watch in [*self._watches]:
                try:
                    await watch.close()
                except asyncio.CancelledError as error:
                    cancellation = error
            if self._caller.hook is not None:
                cancellation = await self._caller.hook.close() or cancellation
        try:
            await transport.close()
        finally:
            if self._attached_ledger is not None:
                ledger, self._attached_ledger = self._attached_ledger, None
                await ledger.detach()
        if cancellation is not None:
            raise cancellation

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        caller = getattr(self, "_caller", None)
        if caller is not None and caller.transport.state == "open":
            warnings.warn(
                f"unclosed {self!r}: use `async with`, or await its close()", ResourceWarning, stacklevel=2, source=self
            )

    @hide_options
    async def cancel(
        self,
        response_id: ResponseId,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Response:
        """Cancel a background response: `POST /responses/{response_id}/cancel`.

        The returned response is the server's answer, and its `status` need not be `cancelled`.

        Args:
            response_id: the id, or an object that has it as `.id`.
            timeout: seconds that one attempt may take, from connect to the last byte of the body. None, here and
                below, means the setting of the session.
            deadline: seconds that all attempts may take together.
            max_retries: the number of attempts after the first one.
            headers: extra request headers.
            query: extra query parameters.

        Returns:
            The response as the server reports it after the cancel.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: an option cannot work.
            SessionStateError: the session is not open, or belongs to another event loop.
            APIStatusError: the server refuses. `BadRequestError` and `ConflictError` often mean that it is over.
            APIConnectionError: no answer; `APITimeoutError` if time ran out. The cancel may have reached the server.
            ResponseDecodeError: the server accepted, but its answer is not a response.

        See https://platform.openai.com/docs/api-reference/responses/cancel.
        """
        caller = self._caller.with_options(
            timeout=timeout, deadline=deadline, max_retries=max_retries, headers=headers, query=query
        )
        return await caller.cancel(response_id)

    @hide_options
    async def retrieve(
        self,
        response_id: ResponseId,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Response:
        """Retrieve a response: `GET /responses/{response_id}`.

        Args:
            response_id: the id, or an object that has it as `.id`.
            timeout: as for `cancel`.
            deadline: as for `cancel`.
            max_retries: as for `cancel`.
            headers: as for `cancel`.
            query: as for `cancel`.

        Returns:
            The response as it is now.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: an option cannot work.
            SessionStateError: the session is not open, or belongs to another event loop.
            APIStatusError: the server refuses; `NotFoundError` if it does not know the id.
            APIConnectionError: no answer; `APITimeoutError` if time ran out.
            ResponseDecodeError: the answer is not a response.

        See https://platform.openai.com/docs/api-reference/responses/get.
        """
        caller = self._caller.with_options(
            timeout=timeout, deadline=deadline, max_retries=max_retries, headers=headers, query=query
        )
        return await caller.retrieve(response_id)

    @hide_options
    async def stop(
        self,
        response_id: ResponseId,
        *,
        deadline: float = 60.0,
        confirm: float | None = None,
        dry_run: bool = False,
        poll: float = 60.0,
        on_update: OnUpdate | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Make sure that a response no longer runs, and return what happened.

        It cancels and polls until the server reports that the work is over, and cancels again where that helps. It
        never raises for the answer of a server; the verdict describes it.

        Args:
            response_id: the id, or an object that has it as `.id`.
            deadline: seconds that everything may take together.
            confirm: seconds after which a cancelled response is checked again, or fewer if the deadline is near. If it
                runs again, it is cancelled once more. Azure, LiteLLM and ogx have been seen to continue.
            dry_run: only look, and cancel nothing. A response that would be cancelled is `still_running`.
            poll: the maximum time between two polls, in seconds, at least 0.25.
            on_update: a function, sync or async, that is called with each `Response` that was received. Its exceptions
                are logged and do not end the stop. The time that it takes counts towards the deadline, after which an
                async function is cancelled.
            timeout: as for `cancel`.
            max_retries: how many failed requests in a row are followed by another one; None for as many as the
                deadline allows.
            headers: as for `cancel`.
            query: as for `cancel`.

        Returns:
            The outcome. Its `verdict` says what happened to the response, and `stopped` whether the work is over.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: an option cannot work.
            SessionStateError: the session is not open, or belongs to another event loop.

        See https://platform.openai.com/docs/guides/background.
        """
        check_seconds("deadline", deadline)
        if confirm is not None:
            check_seconds("confirm", confirm)
        if max_retries is not None:
            check_count("max_retries", max_retries)
        check_on_update(on_update)
        caller = self._caller.with_options(timeout=timeout, headers=headers, query=query)
        return await stop(
            caller,
            caller.identify(response_id),
            deadline=deadline,
            confirm=confirm,
            dry_run=dry_run,
            poll=check_poll(poll),
            max_retries=max_retries,
            on_update=on_update,
        )

    def guard(
        self,
        *guarded: ResponseId | Client,
        grace: float = 10.0,
        poll: float = 60.0,
        on_exit: OnExit = "leave",
        max_age: float | None = None,
        abandoned: Abandoned | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Guard:
        """Stop responses if a block is left by an exception: an error, a timeout, a cancelled task, Ctrl-C.

        ```python
        async with session.guard(client):
            await agent.run("...")
        ```

        The responses are stopped first, then the exception is raised. A block that ends normally leaves them alone.
        If the session is closed while the block runs, they are stopped then.

        A client adds each response that it creates in the background inside of the block, whatever framework calls it,
        and however: with `stream=True`, too, or through a copy by `with_options`. When the client sees a response
        end, the guard drops it. Only what the block does counts, in its own task and in tasks and threads that inherit
        its context (https://docs.python.org/3/library/contextvars.html), as those of `asyncio.create_task` and
        `asyncio.to_thread`. Others may use the same client, each with a guard of its own or without one.

        If the block is left while a request that creates a response is under way, its answer is waited for, within the
        `grace`, and the response is stopped. If the answer never comes, the id is unknown, and the response runs on.
        Where the server lists its responses, `running` finds it, and with a ledger `Ledger.reconcile`.

        Args:
            guarded: the ids, or objects that have them as `.id`; and clients: of the openai package, for the server and
                the account of the session, or the httpx clients that they were given as `http_client`. `Guard.add` adds
                more inside the block.
            grace: seconds that stopping them may take. More than 20 are stopped at a rate of requests that adapts to
                the server, so that many need more time if it allows few requests.
            poll: as for `stop`.
            on_exit: `stop` stops the responses also if the block ends normally, for example because the code stops to
                read a stream, or a framework returns an error instead of raising it. A response that was not stopped
                is then only logged; `Guard.outcomes` has the details.
            max_age: seconds since a response was first recorded in the session's ledger after which a sweep stops it,
                although its process lives. It survives restarts of the process, and the earliest limit of several
                guards counts. The `outcome` of the guard then says so, and its block goes on. None for the `max_age`
                of the ledger, if it has one.
            abandoned: a function, sync or async, that returns whether nobody waits for the block any more. It is called
                about once a second. Once it returns true, the block is cancelled, and raises an `AbandonedError` after
                its responses were stopped. Pass the `request.is_disconnected` of FastAPI and Starlette, the
                `request.receive` of Litestar, or `lambda: request.transport is None` with aiohttp.web: they do not
                cancel a handler whose client has disconnected. Read the body of the request before the block, because
                the function consumes its messages. Quart
                and the async views of Django are cancelled, and need no function. Sync views notice nothing.
            max_retries: as for `stop`.
            headers: as for `cancel`.
            query: as for `cancel`.

        Raises:
            InvalidResponseIdError: an id cannot be sent.
            ConfigurationError: an option cannot work, such as `max_age` without a ledger; or an argument is not a
                supported client, or belongs to another server or account.
            SessionStateError: the session's ledger is not open. The block raises it if the session is not open.
            LedgerError: the block raises it if the ledger is required and fails.
            AbandonedError: the block raises it if `abandoned` has returned true.
        """
        headers, query = hidden(headers), hidden(query)
        _check_choice("on_exit", on_exit, "leave", "stop")
        if max_retries is not None:
            check_count("max_retries", max_retries)
        guard = Guard(
            self._caller.with_options(headers=headers, query=query),
            grace=check_seconds("grace", grace),
            poll=check_poll(poll),
            on_exit=on_exit,
            max_retries=max_retries,
            tracker=self._tracker(max_age),
            monitor=None if abandoned is None else AbandonmentMonitor(abandoned),
            open_guards=self._open_guards,
            run=self._run,
        )
        for one in guarded:
            guard.add(one)
        return guard

    def watch(
        self,
        *clients: Client,
        grace: float = 10.0,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Watch:
        """Record every background response that clients create, in any task, in the ledger of the session.

        ```python
        async with AsyncSession(ledger=Ledger("sqlite:///ledger.db")) as session:
            session.watch(client)
            ...
        ```

        A response is recorded before the code that creates it has its id, and is taken out when a client, or this
        session, sees it end. If this process dies, a sweep stops what still runs. The watch begins at once, and ends
        with the session, with `Watch.close`, or with an `async with` block.

        If the task that creates a response is cancelled before it has the id, or the answer is cut off after the id,
        the response is stopped at once. If no answer comes, the id is unknown, and the response runs on until
        `Ledger.reconcile` finds it, where the server lists its responses.

        Args:
            clients: of the openai package, for the server and the account of the session, or the httpx clients that
                they were given as `http_client`. `Watch.add` adds more.
            grace: seconds that stopping such a response may take, and that `Watch.close` waits for creations.
            max_retries: as for `stop`.
            headers: as for `cancel`.
            query: as for `cancel`.

        Raises:
            ConfigurationError: the session has no ledger, an option cannot work, or an argument is not a supported
                client, or belongs to another server or account.
            SessionStateError: the session is not open, or belongs to another event loop.

        If the ledger is required and fails, the client's call raises a `LedgerError`, and the response is stopped.
        """
        headers, query = hidden(headers), hidden(query)
        if max_retries is not None:
            check_count("max_retries", max_retries)
        check_seconds("grace", grace)
        tracker = self._tracker()
        if tracker is None:
            raise ConfigurationError(
                "watch needs a ledger in which it records the responses: create the session with "
                'ledger=openai_cancel.ledger.Ledger("sqlite:///ledger.db").'
            )
        self._caller.transport.check_open()
        return Watch(
            self._caller.with_options(headers=headers, query=query),
            clients,
            grace=grace,
            max_retries=max_retries,
            tracker=tracker,
            session_loop=SessionLoop(asyncio.get_running_loop(), self._run),
            watches=self._watches,
        )

    def _tracker(self, max_age: float | None = None) -> Tracker | None:
        settings = self._caller.settings
        if settings.ledger is not None:
            return settings.ledger.tracker(
                account=self.account,
                base_url=settings.base_url,
                required=settings.ledger_required,
                max_age=None if max_age is None else check_seconds("max_age", max_age),
            )
        if max_age is not None:
            raise ConfigurationError(
                "max_age needs a ledger, whose sweeps stop the response: pass ledger= to the session. To end a block "
                "or a wait of this process, use asyncio.timeout or the timeout of wait."
            )
        return None

    @hide_options
    async def wait(
        self,
        response_id: ResponseId,
        *,
        timeout: float | None = None,
        queued_timeout: float | None = None,
        stalled_timeout: float | None = None,
        poll: float = 60.0,
        stream: bool = False,
        on_update: OnUpdate | None = None,
        on_abandon: Literal["stop", "leave"] = "stop",
        grace: float = 10.0,
        max_age: float | None = None,
        abandoned: Abandoned | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Response:
        """Wait until a response ends.

        Transient errors do not end the wait. If it ends before the response does, because of a timeout, a
        cancellation of the task, or a server that refuses three times in a row, the response is stopped. If the
        response is not found, the wait goes on for at least 10 seconds, or a minute if it was seen before: a store may
        not show a new response yet, and replicas may not share one.

        It polls often at first, then about every 8 seconds, and after some minutes at intervals of 2 % of the time that
        has passed. With `stream=True` it follows the events of the response instead of polling.

        Args:
            response_id: the id, or an object that has it as `.id`.
            timeout: seconds to wait; None to wait as long as the response takes.
            queued_timeout: seconds before the wait times out if the response is still `queued`; None for no such
                limit. A response with a completion window may rightly be queued for hours. With a
                ledger, the time counts from the first record of the response, also after a restart of the process.
            stalled_timeout: seconds without a change of its status, its output or its update times before the wait
                times out; None for no such limit. With a ledger, the time before a restart of the process counts, too,
                by the clock of the database.
            poll: the maximum time between two polls, in seconds, at least 0.25. A server may ask for a shorter or a
                longer one, up to this.
            stream: whether to follow the server-sent events of the response (`GET …?stream=true`) instead of polling,
                to notice its end at once, usually with two requests. A stream that breaks is resumed. One more request
                confirms the end. While no events arrive, the response is polled, at intervals of 8 seconds or more,
                because a connection can die without a sign; and while they arrive, at intervals of a minute or more,
                because some gateways send events also after the end. If the server does not stream the response, it is
                polled; OpenAI and Azure stream only those created with `stream=True`. At most half of the connections
                are used for streams; further waits poll. New events of the response count as progress for
                `stalled_timeout`.
            on_update: a function, sync or async, that is called with each `Response` that was retrieved, also the last
                one, and with those that events carry, of which it may miss all but the last. Its exceptions are logged
                and do not end the wait. An async function that is still running when a limit is reached is cancelled;
                one that is not async must not block, because it holds up everything in the event loop.
            on_abandon: `leave` lets the response run on if the wait ends before it.
            grace: seconds that stopping the response may take, after the timeout.
            max_age: as for `guard`. The wait returns the response when a sweep has stopped it.
            abandoned: as for `guard`. It ends the wait.
            max_retries: as for `cancel`.
            headers: as for `cancel`.
            query: as for `cancel`.

        Returns:
            The response at its end: completed, failed, incomplete or cancelled.

        Raises:
            WaitTimeoutError: the response did not end in time. Its `outcome` says whether it was stopped.
            AbandonedError: `abandoned` has returned true. Its `outcome` says whether the response was stopped.
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: an option cannot work.
            SessionStateError: the session is not open, or belongs to another event loop.
            APIStatusError: the server refuses; `NotFoundError` if it does not know the id. Its `outcome` says whether
                the response was stopped.
            APIConnectionError: no connection is possible, for example because the certificate is not trusted.
            LedgerError: the session's ledger is required and fails.

        See https://platform.openai.com/docs/guides/background.
        """
        limits = WaitLimits.checked(
            timeout=timeout, queued_timeout=queued_timeout, stalled_timeout=stalled_timeout, poll=poll
        )
        _check_wait(on_update, on_abandon)
        if on_abandon == "leave" and max_age is not None:
            raise ConfigurationError("max_age cannot be combined with on_abandon='leave', which records nothing.")
        guard = self.guard(
            response_id,
            grace=grace,
            poll=poll,
            max_age=max_age,
            abandoned=abandoned,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )
        if on_abandon == "leave":
            guard.disarm()
        caller = self._caller.with_options(max_retries=max_retries, headers=headers, query=query)
        return await wait(
            caller, guard, caller.identify(response_id), limits=limits, stream=stream, on_update=on_update
        )

    def wait_many(
        self,
        response_ids: Iterable[ResponseId] | AsyncIterable[ResponseId],
        *,
        concurrency: int = 1000,
        max_rate: float = math.inf,
        timeout: float | None = None,
        queued_timeout: float | None = None,
        stalled_timeout: float | None = None,
        poll: float = 60.0,
        on_update: OnUpdate | None = None,
        on_abandon: Literal["stop", "leave"] = "stop",
        grace: float = 10.0,
        abandoned: Abandoned | None = None,
        give_up_after: float = math.inf,
        first_answer_timeout: float = math.inf,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[WaitResult, None]:
        """Wait for any number of responses, and yield how each wait has ended, in the order in which they end.

        ```python
        async for result in session.wait_many(ids):
            print(result.response_id, result.response and result.response.status, result.error)
        ```

        The ids are read as they are needed, and memory does not grow with their number. All waits and stops share one
        rate of requests, which grows until the server reports too many (429, 503), and is kept below that. An id that
        is already waited for is not asked for twice. To leave the loop early, use `contextlib.aclosing`: the responses
        that are being waited for are then stopped, unless `on_abandon` is `leave`. If Ctrl-C in a `Session` or a
        cancellation of the task interrupts the loop, notes of the exception say what became of each response.

        Args:
            response_ids: an iterable or an async iterable of ids, or of objects that have them as `.id`.
            concurrency: the maximum number of responses that are waited for at once.
            max_rate: the maximum number of requests a second.
            timeout: as for `wait`, for each response, from the time at which it is first asked for.
            queued_timeout: as for `wait`.
            stalled_timeout: as for `wait`.
            poll: as for `wait`. With many responses, the rate of requests may allow only longer intervals.
            on_update: as for `wait`.
            on_abandon: as for `wait`.
            grace: as for `wait`, for each response. Many stops take turns, at the rate of requests that all share, and
                the grace of each begins with its turn.
            abandoned: as for `guard`. It ends each wait, also those that begin later, with an `AbandonedError` as the
                error of its result.
            give_up_after: as for `stop_many`.
            first_answer_timeout: as `give_up_after`, until the server answers for the first time. If it passes, only
                responses that a ledger records are stopped. A server that has answered may be away for longer, for
                example while it is restarted.
            max_retries: as for `cancel`.
            headers: as for `cancel`.
            query: as for `cancel`.

        Raises:
            ConfigurationError: an option cannot work.
            SessionStateError: the iteration raises it if the session is not open, or belongs to another event loop.
            APIConnectionError: the iteration raises it if the server does not answer for `give_up_after` seconds, or at
                first for `first_answer_timeout` seconds.

        An exception of the iterable is raised after the results of the ids before it.
        """
        headers, query = hidden(headers), hidden(query)
        _check_ids("wait_many", response_ids)
        limits = WaitLimits.checked(
            timeout=timeout, queued_timeout=queued_timeout, stalled_timeout=stalled_timeout, poll=poll
        )
        _check_wait(on_update, on_abandon)
        check_seconds("grace", grace)
        if abandoned is not None:
            AbandonmentMonitor(abandoned)  # refuses what is not a function
        if max_retries is not None:
            check_count("max_retries", max_retries)

        def guard(response_id: str) -> Guard:
            guard = self.guard(
                response_id,
                grace=grace,
                poll=poll,
                abandoned=abandoned,
                max_retries=max_retries,
                headers=headers,
                query=query,
            )
            if on_abandon == "leave":
                guard.disarm()
            return guard

        return wait_many(
            self._caller.with_options(max_retries=max_retries, headers=headers, query=query),
            response_ids,
            concurrency=check_count("concurrency", concurrency, minimum=1),
            max_rate=check_seconds("max_rate", max_rate),
            limits=limits,
            guard=guard,
            on_update=on_update,
            give_up_after=check_seconds("give_up_after", give_up_after),
            first_answer_timeout=check_seconds("first_answer_timeout", first_answer_timeout),
        )

    def stop_many(
        self,
        response_ids: Iterable[ResponseId] | AsyncIterable[ResponseId],
        *,
        concurrency: int = 64,
        deadline: float = 60.0,
        confirm: float | None = None,
        dry_run: bool = False,
        poll: float = 60.0,
        on_update: OnUpdate | None = None,
        give_up_after: float = math.inf,
        timeout: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Stop any number of responses, and yield their outcomes as they come, in no particular order.

        ```python
        async for outcome in session.stop_many(ids):
            print(outcome.response_id, outcome.verdict)
        ```

        The ids are read as they are needed, and memory does not grow with their number. If the server reports too many
        requests (429, 503), all requests pause together, and continue at the rate that got through. An id that is
        already under way is not sent twice. An id that cannot be sent is `unknown`, with the reason in `error`. To
        leave the loop early, use `contextlib.aclosing`, which ends the requests that are under way.

        Args:
            response_ids: an iterable or an async iterable of ids, or of objects that have them as `.id`.
            concurrency: the maximum number of responses that are worked on at once. Those above the session's
                `max_connections` wait for a connection.
            deadline: seconds that each response may take.
            confirm: as for `stop`.
            dry_run: as for `stop`.
            poll: as for `stop`.
            on_update: as for `stop`.
            give_up_after: seconds without any answer of the server after which the iteration ends with the error of the
                last request. Responses that are under way then have no outcome.
            timeout: as for `cancel`.
            max_retries: as for `stop`.
            headers: as for `cancel`.
            query: as for `cancel`.

        Raises:
            ConfigurationError: an option cannot work.
            SessionStateError: the iteration raises it if the session is not open, or belongs to another event loop.
            APIConnectionError: the iteration raises it if the server cannot be reached for `give_up_after` seconds.

        An exception of the iterable is raised after the outcomes of the ids before it.
        """
        headers, query = hidden(headers), hidden(query)
        _check_ids("stop_many", response_ids)
        if confirm is not None:
            check_seconds("confirm", confirm)
        if max_retries is not None:
            check_count("max_retries", max_retries)
        check_on_update(on_update)
        return bulk.stop_many(
            self._caller.with_options(timeout=timeout, headers=headers, query=query),
            response_ids,
            concurrency=check_count("concurrency", concurrency, minimum=1),
            deadline=check_seconds("deadline", deadline),
            confirm=confirm,
            dry_run=dry_run,
            poll=check_poll(poll),
            max_retries=max_retries,
            on_update=on_update,
            give_up_after=check_seconds("give_up_after", give_up_after),
        )

    def running(
        self,
        *,
        statuses: Collection[str] = ("queued", "in_progress"),
        older_than: float | None = None,
        newer_than: float | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Response, None]:
        """Yield the responses that run on the server, without knowing their ids: `GET /responses`.

        ```python
        async for response in session.running(older_than=3600):
            print(response.id, response.age, response.metadata)
        ```

        Not every server has such a list: ogx, Microsoft Foundry and Fireworks do, OpenAI does not. The newest responses
        come first, and at last those that were created during the iteration. Each comes once. Memory does not grow with
        the length of the list. Conditions that the server does not know are applied here.

        `session.stop_many(session.running(...))` stops them, whoever created them. To leave the loop early, use
        `contextlib.aclosing`.

        Args:
            statuses: only responses with one of these statuses.
            older_than: only responses that were created more than so many seconds ago.
            newer_than: only responses that were created less than so many seconds ago. The list is read only so far.
            model: only responses of this model.
            metadata: only responses whose metadata has these values, and perhaps others.
            limit: the maximum number of responses.
            timeout: as for `cancel`, for each page.
            deadline: as for `cancel`, for each page.
            max_retries: as for `cancel`, for each page.
            headers: as for `cancel`.
            query: as for `cancel`; parameters of the list, such as Foundry's `agent_name`.

        Raises:
            ConfigurationError: an option cannot work.
            UnsupportedError: the iteration raises it if the server has no list.
            ListingError: the iteration raises it if the list cannot be read to its end.
            SessionStateError: the iteration raises it if the session is not open, or belongs to another event loop.
            APIError: the iteration raises it if a page cannot be read, as for `retrieve`.

        See https://learn.microsoft.com/azure/foundry/reference/rest/list-responses.
        """
        headers, query = hidden(headers), hidden(query)
        from openai_cancel.listing import Filters, running  # keeps the import of the package fast

        filters = Filters.checked(
            statuses=statuses, older_than=older_than, newer_than=newer_than, model=model, metadata=metadata
        )
        caller = self._caller.with_options(
            timeout=timeout, deadline=deadline, max_retries=max_retries, headers=headers, query=query
        )
        return running(caller, filters, None if limit is None else check_count("limit", limit, minimum=1))


def _check_ids(call: str, response_ids: object) -> None:
    if isinstance(response_ids, str | bytes) or not isinstance(response_ids, Iterable | AsyncIterable):
        raise ConfigurationError(f"{call} takes an iterable of ids, such as a list, not {type(response_ids).__name__}.")


def _check_wait(on_update: object, on_abandon: object) -> None:
    _check_choice("on_abandon", on_abandon, "stop", "leave")
    check_on_update(on_update)


def _check_choice(name: str, value: object, one: str, other: str) -> None:
    if value not in (one, other):  # no set, which would need a hash
        raise ConfigurationError(f"{name} must be {one!r} or {other!r}, not {value!r}.")

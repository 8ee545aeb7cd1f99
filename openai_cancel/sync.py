"""`Session`: the calls of `AsyncSession`, blocking, for scripts, threads and notebooks."""

import math
import warnings
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import aiohttp

from openai_cancel.checks import check_count
from openai_cancel.clients import Client
from openai_cancel.clock import SYSTEM_CLOCK, Clock
from openai_cancel.errors import ConfigurationError, SessionStateError, detached
from openai_cancel.guard import Guard, OnExit
from openai_cancel.iteration import BlockingIteration, Feed
from openai_cancel.ledger_protocols import SessionLedger
from openai_cancel.loop_thread import LoopThread
from openai_cancel.models import Response
from openai_cancel.outcome import OnOutcome, Outcome
from openai_cancel.secret_values import hidden
from openai_cancel.session import AsyncSession
from openai_cancel.session_loop import CoroutineFunction
from openai_cancel.settings import ApiKey, Settings
from openai_cancel.threads import HelperThread
from openai_cancel.update_hook import OnUpdate
from openai_cancel.wait_many import WaitResult
from openai_cancel.watch import Watch
from openai_cancel.wire import ResponseId

if TYPE_CHECKING:
    from openai_cancel.ledger import BlockingLedger


class Session:
    """A client for one server of the Responses API, for scripts, threads and notebooks.

    ```python
    with Session() as session:
        response = session.cancel("resp_123")
    ```

    Calls from several threads share one connection pool and run concurrently. They run in an event loop of their own,
    in a thread of its own, so that a session also works where an event loop is running, as in a notebook; a call
    blocks that loop. A session does not survive a `fork`: open one in the child process.

    The arguments are those of `AsyncSession`, without `client_session`, which would belong to another event loop. A
    sync `api_key` function runs in a thread of its own, without an event loop, one call at a time. A sync `on_outcome`
    does so in another thread, and may block. A stop waits for its turn while the calls before it make progress, and
    then up to a second for its own call.

    Raises:
        ConfigurationError: a setting is missing or cannot work. Nothing was sent.
    """

    _session: "_ThreadSession"
    _loop_thread: LoopThread

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
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        api_key, base_url, proxy = hidden(api_key), hidden(base_url), hidden(proxy)
        headers, query = hidden(headers), hidden(query)
        self._wrap(
            _ThreadSession(
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
                clock=clock,
            )
        )

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
        clock: Clock = SYSTEM_CLOCK,
    ) -> Self:
        """Create a session for Azure OpenAI. See `AsyncSession.azure`."""
        api_key, token_provider = hidden(api_key), hidden(token_provider)
        endpoint, proxy, headers, query = hidden(endpoint), hidden(proxy), hidden(headers), hidden(query)
        return cls.__new__(cls)._wrap(
            _ThreadSession.azure(
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
                clock=clock,
            )
        )

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
        clock: Clock = SYSTEM_CLOCK,
    ) -> Self:
        """Create a session for the server of an `openai` client. See `AsyncSession.from_openai`."""
        proxy, headers, query = hidden(proxy), hidden(headers), hidden(query)
        return cls.__new__(cls)._wrap(
            _ThreadSession.from_openai(
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
                clock=clock,
            )
        )

    def _wrap(self, session: "_ThreadSession") -> Self:
        self._session = session
        self._loop_thread = LoopThread(session, session.helpers)
        session.serve_threads(self._loop_thread.run)
        return self

    @property
    def ledger(self) -> "BlockingLedger":
        """The ledger that was passed in, for code that blocks: `session.ledger.track("resp_123", ttl=900)`.

        Raises:
            ConfigurationError: the session has no `openai_cancel.ledger.Ledger`.
        """
        ledger = self._session.caller.settings.ledger
        if ledger is not None:
            from openai_cancel.ledger import BlockingLedger, Ledger  # SQLAlchemy takes long to import, and is an extra

            if isinstance(ledger, Ledger):
                return BlockingLedger(ledger, self._session, self._loop_thread, self)
        raise ConfigurationError('The session has no ledger: create it with `ledger=Ledger("sqlite:///ledger.db")`.')

    def __repr__(self) -> str:
        """Return the base URL and the state."""
        return repr(getattr(self, "_session", None)).replace(_ThreadSession.__name__, type(self).__name__, 1)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A session cannot be pickled or copied: it holds a key and connections. Create another one.")

    def open(self) -> Self:
        """Start the session's thread. `with` does this, and ends it again.

        Raises:
            SessionStateError: the session is open, or was closed.
            ConfigurationError: the environment names a proxy that cannot be used.
        """
        self._loop_thread.start()
        return self

    def close(self) -> None:
        """Cancel the calls that are under way, close the connections, and end the thread. Can be called twice.

        A guard whose block still runs has its responses stopped first, within its `grace`.
        """
        self._loop_thread.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        loop_thread = getattr(self, "_loop_thread", None)  # there is none if the constructor has failed
        if loop_thread is not None and loop_thread.is_running:
            message = f"unclosed {self!r}: use `with`, or call its close()"
            loop_thread.request_stop()
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def cancel(
        self,
        response_id: ResponseId,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Response:
        """Cancel a background response: `POST /responses/{response_id}/cancel`. See `AsyncSession.cancel`."""
        headers, query = hidden(headers), hidden(query)
        return self._loop_thread.run(
            self._session.cancel,
            response_id,
            timeout=timeout,
            deadline=deadline,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )

    def retrieve(
        self,
        response_id: ResponseId,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Response:
        """Retrieve a response: `GET /responses/{response_id}`. See `AsyncSession.retrieve`."""
        headers, query = hidden(headers), hidden(query)
        return self._loop_thread.run(
            self._session.retrieve,
            response_id,
            timeout=timeout,
            deadline=deadline,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )

    def stop(
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
        """Make sure that a response no longer runs, and report its fate. See `AsyncSession.stop`.

        `on_update` is called in the session's thread.
        """
        headers, query = hidden(headers), hidden(query)
        return self._loop_thread.run(
            self._session.stop,
            response_id,
            deadline=deadline,
            confirm=confirm,
            dry_run=dry_run,
            poll=poll,
            on_update=on_update,
            timeout=timeout,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )

    def guard(
        self,
        *guarded: ResponseId | Client,
        grace: float = 10.0,
        poll: float = 60.0,
        on_exit: OnExit = "leave",
        max_age: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> "BlockingGuard":
        """Stop responses if a block is left by an exception: an error, Ctrl-C, `sys.exit`. See `AsyncSession.guard`.

        ```python
        with session.guard(client):
            ...
        ```

        A client adds the responses that the block's own thread creates, and those of threads that run in its context:
        of `asyncio.to_thread` and of functions that `contextvars.copy_context().run` calls. If the main thread is in
        the block, threads that are started meanwhile belong to it, too, also those of a `ThreadPoolExecutor`. What
        other threads create, such as those that were there before, is not seen.

        If Ctrl-C ends a request that creates a response before its answer has come, the id is unknown. Where the server
        lists its responses, `running` finds it, and with a ledger `BlockingLedger.reconcile`.
        """
        headers, query = hidden(headers), hidden(query)
        guard = self._session.guard(
            *tuple(guarded),  # Jedi shows nothing for a plain `*guarded`
            grace=grace,
            poll=poll,
            on_exit=on_exit,
            max_age=max_age,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )
        return BlockingGuard(guard, self._loop_thread, self)

    def watch(
        self,
        *clients: Client,
        grace: float = 10.0,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> "BlockingWatch":
        """Record every background response that clients create, in any thread, in the ledger of the session.

        ```python
        with Session(ledger=Ledger("sqlite:///ledger.db")) as session:
            session.watch(client)
            ...
        ```

        See `AsyncSession.watch`.
        """
        headers, query = hidden(headers), hidden(query)
        watch = self._loop_thread.run(
            self._session.begin_watch,
            *tuple(clients),  # as for `guard`
            grace=grace,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )
        return BlockingWatch(watch, self._loop_thread, self)

    def wait(
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
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Response:
        """Wait until a response ends. See `AsyncSession.wait`. Ctrl-C stops the response, like a timeout.

        `on_update` is called in the session's thread.
        """
        headers, query = hidden(headers), hidden(query)
        return self._loop_thread.run(
            self._session.wait,
            response_id,
            timeout=timeout,
            queued_timeout=queued_timeout,
            stalled_timeout=stalled_timeout,
            poll=poll,
            stream=stream,
            on_update=on_update,
            on_abandon=on_abandon,
            grace=grace,
            max_age=max_age,
            max_retries=max_retries,
            headers=headers,
            query=query,
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
        give_up_after: float = math.inf,
        first_answer_timeout: float = math.inf,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Generator[WaitResult, None, None]:
        """Wait for any number of responses, and yield how each wait has ended. See `AsyncSession.wait_many`.

        An iterable is read as by `stop_many`, and `on_update` is called as by `wait`. Leaving the loop early stops the
        responses that are being waited for, unless `on_abandon` is `leave`.
        """
        headers, query = hidden(headers), hidden(query)
        feed = _feed(response_ids, concurrency)
        results = self._session.wait_many(
            response_ids if feed is None else feed,
            concurrency=concurrency,
            max_rate=max_rate,
            timeout=timeout,
            queued_timeout=queued_timeout,
            stalled_timeout=stalled_timeout,
            poll=poll,
            on_update=on_update,
            on_abandon=on_abandon,
            grace=grace,
            give_up_after=give_up_after,
            first_answer_timeout=first_answer_timeout,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )
        return BlockingIteration(results, feed, self._loop_thread).run()

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
    ) -> Generator[Outcome, None, None]:
        """Stop any number of responses, and yield their outcomes as they come. See `AsyncSession.stop_many`.

        ```python
        for outcome in session.stop_many(ids):
            print(outcome.response_id, outcome.verdict)
        ```

        An iterable is read in the thread that iterates over the outcomes, as its ids are needed; an async iterable is
        read in the session's thread. Leaving the loop early ends the requests that are under way.
        """
        headers, query = hidden(headers), hidden(query)
        feed = _feed(response_ids, concurrency)
        outcomes = self._session.stop_many(
            response_ids if feed is None else feed,
            concurrency=concurrency,
            deadline=deadline,
            confirm=confirm,
            dry_run=dry_run,
            poll=poll,
            on_update=on_update,
            give_up_after=give_up_after,
            timeout=timeout,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )
        return BlockingIteration(outcomes, feed, self._loop_thread).run()

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
    ) -> Generator[Response, None, None]:
        """Yield the responses that run on the server, without knowing their ids. See `AsyncSession.running`.

        ```python
        for response in session.running(older_than=3600):
            print(response.id, response.age, response.metadata)
        ```
        """
        headers, query = hidden(headers), hidden(query)
        responses = self._session.running(
            statuses=statuses,
            older_than=older_than,
            newer_than=newer_than,
            model=model,
            metadata=metadata,
            limit=limit,
            timeout=timeout,
            deadline=deadline,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )
        return BlockingIteration(responses, None, self._loop_thread).run()


def _feed(response_ids: Iterable[ResponseId] | AsyncIterable[ResponseId], concurrency: int) -> Feed[ResponseId] | None:
    """Return the feed of an iterable, which is read in the caller's thread; None for an async iterable."""
    if isinstance(response_ids, str | bytes | AsyncIterable) or not isinstance(response_ids, Iterable):
        return None
    return Feed(response_ids, ahead=check_count("concurrency", concurrency, minimum=1))


class _ThreadSession(AsyncSession):
    """The session in the thread's event loop. Its sync functions are called in other threads, without a loop.

    Django's ORM, for example, refuses a thread in which an event loop runs, and a key function may take its time.
    """

    helpers: tuple[HelperThread, HelperThread]

    def _configure(self, settings: Settings, client_session: aiohttp.ClientSession | None, clock: Clock) -> Self:
        # A hook that hangs must not hold up the requests.
        keys, outcomes = self.helpers = HelperThread("openai-cancel-key"), HelperThread("openai-cancel-outcomes")
        settings = settings.calling_keys_in(keys).telling_outcomes_in(outcomes)
        return super()._configure(settings, client_session, clock)

    async def begin_watch(
        self,
        *clients: Client,
        grace: float,
        max_retries: int | None,
        headers: Mapping[str, str] | None,
        query: Mapping[str, str] | None,
    ) -> Watch:
        """Call `watch` in the event loop."""
        return self.watch(*clients, grace=grace, max_retries=max_retries, headers=headers, query=query)

    def serve_threads(self, run: Callable[[CoroutineFunction], object]) -> None:
        """Set how other threads run work in the event loop."""
        self._run = run


class BlockingGuard:
    """The block of `Session.guard`. The responses are stopped in the session's thread."""

    def __init__(self, guard: Guard, loop_thread: LoopThread, session: Session) -> None:
        self._guard = guard
        self._loop_thread = loop_thread
        self._session = session  # a session that is garbage-collected is closed, and stops the responses

    def __enter__(self) -> Guard:
        self._loop_thread.run(self._guard.__aenter__)
        self._scope = self._guard.scope
        self._scope.enter_thread()
        return self._guard

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scope.check_context()
        if error is not None:
            self._scope.fail()
        try:
            self._leave(kind, error, traceback)
        finally:
            self._scope.close()

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._guard.end_at_once(error):
            return
        responses = self._guard.responses
        try:
            self._loop_thread.run(self._guard.__aexit__, kind, error, traceback)
        except SessionStateError as failure:
            self._loop_thread.join_closed()
            if responses.closed and error is not None:
                responses.give_up(detached(failure))
                responses.report(error)
            if responses.closed:
                return
            if error is None:
                raise
            with suppress(Exception):  # some exceptions cannot take a note
                error.add_note(f"openai-cancel: {self._guard!r} could not stop its responses: {failure}")


class BlockingWatch:
    """The watch of `Session.watch`. See `Watch`."""

    def __init__(self, watch: Watch, loop_thread: LoopThread, session: Session) -> None:
        self._watch = watch
        self._loop_thread = loop_thread
        self._session = session  # a session that is garbage-collected is closed, and ends the watch

    def __repr__(self) -> str:
        """Return the number of responses."""
        return repr(self._watch)

    @property
    def response_ids(self) -> tuple[str, ...]:
        """The ids of the responses that are in the ledger and were not seen to end."""
        return self._watch.response_ids

    def add(self, client: Client) -> None:
        """Watch another client. See `Watch.add`."""
        self._watch.add(client)

    def release(self, response_id: ResponseId) -> None:
        """Let a response run on without a lease. See `Watch.release`."""
        self._watch.release(response_id)

    def close(self) -> None:
        """End the watch, and leave the responses that run to the next sweep. Closing twice does nothing."""
        with suppress(SessionStateError):  # the session was closed, and has ended it
            self._loop_thread.run(self._watch.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

"""`Session`: the calls of `AsyncSession`, blocking, on an event loop of its own in a thread of its own."""

import os
import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Generator, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from threading import RLock, current_thread
from types import TracebackType
from typing import Any, Literal, NoReturn, ParamSpec, Self, TypeVar, Unpack

from openai_cancel.checks import hidden
from openai_cancel.endpoint import CallOptions, RequestOptions
from openai_cancel.errors import SessionStateError
from openai_cancel.guard import Guard
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome
from openai_cancel.session import AsyncSession
from openai_cancel.settings import ApiKey, Options
from openai_cancel.wire import ResponseId
from openai_cancel.worker import Call, Worker

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Session:
    """A client for one server of the Responses API, for scripts, threads and notebooks.

    ```python
    with Session() as session:
        response = session.cancel("resp_123")
    ```

    Calls from several threads share one connection pool and run concurrently. It works where an event loop runs
    already, as in a notebook, and blocks it meanwhile. It does not cross a `fork`: open one in the child.

    Args:
        api_key: a key, or a function, plain or async, that is asked for one before each attempt. A plain one runs in
            the session's event loop, where it delays the other calls: it should return at once.
            Default: `OPENAI_API_KEY`.
        base_url: where the API is, such as `http://localhost:8000/v1`. Default: `OPENAI_BASE_URL`, or OpenAI's.
        organization: default `OPENAI_ORG_ID`.
        project: default `OPENAI_PROJECT_ID`.
        options: see `Options`.

    Raises:
        ConfigurationError: a setting is missing or cannot work; nothing has been sent.
    """

    _worker: Worker | None = None
    _closed = False

    def __init__(
        self,
        *,
        api_key: ApiKey | None = None,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        api_key = hidden(api_key)
        self._wrap(
            AsyncSession(api_key=api_key, base_url=base_url, organization=organization, project=project, **options)
        )

    @classmethod
    def azure(
        cls,
        endpoint: str | None = None,
        *,
        api_key: ApiKey | None = None,
        token_provider: Callable[[], str | Awaitable[str]] | None = None,
        api_version: str | None = None,
        **options: Unpack[Options],
    ) -> Self:
        """A session for Azure OpenAI.

        Args:
            endpoint: such as `https://NAME.openai.azure.com`. Default: `AZURE_OPENAI_ENDPOINT`.
            api_key: sent as `api-key`. Default: `AZURE_OPENAI_API_KEY`.
            token_provider: in place of a key, a function that gives an Entra ID token; it is asked before each attempt.
            api_version: a date for the API of that date; without one, the v1 API. Default: `OPENAI_API_VERSION`.
            options: see `Options`.

        Raises:
            ConfigurationError: a setting is missing or cannot work.

        See https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle.
        """
        api_key = hidden(api_key)
        return cls.__new__(cls)._wrap(
            AsyncSession.azure(
                endpoint, api_key=api_key, token_provider=token_provider, api_version=api_version, **options
            )
        )

    @classmethod
    def from_openai(cls, client: Any, **options: Unpack[Options]) -> Self:
        """A session for the server that a client of the `openai` package talks to.

        Args:
            client: an `OpenAI`, `AsyncOpenAI`, `AzureOpenAI` or `AsyncAzureOpenAI`.
            options: see `Options`.

        Raises:
            ConfigurationError: it is no such client, or it authenticates in a way that cannot be taken over.
        """
        return cls.__new__(cls)._wrap(AsyncSession.from_openai(client, **options))

    def _wrap(self, session: AsyncSession) -> Self:
        self._session = session
        # A handler of a signal may close the session in a thread that holds the lock.
        self._lock = RLock()
        return self

    def __repr__(self) -> str:
        """Where the session points, and its state."""
        return repr(getattr(self, "_session", None)).replace("AsyncSession", type(self).__name__, 1)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A session cannot be pickled or copied: it holds a key and connections. Make another one.")

    def open(self) -> Self:
        """Start the thread. `with` does this and ends it again.

        Raises:
            SessionStateError: it is open, or was closed.
            ConfigurationError: the environment names a proxy that cannot be used.
        """
        with self._lock:
            if self._closed or self._worker:
                raise SessionStateError("A session can be opened once: make another one.")
            self._worker = worker = Worker.of(self._session)
        try:
            worker.thread.start()
            worker.loop.result()
        except BaseException:  # of which Ctrl-C is one
            self.close()
            raise
        return self

    def close(self) -> None:
        """Cancel what is under way, close the connections and end the thread. Closing twice does nothing."""
        worker = self._worker
        if worker is None or worker.pid != os.getpid():  # in the child of a fork there is no thread to end
            self._closed = True
            return
        with self._lock:
            self._closed = True
            worker.end()
        if worker.thread.ident is not None and worker.thread is not current_thread() and not sys.is_finalizing():
            worker.thread.join()  # which at the interpreter's end is frozen

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        worker = self._worker
        if worker is None or self._closed or worker.pid != os.getpid():
            return
        message = f"unclosed {self!r}: leave its `with`, or call its close()"
        worker.end()
        warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def cancel(self, response_id: ResponseId, **options: Unpack[CallOptions]) -> Response:
        """Cancel a background response: `POST /responses/{response_id}/cancel`.

        Args:
            response_id: the id, or an object that has it as `.id`.
            options: see `CallOptions`.

        Returns:
            The response as the server describes it after the cancel; it need not be `cancelled`.

        Raises:
            InvalidResponseIdError, SessionStateError, APIStatusError, APIConnectionError, ResponseDecodeError: as
                `AsyncSession.cancel`.

        See https://platform.openai.com/docs/api-reference/responses/cancel.
        """
        return self._run(self._session.cancel, response_id, **options)

    def retrieve(self, response_id: ResponseId, **options: Unpack[CallOptions]) -> Response:
        """Ask how a response is: `GET /responses/{response_id}`.

        Args:
            response_id: the id, or an object that has it as `.id`.
            options: see `CallOptions`.

        Returns:
            The response as it is now.

        Raises:
            InvalidResponseIdError, SessionStateError, APIStatusError, APIConnectionError, ResponseDecodeError: as
                `AsyncSession.retrieve`.

        See https://platform.openai.com/docs/api-reference/responses/get.
        """
        return self._run(self._session.retrieve, response_id, **options)

    def stop(
        self,
        response_id: ResponseId,
        *,
        deadline: float = 60.0,
        confirm: float | None = None,
        dry_run: bool = False,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Outcome:
        """Make sure that a response no longer runs, and find out what became of it.

        Args:
            response_id: the id, or an object that has it as `.id`.
            deadline: seconds that all of it may take.
            confirm: look at a cancelled response again after so many seconds, or sooner if the deadline is near, and
                cancel it once more if it went back.
            dry_run: only look, and cancel nothing: what would be cancelled is `still_running`.
            timeout: seconds that one attempt may take.
            options: for each request, see `RequestOptions`.

        Returns:
            The outcome. Its `verdict` says what became of the response, `stopped` whether the work is over.

        Raises:
            InvalidResponseIdError, ConfigurationError, SessionStateError: as `AsyncSession.stop`.

        See https://platform.openai.com/docs/guides/background.
        """
        return self._run(
            self._session.stop,
            response_id,
            deadline=deadline,
            confirm=confirm,
            dry_run=dry_run,
            timeout=timeout,
            **options,
        )

    def guard(self, *response_ids: ResponseId, grace: float = 10.0, **options: Unpack[RequestOptions]) -> "_Guarding":
        """Stop responses if a block is left by an exception: an error, Ctrl-C, `sys.exit`.

        ```python
        with session.guard(response_id):
            ...
        ```

        The responses are stopped first, then the exception goes on. A block that ends normally leaves them alone.

        Args:
            response_ids: the ids, or objects that have them as `.id`. More can be added inside, with `Guard.add`.
            grace: seconds that stopping them may take.
            options: for each request, see `RequestOptions`.

        Raises:
            InvalidResponseIdError: an id cannot be sent.
            ConfigurationError: an option cannot work.
            SessionStateError: the session's ledger is not open.
            LedgerError: it is required, and fails; from the block.
        """
        return _Guarding(self._session.guard(*response_ids, grace=grace, **options), self._run)

    def wait(
        self,
        response_id: ResponseId,
        *,
        timeout: float | None = None,
        on_abandon: Literal["stop", "leave"] = "stop",
        grace: float = 10.0,
        **options: Unpack[RequestOptions],
    ) -> Response:
        """Wait until a response is over.

        Errors that may pass are waited out. Whatever ends the wait before the response ends, a time-out or Ctrl-C,
        stops the response, too.

        Args:
            response_id: the id, or an object that has it as `.id`.
            timeout: seconds to wait; None: as long as it takes.
            on_abandon: `leave` lets the response run on where the wait has ended before it.
            grace: seconds that stopping it may take, after the time-out.
            options: for each request, see `RequestOptions`.

        Returns:
            The response at its end, be it completed, failed, incomplete or cancelled.

        Raises:
            WaitTimeoutError: it was not over in time. Its `outcome` says whether it was stopped.
            InvalidResponseIdError, ConfigurationError, SessionStateError, APIStatusError, APIConnectionError,
                LedgerError: as `AsyncSession.wait`.

        See https://platform.openai.com/docs/guides/background.
        """
        return self._run(
            self._session.wait, response_id, timeout=timeout, on_abandon=on_abandon, grace=grace, **options
        )

    def stop_many(
        self,
        response_ids: Iterable[ResponseId] | AsyncIterable[ResponseId],
        *,
        concurrency: int = 64,
        deadline: float = 60.0,
        confirm: float | None = None,
        dry_run: bool = False,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generator[Outcome, None, None]:
        """Stop any number of responses, and give their outcomes as they come, in no order.

        ```python
        for outcome in session.stop_many(ids):
            print(outcome.response_id, outcome.verdict)
        ```

        As `AsyncSession.stop_many`. The ids are read in the session's thread, as they are needed. Leaving the loop
        early ends what is under way.

        Args:
            response_ids: an iterable or an async iterable of ids, or of objects that have them as `.id`.
            concurrency: how many may be under way at most. More than the session's `max_connections` wait for one.
            deadline: seconds that each may take.
            confirm: as for `stop`.
            dry_run: as for `stop`.
            timeout: seconds that one attempt may take.
            options: for each request, see `RequestOptions`.

        Raises:
            ConfigurationError: an option cannot work.
            SessionStateError: the session is not open, or is closed; from the iteration.
        """
        outcomes = self._session.stop_many(
            response_ids,
            concurrency=concurrency,
            deadline=deadline,
            confirm=confirm,
            dry_run=dry_run,
            timeout=timeout,
            **options,
        )
        return self._iterate(outcomes)

    def _iterate(self, source: AsyncGenerator[_T, None]) -> Generator[_T, None, None]:
        try:
            while (item := self._run(_next_of, source)) is not None:
                yield item
        finally:
            with suppress(SessionStateError):  # it was closed meanwhile, and that has ended it
                self._run(source.aclose)

    def _run(self, function: Callable[_P, Coroutine[Any, Any, _T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        worker = self._usable_worker()
        future: Future[_T] = Future()
        call = Call(partial(function, *args, **kwargs), future, worker.calls)
        try:
            with self._lock:  # so that nothing is handed to the loop once it has been told to stop
                if self._closed:
                    raise SessionStateError("The session is closed: make another one.")  # noqa: TRY301 - under the lock
                worker.loop.result().call_soon_threadsafe(call.start)
            return future.result()
        except CancelledError:
            if not self._closed:
                raise
            closed = SessionStateError("The session was closed while the call was under way.")
            call.tell(closed)
            raise closed from None
        except SessionStateError:
            raise
        except BaseException as error:
            if not future.done():  # Ctrl-C, say
                # It may have something to end first, such as a response.
                worker.loop.result().call_soon_threadsafe(call.give_up, future)
                with suppress(Exception, CancelledError):
                    future.result()
                call.tell(error)
            raise
        finally:
            del future  # an exception's traceback holds this frame: together they would wait for the garbage collector

    def _usable_worker(self) -> Worker:
        worker = self._worker
        if sys.is_finalizing():
            raise SessionStateError("The interpreter is ending, and the session's thread with it.")
        if worker is None:
            raise SessionStateError("The session is not open: use `with Session() as session:`, or call its open().")
        if worker.pid != os.getpid():
            raise SessionStateError(
                f"The session was opened in process {worker.pid}, and its thread did not cross the fork: "
                "open a session in this process."
            )
        if current_thread() is worker.thread:
            raise SessionStateError(
                "A function that the session runs, such as its api_key, cannot call the session: it would wait for "
                "itself."
            )
        return worker


class _Guarding:
    """The block of `Session.guard`; what happens at its end happens in the session's loop."""

    def __init__(self, guard: Guard, run: Callable[..., object]) -> None:
        self._guard = guard
        self._run = run

    def __enter__(self) -> Guard:
        if self._guard.tracked:
            self._run(self._guard.__aenter__)
        return self._guard

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._guard.armed or (error is None and not self._guard.tracked):
            return
        try:
            self._run(self._guard.__aexit__, kind, error, traceback)
        except SessionStateError as failure:
            if error is None:
                raise
            with suppress(Exception):  # an exception can be strange enough to take none
                error.add_note(f"openai-cancel: {self._guard!r} could stop nothing: {failure}")


async def _next_of(source: AsyncGenerator[_T, None]) -> _T | None:
    return await anext(source, None)

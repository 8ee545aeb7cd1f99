"""`AsyncSession`: the calls of the API, and what is built on them."""

import math
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from functools import partial
from typing import Literal, Self, Unpack

from openai_cancel.bulk import Bulk, Pace
from openai_cancel.checks import check_count, check_seconds
from openai_cancel.endpoint import Endpoint, RequestOptions
from openai_cancel.errors import ConfigurationError, WaitTimeoutError
from openai_cancel.guard import Guard, wait_until_over
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome, Stop
from openai_cancel.tracing import traced
from openai_cancel.wire import ResponseId


class AsyncSession(Endpoint):
    """A client for one server of the Responses API, for use in one event loop.

    ```python
    async with AsyncSession() as session:
        response = await session.cancel("resp_123")
    ```

    Args:
        api_key: a key, or a function, plain or async, that is asked for one before each attempt. A plain one runs in
            the event loop and should not block. Default: `OPENAI_API_KEY`.
        base_url: where the API is, such as `http://localhost:8000/v1`. Default: `OPENAI_BASE_URL`, or OpenAI's.
        organization: default `OPENAI_ORG_ID`.
        project: default `OPENAI_PROJECT_ID`.
        client_session: an `aiohttp.ClientSession` to send with. It is never closed here.
        options: see `Options`.

    Raises:
        ConfigurationError: a setting is missing or cannot work; nothing has been sent.
    """

    _opened_ledger = False

    async def open(self) -> Self:
        """Bind the session to the running event loop. `async with` does this and closes it again.

        Raises:
            SessionStateError: it is open, or was closed; or its ledger belongs to another event loop.
            LedgerError: the session opens the ledger, which is required and fails.
            ConfigurationError: the environment names a proxy that cannot be used.
        """
        await super().open()
        ledger = self._settings.ledger
        if ledger is not None:
            try:
                _ = self.account
                required = self._settings.ledger_required
                self._opened_ledger = await ledger._join(check=required)  # pyright: ignore[reportPrivateUsage] - for us
            except BaseException:
                await self.close()
                raise
        return self

    async def close(self) -> None:
        """Close the connections, and the ledger if the session opened it.

        What is under way fails, at the latest before its next attempt. Closing twice does nothing.

        Raises:
            SessionStateError: the session belongs to another event loop.
        """
        try:
            await super().close()
        finally:
            if self._opened_ledger and self._settings.ledger is not None:
                await self._settings.ledger.close()

    async def stop(
        self,
        response_id: ResponseId,
        *,
        deadline: float = 60.0,
        confirm: float | None = None,
        dry_run: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - of each attempt
        **options: Unpack[RequestOptions],
    ) -> Outcome:
        """Make sure that a response no longer runs, and find out what became of it.

        It cancels, and looks until the server says that the work is over, cancelling again where that helps. What
        a server may answer is never raised: the verdict says it.

        Args:
            response_id: the id, or an object that has it as `.id`.
            deadline: seconds that all of it may take.
            confirm: look at a cancelled response again after so many seconds, or sooner if the deadline is near, and
                cancel it once more if it went back: Azure, LiteLLM and ogx have been seen to run on.
            dry_run: only look, and cancel nothing: what would be cancelled is `still_running`.
            timeout: seconds that one attempt may take.
            options: for each request, see `RequestOptions`.

        Returns:
            The outcome. Its `verdict` says what became of the response, `stopped` whether the work is over.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: an option cannot work.
            SessionStateError: the session is not open, or belongs to another event loop.

        See https://platform.openai.com/docs/guides/background.
        """
        check_seconds("deadline", deadline)
        if confirm is not None:
            check_seconds("confirm", confirm)
        stop = Stop(
            response_id=self.identify(response_id),
            cancel=partial(self.cancel, response_id, timeout=timeout, **options),
            retrieve=partial(self.retrieve, response_id, timeout=timeout, **options),
            monotonic=self._monotonic,
            sleep=self._sleep,
            random=self._random,
            deadline=deadline,
            confirm=confirm,
            dry_run=dry_run,
        )
        return await traced(stop, self.base_url)

    def guard(self, *response_ids: ResponseId, grace: float = 10.0, **options: Unpack[RequestOptions]) -> Guard:
        """Stop responses if a block is left by an exception: an error, a time-out, a cancelled task, Ctrl-C.

        ```python
        async with session.guard(response_id):
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
        self._check(**options)
        tracking, ledger = None, self._settings.ledger
        if ledger is not None:
            required = self._settings.ledger_required
            tracking = ledger._tracking(self, required=required)  # pyright: ignore[reportPrivateUsage] - for us
        guard = Guard(
            stop=partial(self.stop, **options),
            identify=self.identify,
            monotonic=self._monotonic,
            grace=check_seconds("grace", grace),
            tracking=tracking,
        )
        for response_id in response_ids:
            guard.add(response_id)
        return guard

    async def wait(
        self,
        response_id: ResponseId,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - after which the response is stopped, too
        on_abandon: Literal["stop", "leave"] = "stop",
        grace: float = 10.0,
        **options: Unpack[RequestOptions],
    ) -> Response:
        """Wait until a response is over.

        Errors that may pass are waited out. Whatever ends the wait before the response ends, a time-out or a cancel
        of the task, stops the response, too.

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
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: an option cannot work.
            SessionStateError: the session is not open, or belongs to another event loop.
            APIStatusError: the server refuses; `NotFoundError` if it does not know the id.
            APIConnectionError: no connection can be had, now or later, as with a certificate that is not trusted.
            LedgerError: the session's ledger is required, and fails.

        See https://platform.openai.com/docs/guides/background.
        """
        if on_abandon not in {"stop", "leave"}:
            raise ConfigurationError(f"on_abandon must be 'stop' or 'leave', not {on_abandon!r}.")
        seconds = math.inf if timeout is None else check_seconds("timeout", timeout)
        guard = self.guard(response_id, grace=grace, **options)
        if on_abandon == "leave":
            guard.disarm()
        try:
            async with guard:
                return await wait_until_over(
                    self.identify(response_id),
                    retrieve=partial(self.retrieve, response_id, **options),
                    monotonic=self._monotonic,
                    sleep=self._sleep,
                    random=self._random,
                    timeout=seconds,
                )
        except WaitTimeoutError as error:
            error.outcome = guard.outcome
            raise

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
    ) -> AsyncGenerator[Outcome, None]:
        """Stop any number of responses, and give their outcomes as they come, in no order.

        ```python
        async for outcome in session.stop_many(ids):
            print(outcome.response_id, outcome.verdict)
        ```

        The ids are taken as they are needed, and memory does not grow with their number. When the server says that it
        is too much (429, 503), all requests pause together, and go on at the rate that got through. An id that is
        given again while it is under way is not sent twice. One that cannot be sent is `unknown`, with the reason as
        its `error`. To leave the loop early, `contextlib.aclosing` ends what is under way at once.

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
            SessionStateError: the session is not open, or belongs to another event loop; from the iteration.

        What the source of the ids raises is raised once the outcomes of those before are handed out.
        """
        if isinstance(response_ids, str | bytes) or not isinstance(response_ids, Iterable | AsyncIterable):
            raise ConfigurationError(
                f"stop_many takes an iterable of ids, such as a list, not {type(response_ids).__name__}."
            )
        self._check(**options)
        check_seconds("deadline", deadline)
        if timeout is not None:
            check_seconds("timeout", timeout)
        if confirm is not None:
            check_seconds("confirm", confirm)
        bulk = Bulk(
            stop=partial(self.stop, deadline=deadline, confirm=confirm, dry_run=dry_run, timeout=timeout, **options),
            identify=self.identify,
            pace=Pace(
                concurrency=check_count("concurrency", concurrency, least=1),
                monotonic=self._monotonic,
                sleep=self._sleep,
                random=self._random,
            ),
        )
        return bulk.run(response_ids)

    def _check(
        self,
        *,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse options that a request would refuse later, when it matters."""
        if max_retries is not None:
            check_count("max_retries", max_retries)
        self._wire.request("GET", "any", headers=headers, query=query)

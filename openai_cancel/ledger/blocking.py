"""`BlockingLedger`: the methods of `Ledger`, blocking, for the session that it belongs to."""

import math
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Generator, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Literal, ParamSpec, TypeVar

from openai_cancel.finding import Finding
from openai_cancel.iteration import BlockingIteration
from openai_cancel.ledger.batches import iterate
from openai_cancel.ledger.entry import Entry
from openai_cancel.ledger.ledger import BATCH_SIZE, Ledger
from openai_cancel.ledger.reconcile import OnUnknown
from openai_cancel.ledger.stats import Stats
from openai_cancel.loop_thread import LoopThread
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome
from openai_cancel.secret_values import hidden
from openai_cancel.session import AsyncSession
from openai_cancel.wire import ResponseId

_P = ParamSpec("_P")
_T = TypeVar("_T")


class BlockingLedger:
    """The ledger of a blocking `Session`. `Session.ledger` returns it.

    ```python
    with Session(ledger=Ledger("sqlite:///ledger.db")) as session:
        session.ledger.track("resp_123", ttl=15 * 60)
    ```

    Its methods are those of `Ledger`, for the account and the server of the session. They run in the session's event
    loop, and can be called from several threads.

    Args:
        ledger: the ledger.
        session: the session in the thread.
        loop_thread: the thread with the event loop.
        owner: kept alive by this object, because a `Session` that is garbage-collected ends its thread.
    """

    def __init__(self, ledger: Ledger, session: AsyncSession, loop_thread: LoopThread, owner: object) -> None:
        self._ledger = ledger
        self._session = session
        self._loop_thread = loop_thread
        self.owner: object = owner

    def __repr__(self) -> str:
        """Return the URL without its password."""
        return repr(self._ledger).replace(type(self._ledger).__name__, type(self).__name__, 1)

    def track(self, response_id: ResponseId, *, ttl: float, labels: Mapping[str, str] | None = None) -> None:
        """Let a sweep stop a response after some time, unless it is released before. See `Ledger.track`."""
        self._loop_thread.run(self._ledger.track, response_id, session=self._session, ttl=ttl, labels=labels)

    def track_many(
        self,
        response_ids: Iterable[ResponseId] | AsyncIterable[ResponseId],
        *,
        ttl: float,
        labels: Mapping[str, str] | None = None,
    ) -> int:
        """Let sweeps on any hosts stop any number of responses after some time. See `Ledger.track_many`.

        An iterable is read in the thread of the caller, an async iterable in the session's thread.
        """
        track_many = partial(self._ledger.track_many, session=self._session, ttl=ttl, labels=labels)
        if isinstance(response_ids, AsyncIterable):
            return self._loop_thread.run(track_many, response_ids)
        ids = iterate(response_ids)
        total = self._loop_thread.run(track_many, ())  # so that arguments are checked without ids, too
        while batch := [*islice(ids, BATCH_SIZE)]:
            total += self._loop_thread.run(track_many, batch)
        return total

    def release(self, response_id: ResponseId) -> bool:
        """Let a response run on: no sweep will stop it. See `Ledger.release`."""
        return self._loop_thread.run(self._ledger.release, response_id, session=self._session)

    def entries(
        self,
        *,
        include_ended: bool = False,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        older_than: float | None = None,
        overdue: bool = False,
    ) -> Generator[Entry, None, None]:
        """Yield the responses in the ledger, of all accounts, the oldest first. See `Ledger.entries`."""
        pages = self._ledger.pages(
            include_ended=include_ended, labels=labels, state=state, older_than=older_than, overdue=overdue
        )
        for entries in self._iterate(pages):
            yield from entries

    def stats(self, *, include_ended: bool = True) -> Stats:
        """Return how many responses of each account, server and state are in the ledger. See `Ledger.stats`."""
        return self._loop_thread.run(self._ledger.stats, include_ended=include_ended)

    def grant(self, role: str) -> None:
        """Let a role of PostgreSQL use the tables. See `Ledger.grant`."""
        self._loop_thread.run(self._ledger.grant, role)

    def purge(self, *, older_than: float, labels: Mapping[str, str] | None = None, state: str | None = None) -> int:
        """Delete the rows of responses that ended, or were released, some time ago. See `Ledger.purge`."""
        return self._loop_thread.run(self._ledger.purge, older_than=older_than, labels=labels, state=state)

    def sweep(
        self,
        *,
        batch: int = 100,
        max_attempts: int = 12,
        concurrency: int = 64,
        deadline: float = 60.0,
        confirm: float | None = None,
        give_up_after: float = math.inf,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Generator[Outcome, None, None]:
        """Stop the responses whose lease has expired, and yield the outcomes as they come. See `Ledger.sweep`.

        ```python
        for outcome in session.ledger.sweep():
            print(outcome.response_id, outcome.verdict)
        ```
        """
        headers, query = hidden(headers), hidden(query)
        outcomes = self._loop_thread.run(
            _call,
            self._ledger.sweep,
            self._session,
            batch=batch,
            max_attempts=max_attempts,
            concurrency=concurrency,
            deadline=deadline,
            confirm=confirm,
            give_up_after=give_up_after,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )
        return self._iterate(outcomes)

    def stop(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        state: Literal["tracked", "stopping"] | None = None,
        older_than: float | None = None,
        dry_run: bool = False,
        batch: int = 100,
        max_attempts: int = 12,
        concurrency: int = 64,
        deadline: float = 60.0,
        confirm: float | None = None,
        give_up_after: float = math.inf,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Generator[Outcome, None, None]:
        """Stop responses now, whoever guards or tracks them, and yield the outcomes as they come. See `Ledger.stop`.

        ```python
        for outcome in session.ledger.stop(labels={"job": "7"}):
            print(outcome.response_id, outcome.verdict)
        ```
        """
        headers, query = hidden(headers), hidden(query)
        outcomes = self._loop_thread.run(
            _call,
            self._ledger.stop,
            self._session,
            labels=labels,
            state=state,
            older_than=older_than,
            dry_run=dry_run,
            batch=batch,
            max_attempts=max_attempts,
            concurrency=concurrency,
            deadline=deadline,
            confirm=confirm,
            give_up_after=give_up_after,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )
        return self._iterate(outcomes)

    def reconcile(
        self,
        *,
        unknown: OnUnknown = "report",
        ttl: float | None = None,
        labels: Mapping[str, str] | None = None,
        statuses: Collection[str] = ("queued", "in_progress"),
        older_than: float = 60.0,
        newer_than: float | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
        select: Callable[[Response], object] | None = None,
        dry_run: bool = False,
        max_attempts: int = 12,
        concurrency: int = 64,
        deadline: float = 60.0,
        confirm: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Generator[Finding, None, None]:
        """Compare the ledger with the server's list of what runs, and settle the differences. See `Ledger.reconcile`.

        ```python
        for finding in session.ledger.reconcile(older_than=3600, dry_run=True):
            print(finding.response_id, finding.kind)
        ```
        """
        headers, query = hidden(headers), hidden(query)
        findings = self._loop_thread.run(
            _call,
            self._ledger.reconcile,
            self._session,
            unknown=unknown,
            ttl=ttl,
            labels=labels,
            statuses=statuses,
            older_than=older_than,
            newer_than=newer_than,
            model=model,
            metadata=metadata,
            limit=limit,
            select=select,
            dry_run=dry_run,
            max_attempts=max_attempts,
            concurrency=concurrency,
            deadline=deadline,
            confirm=confirm,
            max_retries=max_retries,
            headers=headers,
            query=query,
        )
        return self._iterate(findings)

    def _iterate(self, source: AsyncGenerator[_T, None]) -> Generator[_T, None, None]:
        # A generator that refers to this object, and so to the session.
        yield from BlockingIteration(source, None, self._loop_thread).run()


async def _call(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function in the event loop in which this coroutine runs."""
    return function(*args, **kwargs)

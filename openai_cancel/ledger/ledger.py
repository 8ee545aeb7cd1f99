"""`Ledger`: a durable record of running responses, which outlives the processes that guard them.

Each row has a lease. A guard renews the lease of its row while it lives, and ends it when its block ends. If its
process dies, the lease expires. Then a `sweep`, on any host, claims the row, stops the response, and records the
outcome. A claim is a lease, too: other sweeps claim the rows of a sweep that died.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Literal, Self

import attrs

from openai_cancel import tracing
from openai_cancel.caller import Caller
from openai_cancel.checks import check_count, check_function, check_seconds
from openai_cancel.clock import SYSTEM_CLOCK, Clock
from openai_cancel.errors import ConfigurationError, SessionStateError
from openai_cancel.finding import Finding
from openai_cancel.ledger.batches import batches
from openai_cancel.ledger.database import Database, read_url
from openai_cancel.ledger.entry import Entry
from openai_cancel.ledger.grants import check_granted, grant
from openai_cancel.ledger.leases import Leases
from openai_cancel.ledger.reconcile import UNKNOWN_CHOICES, OnUnknown, Reconciliation
from openai_cancel.ledger.selection import OPEN_STATES, Place, Selection, check_labels, page, purge
from openai_cancel.ledger.sqlite import SQLite
from openai_cancel.ledger.stats import Stats, count_groups, read
from openai_cancel.ledger.sweep import Sweep
from openai_cancel.ledger.table import Account, release
from openai_cancel.ledger.tracker import LeaseTracker
from openai_cancel.listing import Filters
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome
from openai_cancel.secret_values import Secret, hidden
from openai_cancel.session import AsyncSession
from openai_cancel.wire import ResponseId

PAGE_SIZE = 500
"""The number of rows that are read, or deleted, in one transaction."""

BATCH_SIZE = 1000
"""The number of rows that `track_many` writes in one transaction."""

MAX_AGE_LIMIT = 100 * 365 * 86_400.0
"""The maximum number of seconds of a `max_age`. A longer one is none: it ends after the last date that there is."""


class Ledger:
    """A durable record of running responses, in SQLite or PostgreSQL.

    ```python
    async with Ledger("sqlite:///ledger.db") as ledger, AsyncSession(ledger=ledger) as session:
        async with session.guard(response_id):
            ...
    ```

    Args:
        url: the URL of the database, such as `sqlite:///ledger.db` or `postgresql://user@host/database`. The latter
            may have all options of libpq, such as `?sslmode=require`, several hosts, or a service. The tables are
            created if there are none.
        lease: seconds after which a sweep may stop the responses of a process that died. Processes that live renew
            their leases three times in that time.
        max_age: seconds since a response was first recorded after which a sweep stops it, although its process lives
            and renews its lease. Guards and waits can set a smaller `max_age`, not a larger one. None for no limit.
        timeout: seconds that a transaction may take, and the close.
        labels: stored with each row, for example the name of the service.
        clock: the clock and the source of randomness, for tests.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    _leases: Leases | None = None
    _closed = False
    _users = 0
    _closes_itself = False

    def __init__(
        self,
        url: str,
        *,
        lease: float = 60.0,
        max_age: float | None = None,
        timeout: float = 5.0,
        labels: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        url = Secret(url) if isinstance(url, str) else url  # it may contain a password
        self._url = read_url(url)
        self._lease = check_seconds("lease", lease)
        self._max_age = _check_limit(max_age)
        self._timeout = check_seconds("timeout", timeout)
        self._labels = check_labels(labels or {})
        self._clock = clock

    def __repr__(self) -> str:
        """Return the URL without its password."""
        url = getattr(self, "_url", None)  # there is none if the constructor has failed
        return f"<{type(self).__name__} {url.shown if url else '?'}>"

    def check_exists(self) -> None:
        """Make sure that `open` would not create the file of SQLite. Commands for an existing ledger call this.

        Raises:
            LedgerError: there is no such file.
        """
        if isinstance(self._url, SQLite):
            self._url.check_exists()

    async def open(self, *, check: bool = True) -> Self:
        """Open the ledger in the running event loop. `async with` does this, and closes it at the end.

        Args:
            check: whether to connect to the database now, and fail if that is not possible.

        Raises:
            LedgerError: the database cannot be used.
            SessionStateError: the ledger is open, or was closed.
        """
        if self._leases is not None or self._closed:
            raise SessionStateError("A ledger can be opened only once: create another one.")
        database = Database(self._url, self._timeout)
        self._leases = Leases(database, duration=self._lease, clock=self._clock)
        if check:
            try:
                await database.connect()
            except BaseException:
                await self.close()
                raise
        return self

    async def close(self) -> None:
        """Write what is still to be written, and close the ledger. Closing twice does nothing.

        This takes no longer than the timeout, and a second if it is cancelled. The ids of the responses whose new
        state could not be written are logged as a warning. Leases of responses that are still guarded expire.

        Raises:
            SessionStateError: the ledger belongs to another event loop.
        """
        self._closed = True
        if self._leases is not None:
            leases, self._leases = self._open_leases, None
            await leases.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def attach(self, *, required: bool) -> None:
        """Use the ledger until `detach`, in the running event loop. `AsyncSession.open` calls this.

        If the ledger is not open, this opens it, and the last `detach` closes it.

        Args:
            required: whether to connect to the database now, and fail if that is not possible.

        Raises:
            LedgerError: the database cannot be used.
            SessionStateError: the ledger was closed, or is open in another event loop.
        """
        if self._leases is None:
            await self.open(check=False)
            self._closes_itself = True
        leases = self._open_leases  # raises if they belong to another event loop
        self._users += 1
        if required:
            try:
                await leases.database.connect()
            except BaseException:
                await self.detach()
                raise

    async def detach(self) -> None:
        """End the use of the ledger. `AsyncSession.close` calls this."""
        self._users -= 1
        if self._closes_itself and self._users == 0:
            await self.close()

    def tracker(self, *, account: str, base_url: str, required: bool, max_age: float | None = None) -> LeaseTracker:
        """Return an object that records the responses of a guard. `AsyncSession.guard` calls this.

        Args:
            account: the name of the account.
            base_url: the address of the server.
            required: whether a failure to record raises an error.
            max_age: as for `AsyncSession.guard`.

        Raises:
            SessionStateError: the ledger is not open.
        """
        if self._leases is None:
            raise _not_open()
        limits = [limit for limit in (_check_limit(max_age), self._max_age) if limit is not None]
        return LeaseTracker(
            self._leases,
            Account(account, base_url),
            self._labels,
            required=required,
            max_age=min(limits, default=None),
        )

    async def track(
        self,
        response_id: ResponseId,
        *,
        session: AsyncSession,
        ttl: float,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Record a response that needs no guard. A sweep stops it after some time, unless it is released first.

        While a guard holds the response, the lease of the guard counts, and after its normal end this time again.

        Args:
            response_id: the id, or an object that has it as `.id`.
            session: a session for the server and the account of the response.
            ttl: seconds until a sweep may stop it.
            labels: stored with it, in addition to the labels of the ledger.

        Raises:
            LedgerError: it could not be recorded.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: an option cannot work.
        """
        account = await _account(session)
        record = account.record(
            session.identify(response_id),
            owner=None,
            seconds=check_seconds("ttl", ttl),
            labels={**self._labels, **check_labels(labels or {})},
            max_age=self._max_age,
        )
        leases = self._open_leases
        await leases.wait(leases.write([record]))

    async def track_many(
        self,
        response_ids: Iterable[ResponseId] | AsyncIterable[ResponseId],
        *,
        session: AsyncSession,
        ttl: float,
        labels: Mapping[str, str] | None = None,
    ) -> int:
        """Record any number of responses, like `track`. Sweeps on any hosts stop them after some time.

        The ids are read as they are needed, and memory does not grow with their number. They are recorded in
        transactions of 1,000.

        Args:
            response_ids: an iterable or an async iterable of ids, or of objects that have them as `.id`.
            session: a session for the server and the account of the responses.
            ttl: seconds until a sweep may stop them.
            labels: stored with them, in addition to the labels of the ledger.

        Returns:
            The number of ids.

        Raises:
            LedgerError: some could not be recorded. Those before them were.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            InvalidResponseIdError: an id cannot be sent. Those before it may have been recorded.
            ConfigurationError: an option cannot work.

        An exception of the iterable ends it, too.
        """
        account = await _account(session)
        seconds = check_seconds("ttl", ttl)
        labels = {**self._labels, **check_labels(labels or {})}
        leases, total = self._open_leases, 0
        async with aclosing(batches(response_ids, BATCH_SIZE)) as source:
            async for batch in source:
                names = map(session.identify, batch)
                records = [
                    account.record(name, owner=None, seconds=seconds, labels=labels, max_age=self._max_age)
                    for name in names
                ]
                await leases.wait(leases.write(records))
                total += len(records)
        return total

    async def release(self, response_id: ResponseId, *, session: AsyncSession) -> bool:
        """Let a response run on: no sweep will stop it, even if another process guards or tracks it.

        Args:
            response_id: the id, or an object that has it as `.id`.
            session: a session for the server and the account of the response.

        Returns:
            Whether it was tracked.

        Raises:
            LedgerError: this could not be recorded.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: the session is not an `AsyncSession`.
        """
        account = await _account(session)
        digest = account.digest(session.identify(response_id))
        return len(await self._open_leases.database.execute(release(digest))) > 0

    async def entries(
        self,
        *,
        include_ended: bool = False,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        older_than: float | None = None,
        overdue: bool = False,
    ) -> AsyncGenerator[Entry, None]:
        """Yield the responses in the ledger, of all accounts, the oldest first.

        Args:
            include_ended: whether to include responses that no sweep will claim any more.
            labels: only responses that have these labels, and perhaps others.
            state: only responses in this state, such as `tracked` or `cancelled`, also if they have ended.
            older_than: only responses that were first tracked this many seconds ago, or earlier.
            overdue: only responses whose lease has expired, so that a sweep of their account should stop them.

        Raises:
            LedgerError: the database failed.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: an argument cannot work.
        """
        pages = self.pages(
            include_ended=include_ended, labels=labels, state=state, older_than=older_than, overdue=overdue
        )
        async with aclosing(pages):
            async for entries in pages:
                for entry in entries:
                    yield entry

    async def pages(
        self,
        *,
        include_ended: bool = False,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        older_than: float | None = None,
        overdue: bool = False,
    ) -> AsyncGenerator[Sequence[Entry], None]:
        """Yield what `entries` yields, as many at once as are read in one transaction. `BlockingLedger` uses this."""
        selection = Selection.checked(labels, state, older_than, overdue=overdue)
        after = Place()
        while True:
            command = page(selection, after, include_ended=include_ended, limit=PAGE_SIZE)
            rows = await self._open_leases.database.read(command)
            if rows:
                yield [Entry.from_row(row) for row in rows]
            if len(rows) < PAGE_SIZE:
                return
            after = Place(rows[-1].created, rows[-1].digest)

    async def stats(self, *, include_ended: bool = True) -> Stats:
        """Return how many responses of each account, server and state are in the ledger, and how many are overdue.

        ```python
        stats = await ledger.stats()
        print(stats.open, stats.overdue, stats.overdue_for, stats.by_state)
        ```

        It also sets the OpenTelemetry gauge of overdue responses, if the process uses OpenTelemetry.

        Args:
            include_ended: whether to also count responses that no sweep will claim any more. This reads the whole
                table, which takes seconds if it has millions of rows.

        Raises:
            LedgerError: the database failed.
            SessionStateError: the ledger is not open, or belongs to another event loop.
        """
        stats = read(await self._open_leases.database.read(count_groups(include_ended=include_ended)))
        overdue: dict[tuple[str, str], int] = {}
        for group in stats.groups:
            place = (group.account, group.base_url)
            overdue[place] = overdue.get(place, 0) + group.overdue
        if tracing.has_metrics():
            from openai_cancel import metrics  # not imported unless metrics are used

            metrics.set_overdue(overdue)
        return stats

    async def grant(self, role: str) -> None:
        """Let a role of PostgreSQL use the tables, but not alter or drop them: SELECT, INSERT, UPDATE and DELETE.

        Args:
            role: the name of the role.

        Raises:
            LedgerError: the database failed, for example because the role does not exist; or this role may not grant
                the rights.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: the database is not PostgreSQL, or the name cannot be that of a role.
        """
        check_granted(await self._open_leases.database.execute(*grant(self._url.dialect, role)), role)

    async def purge(
        self, *, older_than: float, labels: Mapping[str, str] | None = None, state: str | None = None
    ) -> int:
        """Delete the rows of responses that ended, or were released, some time ago.

        Args:
            older_than: seconds since that time.
            labels: only responses that have these labels, and perhaps others.
            state: only responses in this state, such as `released`.

        Returns:
            The number of rows that were deleted.

        Raises:
            LedgerError: the database failed. Some rows may have been deleted.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: an argument cannot work.
        """
        command = purge(Selection.checked(labels, state, check_seconds("older_than", older_than)), limit=PAGE_SIZE)
        total = 0
        while rows := await self._open_leases.database.execute(command):
            total += len(rows)
        return total

    def sweep(
        self,
        session: AsyncSession,
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
    ) -> AsyncGenerator[Outcome, None]:
        """Stop the responses whose lease has expired, record their outcomes, and yield them as they come.

        ```python
        async for outcome in ledger.sweep(session):
            print(outcome.response_id, outcome.verdict)
        ```

        Any number of sweeps may run at the same time, on any hosts: each response is claimed by one of them. A
        response that could not be stopped may be claimed again after 30 seconds, and after twice as long with each
        further attempt, up to an hour. A sweep whose key is refused claims no more responses, and gives back those
        that it has tried.

        Args:
            session: a session for the server and the account whose responses are stopped.
            batch: the number of responses that are claimed at once.
            max_attempts: the number of attempts after which a response is given up. 12 attempts take about five hours.
            concurrency: as for `AsyncSession.stop_many`.
            deadline: as for `AsyncSession.stop_many`.
            confirm: as for `AsyncSession.stop_many`.
            give_up_after: as for `AsyncSession.stop_many`. Claims are then given back, and use up no attempt.
            max_retries: as for `AsyncSession.stop`.
            headers: as for `AsyncSession.cancel`.
            query: as for `AsyncSession.cancel`.

        Raises:
            LedgerError: the iteration raises it if the database fails for longer than a lease.
            APIConnectionError: the iteration raises it if the server cannot be reached for `give_up_after` seconds.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: an option cannot work.
        """
        headers, query = hidden(headers), hidden(query)
        _check_session(session)
        return self._sweep(
            None,
            account=partial(_account, session),
            caller=session.caller.with_options(headers=headers, query=query),
            batch=batch,
            max_attempts=max_attempts,
            concurrency=concurrency,
            deadline=deadline,
            confirm=confirm,
            give_up_after=give_up_after,
            max_retries=max_retries,
        )

    def stop(
        self,
        session: AsyncSession,
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
    ) -> AsyncGenerator[Outcome, None]:
        """Stop responses now, whoever guards or tracks them, record their outcomes, and yield them as they come.

        ```python
        async for outcome in ledger.stop(session, labels={"job": "7"}):
            print(outcome.response_id, outcome.verdict)
        ```

        It stops all responses of the session's account and server that have not ended and fulfil every condition;
        without a condition, all of them. Their guards lose the lease, and learn of it with their next heartbeat. Any
        number of stops and sweeps may run at the same time: each response is stopped by one of them. Sweeps try again
        what could not be stopped.

        Args:
            session: a session for the server and the account whose responses are stopped.
            labels: only responses that have these labels, and perhaps others.
            state: only responses in this state. Those that a sweep is stopping are left to it while its lease lasts.
            older_than: only responses that were first tracked this many seconds ago, or earlier.
            dry_run: only look, as for `AsyncSession.stop`, and change nothing.
            batch: as for `sweep`.
            max_attempts: as for `sweep`.
            concurrency: as for `AsyncSession.stop_many`.
            deadline: as for `AsyncSession.stop_many`.
            confirm: as for `AsyncSession.stop_many`.
            give_up_after: as for `sweep`.
            max_retries: as for `AsyncSession.stop`.
            headers: as for `AsyncSession.cancel`.
            query: as for `AsyncSession.cancel`.

        Raises:
            LedgerError: the iteration raises it if the database fails for longer than a lease, or another transaction
                locks rows for about a minute.
            APIConnectionError: the iteration raises it if the server cannot be reached for `give_up_after` seconds.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: an option cannot work.
        """
        headers, query = hidden(headers), hidden(query)
        _check_session(session)
        if state is not None and state not in OPEN_STATES:
            raise ConfigurationError(f"state must be {' or '.join(OPEN_STATES)}, as others have ended, not {state!r}.")
        return self._sweep(
            Selection.checked(labels, state, older_than),
            account=partial(_account, session),
            caller=session.caller.with_options(headers=headers, query=query),
            dry_run=dry_run,
            batch=batch,
            max_attempts=max_attempts,
            concurrency=concurrency,
            deadline=deadline,
            confirm=confirm,
            give_up_after=give_up_after,
            max_retries=max_retries,
        )

    def reconcile(
        self,
        session: AsyncSession,
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
    ) -> AsyncGenerator[Finding, None]:
        """Compare the ledger with the server's list of what runs, settle the differences, and yield them as they come.

        ```python
        async for finding in ledger.reconcile(session, unknown="adopt", ttl=3600):
            print(finding.response_id, finding.kind, finding.action)
        ```

        It needs a server that lists its responses, as `AsyncSession.running` does. First it finds the responses that
        run and that the ledger does not know, for example because the answer to their creation was lost. The option
        `unknown` decides what is done with them. Responses that run although the ledger recorded their end more than a
        minute ago are `forgotten`: they are stopped like unknown ones, or else only reported. Then it retrieves the
        tracked responses of the session's account that were not on the list, and strikes off those that have ended.

        Responses that a living guard, a sweep, or another account in the ledger holds are left alone, and so are those
        that were released or do not run in the background. If a response cannot be retrieved, it stays tracked, and is
        reported as `unclear`. A 404 is not believed within two minutes of the first record.

        The list has every response that the key may see, which may include those of other people, or of programs that
        use no ledger. Try a dry run, and set conditions, before you adopt or stop any. Memory does not grow with the
        length of the list or of the ledger. To leave the loop early, use `contextlib.aclosing`.

        Args:
            session: a session for the server and the account.
            unknown: `report` only yields unknown responses; `adopt` records them, so that a sweep stops them after
                `ttl`, unless they are released first; `stop` records them and stops them now. Rows that exist are not
                changed. If a stop is interrupted, sweeps go on with what it had begun.
            ttl: seconds until a sweep may stop responses that are adopted.
            labels: stored with the rows of unknown responses, in addition to the labels of the ledger.
            statuses: as for `AsyncSession.running`.
            older_than: only unknown responses that were created more than so many seconds ago. One that is younger may
                be about to be recorded by whoever has created it.
            newer_than: as for `AsyncSession.running`.
            model: as for `AsyncSession.running`.
            metadata: as for `AsyncSession.running`.
            limit: the maximum number of unknown responses.
            select: a function, not an async one, that is called with each unknown response in the event loop of the
                session, and returns whether to yield and handle it; None for all.
            dry_run: change nothing, and stop nothing.
            max_attempts: as for `sweep`.
            concurrency: as for `AsyncSession.stop_many`, also for retrieving.
            deadline: as for `AsyncSession.stop_many`, also for retrieving.
            confirm: as for `AsyncSession.stop_many`.
            max_retries: as for `AsyncSession.stop`.
            headers: as for `AsyncSession.cancel`.
            query: as for `AsyncSession.cancel`; parameters of the list, such as Foundry's `agent_name`.

        Raises:
            UnsupportedError: the iteration raises it if the server has no list.
            ListingError: the iteration raises it if the list cannot be read to its end.
            APIError: the iteration raises it if a page of the list cannot be read, as for `AsyncSession.retrieve`.
            LedgerError: the iteration raises it if the database fails.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: an option cannot work.
        """
        headers, query = hidden(headers), hidden(query)
        _check_session(session)
        filters = Filters.checked(
            statuses=statuses, older_than=older_than, newer_than=newer_than, model=model, metadata=metadata
        )
        if select is not None:
            check_function("select", select)
        work = Reconciliation(
            leases=self._open_leases,
            caller=session.caller.with_options(headers=headers, query=query),
            account=partial(_account, session),
            clock=self._clock,
            unknown=unknown,
            ttl=_check_unknown(unknown, ttl),
            labels={**self._labels, **check_labels(labels or {})},
            max_age=self._max_age,
            filters=attrs.evolve(filters, older_than=None),
            older_than=check_seconds("older_than", older_than),
            limit=None if limit is None else check_count("limit", limit, minimum=1),
            select=select,
            dry_run=dry_run,
            max_attempts=check_count("max_attempts", max_attempts, minimum=1),
            concurrency=check_count("concurrency", concurrency, minimum=1),
            deadline=check_seconds("deadline", deadline),
            confirm=None if confirm is None else check_seconds("confirm", confirm),
            max_retries=None if max_retries is None else check_count("max_retries", max_retries),
        )
        return work.run()

    def _sweep(
        self,
        selection: Selection | None,
        *,
        account: Callable[[], Awaitable[Account]],
        caller: Caller,
        dry_run: bool = False,
        batch: int,
        max_attempts: int,
        concurrency: int,
        deadline: float,
        confirm: float | None,
        max_retries: int | None,
        give_up_after: float,
    ) -> AsyncGenerator[Outcome, None]:
        sweep = Sweep(
            leases=self._open_leases,
            account=account,
            caller=caller,
            selection=selection,
            clock=self._clock,
            batch=check_count("batch", batch, minimum=1),
            max_attempts=check_count("max_attempts", max_attempts, minimum=1),
            concurrency=check_count("concurrency", concurrency, minimum=1),
            deadline=check_seconds("deadline", deadline),
            confirm=None if confirm is None else check_seconds("confirm", confirm),
            max_retries=None if max_retries is None else check_count("max_retries", max_retries),
            give_up_after=check_seconds("give_up_after", give_up_after),
        )
        return sweep.look(selection) if dry_run and selection is not None else sweep.run()

    @property
    def _open_leases(self) -> Leases:
        """The leases, if the ledger is open in this event loop."""
        if self._leases is None:
            raise _not_open()
        if self._leases.database.loop is not asyncio.get_running_loop():
            raise SessionStateError(
                "The ledger was opened in another event loop: create one for each loop, and for each Session."
            )
        return self._leases


def _not_open() -> SessionStateError:
    return SessionStateError("The ledger is not open: use `async with Ledger(…) as ledger:`, or await its open().")


async def _account(session: AsyncSession) -> Account:
    _check_session(session)
    return Account(await session.load_account(), session.base_url)


def _check_session(session: AsyncSession) -> None:
    if not isinstance(session, AsyncSession):
        raise ConfigurationError(
            f"session must be an AsyncSession, not {type(session).__name__}. In code that blocks, use the methods of "
            "`session.ledger`."
        )


def _check_unknown(unknown: str, ttl: float | None) -> float:
    """Return the time to live of responses that are adopted, or infinity if there are none."""
    if unknown not in UNKNOWN_CHOICES:
        raise ConfigurationError(f"unknown must be {', '.join(map(repr, UNKNOWN_CHOICES))}, not {unknown!r}.")
    if unknown == "adopt" and ttl is None:
        raise ConfigurationError("unknown='adopt' requires ttl, the seconds until a sweep stops adopted responses.")
    if unknown != "adopt" and ttl is not None:
        raise ConfigurationError("ttl applies to adopted responses only: use it with unknown='adopt'.")
    return math.inf if ttl is None else check_seconds("ttl", ttl)


def _check_limit(max_age: float | None) -> float | None:
    """Return the limit in seconds, or None if there is none."""
    if max_age is None or check_seconds("max_age", max_age) > MAX_AGE_LIMIT:
        return None
    return max_age

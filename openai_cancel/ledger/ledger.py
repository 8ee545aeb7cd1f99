"""`Ledger`: a durable record of running responses, which outlives the processes that guard them.

Each row has a lease. A guard renews the lease of its row while it lives, and ends it when its block ends. If its
process dies, the lease lapses. Then a `sweep`, on any host, claims the row, stops the response, and records the
outcome. A claim is a lease, too: other sweeps claim the rows of a sweep that died.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import attrs
from sqlalchemy import Row

from openai_cancel.checks import Secret, check_count, check_seconds, hidden
from openai_cancel.clock import SYSTEM_CLOCK, Clock
from openai_cancel.errors import ConfigurationError, SessionStateError
from openai_cancel.ledger.database import Database, read_url
from openai_cancel.ledger.leases import Leases, LeaseTracker
from openai_cancel.ledger.sweep import Sweep
from openai_cancel.ledger.table import Account, page, purge, release
from openai_cancel.outcome import Outcome
from openai_cancel.session import AsyncSession
from openai_cancel.wire import ResponseId

PAGE_SIZE = 500
"""The number of rows that are read, or deleted, in one transaction."""


@attrs.frozen(kw_only=True)
class Entry:
    """A response in a ledger.

    Attributes:
        response_id: the id, as it was tracked.
        base_url: the address of the server that holds the response.
        account: the name of the account; see `AsyncSession.account`.
        labels: the labels of the ledger and of the call that tracked the response.
        state: `tracked`; `stopping` if a sweep has claimed it; `released` if it may run on, or its guard has ended
            normally; otherwise the verdict about its end.
        owner: the holder of the lease, which contains host and process id; or None.
        attempts: the number of attempts to stop it.
        created: when it was first tracked, in UTC, by the clock of the database.
        changed: when its state last changed, in UTC, by the clock of the database.
        lease_left: seconds until the lease lapses, negative if it has lapsed; None if no sweep will claim it.
        error: the reason why it could not be stopped, or None.
        request_id: the server's id of the last request, or None.
    """

    response_id: str
    base_url: str
    account: str
    labels: Mapping[str, str]
    state: str
    owner: str | None
    attempts: int
    created: datetime
    changed: datetime
    lease_left: float | None
    error: str | None
    request_id: str | None


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
            their leases three times as often.
        timeout: seconds that a transaction may take, and the close.
        labels: stored with each row, for example the name of the service.
        clock: the source of time and chance, for tests.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    _leases: Leases | None = None
    _closed = False

    def __init__(
        self,
        url: str,
        *,
        lease: float = 60.0,
        timeout: float = 5.0,
        labels: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        url = Secret(url) if isinstance(url, str) else url  # it may contain a password
        self._url = read_url(url)
        self._lease = check_seconds("lease", lease)
        self._timeout = check_seconds("timeout", timeout)
        self._labels = _check_labels(labels or {})
        self._clock = clock

    def __repr__(self) -> str:
        """Return the URL without its password."""
        url = getattr(self, "_url", None)  # there is none if the constructor has failed
        return f"<{type(self).__name__} {url.shown if url else '?'}>"

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

        This takes no longer than the time-out, and a second if it is cancelled. The ids of the responses whose new
        state could not be written are logged as a warning. Leases of responses that are still guarded lapse.

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

    async def attach(self, *, required: bool) -> bool:
        """Make sure that the ledger is open in the running event loop. `AsyncSession.open` calls this.

        Args:
            required: whether to connect to the database now, and fail if that is not possible.

        Returns:
            Whether this call has opened it; if so, the session closes it.

        Raises:
            LedgerError: the database cannot be used.
            SessionStateError: the ledger was closed, or is open in another event loop.
        """
        if self._leases is None:
            await self.open(check=required)
            return True
        _ = self._open_leases  # raises if they belong to another event loop
        return False

    def tracker(self, *, account: str, base_url: str, required: bool) -> LeaseTracker:
        """Return an object that records the responses of guards. `AsyncSession.guard` calls this.

        Args:
            account: the name of the account.
            base_url: the address of the server.
            required: whether a failure to record raises an error.

        Raises:
            SessionStateError: the ledger is not open.
        """
        if self._leases is None:
            raise _not_open()
        return LeaseTracker(self._leases, Account(account, base_url), self._labels, required=required)

    async def track(
        self,
        response_id: ResponseId,
        *,
        session: AsyncSession,
        ttl: float,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Let a sweep stop a response after some time, unless it is released before. It needs no guard.

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
        record = _account(session).record(
            session.identify(response_id),
            owner=None,
            seconds=check_seconds("ttl", ttl),
            labels={**self._labels, **_check_labels(labels or {})},
        )
        leases = self._open_leases
        await leases.wait(leases.write([record]))

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
        digest = _account(session).digest(session.identify(response_id))
        return len(await self._open_leases.database.execute(release(digest))) > 0

    async def entries(self, *, include_ended: bool = False) -> AsyncGenerator[Entry, None]:
        """Yield the responses in the ledger, of all accounts, the oldest first.

        Args:
            include_ended: whether to include responses that no sweep will claim any more.

        Raises:
            LedgerError: the database failed.
            SessionStateError: the ledger is not open, or belongs to another event loop.
        """
        after = (-1.0, "")
        while True:
            command = page(after, include_ended=include_ended, limit=PAGE_SIZE)
            rows = await self._open_leases.database.read(command)
            for row in rows:
                yield _entry(row)
            if len(rows) < PAGE_SIZE:
                return
            after = (rows[-1].created, rows[-1].digest)

    async def purge(self, *, older_than: float) -> int:
        """Delete the rows of responses that ended, or were released, some time ago.

        Args:
            older_than: seconds since that time.

        Returns:
            The number of rows that were deleted.

        Raises:
            LedgerError: the database failed. Some rows may have been deleted.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: the argument cannot work.
        """
        command = purge(check_seconds("older_than", older_than), limit=PAGE_SIZE)
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
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Stop the responses whose lease has lapsed, record their outcomes, and yield them as they come.

        ```python
        async for outcome in ledger.sweep(session):
            print(outcome.response_id, outcome.verdict)
        ```

        Any number of sweeps may run at the same time, on any hosts: each response is claimed by one of them. A
        response that could not be stopped may be claimed again after 30 seconds, and after twice as long with each
        further attempt, up to an hour. A sweep whose key is refused claims no more responses.

        Args:
            session: a session for the server and the account whose responses are stopped.
            batch: the number of responses that are claimed at once.
            max_attempts: the number of attempts after which a response is given up. 12 attempts take about five hours.
            concurrency: as for `AsyncSession.stop_many`.
            deadline: as for `AsyncSession.stop_many`.
            confirm: as for `AsyncSession.stop_many`.
            max_retries: as for `AsyncSession.stop`.
            headers: as for `AsyncSession.cancel`.
            query: as for `AsyncSession.cancel`.

        Raises:
            LedgerError: the iteration raises it if the database fails for longer than a lease.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: an option cannot work.
        """
        headers, query = hidden(headers), hidden(query)
        sweep = Sweep(
            leases=self._open_leases,
            account=_account(session),
            caller=session.caller.with_options(headers=headers, query=query),
            clock=self._clock,
            batch=check_count("batch", batch, least=1),
            max_attempts=check_count("max_attempts", max_attempts, least=1),
            concurrency=check_count("concurrency", concurrency, least=1),
            deadline=check_seconds("deadline", deadline),
            confirm=None if confirm is None else check_seconds("confirm", confirm),
            max_retries=None if max_retries is None else check_count("max_retries", max_retries),
        )
        return sweep.run()

    @property
    def _open_leases(self) -> Leases:
        """The leases, if the ledger is open in this event loop."""
        if self._leases is None:
            raise _not_open()
        if self._leases.database.loop is not asyncio.get_running_loop():
            raise SessionStateError("The ledger was opened in another event loop: create one for each loop.")
        return self._leases


def _not_open() -> SessionStateError:
    return SessionStateError("The ledger is not open: use `async with Ledger(…) as ledger:`, or await its open().")


def _account(session: AsyncSession) -> Account:
    if not isinstance(session, AsyncSession):
        raise ConfigurationError(
            f"session must be an AsyncSession, not {type(session).__name__}. In code that blocks, run the command "
            "`openai-cancel ledger`, or use an AsyncSession in asyncio.run()."
        )
    return Account(session.account, session.base_url)


def _check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(labels, Mapping) or any(
        not isinstance(text, str) or not text.isprintable() for item in labels.items() for text in item
    ):
        raise ConfigurationError("labels must be a mapping of printable strings to printable strings.")
    return dict(labels)


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        response_id=row.response_id,
        base_url=row.base_url,
        account=row.account,
        labels=row.labels,
        state=row.state,
        owner=row.owner,
        attempts=row.attempts,
        created=datetime.fromtimestamp(row.created, UTC),
        changed=datetime.fromtimestamp(row.changed, UTC),
        lease_left=row.lease_left,
        error=row.error,
        request_id=row.request_id,
    )

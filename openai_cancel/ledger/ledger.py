"""`Ledger`: what runs, written down where it outlives the process that guards it.

A row has a lease. A guard renews it, and strikes its row off at its end; the lease of a process that died lapses, and
then any host may `sweep`: claim what has lapsed, stop it, and record what became of it. A claim is a lease, too: those
of a sweeper that died are claimed again.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self

import attrs
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import Executable

from openai_cancel.checks import check_count, check_seconds
from openai_cancel.errors import ConfigurationError, SessionStateError
from openai_cancel.ledger.book import Book
from openai_cancel.ledger.statements import Account, page, purge, release
from openai_cancel.ledger.sweep import Sweep
from openai_cancel.ledger.tracking import Tracking
from openai_cancel.ledger.writer import read_url
from openai_cancel.outcome import Outcome
from openai_cancel.session import AsyncSession
from openai_cancel.wire import ResponseId

_NOT_OPEN = "The ledger is not open: use `async with Ledger(…) as ledger:`, or await its open()."

PAGE = 500
"""Rows that are read, or deleted, at once."""


@attrs.frozen(kw_only=True)
class Entry:
    """A response in a ledger.

    Attributes:
        response_id: the id, as it was tracked.
        base_url: of the server that holds it.
        account: of whom it is; see `AsyncSession.account`.
        labels: what whoever tracked it had to say of it.
        state: `tracked`, `stopping` (a sweep has claimed it), `released` (it may run on, or ended under its guard), or
            the verdict that it ended with.
        owner: who holds the lease (host, process), or None.
        attempts: how often it was tried to stop it.
        created: when it was first tracked, in UTC, by the clock of the database.
        changed: when its state last changed, in the same way.
        lease_left: seconds until the lease lapses, less than 0 if it has; None for what is over.
        error: why it could not be stopped, or None.
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
    """A durable record of responses that run, in SQLite or PostgreSQL.

    ```python
    async with Ledger("sqlite:///ledger.db") as ledger, AsyncSession(ledger=ledger) as session:
        async with session.guard(response_id):
            ...
    ```

    Args:
        url: of the database, such as `sqlite:///ledger.db` (`sqlite+aiosqlite`), or
            `postgresql://user@host/database` (`postgresql+asyncpg`). It makes its tables itself.
        lease: seconds that a guard which died is still waited for. A guard that lives renews its lease three times as
            often.
        timeout: seconds that the database may take.
        labels: what every row that is tracked says of itself, such as the name of the service.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    _book: Book | None = None
    _closed = False

    def __init__(
        self, url: str, *, lease: float = 60.0, timeout: float = 5.0, labels: Mapping[str, str] | None = None
    ) -> None:
        self._url = read_url(url)
        self._lease = check_seconds("lease", lease)
        self._timeout = check_seconds("timeout", timeout)
        self._labels = _check_labels(labels or {})

    def __repr__(self) -> str:
        """Where the ledger is, without its password."""
        return f"<{type(self).__name__} {self._url.render_as_string(hide_password=True)}>"

    async def open(self, *, check: bool = True) -> Self:
        """Bind the ledger to the running event loop. `async with` does this and closes it again.

        Args:
            check: whether to talk to the database now, and fail if that cannot be done.

        Raises:
            LedgerError: the database cannot be used.
            SessionStateError: it is open, or was closed.
        """
        if self._book is not None or self._closed:
            raise SessionStateError("A ledger can be opened once: make another one.")
        book = self._book = Book(self._url, lease=self._lease, timeout=self._timeout)
        if check:
            try:
                await book.do(_nothing)
            except BaseException:
                await self.close()
                raise
        return self

    async def close(self) -> None:
        """Write what is still to be written. Closing twice does nothing.

        What is still guarded is left to its lease.
        """
        self._closed = True
        if self._book is not None:
            book, self._book = self._open_book, None
            await book.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def track(
        self,
        response_id: ResponseId,
        *,
        session: AsyncSession,
        ttl: float,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Have a response stopped by a sweep, unless it is released before: for one that is guarded nowhere.

        Args:
            response_id: the id, or an object that has it as `.id`.
            session: of the server and the account.
            ttl: seconds that it has.
            labels: what to say of it, besides the ledger's own labels.

        Raises:
            LedgerError: it could not be written.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: an option cannot work.
        """
        row = _account(session).row(
            session.identify(response_id),
            owner=None,
            seconds=check_seconds("ttl", ttl),
            labels={**self._labels, **_check_labels(labels or {})},
        )
        await self._open_book.wait(self._open_book.write(row))

    async def release(self, response_id: ResponseId, *, session: AsyncSession) -> bool:
        """Let a response run on, whoever tracks it.

        Args:
            response_id: the id, or an object that has it as `.id`.
            session: of the server and the account.

        Returns:
            Whether it was tracked.

        Raises:
            LedgerError: it could not be written.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: the session is no `AsyncSession`.
        """
        digest = _account(session).digest(session.identify(response_id))
        return await self._open_book.do(partial(_count, release(digest))) > 0

    async def entries(self, *, include_ended: bool = False) -> AsyncGenerator[Entry, None]:
        """What the ledger holds, the oldest first.

        Args:
            include_ended: also what is over.

        Raises:
            LedgerError: it could not be read.
            SessionStateError: the ledger is not open, or belongs to another event loop.
        """
        after = (-1.0, "")
        while True:
            rows = await self._open_book.do(partial(_fetch, page(after, ended=include_ended, most=PAGE)))
            for row in rows:
                yield _entry(row)
            if len(rows) < PAGE:
                return
            after = (rows[-1].created, rows[-1].digest)

    async def purge(self, *, older_than: float) -> int:
        """Forget what has been over for some time.

        Args:
            older_than: seconds since it was over.

        Returns:
            How many rows there were.

        Raises:
            LedgerError: it could not be done, or not for all.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: an argument cannot work.
        """
        statement = purge(check_seconds("older_than", older_than), PAGE)
        total = 0
        while count := await self._open_book.do(partial(_count, statement)):
            total += count
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
        """Stop every response whose lease has lapsed, and record what became of it.

        ```python
        async for outcome in ledger.sweep(session):
            print(outcome.response_id, outcome.verdict)
        ```

        Any number of sweeps may run at once, on any hosts: each response is claimed by one of them. What cannot be
        stopped is claimed again later, after 30 s at first and an hour at most, and is given up in the end. A key that
        is refused ends the sweep.

        Args:
            session: of the server and the account whose responses are stopped; others are left alone.
            batch: how many are claimed at once.
            max_attempts: after how many attempts a response is given up; by then some five hours have passed.
            concurrency: as for `stop_many`.
            deadline: as for `stop_many`.
            confirm: as for `stop_many`.
            max_retries: as for `stop_many`.
            headers: as for `stop_many`.
            query: as for `stop_many`.

        Raises:
            LedgerError: the database failed for longer than a lease; from the iteration.
            SessionStateError: the ledger is not open, or belongs to another event loop.
            ConfigurationError: an option cannot work.
        """
        sweep = Sweep(
            self._open_book,
            account=_account(session),
            batch=check_count("batch", batch, least=1),
            max_attempts=check_count("max_attempts", max_attempts, least=1),
            stop_many=partial(
                session.stop_many,
                concurrency=concurrency,
                deadline=deadline,
                confirm=confirm,
                max_retries=max_retries,
                headers=headers,
                query=query,
            ),
        )
        return sweep.run()

    def tracker(self, *, account: str, base_url: str, required: bool) -> Tracking:
        """See `openai_cancel.tracking.SessionLedger`."""
        if self._book is None:
            raise SessionStateError(_NOT_OPEN)
        return Tracking(self._book, Account(account, base_url), self._labels, required=required)

    async def attach(self, *, required: bool) -> bool:
        """See `openai_cancel.tracking.SessionLedger`."""
        if self._book is None:
            await self.open(check=required)
            return True
        _ = self._open_book  # which raises if that is in another
        return False

    @property
    def _open_book(self) -> Book:
        if self._book is None:
            raise SessionStateError(_NOT_OPEN)
        if self._book.loop is not asyncio.get_running_loop():
            raise SessionStateError("The ledger was opened in another event loop: make one for each loop.")
        return self._book


def _account(session: AsyncSession) -> Account:
    if not isinstance(session, AsyncSession):
        raise ConfigurationError(
            f"session must be an AsyncSession, not {type(session).__name__}. In a script that blocks, the command "
            "`openai-cancel ledger` does the same."
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


async def _nothing(_: AsyncConnection) -> None:
    """What is asked to see whether the database answers: it makes the tables."""


async def _count(statement: Executable, connection: AsyncConnection) -> int:
    return (await connection.execute(statement)).rowcount


async def _fetch(statement: Executable, connection: AsyncConnection) -> Sequence[Row[Any]]:
    return (await connection.execute(statement)).all()

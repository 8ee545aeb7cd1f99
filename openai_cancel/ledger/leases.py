"""The leases that one process holds in a ledger, and the heartbeat that renews them."""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import TypeVar

import attrs

from openai_cancel.clock import Clock
from openai_cancel.errors import LedgerError
from openai_cancel.ledger.connection import Rows
from openai_cancel.ledger.database import BATCH_SIZE, ClosedError, Database
from openai_cancel.ledger.fate import Fate, decide_fate, describe_taken
from openai_cancel.ledger.health import Health
from openai_cancel.ledger.table import (
    TRACKED,
    Change,
    End,
    Record,
    RowState,
    Settlement,
    count_owned,
    give_back,
    look,
    owned,
)
from openai_cancel.ledger.writes import renew, share, write
from openai_cancel.log_events import log_fields
from openai_cancel.outcome import Outcome

MAX_MISSED = 100_000
"""The maximum number of changes that are kept, to be written later, while the database fails."""

MAX_APART = 1_000
"""The number of missed ends up to which each is written apart from the others. A close has no time for more jobs."""

REPORTED = 100
"""The maximum number of changes in a line of the log."""

MAX_LOOKED_AT = 500
"""The maximum number of rows that one statement looks at."""

Written = asyncio.Future[Rows]
"""The result of a write, for which `Leases.wait` waits."""

Listener = Callable[[Outcome], None]
"""A function that a guard is told with that another process stops a response, or has stopped it."""

_WATCHED = frozenset({Fate.SHARED, Fate.TAKEN})
"""The fates that may change."""

_UNTRANSLATABLE = "22P05"
"""The SQLSTATE for a text that the encoding of the database cannot hold.

See https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

_T = TypeVar("_T")

_log = logging.getLogger("openai_cancel.ledger")


@attrs.define(eq=False)
class _Held:
    """A row that guards hold.

    Attributes:
        record: the row as it is written.
        since: the time at which it was written first.
        listeners: one for each guard, because a response can be guarded more than once.
        writes: how often it was written.
        fate: what is known about it.
    """

    record: Record
    since: float
    listeners: list[Listener] = attrs.field(factory=list[Listener])
    writes: int = 0
    fate: Fate = Fate.OURS


class Leases:
    """The leases that this process holds. Each heartbeat renews all of them with one statement.

    After a heartbeat, the ends that could not be written before are written, unless they no longer matter. If the
    process owns fewer rows than it holds, the heartbeat looks for the others: a row that is missing is written again,
    and the guards of a row that another process has taken are told.

    Args:
        database: the database. It is closed together with this object.
        duration: seconds that a lease lasts. There are three heartbeats in that time.
        clock: the source of time.

    Attributes:
        database: the database.
        duration: seconds that a lease lasts.
        owner: the name of this process in the ledger.
        health: whether the database works.
        is_closed: whether `close` was called.
    """

    def __init__(self, database: Database, *, duration: float, clock: Clock) -> None:
        self.database = database
        self.duration = duration
        self.owner: str = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._clock = clock
        self._held: dict[str, _Held] = {}  # by digest
        self._sweeps: set[str] = set()
        self._missed: dict[str, Change] = {}
        self.health: Health = Health()
        self.is_closed: bool = False
        self._has_beaten = asyncio.Event()
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._catch_up())]

    async def close(self) -> None:
        """Write what is still to be written, and close the database. Leases that are still held expire.

        The claims of sweeps that still run are given back.

        It takes no longer than the timeout of the database, and about a second if it is cancelled. What could not be
        written is logged.
        """
        for task in self._tasks:
            task.cancel()
        self.is_closed = True
        self._write_apart(self._missed_ends())
        if self._sweeps:
            with suppress(LedgerError):  # too many jobs are waiting, and the claims expire
                self.database.submit([give_back([*self._sweeps])])
        try:
            await self.database.close()
            await asyncio.wait(self._tasks)
        finally:
            self._report_unwritten()

    def hold(self, records: Collection[Record], listener: Listener) -> Written:
        """Hold the leases of rows for a guard, and write them.

        They are written even if another guard of this process holds them: somebody else may have released or taken
        them since its last heartbeat.
        """
        for record in records:
            held = self._held.setdefault(record.digest, _Held(record, self._clock.monotonic()))
            held.listeners.append(listener)
            held.record = _with_earliest_limit(record, held.record)
            held.writes += 1
            held.fate = Fate.OURS
        return self.write([*records])

    def let_go(self, ends: Collection[End], listener: Listener) -> Written:
        """Give up the leases of rows for a guard, and write the ends of those that no other guard holds."""
        last: list[End] = []
        for end in ends:
            held = self._held.get(end.digest)
            if held is None or listener not in held.listeners:
                continue
            held.listeners.remove(listener)
            if not held.listeners:
                del self._held[end.digest]
                last += [end] if held.fate in {Fate.OURS, Fate.SHARED} else []
        return self.write(last)

    def holds(self, digest: str) -> bool:
        """Return whether a guard of this process holds a row, even if it could not be written yet."""
        return digest in self._held

    def write(self, changes: Sequence[Change]) -> Written:
        """Write changes now. `wait` waits for it. If it fails, a later heartbeat writes ends and guarded rows."""
        for change in changes:
            self._missed.pop(change.digest, None)
        written: Written = self.database.loop.create_future()
        if not changes:
            written.set_result(())
            return written
        try:
            written = self.database.submit(write(changes, self.database.dialect))
        except LedgerError as error:
            written.set_exception(error)
        written.add_done_callback(partial(self._note, changes))
        return written

    async def wait(self, written: Written) -> None:
        """Wait until changes are written.

        Raises:
            LedgerError: they could not be written yet.
        """
        try:
            await self.database.wait(written)
        except LedgerError as error:
            self.health.note_failure(error)
            raise

    def give_back(self, sweep: str) -> Written:
        """Let others claim what a sweep has claimed and not stopped, also if a claim is under way.

        Raises:
            LedgerError: too many jobs are waiting, or the ledger is closed.
        """
        return self.database.submit([give_back([sweep])])

    @contextmanager
    def renewing(self, sweep: str) -> Generator[None, None, None]:
        """Renew the leases of a sweep, too, while the block runs. Its claims are leases."""
        self._sweeps.add(sweep)
        try:
            yield
        finally:
            self._sweeps.discard(sweep)

    def _note(self, changes: Collection[Change], written: Written) -> None:
        """Keep changes that could not be written for a later heartbeat."""
        error = written.exception()
        if error is None:
            self.health.note_success()
            for change in changes:
                self._missed.pop(change.digest, None)
            return
        self.health.note_failure(error)
        lost = 0
        if getattr(error.__cause__, "sqlstate", None) == _UNTRANSLATABLE:
            changes = [change.in_ascii() if isinstance(change, Settlement) else change for change in changes]
        for change in changes:
            if len(self._missed) < MAX_MISSED:
                self._missed[change.digest] = change
            else:
                lost += not isinstance(change, Record)
        if lost:
            _log.error(
                "the ends of %s guarded responses could not be written: their leases will expire", f"{lost:,}",
                extra=log_fields("ledger_unwritten", affected=lost),
            )  # fmt: skip
        if isinstance(error, ClosedError):  # perhaps after `close` has reported the others
            self._report_unwritten()

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self.duration / 3)
            await self._renew()
            self._has_beaten.set()

    async def _renew(self) -> None:
        """Renew all leases, and find out what became of rows that were lost."""
        owners = {*self._sweeps, self.owner} if self._held else self._sweeps
        try:
            if owners:
                await self._renew_leases(owners)
        except LedgerError as error:
            self.health.note_failure(error)

    async def _catch_up(self) -> None:
        """Write the ends that were missed after each heartbeat, which does not wait for them."""
        while True:
            await self._has_beaten.wait()
            self._has_beaten.clear()
            missed = self._missed_ends()
            for ends in _parts((end for end in missed if self._missed.get(end.digest) is end), BATCH_SIZE):
                written = self._write_apart(ends)
                await asyncio.wait(written)
                if all(one.exception() for one in written):
                    break  # the database fails

    def _write_apart(self, ends: Collection[End]) -> list[Written]:
        """Write ends that were missed, each as a job of its own, so that one that fails does not affect the others."""
        size = 1 + len(ends) // MAX_APART
        return [self.write(part) for part in _parts(ends, size)]

    def _missed_ends(self) -> list[End]:
        """Return the ends that were missed and still matter, and forget the other changes that were missed."""
        # A row that is held again was written again. Heartbeats find the rows of guards that are missing by themselves,
        # and who has called `Ledger.track` was told.
        ends = [
            change
            for change in self._missed.values()
            if not isinstance(change, Record) and (change.owner != self.owner or change.digest not in self._held)
        ]
        self._missed = {end.digest: end for end in ends}
        return ends

    def _report_unwritten(self) -> None:
        for changes in _parts(self._missed.values(), REPORTED):
            _log.warning(
                "the ledger was closed before it could write the new states of these responses, and sweeps go by the "
                "old ones: %s",
                ", ".join(f"{change.response_id} ({_new_state(change)})" for change in changes),
                extra=log_fields("ledger_unwritten", affected=len(changes)),
            )
        self._missed.clear()

    async def _renew_leases(self, owners: Collection[str]) -> None:
        counted = {digest: held for digest, held in self._held.items() if held.fate is Fate.OURS}
        watched = {digest: held for digest, held in self._held.items() if held.fate in _WATCHED}
        ((found,),) = await self.database.execute(
            renew(owners, self.duration, self.database.dialect), count_owned(self.owner)
        )
        self.health.note_success()
        # A row whose end is still to be written may be counted in the place of one that was lost.
        lost = {} if found == len(counted) and not self._missed else await self._find_lost(counted)
        await self._look_at({**watched, **lost})

    async def _find_lost(self, counted: Mapping[str, _Held]) -> dict[str, _Held]:
        """Return the rows that this process should own, and does not."""
        known = {*counted, *self._held, *self._missed}  # before the answer comes, ends may be on their way
        ours = {digest for (digest,) in await self.database.execute(owned(self.owner))}
        unknown = ours - known - self._held.keys() - self._missed.keys()  # their ends were lost
        self.write([Settlement(digest, "?", self.owner, TRACKED, again_in=self.duration) for digest in unknown])
        return {digest: held for digest, held in counted.items() if digest not in ours}

    async def _look_at(self, rows: Mapping[str, _Held]) -> None:
        """Find out what became of rows, tell their guards, and write those again that nobody has taken."""
        again: list[Record] = []
        missing = 0
        for digests in _parts(rows, MAX_LOOKED_AT):
            writes = {digest: rows[digest].writes for digest in digests}
            found = await self.database.execute(look(digests))
            sightings = {row.digest: RowState._make(row) for row in found}
            for digest in digests:
                held = rows[digest]
                # Otherwise it was let go, or written again.
                if self._held.get(digest) is held and held.writes == writes[digest]:
                    lost = self._learn(held, sightings.get(digest))
                    missing += len(lost) * (digest not in sightings)
                    again += lost
            held_now = [digest for digest in digests if self._held.get(digest) is rows[digest]]
            if shared := [digest for digest in held_now if rows[digest].fate is Fate.SHARED]:
                await self.database.execute(share(shared, self.owner, self.duration))
        if missing:
            _log.error(
                "%s running responses were not in the ledger, and are recorded again", f"{missing:,}",
                extra=log_fields("ledger_missed", affected=missing),
            )  # fmt: skip
        self.write(again)

    def _learn(self, held: _Held, row: RowState | None) -> list[Record]:
        """Note what has become of a row, tell its guards, and return what is to be written again."""
        before, fate = held.fate, decide_fate(row, self.owner)
        if before is Fate.TAKEN and fate not in {Fate.TAKEN, Fate.ENDED, Fate.RELEASED}:
            # A sweep that was interrupted has given it back to others. If it has been deleted, it had ended.
            held.fate = Fate.ENDED if row is None else Fate.TAKEN
            return []
        if fate is Fate.LEFT or row is None:
            held.fate = Fate.OURS
            held.writes += 1
            return [held.record if row else self._aged(held)]
        held.fate = fate
        if fate in {Fate.TAKEN, Fate.ENDED}:
            outcome = describe_taken(row, held.record.response_id)
            if before is not fate:
                _log.warning(
                    "%s was taken from its guard (%s)", outcome.response_id, outcome.verdict,
                    extra=log_fields(
                        "lease_taken",
                        response_id=outcome.response_id,
                        verdict=outcome.verdict,
                        attempts=outcome.attempts,
                        request_id=outcome.request_id,
                        error=outcome.error,
                    ),
                )  # fmt: skip
            for listener in [*held.listeners]:
                listener(outcome)
        return []

    def _aged(self, held: _Held) -> Record:
        """Return a row that is written as if it were new, with what is left of its limit."""
        limit = held.record.max_age
        if limit is None:
            return held.record
        return held.record._replace(max_age=max(limit - (self._clock.monotonic() - held.since), 0.0))


def _new_state(change: Change) -> str:
    return TRACKED if isinstance(change, Record) else change.state


def _with_earliest_limit(record: Record, other: Record) -> Record:
    limits = [limit for limit in (record.max_age, other.max_age) if limit is not None]
    return record._replace(max_age=min(limits, default=None))


def _parts(items: Iterable[_T], size: int) -> Generator[list[_T], None, None]:
    """Yield items, as many at once."""
    source = iter(items)
    while part := [*islice(source, size)]:
        yield part

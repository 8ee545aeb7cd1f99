"""The sweeper of `ledger sweep --every`: sweeps a ledger again and again, and logs what it does."""

import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, NoReturn

import attrs

from openai_cancel.cli.ledger_state import describe_neglected
from openai_cancel.cli.log_records import showing_records
from openai_cancel.cli.output import complain, stamping
from openai_cancel.clock import SYSTEM_CLOCK, Clock
from openai_cancel.errors import APIConnectionError, LedgerError
from openai_cancel.log_events import log_fields
from openai_cancel.outcome import Outcome

if TYPE_CHECKING:
    from openai_cancel.ledger import Stats

HEARTBEAT = 60.0
"""Seconds after which an idle sweeper logs that it is idle."""

CHECK_EVERY = 600.0
"""Seconds between two checks for overdue responses of other accounts and servers."""

_log = logging.getLogger("openai_cancel.sweeper")
_ledger_log = logging.getLogger("openai_cancel.ledger")


@attrs.define
class Sweeper:
    """Sweeps until it is cancelled. Errors of the database do not end it, nor does a server that cannot be reached.

    Attributes:
        sweep: begins a sweep.
        show: shows an outcome.
        find_neglected: returns the overdue responses of other accounts and servers, if nobody seems to sweep them.
        every: seconds between two sweeps.
        where: the ledger, the account and the server, in words.
        clock: the source of time.
    """

    sweep: Callable[[], AsyncGenerator[Outcome, None]]
    show: Callable[[Outcome], None]
    find_neglected: Callable[[], Awaitable["Stats | None"]]
    every: float
    where: str
    clock: Clock = SYSTEM_CLOCK
    _last_work: float = 0.0
    _last_message: float = 0.0
    _next_check: float = 0.0

    async def run(self) -> NoReturn:
        """Sweep again and again."""
        _log.info("sweeping every %g s: %s", self.every, self.where, extra=log_fields("sweeper_started"))
        self._last_work = self._last_message = self._next_check = self.clock.monotonic()
        try:
            while True:
                await self._sweep_once()
                await self.clock.sleep(self.every)
        finally:
            _log.info("sweeper stopped", extra=log_fields("sweeper_ended"))

    async def _sweep_once(self) -> None:
        began = self.clock.monotonic()
        counts: dict[str, int] = {}
        try:
            async with aclosing(self.sweep()) as outcomes:
                async for outcome in outcomes:
                    self.show(outcome)
                    counts[outcome.verdict] = counts.get(outcome.verdict, 0) + 1
            await self._check_others()
        except (LedgerError, APIConnectionError) as error:
            _log.error(
                "sweep failed; retrying in %g s: %s", self.every, error,
                extra=log_fields("sweeper_failed", error=error),
            )  # fmt: skip
            self._last_message = self.clock.monotonic()
        finally:  # a signal may end the sweep
            if counts:
                self._last_work = self._last_message = now = self.clock.monotonic()
                self._log_round(counts, now - began)
        if self.clock.monotonic() - self._last_message >= HEARTBEAT:
            self._last_message = now = self.clock.monotonic()
            _log.info(
                "nothing to stop for %.0f s", now - self._last_work,
                extra=log_fields("sweeper_idle", elapsed=now - self._last_work),
            )  # fmt: skip

    async def _check_others(self) -> None:
        """Log, every `CHECK_EVERY` seconds, that nobody seems to sweep for other accounts and servers."""
        if self.clock.monotonic() < self._next_check:
            return
        self._next_check = self.clock.monotonic() + CHECK_EVERY
        neglected = await self.find_neglected()
        if neglected is not None:
            _log.warning(
                "%s", describe_neglected(neglected), extra=log_fields("sweeper_neglected", affected=neglected.overdue)
            )

    def _log_round(self, counts: dict[str, int], seconds: float) -> None:
        total = sum([*counts.values()])
        words = ", ".join(f"{count:,} {verdict.replace('_', ' ')}" for verdict, count in counts.items())
        _log.info(
            "%s response%s in %.1f s: %s", f"{total:,}", "s" * (total != 1), seconds, words,
            extra=log_fields("sweeper_round", affected=total, elapsed=seconds),
        )  # fmt: skip


class _ComplainHandler(logging.Handler):
    """Writes records to standard error, as lines of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        complain(record.getMessage())


@contextmanager
def showing_log(*, quiet: bool) -> Generator[None, None, None]:
    """Write what the sweeper and its ledger log to standard error, with the time unless that is a terminal.

    Args:
        quiet: write only warnings and errors.
    """
    handler = _ComplainHandler(logging.WARNING if quiet else logging.INFO)
    with (
        showing_records(handler, _log, _ledger_log),
        stamping(on=sys.stderr is None or not sys.stderr.isatty()),
    ):
        yield

"""The sweeper: sweeps a ledger again and again, and says what it does, for those who watch a service."""

import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, NoReturn

import attrs

from openai_cancel.cli.ledger_state import describe_neglected
from openai_cancel.cli.output import complain, stamping
from openai_cancel.clock import SYSTEM_CLOCK, Clock
from openai_cancel.errors import LedgerError
from openai_cancel.outcome import Outcome
from openai_cancel.records import fields

if TYPE_CHECKING:
    from openai_cancel.ledger import Stats

HEARTBEAT = 60.0
"""Seconds after which a sweeper that has nothing to do says so."""

LOOK_EVERY = 600.0
"""Seconds between two looks at the responses of other accounts and servers."""

_log = logging.getLogger("openai_cancel.sweeper")
_ledger_log = logging.getLogger("openai_cancel.ledger")


@attrs.define
class Sweeper:
    """Sweeps until it is cancelled. A failing database does not end it.

    Attributes:
        sweep: begins a sweep.
        show: shows an outcome.
        look: returns the overdue responses of other accounts and servers, if nobody seems to sweep them.
        every: seconds between two sweeps.
        where: words about the ledger and the account.
        clock: the source of time.
    """

    sweep: Callable[[], AsyncGenerator[Outcome, None]]
    show: Callable[[Outcome], None]
    look: Callable[[], Awaitable["Stats | None"]]
    every: float
    where: str
    clock: Clock = SYSTEM_CLOCK
    _last_work: float = 0.0
    _last_words: float = 0.0
    _next_look: float = 0.0

    async def run(self) -> NoReturn:
        """Sweep again and again."""
        _log.info("sweeping every %g s: %s", self.every, self.where, extra=fields("sweeper_started"))
        self._last_work = self._last_words = self._next_look = self.clock.monotonic()
        try:
            while True:
                await self._sweep_once()
                await self.clock.sleep(self.every)
        finally:
            _log.info("the sweeper ends", extra=fields("sweeper_ended"))

    async def _sweep_once(self) -> None:
        began = self.clock.monotonic()
        counts: dict[str, int] = {}
        try:
            async with aclosing(self.sweep()) as outcomes:
                async for outcome in outcomes:
                    self.show(outcome)
                    counts[outcome.verdict] = counts.get(outcome.verdict, 0) + 1
            await self._look_at_others()
        except LedgerError as error:
            _log.error(
                "the sweep has failed, and is tried again in %g s: %s", self.every, error,
                extra=fields("sweeper_failed", error=error),
            )  # fmt: skip
            self._last_words = self.clock.monotonic()
        if counts:
            self._last_work = self._last_words = now = self.clock.monotonic()
            self._say_what_was_done(counts, now - began)
        elif self.clock.monotonic() - self._last_words >= HEARTBEAT:
            self._last_words = now = self.clock.monotonic()
            _log.info(
                "nothing to stop for %.0f s", now - self._last_work,
                extra=fields("sweeper_idle", elapsed=now - self._last_work),
            )  # fmt: skip

    async def _look_at_others(self) -> None:
        """Say now and then that nobody sweeps what this sweeper cannot stop."""
        if self.clock.monotonic() < self._next_look:
            return
        self._next_look = self.clock.monotonic() + LOOK_EVERY
        neglected = await self.look()
        if neglected is not None:
            _log.warning(
                "%s", describe_neglected(neglected), extra=fields("sweeper_neglected", affected=neglected.overdue)
            )

    def _say_what_was_done(self, counts: dict[str, int], seconds: float) -> None:
        total = sum([*counts.values()])
        words = ", ".join(f"{count:,} {verdict.replace('_', ' ')}" for verdict, count in counts.items())
        _log.info(
            "%s response%s in %.1f s: %s", f"{total:,}", "s" * (total != 1), seconds, words,
            extra=fields("sweeper_round", affected=total, elapsed=seconds),
        )  # fmt: skip


class _Speaker(logging.Handler):
    """Writes records to standard error, as lines of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        complain(record.getMessage())


@contextmanager
def speaking(*, quiet: bool) -> Generator[None, None, None]:
    """Write to standard error what the sweeper and its ledger log, with the time unless that is a terminal.

    Args:
        quiet: write only what goes wrong.
    """
    speaker = _Speaker(logging.WARNING if quiet else logging.INFO)
    before = [(log, log.level) for log in (_log, _ledger_log)]
    for log, _ in before:
        log.addHandler(speaker)
        log.setLevel(logging.INFO)
    try:
        with stamping(on=sys.stderr is None or not sys.stderr.isatty()):
            yield
    finally:
        for log, level in before:
            log.removeHandler(speaker)
            log.setLevel(level)

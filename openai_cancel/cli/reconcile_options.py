"""The options of `ledger reconcile`."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from openai_cancel.cli.exit_status import UsageError
from openai_cancel.cli.options import FILES, OPTIONS, File, FilterOptions, Flag, Pairs, Seconds
from openai_cancel.cli.output import has_terminal

MIN_AGE = 60.0
"""Seconds after the creation of a response in which it may not be recorded yet."""


@Parameter(name="*", group=OPTIONS)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReconcileOptions:
    """The options for responses that run and that the ledger does not know. Without --adopt or --stop, they are shown.

    Attributes:
        adopt: Record the responses that run and that the ledger does not know, so that a sweep stops them after --ttl.
        ttl: The time after which a sweep stops adopted responses, such as 15m or 2h.
        label: A label of the responses that are recorded, as NAME=VALUE. Can be repeated.
        stop: Record them, and stop them now. It asks first.
        everything: Adopt or stop all of them, whoever created them.
        yes: Do not ask.
        dry_run: Change and stop nothing, and only show the differences.
        log: Append a JSON line for each difference to this file.
    """

    adopt: Annotated[bool, Flag] = False
    ttl: Seconds | None = None
    label: Pairs = ()
    stop: Annotated[bool, Flag] = False
    everything: Annotated[bool, Flag, Parameter("--all")] = False
    yes: Annotated[bool, Flag] = False
    dry_run: Annotated[bool, Flag] = False
    log: Annotated[File | None, Parameter(group=FILES)] = None

    @property
    def asks(self) -> bool:
        """Whether to ask before responses are stopped."""
        return self.stop and not (self.yes or self.dry_run)

    def check(self, filters: FilterOptions) -> None:
        """Refuse options that cannot be combined.

        Raises:
            UsageError: they cannot.
        """
        filters.check()
        if self.adopt and self.stop:
            raise UsageError("--adopt cannot be combined with --stop.")
        if self.adopt != (self.ttl is not None):
            one, other = ("--adopt", "--ttl") if self.adopt else ("--ttl", "--adopt")
            raise UsageError(f"{one} requires {other}: adopted responses are stopped by a sweep after that time.")
        if filters.newer_than is not None and filters.newer_than <= MIN_AGE and filters.older_than is None:
            raise UsageError(f"--newer-than must be more than --older-than, which is {MIN_AGE:g} s by default.")
        if self.label and not (self.adopt or self.stop):
            raise UsageError("--label requires --adopt or --stop.")
        if self.yes and not self.stop:
            raise UsageError("--yes requires --stop.")
        self._check_extent(filters)
        if self.asks and not has_terminal():
            raise UsageError("--stop asks before it stops anything: without a terminal, use --yes, or --dry-run first.")

    def _check_extent(self, filters: FilterOptions) -> None:
        if not (self.adopt or self.stop):
            if self.everything:
                raise UsageError("--all requires --adopt or --stop.")
        elif not filters.conditions and not self.everything:
            raise UsageError(
                f"{'--stop' if self.stop else '--adopt'} requires a condition, such as --older-than 1h, or --all for "
                "everybody's."
            )
        elif filters.conditions and self.everything:
            raise UsageError(f"--all cannot be combined with {filters.conditions[0]}.")


DEFAULT_RECONCILE = ReconcileOptions()

"""`Reconciliation`: compare a ledger with the list of its server, and settle the differences."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Literal, TypeAlias

import attrs
from sqlalchemy import Row

from openai_cancel.bulk import stop_many
from openai_cancel.caller import Caller
from openai_cancel.clock import Clock
from openai_cancel.errors import AuthenticationError, ConfigurationError
from openai_cancel.finding import Finding, FindingKind
from openai_cancel.ledger.bloom_filter import BloomFilter
from openai_cancel.ledger.differences import ENDED, accounts, adopt, claim_ended, free_rows, states, strike_off
from openai_cancel.ledger.leases import Leases
from openai_cancel.ledger.selection import Place
from openai_cancel.ledger.sweep import SWEEP_STORE_DELAY, Sweep
from openai_cancel.ledger.table import Account, Claimed
from openai_cancel.listing import Filters, running
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome, Verdict

LIST_STALENESS = 60.0
"""Seconds after a response was recorded as ended in which a list may still show it as running."""

ACCOUNTS_FOR = 20.0
"""Seconds after which the names of the accounts are read again: less than the age of the youngest responses."""

BATCH = 100
"""The number of responses that are looked up, or rows that are changed, in one transaction."""

PAGE_SIZE = 500
"""The number of rows that are read at once."""

MAX_LOOKED_UP = 500
"""The maximum number of digests of a statement."""

OnUnknown: TypeAlias = Literal["report", "adopt", "stop"]
"""The fate of responses that run and that the ledger does not know."""

UNKNOWN_CHOICES: tuple[OnUnknown, ...] = ("report", "adopt", "stop")
"""All values of `OnUnknown`."""


@attrs.define(kw_only=True, eq=False)
class Reconciliation:
    """A `Ledger.reconcile` that is under way, which explains the details.

    Attributes:
        leases: the leases of the process.
        caller: makes the calls.
        account: returns the account whose rows are compared.
        clock: the clock and the source of randomness.
        unknown: the fate of unknown responses.
        ttl: seconds until a sweep may stop those that are adopted.
        labels: the labels of new rows.
        max_age: the limit of the ledger.
        filters: the conditions for unknown responses, but for `older_than`.
        older_than: the least age of unknown responses.
        limit: the maximum number of unknown responses.
        select: returns whether to handle a response; or None for all.
        dry_run: whether to change nothing.
        max_attempts: as for `Ledger.sweep`.
        concurrency: as for `AsyncSession.stop_many`.
        deadline: as for `AsyncSession.stop_many`.
        confirm: as for `AsyncSession.stop_many`.
        max_retries: as for `AsyncSession.stop_many`.
    """

    leases: Leases
    caller: Caller
    account: Callable[[], Awaitable[Account]]
    clock: Clock
    unknown: OnUnknown
    ttl: float
    labels: Mapping[str, str]
    max_age: float | None
    filters: Filters
    older_than: float
    limit: int | None
    select: Callable[[Response], object] | None
    dry_run: bool
    max_attempts: int
    concurrency: int
    deadline: float
    confirm: float | None
    max_retries: int | None

    _seen: BloomFilter = attrs.field(init=False, factory=BloomFilter)
    _accounts: list[str] = attrs.field(init=False, factory=list[str])
    _accounts_until: float = attrs.field(init=False, default=float("-inf"))
    _claimed: dict[str, Finding] = attrs.field(init=False, factory=dict[str, Finding])

    async def run(self) -> AsyncGenerator[Finding, None]:
        """Yield the differences, first of what runs, then of what is tracked."""
        account = await self.account()
        async with aclosing(self._running(account)) as found:
            async for finding in found:
                yield finding
        async with aclosing(self._tracked(account)) as found:
            async for finding in found:
                yield finding

    async def _running(self, account: Account) -> AsyncGenerator[Finding, None]:
        """Yield the responses that run and that the ledger does not track, once they are handled."""
        if self.unknown == "stop" and not self.dry_run:
            async with aclosing(self._stop(account)) as stopped:
                async for finding in stopped:
                    yield finding
            return
        async with aclosing(self._differences(account)) as pages:
            async for found in pages:
                adopts = self.unknown == "adopt" and not self.dry_run
                for finding in await self._adopt(account, found) if adopts else found:
                    yield finding

    async def _differences(self, account: Account) -> AsyncGenerator[list[Finding], None]:
        """Yield batches of the responses that run and that the ledger does not track, and remember all that run."""
        left = self.limit
        async with aclosing(_batches(running(self.caller, self.filters, None))) as batches:
            async for batch in batches:
                for name in batch:
                    self._seen.add(account.digest(name))
                old = {name: one for name, one in batch.items() if self._is_candidate(one)}
                found = [
                    Finding(response_id=name, kind=kind, action=None, response=old[name], outcome=None)
                    for name, kind in (await self._look_up(account, old)).items()
                    if self._selects(old[name])
                ][:left]
                if found:
                    yield found
                left = None if left is None else left - len(found)
                if left == 0:
                    return

    def _is_candidate(self, response: Response) -> bool:
        """Return whether a response is old enough to be recorded, and can be stopped by its id."""
        return response.background is not False and (response.age or 0.0) > self.older_than

    def _selects(self, response: Response) -> bool:
        """Return whether the caller's function wants a response to be handled."""
        if self.select is None:
            return True
        answer = self.select(response)
        if not inspect.isawaitable(answer):
            return bool(answer)
        if inspect.iscoroutine(answer):
            answer.close()
        raise ConfigurationError(
            "select must be an ordinary function, not an async one, which would select everything."
        )

    async def _look_up(self, account: Account, responses: Mapping[str, Response]) -> dict[str, FindingKind]:
        """Return the kinds of those responses that no account tracks or has released."""
        # A guard of this process may not have written its row yet, because the database has failed.
        names = [name for name in responses if not self.leases.holds(account.digest(name))]
        if not names:
            return {}
        ids = {
            Account(of_account, account.base_url).digest(name): name
            for of_account in {account.name, *await self._account_names(account.base_url)}
            for name in names
        }
        known: set[str] = set()
        forgotten: set[str] = set()
        digests = [*ids]
        for begin in range(0, len(digests), MAX_LOOKED_UP):
            for row in await self.leases.database.read(states(digests[begin : begin + MAX_LOOKED_UP])):
                is_forgotten = row.state in ENDED and row.unchanged_for > LIST_STALENESS
                (forgotten if is_forgotten else known).add(ids[row.digest])
        return {name: "forgotten" if name in forgotten else "unknown" for name in names if name not in known}

    async def _account_names(self, base_url: str) -> list[str]:
        """Return the names of all accounts on the server, because a key may have been replaced."""
        if self.clock.monotonic() > self._accounts_until:
            rows = await self.leases.database.read(accounts(base_url))
            self._accounts = [row.account for row in rows]
            self._accounts_until = self.clock.monotonic() + min(ACCOUNTS_FOR, self.older_than)
        return self._accounts

    async def _adopt(self, account: Account, found: list[Finding]) -> list[Finding]:
        """Record unknown responses, and return them, without those that somebody else has recorded meanwhile."""
        new = [finding.response_id for finding in found if finding.kind == "unknown"]
        adopted = await self._record(account, new, owner=None, seconds=self.ttl)
        return [
            attrs.evolve(finding, action="adopt") if finding.response_id in adopted else finding
            for finding in found
            if finding.response_id in adopted or finding.kind == "forgotten"
        ]

    async def _record(self, account: Account, ids: list[str], *, owner: str | None, seconds: float) -> set[str]:
        """Write rows that do not exist, and return their ids."""
        if not ids:
            return set()
        records = {
            record.digest: record
            for record in (
                account.record(name, owner=owner, seconds=seconds, labels=self.labels, max_age=self.max_age)
                for name in ids
            )
        }
        command = adopt([*records.values()], self.leases.database.dialect, claim=owner is not None)
        return {records[row.digest].response_id for row in await self.leases.database.execute(command)}

    async def _stop(self, account: Account) -> AsyncGenerator[Finding, None]:
        """Stop the responses that run and that the ledger does not track. Their rows say what became of them."""
        sweep = Sweep(
            leases=self.leases,
            account=self.account,
            caller=self.caller,
            source=partial(self._claim, account),
            clock=self.clock,
            batch=BATCH,
            max_attempts=self.max_attempts,
            concurrency=self.concurrency,
            deadline=self.deadline,
            confirm=self.confirm,
            max_retries=self.max_retries,
        )
        async with aclosing(sweep.run()) as outcomes:
            async for outcome in outcomes:
                finding = self._claimed.pop(outcome.response_id)
                response = outcome.response or finding.response
                yield attrs.evolve(finding, action="stop", response=response, outcome=outcome)

    async def _claim(self, account: Account, owner: str) -> AsyncGenerator[list[Claimed], None]:
        """Claim the rows of the responses to stop, so that a sweep stops them if this process dies."""
        async with aclosing(self._differences(account)) as pages:
            async for found in pages:
                findings = {finding.response_id: finding for finding in found}
                taken = await self._record(account, [*findings], owner=owner, seconds=self.leases.duration)
                ended = {
                    account.digest(name): name
                    for name, finding in findings.items()
                    if finding.kind == "forgotten" and name not in taken  # it may be the row of another account
                }
                if ended:
                    rows = await self.leases.database.execute(claim_ended(ended, owner, self.leases.duration))
                    taken.update(ended[row.digest] for row in rows)
                self._claimed |= {name: findings[name] for name in taken}
                # The list has shown them, so they are not too new to be found.
                yield [Claimed(account.digest(name), name, 1, SWEEP_STORE_DELAY) for name in taken]

    async def _tracked(self, account: Account) -> AsyncGenerator[Finding, None]:
        """Yield tracked responses that have ended, after striking them off, and those that are unclear."""
        rows: dict[str, Row[tuple[str, str, float, float]]] = {}
        over: list[Outcome] = []
        outcomes = stop_many(
            self.caller,
            self._unseen(account, rows),
            concurrency=self.concurrency,
            deadline=self.deadline,
            dry_run=True,
            max_retries=self.max_retries,
        )
        async with aclosing(outcomes):
            async for outcome in outcomes:
                row = rows.pop(outcome.response_id)
                if outcome.stopped or (outcome.verdict is Verdict.NOT_FOUND and row.age >= SWEEP_STORE_DELAY):
                    over.append(outcome)
                elif outcome.verdict is not Verdict.STILL_RUNNING:
                    yield _finding(outcome, "unclear")
                if len(over) >= BATCH:
                    for finding in await self._strike_off(account, over):
                        yield finding
                    over = []
                if isinstance(outcome.error, AuthenticationError):
                    break  # a key that is refused for one response is refused for all
        for finding in await self._strike_off(account, over):
            yield finding

    async def _unseen(
        self, account: Account, rows: dict[str, Row[tuple[str, str, float, float]]]
    ) -> AsyncGenerator[str, None]:
        """Yield the ids of the open rows that nobody holds, and whose response was not seen to run."""
        after = Place()
        while True:
            page = await self.leases.database.read(free_rows(account, after, limit=PAGE_SIZE))
            for row in page:
                # A row that is deleted and recorded again meanwhile is read twice.
                if row.digest not in self._seen and row.response_id not in rows:
                    rows[row.response_id] = row
                    yield row.response_id
            if len(page) < PAGE_SIZE:
                return
            after = Place(page[-1].created, page[-1].digest)

    async def _strike_off(self, account: Account, over: list[Outcome]) -> list[Finding]:
        """Record the ends of responses, and return them, without those that somebody else holds meanwhile."""
        if self.dry_run:
            return [_finding(outcome, "ended") for outcome in over]
        struck: set[str] = set()
        for verdict in sorted({outcome.verdict for outcome in over}):
            digests = [account.digest(outcome.response_id) for outcome in over if outcome.verdict is verdict]
            rows = await self.leases.database.execute(strike_off(digests, verdict))
            struck.update(row.digest for row in rows)
        return [
            attrs.evolve(_finding(outcome, "ended"), action="strike_off")
            for outcome in over
            if account.digest(outcome.response_id) in struck
        ]


def _finding(outcome: Outcome, kind: FindingKind) -> Finding:
    return Finding(response_id=outcome.response_id, kind=kind, action=None, response=outcome.response, outcome=outcome)


async def _batches(responses: AsyncGenerator[Response, None]) -> AsyncGenerator[dict[str, Response], None]:
    """Yield batches of responses, by id."""
    batch: dict[str, Response] = {}
    async with aclosing(responses):
        async for response in responses:
            batch[str(response.id)] = response
            if len(batch) == BATCH:
                yield batch
                batch = {}
    if batch:
        yield batch

"""A guard whose responses a ledger records: what it tells its tracker, and when."""

import asyncio
from collections.abc import Callable, Collection, Mapping

import pytest
from conftest import QuickSession

from openai_cancel import LedgerError, Outcome, Verdict
from openai_cancel.guard import Guard

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class RecordingTracker:
    """A tracker that keeps its calls in place of a ledger.

    Attributes:
        calls: the name of each call and its ids.
        verdicts: the verdicts that were settled, by id.
        error: the error that `begin` raises.
        settling: is set when `settle` has begun.
        may_settle: `settle` waits for it.
        tell: tells the guard that another process has taken a response.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.verdicts: dict[str, Verdict] = {}
        self.error: LedgerError | None = None
        self.settling = asyncio.Event()
        self.may_settle = asyncio.Event()
        self.may_settle.set()

    def listen(self, taken: Callable[[Outcome], None]) -> None:
        self.tell = taken

    async def begin(self, response_ids: Collection[str]) -> None:
        self.calls.append(("begin", [*response_ids]))
        if self.error:
            raise self.error

    def begin_soon(self, response_id: str) -> None:
        self.calls.append(("begin_soon", [response_id]))

    async def release(self, response_ids: Collection[str]) -> None:
        self.calls.append(("release", [*response_ids]))

    def release_soon(self, response_ids: Collection[str]) -> None:
        self.calls.append(("release_soon", [*response_ids]))

    async def settle(self, response_ids: Collection[str], outcomes: Mapping[str, Outcome]) -> None:
        self.settling.set()
        await self.may_settle.wait()
        self.calls.append(("settle", [*response_ids]))
        self.verdicts = {name: outcome.verdict for name, outcome in outcomes.items()}


@pytest.fixture
async def tracker() -> RecordingTracker:
    return RecordingTracker()


@pytest.fixture
def guard(session: QuickSession, tracker: RecordingTracker) -> Guard:
    return Guard(session.caller, grace=10, tracker=tracker)


async def test_a_guard_says_whether_it_is_tracked(session: QuickSession, guard: Guard) -> None:
    assert guard.responses.is_tracked
    assert not session.guard().responses.is_tracked


async def test_a_block_that_ends_normally_releases_its_responses(guard, tracker, create) -> None:
    identifiers = [create(), create()]
    for identifier in identifiers:
        guard.add(identifier)
    async with guard:
        assert tracker.calls == [("begin", identifiers)]
    assert tracker.calls == [("begin", identifiers), ("release", identifiers)]


async def test_a_block_that_fails_settles_its_responses_after_they_were_stopped(guard, tracker, create) -> None:
    identifiers = [create(), create(runs_for=0)]
    for identifier in identifiers:
        guard.add(identifier)
    with pytest.raises(ValueError, match="mine"):
        async with guard:
            raise ValueError("mine")
    assert tracker.calls == [("begin", identifiers), ("settle", identifiers)]
    assert tracker.verdicts == dict(zip(identifiers, (Verdict.CANCELLED, Verdict.ALREADY_FINISHED), strict=True))


async def test_a_response_that_is_added_inside_the_block_is_recorded_once(guard, tracker, create) -> None:
    identifier = create()
    async with guard:
        assert tracker.calls == []
        guard.add(identifier)
        guard.add(identifier)
    assert tracker.calls == [("begin_soon", [identifier]), ("release", [identifier])]


async def test_disarming_inside_the_block_releases_the_responses(guard, tracker, create) -> None:
    identifier = create()
    guard.add(identifier)
    async with guard:
        guard.disarm()
    assert tracker.calls == [("begin", [identifier]), ("release_soon", [identifier])]


async def test_disarming_before_the_block_records_nothing(guard, tracker, create) -> None:
    guard.add(create())
    guard.disarm()
    async with guard:
        pass
    assert tracker.calls == []


async def test_a_response_that_cannot_be_recorded_is_stopped_and_the_block_does_not_run(
    guard, tracker, server, create
) -> None:
    identifier, tracker.error = create(), LedgerError("the disk is full")
    guard.add(identifier)
    with pytest.raises(LedgerError, match="the disk is full"):
        async with guard:
            pytest.fail("the block ran")
    assert server.responses[identifier].cancelled
    assert tracker.calls == [("begin", [identifier]), ("settle", [identifier])]


async def test_a_cancellation_does_not_interrupt_the_settling(guard, tracker, create) -> None:
    async def work() -> None:
        async with guard:
            await asyncio.Event().wait()

    identifier = create()
    guard.add(identifier)
    tracker.may_settle.clear()
    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await tracker.settling.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    tracker.may_settle.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tracker.verdicts == {identifier: Verdict.CANCELLED}

"""Guards under cancellations at every point in time: no orphan, no swallowed cancellation, no task that is left."""

import asyncio
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from conftest import KEY, HastyClock, notes, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Fault, Script

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_task_is_left")]


class TimedCancellations:
    """Cancels a task in chosen iterations of the event loop, each counted from the one before.

    Attributes:
        sent: the number of cancellations that the task accepted.
    """

    def __init__(self, task: asyncio.Task[Any], turns: list[int]) -> None:
        self._task = task
        self._gaps = list(turns)
        self.sent = 0
        self._turn()

    def _turn(self) -> None:
        if self._task.done() or not self._gaps:
            return
        if self._gaps[0] == 0:
            self._gaps.pop(0)
            self.sent += self._task.cancel()
        else:
            self._gaps[0] -= 1
        asyncio.get_running_loop().call_soon(self._turn)


FAULTS: list[list[Fault]] = [
    [],
    [Fault(on="cancel", delay=0.002)],
    [Fault(on="cancel", cut="connection")],
    [Fault(on="cancel", act=True, cut="connection")],
    [Fault(on="cancel", act=True, cut="body")],
    [Fault(on="cancel", status=503)],
    [Fault(status=403)] * 9,
    [Fault(delay=0.003), Fault(on="cancel", status=400)],
]


def tasks_of_guards(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Return the tasks that guards have started since a snapshot of all tasks, and that are still running."""
    return [task for task in asyncio.all_tasks() - before if "openai_cancel/guard" in repr(task)]


async def run_with_cancellations(turns: list[int], faults: list[Fault], *, ending: str) -> None:
    """Run a guarded block, cancel its task in some iterations of the loop, and check the promises of a guard.

    No response runs on without a note, no cancellation is swallowed, and no task is left.
    """
    before = asyncio.all_tasks()
    async with Emulator(script=Script(runs_for=math.inf)) as server:
        async with AsyncSession(base_url=server.base_url, api_key=KEY, max_retries=2, clock=HastyClock()) as session:
            identifier = server.add()
            server.faults += faults
            seen: list[BaseException] = []

            async def work() -> str:
                try:
                    async with session.guard(identifier, grace=0.5):
                        await session.retrieve(identifier)
                        await asyncio.sleep(0.001)
                        if ending == "raise":
                            raise ValueError("mine")
                except BaseException as error:
                    seen.append(error)
                    raise
                await asyncio.sleep(0)
                return "done"

            task = asyncio.create_task(work())
            cancellations = TimedCancellations(task, turns)
            await asyncio.wait({task})
            assert tasks_of_guards(before) == []
            assert task.cancelling() == cancellations.sent
        work_on_server = server.responses[identifier]
        if seen:
            stopped = work_on_server.cancelled is not None
            assert stopped or notes(seen[0]), (turns, faults, seen)
        if cancellations.sent and not task.cancelled():
            # The block failed, and the task ended before an await could raise the cancellation.
            assert isinstance(task.exception(), Exception)
        if not cancellations.sent and ending == "return" and not faults:
            assert task.result() == "done"
            assert work_on_server.cancelled is None


@pytest.mark.parametrize("ending", ["raise", "return"])
async def test_a_cancellation_in_any_iteration_of_the_loop_leaves_no_orphan(ending: str) -> None:
    for turn in range(60):
        await run_with_cancellations([turn], FAULTS[turn % 2], ending=ending)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(st.integers(0, 40), max_size=4),
    faults=st.sampled_from(FAULTS),
    ending=st.sampled_from(["raise", "return"]),
)
async def test_random_cancellations_delays_and_faults_leave_no_orphan(
    turns: list[int], faults: list[Fault], ending: str
) -> None:
    await run_with_cancellations(turns, faults, ending=ending)


COMPOSITIONS: dict[str, Callable[[AsyncSession, str, str], tuple[Any, ...]]] = {
    "nested": lambda session, one, two: (session.guard(one), session.guard(two)),
    "around a timeout": lambda session, one, two: (session.guard(one), asyncio.timeout(5), session.guard(two)),
    "in a timeout": lambda session, one, two: (asyncio.timeout(0.004), session.guard(one), session.guard(two)),
    "in a cancel scope": lambda session, one, two: (
        anyio.move_on_after(0.004), session.guard(one), session.guard(two)
    ),
}  # fmt: skip


@pytest.mark.parametrize("composition", COMPOSITIONS)
async def test_a_cancellation_in_any_iteration_of_the_loop_passes_through_nested_guards(composition: str) -> None:
    """The code that caught the error of the block is cancelled."""
    for turn in range(0, 60, 3):
        before = asyncio.all_tasks()
        async with (
            Emulator(script=Script(runs_for=math.inf)) as server,
            AsyncSession(base_url=server.base_url, api_key=KEY) as session,
            AsyncExitStack() as cleanup,
        ):
            ids = server.add(), server.add()
            entered: list[str] = []

            async def work(session: AsyncSession = session, ids=ids, entered=entered) -> None:
                try:
                    async with AsyncExitStack() as stack:
                        for context in COMPOSITIONS[composition](session, *ids):
                            if isinstance(context, anyio.CancelScope):
                                stack.enter_context(context)
                            else:
                                await stack.enter_async_context(context)
                        entered += ids
                        await asyncio.sleep(0.001 if "in a" not in composition else 5)
                        raise ValueError("mine")
                except (ValueError, TimeoutError):
                    pass
                await asyncio.Event().wait()

            task = asyncio.create_task(work())
            cancellations = TimedCancellations(task, [turn])
            cleanup.callback(task.cancel)
            async with asyncio.timeout(5):
                await until(lambda cancellations=cancellations: cancellations.sent)
                await asyncio.wait({task})
            assert task.cancelled(), turn
            assert task.cancelling() == 1
            assert all(server.responses[name].cancelled for name in entered)
            assert tasks_of_guards(before) == []

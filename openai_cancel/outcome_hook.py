"""`OutcomeHook`: calls the `on_outcome` of a session."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable
from typing import cast

from openai_cancel.cancellation import close_unstarted, contain, wait_through_cancellation
from openai_cancel.log_events import log_fields
from openai_cancel.outcome import OnOutcome, Outcome
from openai_cancel.threads import HelperThread

HOOK_WAIT = 1.0
"""Seconds that a stop waits for a call of an async function, and that a session waits for all when it closes.

Where calls take turns, each has this time when its turn comes.
"""

MAX_TIME = 10.0
"""Seconds after which a call of an async function is cancelled."""

MAX_WAITING = 10_000
"""The maximum number of calls that wait for their turn. It is reached only if the function hangs."""

_log = logging.getLogger("openai_cancel")


class OneByOne:
    """An `on_outcome` that is called in another thread, and that can be called again once it has returned."""

    def __init__(self, helper: HelperThread, function: OnOutcome) -> None:
        self._helper = helper
        self._function = function

    async def __call__(self, outcome: Outcome) -> None:
        """Call the function in the thread."""
        result = await self._helper.call(self._function, outcome)
        if inspect.isawaitable(result):
            await result


class OutcomeHook:
    """Calls a caller's function once with each outcome. If it raises, this is logged, and changes nothing else.

    An async function runs in a task of its own, which outlives the stop. Calls in another thread take turns: stops wait
    for theirs as long as the calls make progress, so that a slow function misses no outcome.

    Args:
        on_outcome: the function.
    """

    def __init__(self, on_outcome: OnOutcome) -> None:
        self._on_outcome = on_outcome
        self._calls: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()
        self._begun: set[asyncio.Task[None]] = set()  # the calls whose turn has come
        self._turn = asyncio.Lock() if isinstance(on_outcome, OneByOne) else None

    def tell(self, outcome: Outcome) -> "asyncio.Task[None] | None":
        """Call the function in the event loop of the session, and return the task of an async one."""
        if self._turn is not None and len(self._calls) - len(self._begun) >= MAX_WAITING:
            _complain(outcome, TimeoutError(), " before its turn")
            return None
        try:
            result = self._on_outcome(outcome)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the function may raise anything
            _complain(outcome, error)
            return None
        if not inspect.isawaitable(result):
            return None
        call = asyncio.create_task(self._finish(result, outcome))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        call.add_done_callback(self._begun.discard)
        call.add_done_callback(self._late.discard)
        call.add_done_callback(lambda _: close_unstarted(result))
        return call

    def _waiting(self) -> set["asyncio.Task[None]"]:
        """Return the calls whose turn has not come."""
        return set() if self._turn is None else self._calls - self._begun

    async def settle(self, call: "asyncio.Task[None] | None") -> None:
        """Wait up to `HOOK_WAIT` until a call has ended, once its turn has come. While calls are late, do not wait."""
        while call is not None and not self._late and not call.done():
            waiting = self._waiting()
            await asyncio.wait((call,), timeout=HOOK_WAIT)
            if not call.done() and (call not in waiting or waiting <= self._waiting()):
                self._late.add(call)

    async def close(self) -> asyncio.CancelledError | None:
        """Wait up to `HOOK_WAIT` for all calls, and cancel the rest.

        Cancellations of this task do not end the wait; the last one is returned, for the caller to raise.
        """
        if not self._calls:
            return None
        waiting = asyncio.create_task(self._wait_for_all())
        cancellation = await wait_through_cancellation(waiting)
        calls = [*self._calls]
        for call in calls:
            call.cancel()
        return await wait_through_cancellation(*calls) or cancellation

    async def _wait_for_all(self) -> None:
        until = asyncio.get_running_loop().time() + MAX_TIME
        makes_progress = True
        while self._calls and makes_progress:
            waiting = self._waiting()
            await asyncio.wait([*self._calls], timeout=HOOK_WAIT)
            makes_progress = not waiting <= self._waiting() and asyncio.get_running_loop().time() < until

    async def _finish(self, result: Awaitable[object], outcome: Outcome) -> None:
        """Wait for an async function, and first for its turn."""
        if self._turn is None:
            await _finish(result, outcome)
            return
        try:
            await self._turn.acquire()
        except asyncio.CancelledError as error:
            _complain(outcome, error)
            raise
        try:
            self._begun.add(cast("asyncio.Task[None]", asyncio.current_task()))
            await _finish(result, outcome)
        finally:
            self._turn.release()


async def _finish(result: Awaitable[object], outcome: Outcome) -> None:
    """Wait for an async function. A SystemExit of the function does not end the event loop."""
    limit = asyncio.timeout(MAX_TIME)
    try:
        async with limit:
            await contain(result)
    except BaseException as error:
        took_too_long = isinstance(error, TimeoutError) and limit.expired()
        _complain(outcome, error, f" after {MAX_TIME:g} s" if took_too_long else "")
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
            raise


def _complain(outcome: Outcome, error: BaseException, when: str = "") -> None:
    _log.warning(
        "%s: on_outcome raised %s%s, which is ignored", outcome.response_id, type(error).__name__, when,
        extra=log_fields(
            "on_outcome_failed", response_id=outcome.response_id, verdict=outcome.verdict, error=error
        ),
    )  # fmt: skip

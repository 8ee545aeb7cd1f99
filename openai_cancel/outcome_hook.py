"""`OutcomeHook`: calls the `on_outcome` of a session."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable

from openai_cancel.cancellation import contain, wait_through_cancellation
from openai_cancel.outcome import OnOutcome, Outcome
from openai_cancel.records import fields

PATIENCE = 1.0
"""Seconds that a stop waits for an async function, and that a session waits for all of them when it closes."""

MAX_TIME = 10.0
"""Seconds after which a call of an async function is cancelled."""

_log = logging.getLogger("openai_cancel")


class OutcomeHook:
    """Calls a caller's function once with each outcome. If it raises, this is logged, and changes nothing else.

    An async function runs in a task of its own, which outlives the stop.

    Args:
        on_outcome: the function.
    """

    def __init__(self, on_outcome: OnOutcome) -> None:
        self._on_outcome = on_outcome
        self._calls: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()

    def tell(self, outcome: Outcome) -> "asyncio.Task[None] | None":
        """Call the function in the event loop of the session, and return the task of an async one."""
        try:
            result = self._on_outcome(outcome)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the function may raise anything
            _complain(outcome, error)
            return None
        if not inspect.isawaitable(result):
            return None
        call = asyncio.create_task(_finish(result, outcome))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        call.add_done_callback(self._late.discard)
        return call

    async def settle(self, call: "asyncio.Task[None] | None") -> None:
        """Wait up to `PATIENCE` until a call has ended. While earlier calls are late, do not wait."""
        if call is None or self._late:
            return
        await asyncio.wait((call,), timeout=PATIENCE)
        if not call.done():
            self._late.add(call)

    async def close(self) -> asyncio.CancelledError | None:
        """Wait up to `PATIENCE` for all calls, cancel the rest, and return the last cancellation meanwhile.

        No cancellation ends it.
        """
        if not self._calls:
            return None
        waiting = asyncio.create_task(asyncio.wait([*self._calls], timeout=PATIENCE))
        cancellation = await wait_through_cancellation(waiting)
        calls = [*self._calls]
        for call in calls:
            call.cancel()
        return await wait_through_cancellation(*calls) or cancellation


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
        extra=fields(
            "on_outcome_failed", response_id=outcome.response_id, verdict=outcome.verdict, error=error
        ),
    )  # fmt: skip

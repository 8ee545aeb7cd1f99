"""`wait_many`: wait for any number of responses in constant memory, with as few requests as the server allows."""

import math
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import Any

import attrs

from openai_cancel.bulk import Bulk, Interrupted
from openai_cancel.caller import Caller
from openai_cancel.errors import (
    AbandonedError,
    APIConnectionError,
    APIError,
    InvalidResponseIdError,
    OpenAICancelError,
    detached,
)
from openai_cancel.guard import Guard
from openai_cancel.models import Response
from openai_cancel.models.serialization import Serializable
from openai_cancel.rate_limiter import RateLimiter
from openai_cancel.silence_monitor import SilenceMonitor
from openai_cancel.update_hook import OnUpdate
from openai_cancel.wait import WaitLimits, WaitTimeoutError, wait
from openai_cancel.wire import ResponseId

FIRST_RATE = 10.0
"""Requests a second at the beginning. All waits begin at once, which would be too many requests for most servers."""


@attrs.frozen(kw_only=True)
class WaitResult(Serializable):
    """The end of a wait of `wait_many`.

    Attributes:
        response_id: the id that was passed in. Some servers answer with another one.
        response: the response at its end, or as it was last seen; None if it was never seen.
        error: the reason why the wait ended before the response; otherwise None. Its `outcome` says whether the
            response was stopped.
    """

    response_id: str
    response: Response | None
    error: OpenAICancelError | None

    @property
    def ended(self) -> bool:
        """Whether the response has ended by itself."""
        return self.error is None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a JSON document, with the document of the response, and `ended`.

        For pandas, see `Outcome.to_dict`.
        """
        return {
            "response_id": self.response_id,
            "ended": self.ended,
            "response": None if self.response is None else self.response.to_dict(),
            "error": None if self.error is None else self.error.to_dict(),
        }


def wait_many(
    caller: Caller,
    response_ids: Iterable[ResponseId] | AsyncIterable[ResponseId],
    *,
    concurrency: int,
    max_rate: float,
    limits: WaitLimits,
    guard: Callable[[str], Guard],
    on_update: OnUpdate | None = None,
    give_up_after: float = math.inf,
    first_answer_timeout: float = math.inf,
) -> AsyncGenerator[WaitResult, None]:
    """Wait for any number of responses, and yield how each wait has ended.

    Args:
        caller: makes the requests.
        response_ids: the ids.
        concurrency: the maximum number of waits at once.
        max_rate: the maximum number of requests a second.
        limits: the limits of each wait.
        guard: returns the guard of a wait, which stops its response if the wait ends before.
        on_update: as for `AsyncSession.wait`.
        give_up_after: seconds without any answer of the server after which the iteration ends with an error.
        first_answer_timeout: as `give_up_after`, until the server answers for the first time.
    """
    limiter = RateLimiter(
        concurrency,
        caller.clock,
        rate=min(FIRST_RATE, max_rate),
        max_rate=max_rate,
        silence=SilenceMonitor(caller.clock, give_up_after, first_answer_timeout),
    )
    return _WaitMany(caller, limiter, limits=limits, guard=guard, on_update=on_update).run(response_ids)


class _WaitMany(Bulk[WaitResult]):
    """A `wait_many` that is under way."""

    def __init__(
        self,
        caller: Caller,
        limiter: RateLimiter,
        *,
        limits: WaitLimits,
        guard: Callable[[str], Guard],
        on_update: OnUpdate | None,
    ) -> None:
        super().__init__(caller, limiter)
        self._limits = limits
        self._guard = guard
        self._on_update = on_update
        self._guards: set[Guard] = set()  # of the waits that are under way

    @property
    def limit(self) -> int:
        """The number of responses to wait for at once, which needs no requests while they run."""
        return self.limiter.concurrency

    async def work(self, response_id: str) -> WaitResult:
        """Wait for a response."""
        seen: Response | None = None

        def update(response: Response) -> object:
            nonlocal seen
            seen = response
            return None if self._on_update is None else self._on_update(response)

        guard = self._guard(response_id)
        guard.responses.share_rate(self.limiter)  # all stops at once would be too many requests
        self._guards.add(guard)
        try:
            await wait(self.caller, guard, response_id, limits=self._limits, on_update=update)
        except (WaitTimeoutError, AbandonedError, APIError) as error:
            return WaitResult(response_id=response_id, response=seen, error=detached(error))
        except BaseException as error:
            was_stopped = guard.outcome is not None and guard.outcome.stopped
            for note in getattr(error, "__notes__", ()):  # the guard says what became of the response
                self._fates[response_id] = Interrupted(note.removeprefix("openai-cancel: "), was_stopped)
            raise
        finally:
            self._guards.discard(guard)
        return WaitResult(response_id=response_id, response=seen, error=None)

    def give_up(self, error: APIConnectionError) -> None:
        """End the run. A server that has not answered in time at first is not asked to stop anything."""
        if self.limiter.silence.first_answer_timeout < math.inf and not self.limiter.silence.has_answered:
            for guard in self._guards:
                if not guard.responses.is_tracked:  # a ledger has to know that the response may still be running
                    guard.disarm()
        super().give_up(error)

    def refuse(self, response_id: str, error: InvalidResponseIdError) -> WaitResult:
        """Return the result of an id that cannot be sent."""
        return WaitResult(response_id=response_id, response=None, error=error)

    def fate(self, result: WaitResult) -> Interrupted:
        """Return the status, or the error."""
        if result.ended:
            status = result.response and result.response.status
            return Interrupted(f"{result.response_id} has ended ({status})", stopped=True)
        outcome = getattr(result.error, "outcome", None)
        return Interrupted(f"{result.response_id}: {result.error}", stopped=bool(outcome and outcome.stopped))

    def interrupted(self, response_id: str) -> Interrupted:
        """Return that it was not stopped."""
        return Interrupted(f"{response_id} was left running", stopped=False)

"""`guard` and `wait`: a response that lives no longer than the code that waits for it."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Protocol, Self

from openai_cancel.errors import (
    APIConnectionError,
    APIStatusError,
    OpenAICancelError,
    ResponseDecodeError,
    WaitTimeoutError,
)
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome
from openai_cancel.retry import is_transient, poll_delay

_log = logging.getLogger("openai_cancel")


class _Stop(Protocol):
    def __call__(self, response_id: str, /, *, deadline: float) -> Awaitable[Outcome]: ...


class Guard:
    """Stops responses when its block is left by an exception: an error, a time-out, a cancelled task, Ctrl-C.

    The remote responses are stopped first, then the exception goes on, the same object. While they are stopped, no
    other cancel of the task gets through; it takes effect afterwards. What could not be stopped stands in a note of
    the exception. A block that ends normally leaves them alone.

    Made by `AsyncSession.guard` and `Session.guard`.

    Attributes:
        outcomes: what became of the responses, by id, once they were stopped.
    """

    def __init__(
        self, *, stop: _Stop, identify: Callable[[Any], str], monotonic: Callable[[], float], grace: float
    ) -> None:
        self._stop = stop
        self._identify = identify
        self._monotonic = monotonic
        self._grace = grace
        self._ids: dict[str, None] = {}  # a set that keeps the order
        self._failures: dict[str, BaseException] = {}
        self.outcomes: dict[str, Outcome] = {}

    def __repr__(self) -> str:
        """The ids that are guarded."""
        return f"<{type(self).__name__} {', '.join(self._ids) or 'disarmed'}>"

    @property
    def outcome(self) -> Outcome | None:
        """What became of the response; of the first one, where several are guarded; None if nothing was stopped."""
        return next((self.outcomes[name] for name in self._ids if name in self.outcomes), None)

    def add(self, response_id: Any) -> None:
        """Guard another response, such as one that was just created.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
        """
        self._ids[self._identify(response_id)] = None

    def disarm(self) -> None:
        """Guard nothing any more: what is guarded so far may run on."""
        self._ids.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or not self._ids:
            return
        held_back = await self._stop_all()
        for name in self._ids:
            note = self._note(name)
            if note:
                _log.warning("%s", note)
                error.add_note(f"openai-cancel: {note}")
        task = asyncio.current_task()
        if held_back is not None and task and not isinstance(error, asyncio.CancelledError):
            # The block's own exception goes on, and the cancel comes at the next await. The count stays what it was.
            task.uncancel()
            task.cancel(*held_back.args)

    async def _stop_all(self) -> asyncio.CancelledError | None:
        """Stop all responses, through any cancel of this task; gives the last that came meanwhile."""
        held_back: asyncio.CancelledError | None = None
        until = self._monotonic() + self._grace
        with _shield_from_anyio():
            # A loop that is shutting down cancels every task, also those here: they are begun again.
            while (left := until - self._monotonic()) > 0 and (names := self._open()):
                stops = {asyncio.create_task(self._stop_one(name, left)) for name in names}
                while stops:
                    try:
                        _, stops = await asyncio.wait(stops)
                    except asyncio.CancelledError as cancel:
                        held_back = cancel
        return held_back

    def _open(self) -> list[str]:
        return [name for name in self._ids if name not in self.outcomes and name not in self._failures]

    async def _stop_one(self, name: str, left: float) -> None:
        try:
            self.outcomes[name] = await self._stop(name, deadline=left)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the block's own exception goes first
            self._failures[name] = error

    def _note(self, name: str) -> str:
        """What is to be said of a response that was not stopped; of a stranger's exception only its kind."""
        outcome, failure = self.outcomes.get(name), self._failures.get(name)
        if outcome is not None:
            reason = f": {outcome.error}" if outcome.error else ""
            return "" if outcome.stopped else f"{name} was not stopped ({outcome.verdict}{reason})"
        words = str(failure) if isinstance(failure, OpenAICancelError) else type(failure).__name__
        return f"{name} was not stopped ({words if failure else f'no answer within {self._grace:g} s'})"


def _shield_from_anyio() -> AbstractContextManager[object]:
    """Anyio cancels a task again at every turn of the loop, until it has left the scope: a storm while we wait.

    See https://anyio.readthedocs.io/en/stable/cancellation.html#shielding.
    """
    anyio: Any = sys.modules.get("anyio")  # a service that uses it has imported it
    shield: AbstractContextManager[object] = anyio.CancelScope(shield=True) if anyio else nullcontext()
    return shield


async def wait_until_over(
    name: str,
    *,
    retrieve: Callable[..., Awaitable[Response]],
    monotonic: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    random: Callable[[], float],
    timeout: float,  # noqa: ASYNC109 - of many requests, on a clock that tests set
) -> Response:
    """Look at a response until it is over.

    Raises:
        WaitTimeoutError: it was not over in time.
        APIStatusError: the server refuses, and will not change its mind.
    """
    began = monotonic()
    response: Response | None = None
    looks = 0
    while (left := timeout - (monotonic() - began)) > 0:
        answer: Response | APIConnectionError | APIStatusError | ResponseDecodeError
        try:
            answer = response = await retrieve(deadline=left)
            if response.is_terminal:
                return response
        except (APIConnectionError, APIStatusError, ResponseDecodeError) as error:
            if not (is_transient(error) or isinstance(error, ResponseDecodeError)):
                raise
            answer = error
        asked: float | None = getattr(answer, "retry_after", None)
        del answer
        delay = poll_delay(looks, asked=asked, random=random())
        await sleep(min(delay, max(timeout - (monotonic() - began), 0.0)))
        looks += 1
    status = "no answer" if response is None else f"its status was {response.status!r}"
    raise WaitTimeoutError(f"{name} was not over within {timeout:g} s: {status}.", response=response)

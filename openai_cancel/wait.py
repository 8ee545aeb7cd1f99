"""`wait`: poll a response until it ends."""

import asyncio
import logging

from openai_cancel.caller import Caller
from openai_cancel.errors import APIConnectionError, APIError, OpenAICancelError, ResponseDecodeError
from openai_cancel.guard import Guard
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome
from openai_cancel.retry import is_transient, poll_delay

PATIENCE = 3
"""How many looks in a row the server must refuse before `wait` gives up: one 403 or 404 may pass."""

_log = logging.getLogger("openai_cancel")


class WaitTimeoutError(OpenAICancelError, TimeoutError):
    """The response did not end in time.

    Attributes:
        response: the response as it was last seen, or None.
        outcome: the outcome of stopping it, or None if it was left running.
    """

    def __init__(self, message: str, *, response: Response | None = None, outcome: Outcome | None = None) -> None:
        super().__init__(message)
        self.response = response
        self.outcome = outcome


async def wait(caller: Caller, guard: Guard, response_id: str, *, timeout: float) -> Response:
    """Wait until a response ends. The guard stops it if the wait ends before. See `AsyncSession.wait`.

    Raises:
        WaitTimeoutError: it did not end in time. Its `outcome` says whether it was stopped.
        APIError: the server refuses to report it. Its `outcome` says whether it was stopped.
    """
    try:
        async with guard:
            return await _poll(caller, response_id, seconds=timeout)
    except WaitTimeoutError as error:
        error.outcome = guard.outcome
        raise
    except APIError as error:
        error.outcome = guard.outcome
        fate = "the response was not stopped" if guard.outcome is None else f"the response: {guard.outcome.verdict}"
        _log.warning("%s: the wait ended with %s; %s", response_id, type(error).__name__, fate)
        _note(guard, response_id, error)
        raise
    except asyncio.CancelledError as error:
        _note(guard, response_id, error)
        raise


def _note(guard: Guard, response_id: str, error: BaseException) -> None:
    """Add a note that the response was stopped. The guard adds one if it was not."""
    if guard.outcome is not None and guard.outcome.stopped:
        error.add_note(f"openai-cancel: {response_id} was stopped ({guard.outcome.verdict}) when the wait ended")


async def _poll(caller: Caller, response_id: str, *, seconds: float) -> Response:
    clock = caller.clock
    began = clock.monotonic()
    response: Response | None = None
    looks = refusals = 0
    while (left := seconds - (clock.monotonic() - began)) > 0:
        answer: Response | APIError
        try:
            answer = response = await caller.retrieve(response_id, deadline=left)
            refusals = 0
            if response.is_terminal:
                return response
        except APIError as error:
            refusals = 0 if _may_pass(error) else refusals + 1
            if refusals == PATIENCE or (refusals and isinstance(error, APIConnectionError)):
                raise
            answer = error
        asked: float | None = getattr(answer, "retry_after", None)
        del answer  # an error's traceback refers to this frame
        delay = poll_delay(looks, asked=asked, random=clock.random())
        await clock.sleep(min(delay, max(seconds - (clock.monotonic() - began), 0.0)))
        looks += 1
    status = "no answer" if response is None else f"its status was {response.status!r}"
    raise WaitTimeoutError(f"{response_id} did not end within {seconds:g} s: {status}.", response=response)


def _may_pass(error: APIError) -> bool:
    """Return whether an error says nothing final about the response."""
    return is_transient(error) or isinstance(error, ResponseDecodeError)

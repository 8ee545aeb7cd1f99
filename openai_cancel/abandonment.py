"""`AbandonmentMonitor`: ends a block that nobody waits for any more, as the handler of a client that is gone."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias, cast

from openai_cancel.cancellation import contain, wait_through_cancellation
from openai_cancel.errors import AbandonedError, ConfigurationError
from openai_cancel.log_events import log_fields

POLL_INTERVAL = 1.0
"""Seconds between two questions."""

Abandoned: TypeAlias = Callable[[], object | Awaitable[object]]
"""A function, sync or async, that returns whether nobody waits for a block any more, or a message of ASGI."""

_log = logging.getLogger("openai_cancel")


class AbandonmentMonitor:
    """Cancels the task of a block once a function returns true, and tells this cancellation from others.

    Args:
        abandoned: the function. It is called about once a second. A sync one runs in the event loop. An async one may
            take its time. Instead of a bool it may return a message of ASGI, such as `http.disconnect`.

    Raises:
        ConfigurationError: it is not a function.
    """

    def __init__(self, abandoned: Abandoned) -> None:
        if not callable(abandoned):
            if inspect.iscoroutine(abandoned):
                abandoned.close()  # it will never be awaited
            raise ConfigurationError(
                f"abandoned must be a function, such as request.is_disconnected without (), not {abandoned!r}."
            )
        self._name: str = getattr(abandoned, "__qualname__", type(abandoned).__qualname__)
        self._ask = _question(abandoned)
        self._fired = False

    def start(self) -> None:
        """Begin to watch the block that the current task is about to run."""
        self._fired = False
        self._block = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._block.cancelling()
        self._watching = asyncio.create_task(self._watch())

    async def end(self, error: BaseException | None) -> tuple[AbandonedError | None, asyncio.CancelledError | None]:
        """Stop watching a block that has ended.

        Args:
            error: the exception that the block has raised.

        Returns:
            The error that takes the place of that exception, if this monitor has caused it; and the last cancellation
            of the task while this function waited.
        """
        abandonment: AbandonedError | None = None
        # Another cancellation, before this one or beside it, takes precedence.
        if self._fired and self._block.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            abandonment = AbandonedError(f"The block was cancelled, because {self._name} returned true.")
        self._watching.cancel()
        return abandonment, await wait_through_cancellation(self._watching)

    async def _watch(self) -> None:
        await asyncio.sleep(0)  # an eager task would begin inside of the block's task
        failed = False
        while True:
            try:
                answer = self._ask()
                if _means_yes(await contain(answer) if inspect.isawaitable(answer) else answer):
                    break
            except (Exception, asyncio.CancelledError) as error:  # a failure is not a yes
                if self._watching.cancelling():
                    raise
                if not failed:
                    _log.warning(
                        "%s raised %s: the block runs on", self._name, type(error).__name__,
                        extra=log_fields("abandoned_failed", error=error),
                    )  # fmt: skip
                failed = True
            await asyncio.sleep(POLL_INTERVAL)
        self._fired = True
        self._block.cancel(f"{self._name} returned true")


def _means_yes(answer: object) -> bool:
    """Return whether an answer is true, or a message of ASGI that says that the client has disconnected."""
    if isinstance(answer, Mapping):
        return cast("Mapping[str, object]", answer).get("type") in {"http.disconnect", "websocket.disconnect"}
    return bool(answer)


def _question(abandoned: Abandoned) -> Abandoned:
    """Return the function to call for a function.

    Starlette's `is_disconnected` never returns True below a `BaseHTTPMiddleware`, but its `receive` works there, see
    https://github.com/encode/starlette/discussions/2094.
    """
    if getattr(abandoned, "__name__", "") == "is_disconnected":
        return getattr(getattr(abandoned, "__self__", None), "receive", abandoned)
    return abandoned

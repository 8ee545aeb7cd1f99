"""`OnUpdate`: a caller's function that sees each response that was retrieved, for example to show the progress."""

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from openai_cancel.cancellation import contain
from openai_cancel.checks import check_function
from openai_cancel.log_events import log_fields
from openai_cancel.models import Response

OnUpdate: TypeAlias = Callable[[Response], object | Awaitable[object]]
"""A function, sync or async, that is called with each response that was retrieved."""

_log = logging.getLogger("openai_cancel")


async def call_on_update(on_update: OnUpdate, response_id: str, response: Response, *, seconds: float) -> None:
    """Call a caller's function. Its failure is logged, and does not end what calls it.

    Args:
        on_update: the function.
        response_id: the id.
        response: its argument.
        seconds: the time after which an async function is cancelled, which counts as a failure. Nothing can end
            another one.
    """
    try:
        result = on_update(response)
        if inspect.isawaitable(result):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await contain(result)
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
            raise
        _log.warning(
            "%s: on_update raised %s, which is ignored", response_id, type(error).__name__,
            extra=log_fields("on_update_failed", response_id=response_id, error=error),
        )  # fmt: skip


def check_on_update(on_update: object) -> None:
    """Refuse what is not a function.

    Raises:
        ConfigurationError: it is not.
    """
    if on_update is not None:
        check_function("on_update", on_update)

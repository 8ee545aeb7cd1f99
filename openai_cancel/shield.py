"""Waiting that no cancel ends: for what has to be over before this task goes on, such as the stop of a response."""

import asyncio
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any


async def outlast(*tasks: "asyncio.Task[Any]") -> asyncio.CancelledError | None:
    """Wait until tasks are over, through any cancel of this one; gives the last that came meanwhile."""
    cancel: asyncio.CancelledError | None = None
    while under_way := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(under_way)
        except asyncio.CancelledError as error:
            cancel = error
    return cancel


@contextmanager
def shielded_from_anyio() -> Generator[None, None, None]:
    """Anyio cancels a task again at every turn of the loop, until it has left the scope: a storm while we wait.

    See https://anyio.readthedocs.io/en/stable/cancellation.html#shielding.
    """
    anyio: Any = sys.modules.get("anyio")  # a service that uses it has imported it
    with ExitStack() as stack:
        if anyio is not None:
            with suppress(Exception):  # it may be here for trio, or no more than half imported
                stack.enter_context(anyio.CancelScope(shield=True))
        yield

"""Everything that may be written down of an exception, searched for a secret."""

import json
import pickle
import traceback
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from conftest import hasty_session
from faults import FaultProxy, NetFault
from rich.traceback import Traceback

from openai_cancel import AsyncSession, OpenAICancelError
from openai_cancel.emulator import Emulator

MARKER = "M4RK3R0F7H3K3Y"
KEY = f"sk-proj/{MARKER}+x="


def shown(error: BaseException) -> dict[str, str]:
    """Return the texts that people, loggers and error collectors get of an exception, by their origin."""
    # The data that rich draws, once with long strings cut off. The drawing itself would take half a second.
    drawn = [
        Traceback.extract(
            type(error), error, error.__traceback__, show_locals=True, locals_max_length=None, locals_max_string=length
        )
        for length in (None, len("sk-proj/" + MARKER))
    ]
    stacks = [stack for each in drawn for stack in each.stacks]
    frames = [frame for stack in stacks for frame in stack.frames]
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    return {
        "text": f"{error} {error!r} {error.args!r}",
        "attributes": repr(vars(error)),
        "traceback": "".join(found.format()),
        "rich": "\n".join(
            [stack.exc_value for stack in stacks]
            + [f"{name} = {value}" for frame in frames for name, value in (frame.locals or {}).items()]
        ),
        "pickle": pickle.dumps(error).decode("latin-1"),
        "json": json.dumps(vars(error), default=repr),
    }


def leaks(error: BaseException) -> list[str]:
    """Return the lines of an exception's texts that contain the marker."""
    return [f"{how}: {line}" for how, text in shown(error).items() for line in text.splitlines() if MARKER in line]


async def failure(call: Awaitable[object]) -> OpenAICancelError | None:
    """Return the error of this package that a call raises, or None."""
    try:
        await call
    except OpenAICancelError as error:
        return error
    return None


@asynccontextmanager
async def session_behind(server: Emulator, fault: NetFault, **options: Any) -> AsyncIterator[AsyncSession]:
    """Open a session in which every exchange has the same fault."""
    async with (
        FaultProxy(server.base_url, choose=lambda: fault) as proxy,
        hasty_session(api_key=KEY, base_url=proxy.base_url, max_retries=0, **options) as session,
    ):
        yield session

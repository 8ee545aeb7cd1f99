"""Blocking functions that run in threads of their own, also while the interpreter shuts down."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any, TypeVar

_T = TypeVar("_T")


async def run_in_thread(function: Callable[..., _T], /, *arguments: Any, name: str) -> _T:
    """Call a blocking function in a daemon thread, and return its result.

    An executor, as in `asyncio.to_thread`, refuses work once the main thread has ended, keeps its threads, and waits
    for them when the interpreter ends. Where no thread can be started, as in functions of `atexit` with CPython 3.12
    and later, the function blocks the event loop.

    Args:
        function: the function.
        *arguments: its arguments.
        name: the name of the thread.
    """
    future: Future[_T] = Future()
    call = partial(copy_context().run, function, *arguments)
    future.set_running_or_notify_cancel()  # it cannot be cancelled: nobody else may set it to cancelled meanwhile
    try:
        Thread(target=_run, args=(future, call), name=name, daemon=True).start()
    except RuntimeError:
        return call()
    return await asyncio.wrap_future(future)


def _run(future: Future[_T], call: Callable[[], _T]) -> None:
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        future.set_exception(error)
    else:
        future.set_result(result)

"""Signals that end the command: Ctrl-C (SIGINT) and SIGTERM."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def handling_signals(handle: Callable[[int], None]) -> Generator[None]:
    """Call a function with the number of each SIGINT and SIGTERM that arrives during the block.

    A signal that the process was started to ignore, as with `nohup`, stays ignored. On Windows and outside the main
    thread, event loops cannot handle signals: there the function is never called.
    """
    loop = asyncio.get_running_loop()
    handled: list[int] = []
    with suppress(NotImplementedError, RuntimeError):
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, handle, number)
                handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def run_until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine that returns an exit status. SIGINT and SIGTERM cancel it.

    Returns:
        The exit status of the coroutine, or the one for the first signal.
    """
    task = asyncio.create_task(work)
    received: list[int] = []

    def interrupt(number: int) -> None:
        received.append(number)
        task.cancel()

    with handling_signals(interrupt):
        await asyncio.wait([task])
    return 128 + received[0] if task.cancelled() else task.result()

"""The parts of `demo`, which run on an emulated server."""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import aclosing, nullcontext, suppress
from operator import length_hint
from pathlib import Path
from typing import Any, cast

import aiohttp
import attrs
from rich.console import Console
from rich.table import Table

from openai_cancel.cli.lines import line_of
from openai_cancel.cli.live import Bar
from openai_cancel.cli.signals import run_until_signalled
from openai_cancel.cli.tally import Tally
from openai_cancel.emulator import Emulator, Script
from openai_cancel.errors import BadRequestError
from openai_cancel.guard import Guard
from openai_cancel.session import AsyncSession

RESPONSES = 2000
"""The number of responses that are stopped at once."""

LEASE = 1.0
"""Seconds that the lease of the killed process lasts."""

PAUSE = 2.5
"""Seconds to read what a part has shown."""


@attrs.frozen
class Stage:
    """The terminal, the server and the session that all parts of the demo use.

    Attributes:
        console: the terminal.
        server: the emulated server.
        client: creates responses, as the program of a user does.
        session: stops them.
        fast: whether to show everything without pauses, and fewer responses.
    """

    console: Console
    server: Emulator
    client: aiohttp.ClientSession
    session: AsyncSession
    fast: bool

    async def create(self, metadata: dict[str, str] | None = None) -> dict[str, Any]:
        """Create a background response."""
        body = {"model": "emulated", "input": "How much wood?", "background": True, "metadata": metadata or {}}
        async with self.client.post(f"{self.server.base_url}/responses", json=body) as answer:
            created: dict[str, Any] = await answer.json()
            return created

    async def running(self, ids: list[str]) -> int:
        """Return how many of these responses are still running."""
        return sum([not (await self.session.retrieve(name)).is_terminal for name in ids])

    async def pause(self) -> None:
        """Leave time to read."""
        if not self.fast:
            await asyncio.sleep(PAUSE)


_GUARD = """
import asyncio, sys
from openai_cancel.cli.demo_process import guard_for_a_minute
asyncio.run(guard_for_a_minute(sys.argv[1], sys.argv[2], float(sys.argv[3])))
"""

Part = Callable[[Stage], Coroutine[Any, Any, None]]


def show_parts(*, fast: bool) -> int:
    """Show the parts one by one, and return the exit status.

    Args:
        fast: whether to show everything without pauses.
    """
    return asyncio.run(run_until_signalled(_show_parts(Console(), fast=fast)))


async def _show_parts(console: Console, *, fast: bool) -> int:
    async with (
        Emulator(script=Script(runs_for=3600)) as server,
        # The session's own client would use a proxy from the environment.
        aiohttp.ClientSession(headers={"Authorization": "Bearer demo"}) as client,
        AsyncSession(base_url=server.base_url, api_key="demo", client_session=client) as session,
    ):
        console.print(f"On the emulated server {server.base_url}, where a response runs for an hour.")
        can_skip = not fast and sys.stdin is not None and sys.stdin.isatty()
        if can_skip:
            console.print("Press Enter to skip to the next part, Ctrl-C to quit.", style="dim")
        stage = Stage(console, server, client, session, fast)
        for number, (title, part) in enumerate(PARTS.items(), start=1):
            console.print(f"\n[bold]{number}. {title}[/]\n", highlight=False)
            await _run_part(part(stage), can_skip=can_skip)
    console.print("\nNext: set OPENAI_API_KEY, and run `openai-cancel --help`.", highlight=False)
    return 0


async def _run_part(part: Coroutine[Any, Any, None], *, can_skip: bool) -> None:
    """Run a part until it ends, or until Enter is pressed, which cancels it."""
    task = asyncio.ensure_future(part)

    def skip() -> None:
        sys.stdin.readline()
        task.cancel()

    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError):  # on Windows, event loops do not read keys
        if can_skip:
            loop.add_reader(sys.stdin, skip)
    try:
        await asyncio.wait([task])
    finally:
        with suppress(NotImplementedError):
            if can_skip:
                loop.remove_reader(sys.stdin)
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def show_cancel(stage: Stage) -> None:
    """Show one response before and after `cancel`, and one that has ended already."""
    session = stage.session
    table = Table("call", "request", "answer", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    running = await stage.create()
    table.add_row("create", "POST /responses", running["status"])
    before = await session.retrieve(running["id"])
    table.add_row("session.retrieve(id)", "GET  /responses/ID", before.status)
    cancelled = await session.cancel(running["id"])
    table.add_row("session.cancel(id)", "POST /responses/ID/cancel", f"[bold green]{cancelled.status}")
    after = await session.retrieve(running["id"])
    table.add_row("session.retrieve(id)", "GET  /responses/ID", after.status)
    done = await stage.create({"runs_for": "0"})
    try:
        await session.cancel(done["id"])
    except BadRequestError as error:
        table.add_row("session.cancel(done)", "POST /responses/ID/cancel", f"[yellow]{error.status} {error.message}")
    stage.console.print(table)
    stage.console.print(f"\nbefore  {before!r}\nafter   {after!r}", highlight=False, soft_wrap=True)
    await stage.pause()


async def show_guard(stage: Stage) -> None:
    """Show how many responses a failed run leaves running, without a guard and with one."""

    async def fail(ids: list[str], guard: Guard | None) -> None:
        for _ in range(3):
            ids.append((await stage.create())["id"])
            if guard:
                guard.add(ids[-1])
        raise TimeoutError

    without: list[str] = []
    with suppress(TimeoutError):
        await fail(without, None)
    left = await stage.running(without)
    stage.console.print(f"after a run that failed:            [bold red]{left} of 3 responses run on", highlight=False)
    within: list[str] = []
    with suppress(TimeoutError):
        async with stage.session.guard(without[0]) as guard:
            await fail(within, guard)
    left = await stage.running(within)
    stage.console.print(
        f"the same in `session.guard(...)`:   [bold green]{left} of 3 responses run on", highlight=False
    )
    await stage.pause()


async def show_bulk(stage: Stage) -> None:
    """Show the progress bar of many stops, and their totals."""
    ids = [stage.server.add() for _ in range(RESPONSES // 10 if stage.fast else RESPONSES)]
    tally, waiting = Tally(), iter(ids)
    bar = Bar(
        tally,
        stage.console,
        total=lambda: len(ids),
        under_way=lambda: len(ids) - length_hint(waiting) - tally.done,
    )
    with bar if stage.console.is_interactive else nullcontext():
        async with aclosing(stage.session.stop_many(waiting)) as outcomes:
            async for outcome in outcomes:
                tally.note(line_of(outcome))
    stage.console.print(tally.table())
    await stage.pause()


async def show_ledger(stage: Stage) -> None:
    """Show how a sweep stops the response of a process that was killed."""
    try:
        from openai_cancel.ledger import Ledger  # an extra
    except ModuleNotFoundError:
        stage.console.print("This part needs a database: pip install 'openai-cancel[cli,ledger]'", markup=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder, 'ledger.db')}"
        name = await _kill_a_guard(url, stage.server.base_url)
        status = (await stage.session.retrieve(name)).status
        stage.console.print(f"a process with a guard was killed:  its response is {status}", highlight=False)
        async with Ledger(url) as ledger:
            stopped: list[str] = []
            while not stopped:
                await asyncio.sleep(LEASE / 10)  # until the lease has expired
                async with aclosing(ledger.sweep(stage.session)) as outcomes:
                    stopped += [outcome.verdict async for outcome in outcomes]
    stage.console.print(f"`openai-cancel ledger sweep`:       [bold green]{stopped[0]}", highlight=False)
    await stage.pause()


async def _kill_a_guard(url: str, base_url: str) -> str:
    """Run a process that guards a response, kill it, and return the id of the response."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _GUARD, url, base_url, f"{LEASE}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # Ctrl-C reaches it, too
    )
    try:
        output = cast("asyncio.StreamReader", process.stdout)
        return (await output.readline()).decode().strip()
    finally:
        process.kill()
        await process.wait()


PARTS: dict[str, Part] = {
    "Cancel a response": show_cancel,
    "A run that fails leaves nothing behind": show_guard,
    "Stop many responses at once": show_bulk,
    "A process is killed, and another one cleans up": show_ledger,
}

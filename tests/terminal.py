"""The installed command, and a pseudo-terminal to run it on."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Self

from conftest import until
from processes import running

COMMAND = str(Path(sys.executable).with_name("openai-cancel"))


class Terminal:
    """A command that runs on a terminal of its own, with keys to press and a screen to read."""

    def __init__(
        self, *arguments: str, program: str = COMMAND, columns: int = 100, into: Path | None = None, **environment: str
    ) -> None:
        self._command = (program, *arguments)
        self._into = f'>"{into}"' if into else "1>&0"  # standard output
        self._environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
        self.screen = ""

    async def __aenter__(self) -> Self:
        self._keys, terminal = os.openpty()
        self._running = running(
            # A session leader that opens a terminal is controlled by it.
            "sh", "-c", f'exec "$@" 0<>"$0" {self._into} 2>&0', os.ttyname(terminal), *self._command,
            env=self._environment,
        )  # fmt: skip
        self.process = await self._running.__aenter__()
        asyncio.get_running_loop().add_reader(self._keys, self._read)
        self._terminal = terminal
        return self

    def _read(self) -> None:
        self.screen += os.read(self._keys, 65536).decode()

    async def __aexit__(self, *error: object) -> None:
        await self._running.__aexit__(*error)
        asyncio.get_running_loop().remove_reader(self._keys)
        os.close(self._keys)
        os.close(self._terminal)

    def press(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    def hang_up(self) -> None:
        """Close the terminal, as a window or a connection that is closed."""
        asyncio.get_running_loop().remove_reader(self._keys)
        with Path(os.devnull).open("rb") as null:
            os.dup2(null.fileno(), self._keys)

    async def shows(self, words: str) -> None:
        await until(lambda: words in self.screen)

    async def end(self) -> int:
        status = await self.process.wait()
        await asyncio.sleep(0.01)
        return status

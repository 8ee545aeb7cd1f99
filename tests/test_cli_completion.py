"""The completion of the command, in the shells that it is installed for."""

import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import until
from terminal import COMMAND, Terminal

pytestmark = pytest.mark.slow

CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\(B|[=>]|\][^\x07]*\x07)|\r")


class Shell:
    """A shell that someone types into."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.type = terminal.press

    async def shows(self, pattern: str) -> None:
        """Wait until the screen, without colours and the like, ends as a regular expression says."""
        await until(lambda: re.search(rf"(?s:{pattern})\Z", CONTROL.sub("", self._terminal.screen)))


@asynccontextmanager
async def shell(name: str, home: Path) -> AsyncIterator[Shell]:
    """Start a shell that has a home of its own, and wait for its prompt."""
    path = f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}"
    terminal = Terminal("-i", program=shutil.which(name), HOME=str(home), ZDOTDIR=str(home), PATH=path)
    async with terminal:
        started = Shell(terminal)
        await started.shows("[#$%>] ")
        yield started


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
async def test_a_shell_completes_commands_and_options_once_it_is_installed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which(name):
        pytest.skip(f"needs {name}")
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "ENV", "BASH_ENV"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / ".zshrc").write_text("autoload -Uz compinit\ncompinit -u\n")  # as a new user is asked to do
    (tmp_path / ".local/share/fish/generated_completions").mkdir(parents=True)  # or it reads all manuals first
    async with shell(name, tmp_path) as first:
        first.type("openai-cancel --install-completion\n")
        await first.shows("Completion installed in .*[#$%>] ")
    async with shell(name, tmp_path) as second:
        second.type("openai-cancel st\t\t")
        await second.shows(r"\bstatus\b.*\bstop\b.*")
    async with shell(name, tmp_path) as third:
        third.type("openai-cancel stop --dead\t")
        await third.shows("--deadline.*")

"""The pages of `--help`: one set of rules for every command, and what they do without."""

import asyncio
import functools
import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KEY
from cyclopts import App
from rich.console import Console

from openai_cancel.cli.app import app
from openai_cancel.cli.options import Duration
from openai_cancel.emulator import Emulator

HEAVY = {"aiohttp", "asyncio", "orjson", "yarl", "sqlalchemy", "rich.markdown", "openai_cancel.session"}


def pages(parent: App, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command, and the command itself."""
    yield path
    for name in parent:
        if not name.startswith("-"):
            yield from pages(parent[name], *path, name)


def command(path: tuple[str, ...]) -> App:
    return functools.reduce(App.__getitem__, path, app)


EVERY = [*pages(app)]
LEAVES = [path for path in EVERY if path and command(path).default_command]


def page(path: tuple[str, ...], width: int = 100) -> list[str]:
    console = Console(width=width, file=io.StringIO(), no_color=True)
    app.help_print([*path], console=console)
    return console.file.getvalue().splitlines()


def test_every_command_is_walked_over() -> None:
    assert {(), ("stop",), ("emulate",), ("ledger",), ("ledger", "sweep")} <= {*EVERY}


async def test_without_docstrings_the_page_says_why_it_has_no_description(python: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [python, "-OO", "-m", "openai_cancel", "stop", "--help"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "No description, since Python runs with -OO" in done.stdout
    assert "None" not in done.stdout


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
class TestEveryPage:
    def test_it_begins_with_an_instruction(self, path: tuple[str, ...]) -> None:
        first, *rest = command(path).help.split("\n\n")
        verb = first.split()[0]
        assert verb.istitle()
        assert not verb.endswith(("s", "ing"))
        assert verb not in {"A", "An", "The"}
        assert all(paragraph.endswith(".") for paragraph in [first, *rest])

    def test_it_fits_a_terminal_of_80_columns_without_lines_broken_by_hand(self, path: tuple[str, ...]) -> None:
        assert all(len(line) <= 80 for line in page(path, 80))
        assert not any("\n" in paragraph for paragraph in command(path).help.split("\n\n"))

    def test_exit_statuses_are_explained_in_one_place(self, path: tuple[str, ...]) -> None:
        statuses = [line for line in page(path) if line.startswith(("  0  ", "  130  "))]
        assert len(statuses) == (0 if path else 2)
        assert not path or page(path)[-1] == "Exit statuses and environment variables: openai-cancel --help"


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
class TestEveryCommand:
    def test_it_ends_with_two_examples_as_code(self, path: tuple[str, ...]) -> None:
        lines = page(path)
        examples = lines[lines.index("Examples:") + 1 : -2]
        assert page(path, 80)[-2 - len(examples) : -2] == examples  # not broken, so that they can be copied
        assert len(examples) >= 2
        assert all(example.startswith("  ") for example in examples)
        assert all(f"openai-cancel {' '.join(path)}" in example for example in examples)
        assert "```" not in "".join(lines)

    def test_every_option_is_in_a_group_and_its_value_has_a_name(self, path: tuple[str, ...]) -> None:
        arguments = [each for each in command(path).assemble_argument_collection() if each.show]
        for argument in arguments:
            (group,) = argument.parameter.group
            assert group.name in {
                *("Arguments", "Options", "Files", "Responses that the server lists", "Ledger", "Limits", "Output"),
                "Connection",
            }, argument.name
            if argument.name.startswith("-") and argument.hint not in {bool, bool | None}:
                assert argument.parameter.metavar, argument.name

    def test_no_value_is_called_by_its_type(self, path: tuple[str, ...]) -> None:
        words = {word.strip("[].") for line in page(path) for word in line.split() if line.startswith("│")}
        assert not words & {"FLOAT", "INT", "STR", "TEXT", "PATH", "CHOICE"}

    def test_every_description_is_a_sentence_on_one_line_of_its_docstring(self, path: tuple[str, ...]) -> None:
        for argument in command(path).assemble_argument_collection(parse_docstring=True):
            if argument.show:
                assert argument.parameter.help, argument.name
                assert argument.parameter.help.endswith("."), argument.name
                assert "\n" not in argument.parameter.help, argument.name


class TestDefaults:
    def test_a_default_is_shown_as_it_could_be_written(self) -> None:
        text = "\n".join(page(("stop",), 200) + page(("wait",), 200) + page(("ledger", "sweep"), 200))
        assert "--deadline DURATION  The time that each response may take. [default: 1m]" in text
        assert "[default: 64]" in text
        assert "[choices: stop, leave] [default: stop]" in text
        assert "None" not in text
        shown = Duration.show_default
        assert [shown(each) for each in (0.5, 45, 90, 3600, 172800)] == ["0.5s", "45s", "90s", "1h", "2d"]

    async def test_every_unit_can_be_written(self, run) -> None:
        for duration in ("1.5", "1.5s", "2m", "1h", "7d"):
            assert (await run("stop", "resp_none", "--deadline", duration, "--quiet"))[0] == 1
        for duration in ("0", "-1", "nan", "soon", "0s"):
            status, _, err = await run("stop", "resp_none", f"--deadline={duration}")
            assert (status, "--deadline" in err, "such as 30s, 15m, 2h or 7d" in err) == (2, True, True)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
async def test_without_arguments_the_command_shows_its_help(run, arguments: list[str]) -> None:
    status, out, err = await run(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("Usage: openai-cancel COMMAND\n")
    assert "  1    some responses may still be running, or something else failed" in out


async def test_without_a_key_there_are_two_ways_to_go_on(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    status, _, err = await run("stop", "resp_123")
    assert (status, err.count("\n")) == (3, 1)
    assert "set OPENAI_API_KEY" in err
    assert "openai-cancel demo" in err


class TestWhatIsNotImported:
    """Importing takes most of the time of a short run."""

    def imported(self, python: str, *arguments: str, **environment: str) -> set[str]:
        script = (
            "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
            "from openai_cancel.cli import main; main()"
        )
        done = subprocess.run(
            [python, "-c", script, *arguments],
            env={**os.environ, **environment}, capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        return {*done.stderr.splitlines()[-1].split()}

    @pytest.mark.parametrize(
        "arguments", [["--version"], ["--help"], ["wait", "--help"], ["emulate", "-h"], ["ledger", "sweep", "--help"]]
    )
    def test_help_and_version_need_no_client(self, python: str, arguments: list[str]) -> None:
        modules = self.imported(python, *arguments)
        assert "openai_cancel.cli.commands" in modules
        assert not HEAVY & modules

    @pytest.mark.slow
    async def test_a_client_needs_no_server_and_draws_nothing_into_a_pipe(self, python: str, server: Emulator) -> None:
        modules = await asyncio.to_thread(
            self.imported, python, "stop", "resp_none", OPENAI_API_KEY=KEY, OPENAI_BASE_URL=server.base_url
        )
        assert server.received
        assert "openai_cancel.session" in modules
        unwanted = {"aiohttp.web", "rich", "sqlalchemy", "openai_cancel.sync", "openai_cancel.emulator"}
        assert not unwanted & modules


class TestCompletion:
    @pytest.mark.slow
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_it_knows_every_command(self, shell: str) -> None:
        script = app.generate_completion(shell=shell)
        assert all(path[-1] in script for path in LEAVES)

    async def test_a_shell_that_is_not_known_is_a_usage_error(
        self, run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for variable in ("ZSH_VERSION", "BASH_VERSION", "FISH_VERSION", "SHELL"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("PATH", f"{tmp_path}")  # without `ps`
        status, _, err = await run("--install-completion")
        assert (status, err) == (
            2,
            "openai-cancel: Cannot detect the shell: use --shell bash, --shell zsh or --shell fish.\n",
        )

    async def test_it_is_installed_for_a_shell(self, run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", f"{tmp_path}")
        status, out, err = await run("--install-completion", "--shell", "fish")
        script = tmp_path / ".config/fish/completions/openai-cancel.fish"
        assert (status, out, err) == (0, f"Completion installed in {script}. Restart the shell to use it.\n", "")
        assert "ledger" in await asyncio.to_thread(script.read_text)

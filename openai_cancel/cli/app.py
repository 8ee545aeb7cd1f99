"""The application: arguments in, an exit status out."""

import io
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from cyclopts import App, CycloptsError, Group

from openai_cancel.cli import commands, demo, emulate, report
from openai_cancel.cli.exit_status import ExitStatus, UsageError, exit_status
from openai_cancel.cli.help_pages import ROOT_EPILOGUE, lay_out
from openai_cancel.cli.ledger import ledger
from openai_cancel.cli.options import OPTIONS
from openai_cancel.cli.output import complain, has_lost_output, print_line, show_warning
from openai_cancel.cli.usage import describe_usage
from openai_cancel.errors import ConfigurationError, InsecureTransportWarning, LedgerError
from openai_cancel.version import __version__

_SECRETS = re.compile(r"(://[^\s:/@]*):\S*@|\bsk-[\w-]{12,}")
"""Passwords in URLs, and keys, in arguments that were not understood."""

_EMULATED = Group("Commands that need no key and no other server", sort_key=0.5)

app: App = App(
    name="openai-cancel",
    version=__version__,
    help="Stop background responses of the OpenAI Responses API.",
    help_format="plaintext",
    help_epilogue=ROOT_EPILOGUE,
    group_commands=Group("Commands", sort_key=0),
    group_parameters=OPTIONS,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _command in (commands.stop, commands.status, commands.wait, commands.cancel):
    app.command(_command)
app.command(commands.list_, name="list")
app.command(report.report)
app.command(ledger)
app.command(demo.demo, group=_EMULATED)
app.command(emulate.emulate, group=_EMULATED)
lay_out(app)


@app.command(name="--install-completion")
def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None) -> None:
    """Install the completion of this command in the shell.

    Args:
        shell: The shell. By default, the one that runs this command.
    """
    from cyclopts.completion.detect import ShellDetectionError  # only here: the start would be slower

    try:
        path = app.install_completion(shell=shell)
    except ShellDetectionError:
        raise UsageError("Cannot detect the shell: use --shell bash, --shell zsh or --shell fish.") from None
    print_line(f"Completion installed in {path}. Restart the shell to use it.")


for _flag in ("--help", "--version", "--install-completion"):
    app[_flag].group = (OPTIONS,)


def main() -> None:
    """Run the command with the arguments of the process, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # any text of a server can be shown in any encoding
    warnings.showwarning = show_warning
    status = run(sys.argv[1:])
    raise SystemExit(status or (ExitStatus.NOT_STOPPED if has_lost_output() else ExitStatus.OK))


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status. Every error is reported on one line, without a traceback."""
    # Without a handler, Python would print the warnings of this logger to standard error.
    logging.getLogger("openai_cancel").addHandler(logging.NullHandler())
    problem: object
    try:
        return app(_with_standard_input(arguments), exit_on_error=False, print_error=False) or ExitStatus.OK
    except (CycloptsError, UsageError) as error:
        # They quote arguments. The standard error of a service ends up in logs.
        problem, status = _SECRETS.sub(_masked, describe_usage(error)), ExitStatus.USAGE
    except (ConfigurationError, LedgerError) as error:
        problem, status = error, exit_status(error)
    except InsecureTransportWarning as error:  # PYTHONWARNINGS can raise it
        problem, status = error, ExitStatus.CONFIGURATION
    except OSError as error:
        problem, status = f"cannot write: {error.strerror}", ExitStatus.NOT_STOPPED
    except KeyboardInterrupt:
        problem, status = "interrupted", ExitStatus.INTERRUPTED
    complain(problem)
    return status


def _masked(secret: "re.Match[str]") -> str:
    return f"{secret[1]}:***@" if secret[1] else "***"


_READ_IDS = frozenset({("stop",), ("status",), ("wait",), ("ledger", "add"), ("ledger", "release")})
"""The commands that take ids from files."""


def _with_standard_input(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--file=-` in place of a single `-` among the ids."""
    if tuple(arguments[:1]) not in _READ_IDS and tuple(arguments[:2]) not in _READ_IDS:
        return [*arguments]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [
        "--file=-" if argument == "-" and before not in {"-f", "--file", "--log"} and place < end else argument
        for place, (before, argument) in enumerate(pairwise(["", *arguments]))
    ]

"""The application: arguments in, an exit status out."""

import io
import logging
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise

from cyclopts import App, CycloptsError

from openai_cancel.cli import commands, demo
from openai_cancel.cli.exit_status import ExitStatus, UsageError
from openai_cancel.cli.ledger import ledger
from openai_cancel.cli.output import complain, show_warning
from openai_cancel.errors import ConfigurationError, InsecureTransportWarning, LedgerError
from openai_cancel.version import __version__

app: App = App(
    name="openai-cancel",
    version=__version__,
    help="End background responses of the OpenAI Responses API.",
    help_format="plaintext",
    help_epilogue=(
        "Environment variables: OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORG_ID, OPENAI_PROJECT_ID, "
        "OPENAI_CUSTOM_HEADERS, AZURE_OPENAI_API_KEY, OPENAI_API_VERSION, OPENAI_CANCEL_LEDGER.\n\n"
        "Exit status: 0 all stopped, 1 some not stopped, 2 wrong usage, 3 credentials, configuration or the ledger's "
        "database, 130 after Ctrl-C, 143 after SIGTERM."
    ),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _command in (commands.stop, commands.status, commands.wait, commands.cancel, demo.demo, demo.emulate):
    app.command(_command)
app.command(commands.list_, name="list")
app.command(ledger)
app.register_install_completion_command(  # pyright: ignore[reportUnknownMemberType] - cyclopts does not annotate it
    help="Install the completion of this command in the shell."
)


def main() -> None:
    """Run the command with the arguments of the process, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # any text of a server can be shown in any encoding
    warnings.showwarning = show_warning
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status. Every error is reported on one line, without a traceback."""
    # Without a handler, Python would print the warnings of this logger to standard error.
    logging.getLogger("openai_cancel").addHandler(logging.NullHandler())
    problem: object
    try:
        return app(_with_standard_input(arguments), exit_on_error=False, print_error=False) or ExitStatus.OK
    except (CycloptsError, UsageError) as error:
        problem, status = error, ExitStatus.USAGE
    except (ConfigurationError, LedgerError, InsecureTransportWarning) as error:  # PYTHONWARNINGS can raise the latter
        problem, status = error, ExitStatus.CONFIGURATION
    except OSError as error:
        problem, status = f"cannot write: {error.strerror}", ExitStatus.NOT_STOPPED
    except KeyboardInterrupt:
        problem, status = "interrupted", ExitStatus.INTERRUPTED
    complain(problem)
    return status


def _with_standard_input(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--file=-` in place of a single `-` among the ids."""
    if not ({*arguments[:1]} & {"stop", "status", "wait"} or [*arguments[:2]] == ["ledger", "add"]):
        return [*arguments]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [
        "--file=-" if argument == "-" and before not in {"-f", "--file", "--log"} and place < end else argument
        for place, (before, argument) in enumerate(pairwise(["", *arguments]))
    ]

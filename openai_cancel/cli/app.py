"""The command: its arguments in, its exit status out."""

import io
import logging
import sys
from collections.abc import Sequence
from itertools import pairwise

from cyclopts import App, CycloptsError

from openai_cancel.cli import commands, demo
from openai_cancel.cli.commands import CONFIGURATION, INTERRUPTED, NOT_STOPPED, OK, USAGE
from openai_cancel.cli.ledger import ledger
from openai_cancel.cli.report import complain
from openai_cancel.errors import ConfigurationError, LedgerError
from openai_cancel.settings import __version__

app: App = App(
    name="openai-cancel",
    version=__version__,
    help="End background responses of the OpenAI Responses API.",
    help_format="markdown",
    help_epilogue=(
        "Settings: OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS, "
        "OPENAI_CANCEL_LEDGER. Exit status: 0 all stopped, 1 some not, 2 usage, 3 credentials, configuration or the "
        "ledger's database, 130 after Ctrl-C, 143 after SIGTERM."
    ),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _command in (commands.stop, commands.status, commands.wait, commands.cancel, demo.demo, demo.emulate):
    app.command(_command)
app.command(ledger)
app.register_install_completion_command(  # pyright: ignore[reportUnknownMemberType] - its options are not annotated
    help="Make the shell complete this command."
)


def main() -> None:
    """Run the command with the arguments of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the encoding is, a server's words can be shown
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status. What goes wrong is one line, never a traceback."""
    # Without a handler, Python would show warnings of the log on the terminal, beside ours.
    logging.getLogger("openai_cancel").addHandler(logging.NullHandler())
    problem: object
    try:
        return app(_with_standard_input(arguments), exit_on_error=False, print_error=False) or OK
    except (CycloptsError, commands.UsageError) as error:
        problem, status = error, USAGE
    except (ConfigurationError, LedgerError) as error:
        problem, status = error, CONFIGURATION
    except OSError as error:
        problem, status = f"cannot write: {error.strerror}", NOT_STOPPED
    except KeyboardInterrupt:
        problem, status = "interrupted", INTERRUPTED
    complain(problem)
    return status


def _with_standard_input(arguments: Sequence[str]) -> list[str]:
    """The arguments, with a lone `-` among the ids as the option that it is short for."""
    if not arguments or arguments[0] not in {"stop", "status"}:
        return [*arguments]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [
        "--file=-" if argument == "-" and before not in {"-f", "--file", "--log"} and place < end else argument
        for place, (before, argument) in enumerate(pairwise(["", *arguments]))
    ]

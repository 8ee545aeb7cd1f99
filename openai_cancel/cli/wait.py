"""A run of `wait`: its options, and what it shows."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from cyclopts import Parameter

from openai_cancel.checks import check_limit
from openai_cancel.cli.exit_status import UsageError
from openai_cancel.cli.live import Spinner, WaitBar, Watched
from openai_cancel.cli.options import AsJson, Connection, Count, FileOptions, Flag, Seconds
from openai_cancel.cli.output import complain
from openai_cancel.cli.report import Report
from openai_cancel.cli.run import handle_responses
from openai_cancel.errors import ConfigurationError
from openai_cancel.retry import LEAST_POLL

MAX_CONNECTIONS = 64
"""The largest number of requests at once, however many responses are waited for."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """The options of `wait`.

    Attributes:
        timeout: Seconds to wait for each response. Without it, there is no limit.
        queued_timeout: Seconds after which a response that is still queued counts as timed out.
        stalled_timeout: Seconds without any change of a response after which it counts as timed out.
        poll: The longest time between two looks at a response. They are frequent at first.
        on_abandon: What to do with responses that are still running after a time-out or Ctrl-C.
        concurrency: The number of responses to wait for at once.
        as_json: Print a JSON line for each response. This is the default for ids from files if the output is not a
            terminal.
        quiet: Print only what goes wrong.
    """

    timeout: Seconds | None = None
    queued_timeout: Seconds | None = None
    stalled_timeout: Seconds | None = None
    poll: Seconds = 60.0
    on_abandon: Literal["stop", "leave"] = "stop"
    concurrency: Count = 1000
    as_json: AsJson = False
    quiet: Annotated[bool, Flag, Parameter(alias="-q")] = False

    def check(self) -> None:
        """Refuse limits that cannot work.

        Raises:
            UsageError: one cannot work. The message names its option.
        """
        whole = math.inf if self.timeout is None else self.timeout
        try:
            check_limit("--poll", self.poll, least=LEAST_POLL)
            for option, value in (
                ("--queued-timeout", self.queued_timeout),
                ("--stalled-timeout", self.stalled_timeout),
            ):
                if (check_limit(option, value) or 0.0) > whole:
                    raise UsageError(f"{option} ({value:g} s) must not be longer than --timeout ({whole:g} s).")
        except ConfigurationError as error:
            raise UsageError(f"{error}") from error


DEFAULT_WAIT = WaitOptions()


def wait_for_responses(ids: Sequence[str], files: FileOptions, options: WaitOptions, connection: Connection) -> int:
    """Wait for the responses whose ids are arguments or in files, and report how they ended.

    Args:
        ids: the ids that are arguments.
        files: the files of ids, and the log.
        options: the limits, and how to report.
        connection: the server and the key.

    Returns:
        The exit status.

    Raises:
        UsageError: the arguments are wrong, or a file cannot be opened.
        ConfigurationError: a setting is missing or cannot work.
    """
    files.check(ids)
    options.check()
    watched = Watched()
    report = _report(ids, files, options, watched)
    session = connection.session(max_connections=min(options.concurrency, MAX_CONNECTIONS))
    interrupted = asyncio.Event()
    wait_many = partial(
        session.wait_many,
        concurrency=options.concurrency,
        timeout=options.timeout,
        queued_timeout=options.queued_timeout,
        stalled_timeout=options.stalled_timeout,
        poll=options.poll,
        on_update=watched.see,
        on_abandon=options.on_abandon,
        abandoned=interrupted.wait,
    )

    def abandon(under_way: int) -> None:
        interrupted.set()
        if options.on_abandon == "stop" and not report.plain:
            complain(f"stopping the {under_way} responses that have not ended")

    return handle_responses(ids, files, report, session, wait_many, abandon=abandon)


def _report(ids: Sequence[str], files: FileOptions, options: WaitOptions, watched: Watched) -> Report:
    are_arguments = not files.file
    progress = Spinner if are_arguments and len(ids) == 1 else WaitBar
    return Report(
        as_json=options.as_json,
        quiet=options.quiet,
        show_stopped=are_arguments,
        plain=are_arguments,
        progress=partial(progress, watched=watched),
        watched=watched,
    )

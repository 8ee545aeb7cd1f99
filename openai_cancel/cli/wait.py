"""A run of `wait`."""

import asyncio
from collections.abc import Sequence
from functools import partial

from openai_cancel.cli.options import ConnectionOptions, FileOptions
from openai_cancel.cli.output import complain
from openai_cancel.cli.run import GIVE_UP_AFTER, handle_responses, the_responses
from openai_cancel.cli.run_output import RunOutput
from openai_cancel.cli.statuses import Statuses
from openai_cancel.cli.wait_options import WaitOptions

MAX_CONNECTIONS = 64
"""The maximum number of requests at once, however many responses are waited for."""


def wait_for_responses(
    ids: Sequence[str], files: FileOptions, options: WaitOptions, connection: ConnectionOptions
) -> int:
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
    statuses = Statuses()
    report = _report(ids, files, options, statuses)
    session = connection.session(max_connections=min(options.concurrency, MAX_CONNECTIONS))
    interrupted = asyncio.Event()
    wait_many = partial(
        session.wait_many,
        concurrency=options.concurrency,
        timeout=options.timeout,
        queued_timeout=options.queued_timeout,
        stalled_timeout=options.stalled_timeout,
        poll=options.poll,
        on_update=statuses.see,
        on_abandon=options.on_abandon,
        abandoned=interrupted.wait,
        first_answer_timeout=GIVE_UP_AFTER,  # a later outage may be temporary, and would have everything stopped
    )

    def abandon(under_way: int) -> None:
        interrupted.set()
        if options.on_abandon == "stop" and not report.plain:
            verb = "has" if under_way == 1 else "have"
            complain(f"stopping {the_responses(under_way)} that {verb} not ended")

    return handle_responses(ids, files, report, session, wait_many, abandon=abandon)


def _report(ids: Sequence[str], files: FileOptions, options: WaitOptions, statuses: Statuses) -> RunOutput:
    are_arguments = not files.are_given
    return RunOutput(
        as_json=options.as_json,
        quiet=options.quiet,
        show_stopped=are_arguments,
        plain=are_arguments,
        has_log=files.has_log,
        one=are_arguments and len(ids) == 1,
        statuses=statuses,
    )

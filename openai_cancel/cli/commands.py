"""The commands `stop`, `list`, `status`, `wait` and `cancel`: their pages and arguments.

What runs them is imported as it is called, so that the help shows at once.
"""

from typing import Annotated

from cyclopts import Parameter

from openai_cancel.cli.options import (
    DEFAULT_CONNECTION,
    DEFAULT_FILES,
    DEFAULT_FILTERS,
    DEFAULT_RUN,
    DEFAULT_RUNNING,
    AsJson,
    ConnectionOptions,
    FileOptions,
    FilterOptions,
    Flag,
    Ids,
    JsonOrText,
    RunningOptions,
    RunOptions,
    Seconds,
    refuse_file,
)
from openai_cancel.cli.wait_options import DEFAULT_WAIT, WaitOptions


def stop(
    *ids: Ids,
    confirm: Seconds | None = None,
    dry_run: Annotated[bool, Flag] = False,
    running: RunningOptions = DEFAULT_RUNNING,
    filters: FilterOptions = DEFAULT_FILTERS,
    files: FileOptions = DEFAULT_FILES,
    options: RunOptions = DEFAULT_RUN,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """Stop responses and report what became of each.

    Ctrl-C finishes the responses under way and quits. Pressed again, it quits at once.

    ```
    openai-cancel stop resp_123 resp_456
    openai-cancel stop --file ids.txt --log results.jsonl --resume
    psql -Atc "select id from runs" | openai-cancel stop - --json
    openai-cancel stop --running --older-than 1h --metadata team=search
    ```

    --running needs no ids, on servers that list their responses, such as ogx, Microsoft Foundry and Fireworks.

    Args:
        ids: The ids of the responses. - reads them from standard input.
        confirm: Check cancelled responses again after this time, because some servers resume them.
        dry_run: Only check the responses, and cancel none. Shows those that would be stopped.
    """
    running.check(filters, ids, files)
    if running.running:
        from openai_cancel.cli.running import stop_running

        return stop_running(filters, running, files, options, connection, confirm=confirm, dry_run=dry_run)
    from openai_cancel.cli.run import stop_responses

    return stop_responses(ids, files, options, connection, confirm=confirm, dry_run=dry_run)


def list_(
    *,
    filters: FilterOptions = DEFAULT_FILTERS,
    as_json: JsonOrText = None,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """List the responses that run, on servers that list them, such as ogx, Microsoft Foundry and Fireworks.

    ```
    openai-cancel list --older-than 1h
    openai-cancel list --metadata team=search --json | openai-cancel stop -
    ```

    Args:
        as_json: Print JSON lines. This is the default if the output is not a terminal. --no-json prints a table.
    """
    filters.check()
    from openai_cancel.cli.running import list_running

    return list_running(connection.session(), filters, as_json=as_json)


def status(
    *ids: Ids,
    files: FileOptions = DEFAULT_FILES,
    options: RunOptions = DEFAULT_RUN,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """Show the status of responses.

    The exit status is 0 if all of them have ended.

    ```
    openai-cancel status resp_123
    openai-cancel status --file ids.txt --quiet
    ```

    Args:
        ids: The ids of the responses. - reads them from standard input.
    """
    from openai_cancel.cli.run import stop_responses

    return stop_responses(ids, files, options, connection, is_status=True)


def wait(
    *ids: Ids,
    limits: WaitOptions = DEFAULT_WAIT,
    files: FileOptions = DEFAULT_FILES,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """Wait until responses end, and show how they ended.

    Ctrl-C stops the responses that are still running, unless they are to be left.

    ```
    openai-cancel wait resp_123 --timeout 10m --on-abandon leave
    openai-cancel wait --file ids.txt --log results.jsonl --resume
    ```

    Args:
        ids: The ids of the responses. - reads them from standard input.
    """
    from openai_cancel.cli.wait import wait_for_responses

    return wait_for_responses(ids, files, limits, connection)


def cancel(
    *ids: Annotated[Ids, Parameter(required=True)],
    as_json: AsJson = False,
    connection: ConnectionOptions = DEFAULT_CONNECTION,
) -> int:
    """Cancel responses, and show the answers of the server.

    `stop` also makes sure that the responses end.

    ```
    openai-cancel cancel resp_123
    openai-cancel cancel resp_123 resp_456 --json
    ```

    Args:
        ids: The ids of the responses.
        as_json: Print a JSON line for each response.
    """
    from openai_cancel.cli.cancel import cancel_responses

    refuse_file(ids, "openai-cancel stop --file")

    return cancel_responses(ids, connection.session(), as_json=as_json)

"""The command `report`, which makes a table from a log."""

from typing import Annotated, Literal

from cyclopts import Parameter

from openai_cancel.cli.options import OUTPUT, Flag

Format = Literal["text", "markdown", "csv"]


def report(
    logs: Annotated[tuple[str, ...], Parameter(show_default=False, allow_leading_hyphen=True)],
    /,
    *,
    by: Annotated[tuple[str, ...], Parameter(negative=(), metavar="NAME", show_default=", ".join)] = (
        "verdict",
        "error",
    ),
    failed: Annotated[bool, Flag] = False,
    style: Annotated[Format, Parameter("--format", metavar="FORMAT", group=OUTPUT)] = "text",
) -> int:
    """Make a table from the log of a run: how many responses have each verdict, and why.

    ```
    openai-cancel report results.jsonl
    openai-cancel report results.jsonl --by team --by verdict --format markdown
    openai-cancel report results.jsonl --failed --by id --by message --format csv
    ```

    Each response counts once: the last line about it decides. A line of the input without a usable id counts as a "bad
    line". The logs may have any number of lines.

    Args:
        logs: The files that --log has written, or lines of --json. - is standard input.
        by: What to count by: verdict, status, error, message, id, or a column of the input. Can be repeated.
        failed: Only responses that are not stopped.
        style: The format of the table: text, markdown or csv.
    """
    from openai_cancel.cli.log_table import print_table  # the help does without

    return print_table(logs, by, failed=failed, style=style)

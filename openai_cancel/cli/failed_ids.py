"""The ids of --rerun-failed: those that a log shows as not stopped."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

from openai_cancel.cli.documents import to_json
from openai_cancel.cli.exit_status import UsageError
from openai_cancel.cli.ids import Row
from openai_cancel.cli.last_lines import LastLines, last_lines
from openai_cancel.cli.log_lines import read_results, report_skipped
from openai_cancel.cli.options import FileOptions


class FailedIds:
    """The ids whose last line in a log says that they are not stopped, as an `IdSource` of a run.

    Args:
        lines: the order, the id, and the other columns of each.
        total: the number of ids.

    Attributes:
        total: as above.
        yielded: the number of ids yielded so far.
        skipped: 0, because no id is skipped.
        ended: whether `end` was called.
        see: called with each row before its id is yielded. To be set before `read` is called.
    """

    see: Callable[[Row], None]

    def __init__(self, lines: LastLines, total: int) -> None:
        self.total: int | None = total
        self.yielded: int = 0
        self.skipped: int = 0
        self.ended: bool = False
        self._lines = lines

    def end(self) -> None:
        """Yield no more ids."""
        self.ended = True

    async def read(self) -> AsyncGenerator[str, None]:
        """Yield the ids, in the order of their last lines."""
        for _, response_id, columns in self._lines.rows():
            if self.ended:
                return
            self.see(Row(response_id, json.loads(columns)))
            self.yielded += 1
            yield response_id


def open_failed(opened: ExitStack, files: FileOptions) -> FailedIds | None:
    """Read the ids of --rerun-failed, or return None without it.

    Raises:
        UsageError: the log cannot be read, or has no line about a response.
    """
    if files.rerun_failed is None:
        return None
    lines = opened.enter_context(last_lines(3))
    try:
        known, failed, skipped = _read(lines, files.rerun_failed)
    except OSError as error:
        raise UsageError.of_file(error, files.rerun_failed) from error
    if not known:
        raise UsageError(f"{files.rerun_failed} is not the --log of a run: it has no line about a response.")
    report_skipped(skipped)
    return FailedIds(lines, failed)


def _read(lines: LastLines, path: Path) -> tuple[bool, int, int]:
    """Return whether the log has any response, how many are not stopped, and how many lines are not JSON."""
    known, failed, skipped = False, 0, count()
    with path.open("rb") as file:
        for number, (response_id, stopped, document) in enumerate(read_results(file, partial(next, skipped))):
            known = True
            failed -= lines.remove(response_id)
            if not stopped:
                lines.put(response_id, (number, response_id, to_json(document.get("input") or {})))
                failed += 1
    return known, failed, next(skipped)

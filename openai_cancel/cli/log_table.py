"""The table of `report`: read logs, and count their responses."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from io import BufferedReader
from typing import Any

import attrs

from openai_cancel.cli.exit_status import ExitStatus, UsageError
from openai_cancel.cli.last_lines import LastLines, last_lines
from openai_cancel.cli.log_lines import read_documents, report_skipped
from openai_cancel.cli.table_formats import TABLE_FORMATS, cell

KNOWN = 50
"""The maximum number of names of columns that an error lists."""


def print_table(logs: Sequence[str], by: Sequence[str], *, failed: bool, style: str) -> int:
    """Print a table of logs, and return the exit status.

    Args:
        logs: the paths of the logs. `-` is standard input.
        by: the names of the values to count by.
        failed: whether to count only what is not stopped.
        style: a key of `TABLE_FORMATS`.

    Raises:
        UsageError: a log cannot be read, or there is nothing to count.
    """
    with ExitStack() as opened:
        files = [opened.enter_context(_open(name)) for name in logs]
        lines = opened.enter_context(last_lines(len(by)))
        reader = LogReader(by, lines, failed=failed)
        for name, file in zip(logs, files, strict=True):
            try:
                reader.read(file)
            except OSError as error:
                raise UsageError.of_file(error, _title(name)) from error
        reader.check()
        report_skipped(reader.skipped)
        TABLE_FORMATS[style](by, lines.groups, reader.describe())
    return ExitStatus.OK


def _open(name: str) -> BufferedReader:
    if name == "-" and sys.stdin is None:
        raise UsageError(f"{_title(name)}: closed")
    try:
        return open(0, "rb", closefd=False) if name == "-" else open(name, "rb")  # noqa: PTH123 - the same for both
    except OSError as error:
        if name.startswith("-"):
            raise UsageError(f"{name} is neither an option nor a log.") from error
        raise UsageError.of_file(error, _title(name)) from error


def _title(name: str) -> str:
    return "standard input" if name == "-" else name


class LogReader:
    """Reads logs, and keeps the values to count of the last line about each response.

    Args:
        by: the names of the values to count by.
        lines: where the values are kept.
        failed: whether to keep only what is not stopped.

    Attributes:
        skipped: the number of lines that are not JSON, such as one that a killed run has left unfinished.
    """

    def __init__(self, by: Sequence[str], lines: LastLines, *, failed: bool) -> None:
        self.skipped: int = 0
        self._by = by
        self._lines = lines
        self._failed = failed
        self._any = False
        self._missing = {_column(name) for name in by if name not in VALUES}
        self._columns: dict[str, None] = {}
        self._times: tuple[str, str] | None = None

    def read(self, file: BufferedReader) -> None:
        """Read a log."""
        for document in read_documents(file):
            self.skipped += document is None
            entry = LogEntry(document or {})
            if (key := entry.key) is None:
                continue
            self._any = True
            self._missing -= entry.columns.keys()
            if len(self._columns) < KNOWN:
                self._columns.update(dict.fromkeys(entry.columns))
            if isinstance(moment := entry.document.get("at"), str):
                first, last = self._times or (moment, moment)
                self._times = min(first, moment), max(last, moment)
            if self._failed and entry.stopped:
                self._lines.remove(key)
            else:
                self._lines.put(key, [entry.value(name) for name in self._by])

    def check(self) -> None:
        """Refuse logs without a line about a response, and names that no line has.

        Raises:
            UsageError: there is nothing to count, or nothing to count it by.
        """
        if not self._any:
            raise UsageError("There is no line about a response: pass a file that --log has written.")
        if self._missing:
            known = ", ".join([*VALUES, *self._columns])
            raise UsageError(f"--by {min(self._missing)}: no line has such a column. There are: {known}.")

    def describe(self) -> str:
        """Return when the lines were written, in words."""
        return f"From {self._times[0]} to {self._times[1]}." if self._times else ""


@attrs.frozen
class LogEntry:
    """A document of a log.

    Attributes:
        document: the document.
    """

    document: Mapping[str, Any]

    @property
    def key(self) -> str | None:
        """The key under which its values are kept, or None if it is about no response and no line."""
        if isinstance(response_id := self.document.get("id"), str):
            return response_id
        # No id contains a control character.
        return f"\n{self.document.get('file')}\n{self.document.get('line')}" if self.is_bad_line else None

    @property
    def is_bad_line(self) -> bool:
        """Whether it is about a line of the input without a usable id."""
        return "problem" in self.document

    @property
    def stopped(self) -> bool:
        """Whether it says that its response is stopped."""
        return self.document.get("stopped") is True

    @property
    def columns(self) -> Mapping[str, Any]:
        """The other columns of the input."""
        return _mapping(self.document.get("input"))

    @property
    def error(self) -> Mapping[str, Any]:
        """The reason why its response is not stopped."""
        return _mapping(self.document.get("error"))

    def value(self, name: str) -> str:
        """Return one of the values to count by."""
        return cell(VALUES[name](self) if name in VALUES else self.columns.get(_column(name)))


def _verdict(entry: LogEntry) -> Any:
    """Return the verdict; of a wait, that of its stop, or the status at its end."""
    if entry.is_bad_line:
        return "bad_line"
    document = entry.document
    found = document.get("verdict") or _mapping(document.get("outcome")).get("verdict")
    return found or (document.get("status") if entry.stopped else "unknown")


def _error(entry: LogEntry) -> str:
    """Return the class and the status of the error, or the problem of a line, which many have in common."""
    error = entry.error
    words = entry.document.get("problem") if entry.is_bad_line else error.get("type")
    return " ".join(f"{word}" for word in (words, error.get("status")) if word is not None)


VALUES: Mapping[str, Callable[[LogEntry], Any]] = {
    "verdict": _verdict,
    "status": lambda entry: entry.document.get("status"),
    "error": _error,
    "message": lambda entry: entry.document.get("problem") or entry.error.get("message"),
    "id": lambda entry: entry.document.get("id"),
}
"""The values to count by that do not come from the input."""


def _column(name: str) -> str:
    return name.removeprefix("input.")


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType] - JSON

"""The log of a run: a file with a JSON line for each result, from which a later run can resume."""

import errno
import os
import stat
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from openai_cancel.cli.documents import now, to_json
from openai_cancel.cli.ids import BadLine
from openai_cancel.cli.lines import Result, document_of, line_of
from openai_cancel.cli.log_lines import read_results
from openai_cancel.cli.output import complain

SYNC_INTERVAL = 1.0
"""Seconds between two flushes of the log to the disk."""


class Log:
    """A file to which every run appends a JSON line for each result. Lines survive if the process is killed.

    Args:
        path: the path of the file. A new file can be read only by its owner.

    Attributes:
        file: the descriptor of the open file.
        failed: whether a line could not be written.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.failed: bool = False
        self._path = path
        with ExitStack() as opened:
            self.file: int = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            opened.callback(os.close, self.file)
            state = os.fstat(self.file)
            if not stat.S_ISREG(state.st_mode):
                raise OSError(errno.EINVAL, "a log must be a regular file", str(path))
            # A full disk or a power failure can leave a partial last line. The next line must not continue it.
            self._partial_line = state.st_size > 0 and os.pread(self.file, 1, state.st_size - 1) != b"\n"
            self._opened = opened.pop_all()
        self._synced = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._opened, self._reporting_failure():
            os.fsync(self.file)

    def write(self, result: Result, columns: Mapping[str, Any] | None = None) -> None:
        """Append a line about a response, with the other columns of its input as the field `input`."""
        self._append(document_of(line_of(result), columns))

    def write_bad_line(self, bad: BadLine) -> None:
        """Append a line about a line of the input that has no usable id."""
        document: dict[str, Any] = {"file": bad.file, "line": bad.number, "problem": bad.problem}
        self._append(document | ({"input": bad.columns} if bad.columns else {}) | {"at": now()})

    def _append(self, document: dict[str, Any]) -> None:
        """Append a line. If that fails, this is reported once, and the run continues."""
        line = b"\n" * self._partial_line + to_json(document).encode() + b"\n"
        self._partial_line = True
        with self._reporting_failure():
            if os.write(self.file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._partial_line = False
            if monotonic() - self._synced >= SYNC_INTERVAL:
                os.fsync(self.file)
                self._synced = monotonic()

    @contextmanager
    def _reporting_failure(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if not self.failed:
                complain(f"the log is incomplete from here on: {error.strerror}")
            self.failed = True

    def stopped(self) -> set[str]:
        """Return the ids whose last line says that they are stopped. Partial lines are skipped."""
        found: set[str] = set()
        with self._path.open("rb") as lines:
            for response_id, stopped, _ in read_results(lines, skip=bool):
                (found.add if stopped else found.discard)(response_id)
        return found

"""Lines on standard output and standard error, with nothing in them that could control a terminal."""

import errno
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

_stamps = ContextVar("_stamps", default=False)
"""Whether lines on standard error begin with the time."""


_losses: list[int | None] = []
"""The numbers of the errors of standard output, in the life of the process."""


def printable(text: object) -> str:
    """Return a text as one line without control characters. Texts of a server could contain any."""
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in line)


def print_line(line: str) -> None:
    """Write a line to standard output.

    If that fails, because the reader has left or the disk is full, this is reported once and the work continues.
    """
    try:
        write(sys.stdout, line)
    except OSError as error:
        lose_output(error)


def lose_output(error: OSError) -> None:
    """Report that standard output cannot be written, and discard what would follow."""
    discard(sys.stdout)
    complain(f"the rest of the output is lost: {error.strerror}")
    _losses.append(error.errno)


def has_lost_output() -> bool:
    """Return whether output is missing that somebody may still read, for example because a disk is full."""
    return any(number != errno.EPIPE for number in _losses)


def complain(problem: object) -> None:
    """Write a problem to standard error, on one line."""
    time = [_now()] if _stamps.get() else []
    try:
        write(sys.stderr, " ".join([*time, "openai-cancel:", *printable(problem).split()]))
    except OSError:
        discard(sys.stderr)


@contextmanager
def stamping(*, on: bool) -> Generator[None, None, None]:
    """Begin each line on standard error with the time, as the lines of a service do, until the block ends."""
    before = _stamps.set(on)
    try:
        yield
    finally:
        _stamps.reset(before)


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Write a Python warning as a problem of the command. This replaces `warnings.showwarning`."""
    complain(f"warning: {message}")


def discard(stream: TextIO) -> None:
    """Discard everything that is written to a stream from now on.

    Otherwise writing would fail again, at the latest when the interpreter flushes the stream at its end.
    """
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), stream.fileno())


def write(stream: TextIO | None, line: str) -> None:
    """Write a line to a stream, if there is one.

    Raises:
        OSError: it cannot be written.
    """
    if stream is not None:  # Python starts without a stream that the shell has closed
        stream.write(f"{line}\n")
        stream.flush()


def _now() -> str:
    from datetime import UTC, datetime  # only a service needs it

    return datetime.now(UTC).isoformat(timespec="milliseconds")


def is_read_by_people() -> bool:
    """Return whether standard output is a terminal. A shell may have closed it."""
    return sys.stdout is not None and sys.stdout.isatty()


def writes_json(as_json: bool | None) -> bool:  # noqa: FBT001 - it is the value of an option
    """Return whether to print JSON: by default, if standard output is not a terminal."""
    return not is_read_by_people() if as_json is None else as_json


def has_terminal() -> bool:
    """Return whether there is somebody to ask."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()

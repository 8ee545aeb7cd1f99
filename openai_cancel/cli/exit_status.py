"""The exit statuses of the command."""

from enum import IntEnum
from typing import Self

from openai_cancel.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidResponseIdError,
    LedgerError,
    OpenAICancelError,
    PermissionDeniedError,
)


class ExitStatus(IntEnum):
    """The exit status of the process. After a signal it is 128 plus the number of the signal, as in a shell."""

    OK = 0
    """Every response has ended."""

    NOT_STOPPED = 1
    """At least one response may still be running, or something else failed."""

    USAGE = 2
    """The arguments are wrong."""

    CONFIGURATION = 3
    """The credentials, the configuration or the ledger's database do not work."""

    INTERRUPTED = 130
    """The user pressed Ctrl-C."""


class UsageError(Exception):
    """Arguments that are wrong, or that cannot be combined."""

    @classmethod
    def of_file(cls, error: OSError, title: object = None) -> Self:
        """Return the error about a file that cannot be opened, or read: the error of a read does not name the file."""
        return cls(f"{error.filename if title is None else title}: {error.strerror}")


def exit_status(error: OpenAICancelError) -> ExitStatus:
    """Return the exit status for an error, most often about one response."""
    if isinstance(error, InvalidResponseIdError):
        return ExitStatus.USAGE
    if isinstance(error, ConfigurationError | AuthenticationError | PermissionDeniedError | LedgerError):
        return ExitStatus.CONFIGURATION
    return ExitStatus.NOT_STOPPED

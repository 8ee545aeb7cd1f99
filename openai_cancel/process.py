"""The process that a session belongs to."""

import logging
import os

from openai_cancel.errors import SessionStateError
from openai_cancel.log_events import log_fields

_log = logging.getLogger("openai_cancel")


class OwnerProcess:
    """The process in which a session was opened, which the child of a fork is not.

    Args:
        lacks: the part of the session that a fork does not copy, for the message of the error.
    """

    def __init__(self, lacks: str) -> None:
        self._lacks = lacks
        self._pid = os.getpid()
        self._logged = False

    @property
    def is_current(self) -> bool:
        """Whether this is the process."""
        return self._pid == os.getpid()

    def check(self) -> None:
        """Make sure that this is the process.

        The first failure in each process is also logged, since a web framework may hide the exception.

        Raises:
            SessionStateError: this is another process.
        """
        if self.is_current:
            return
        error = SessionStateError(
            f"The session was opened in process {self._pid}, and a fork does not copy its {self._lacks}: open a "
            "session in this process, after the fork."
        )
        if not self._logged:
            self._logged = True
            _log.error("%s", error, extra=log_fields("forked", error=error))
        raise error

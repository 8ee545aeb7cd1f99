"""`Health`: logs once that the database of a ledger fails, and once that it works again."""

import logging

from openai_cancel.ledger.database import ClosedError
from openai_cancel.log_events import log_fields

_log = logging.getLogger("openai_cancel.ledger")


class Health:
    """Whether the database worked when it was last used."""

    def __init__(self) -> None:
        self._failing = False

    def note_failure(self, error: BaseException) -> None:
        """Log that the database fails: once, until it works again. A ledger that was closed is no such failure."""
        if isinstance(error, ClosedError):
            return
        if not self._failing:
            _log.error(
                "the ledger fails, and running responses are not recorded until it works again: %s", error,
                extra=log_fields("ledger_failed", error=error),
            )  # fmt: skip
        self._failing = True

    def note_success(self) -> None:
        """Log that the database works again, if it has failed."""
        if self._failing:
            _log.warning("the ledger works again", extra=log_fields("ledger_recovered"))
        self._failing = False

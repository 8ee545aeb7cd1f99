"""`Progress`: how long a response has been queued, and how long it has made no progress.

With a ledger, this outlives the process: the ledger keeps a mark of the last progress, and its time by the clock of the
database.
"""

import hashlib
import json
import math

from openai_cancel.guarded_responses import GuardedResponses
from openai_cancel.ledger_protocols import History
from openai_cancel.models import Response
from openai_cancel.models.response import is_same_progress, progress_of

SHARE = 0.1
"""The fraction of the limit after which a change is written to the ledger, so that few writes are needed."""


class Progress:
    """The progress of a response, as one wait sees it.

    Args:
        responses: the guarded response of the wait, whose ledger keeps the progress, if there is one.
        response_id: the id.
        now: the time at which the wait begins.
        history: what the ledger knows from earlier waits.
        limit: the maximum time without progress, in seconds; infinite if there is no limit, and nothing to write.

    Attributes:
        changed: the time of the last progress.
        queued_since: the time since which the response has been queued; None if it is not.
    """

    def __init__(
        self, responses: GuardedResponses, response_id: str, *, now: float, history: History, limit: float
    ) -> None:
        self.changed: float = now
        self.queued_since: float | None = None
        self._responses = responses
        self._response_id = response_id
        self._began = now
        self._history = history
        self._limit = limit
        self._seen: object = None
        self._mark = (history.mark or "").partition("@")[0]  # of the last document
        self._event = self.last_event
        self._heard = -math.inf  # the time of the last event
        self._ahead = 0.0  # seconds of progress that are written in advance
        self._is_unwritten = False
        self._next_write = -math.inf

    @property
    def last_event(self) -> int | None:
        """The number of the last event that an earlier wait has heard, or None."""
        number = (self._history.mark or "").partition("@")[2]
        return int(number) if number.isdecimal() else None

    @property
    def was_seen(self) -> bool:
        """Whether the server has shown the response, or events of it, in this wait."""
        return self._seen is not None or self._heard > -math.inf

    def see(self, response: Response, now: float) -> None:
        """Note a response that was retrieved, or that an event has carried."""
        seen = progress_of(response)
        if response.status != "queued":
            self.queued_since = None
        elif self.queued_since is None:
            # An earlier process may have waited for it before.
            self.queued_since = self._began - self._history.age if self._seen is None else now
        if not is_same_progress(seen, self._seen):
            is_first, self._seen, self.changed = self._seen is None, seen, now
            if self._limit < math.inf:
                self._note_change(_mark(seen), now, is_first=is_first)

    def hear(self, at: float, event: int | None, *, is_running: bool) -> None:
        """Note the events of a stream.

        Args:
            at: the time of its last new event.
            event: the number of this event, or None.
            is_running: whether the response has left the queue.
        """
        if is_running:
            self.queued_since = None
        if event is not None:
            self._event = event
        if at > self.changed:
            # A wait that polls after a restart would not know of later events. So they are written ahead.
            self.changed = self._heard = at
            self._ahead, self._is_unwritten = self._limit * SHARE, True

    def _note_change(self, mark: str, now: float, *, is_first: bool) -> None:
        before, self._mark, self._ahead = self._mark, mark, 0.0
        if is_first and mark and mark == before:
            self.changed = max(now - self._history.unchanged_for, self._heard)
        else:
            self._is_unwritten = True

    async def write(self, now: float) -> None:
        """Write the progress to the ledger, if it has changed, and was not written a short time ago."""
        if not self._is_unwritten or now < self._next_write or self._limit == math.inf:
            return
        self._next_write = now + self._limit * SHARE
        mark = self._mark if self._event is None else f"{self._mark}@{self._event}"
        ago = now - self.changed - self._ahead
        self._is_unwritten = not await self._responses.note_progress(self._response_id, mark, ago)


def _mark(seen: object) -> str:
    """Return a hash of the progress that is the same in every process."""
    try:
        text = json.dumps(seen, sort_keys=True)
    except RecursionError:  # documents that are nested this deeply are not compared between processes
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:32]

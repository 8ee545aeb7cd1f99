"""The statuses of the responses under way, for the progress on a terminal."""

import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import attrs

from openai_cancel.cli.lines import Result
from openai_cancel.cli.output import printable
from openai_cancel.models import Response


@attrs.frozen
class Observation:
    """A response as it was last seen. All times are monotonic.

    Attributes:
        response_id: its id.
        status: its status.
        since: the time at which it was first seen with this status.
        created: the time at which it was created or, if the server does not say, first seen.
    """

    response_id: str
    status: str
    since: float
    created: float


class Statuses:
    """The statuses of the responses under way.

    Args:
        monotonic: returns the monotonic time.
        wall: returns the time since the epoch.
    """

    def __init__(
        self, *, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._seen: dict[str, Observation] = {}

    def see(self, response: Response) -> None:
        """Note the state of a response."""
        name, status = f"{response.id}", printable(response.status)
        now, before = self._monotonic(), self._seen.get(name)
        if before and before.status == status:
            return
        created = now if before is None else before.created
        if response.created:
            created = now - max(0.0, self._wall() - response.created.timestamp())
        self._seen[name] = Observation(name, status, now, created)

    def forget(self, result: Result) -> None:
        """Forget a response that is no longer worked on. Some servers report it with another id."""
        self._seen.pop(result.response_id, None)
        if result.response:
            self._seen.pop(f"{result.response.id}", None)

    def counts(self) -> Counter[str]:
        """Return the number of responses with each status."""
        return Counter(seen.status for seen in [*self._seen.values()])  # called in the thread that draws

    def oldest(self) -> Observation | None:
        """Return the response that was created first."""
        return min([*self._seen.values()], key=lambda seen: seen.created, default=None)

    def age(self, moment: float) -> str:
        """Return the time since a monotonic time, such as 1:02:03."""
        return str(timedelta(seconds=int(max(0.0, self._monotonic() - moment))))

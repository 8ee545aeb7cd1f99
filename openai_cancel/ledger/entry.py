"""`Entry`: a response in a ledger, as a caller reads it."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

import attrs
from sqlalchemy import Row

_LAST = datetime.max.replace(tzinfo=UTC).timestamp() - 1.0
"""The last time that is a date, but for a second. A limit that is further away is none."""


@attrs.frozen(kw_only=True)
class Entry:
    """A response in a ledger.

    Attributes:
        response_id: the id, as it was tracked.
        base_url: the address of the server that holds the response.
        account: the name of the account; see `AsyncSession.account`.
        labels: the labels of the ledger and of the call that tracked the response.
        state: `tracked`; `stopping` if a sweep has claimed it; `released` if it may run on, or its guard has ended
            normally; otherwise the verdict about its end.
        owner: the holder of the lease, which contains host and process id; or None.
        attempts: the number of attempts to stop it.
        created: when it was first tracked, in UTC, by the clock of the database.
        changed: when its state last changed, in UTC, by the clock of the database.
        lease_left: seconds until the lease expires, negative if it has expired; None if no sweep will claim it.
        error: the reason why it could not be stopped, or None.
        request_id: the server's id of the last request, or None.
        expires: when a sweep stops it although its lease is renewed, in UTC, by the clock of the database: the end of
            its `max_age`; or None.
    """

    response_id: str
    base_url: str
    account: str
    labels: Mapping[str, str]
    state: str
    owner: str | None
    attempts: int
    created: datetime
    changed: datetime
    lease_left: float | None
    error: str | None
    request_id: str | None
    expires: datetime | None

    @classmethod
    def from_row(cls, row: Row[Any]) -> Self:
        """Return the entry of a row of `selection.page`."""
        return cls(
            response_id=row.response_id,
            base_url=row.base_url,
            account=row.account,
            labels=row.labels,
            state=row.state,
            owner=row.owner,
            attempts=row.attempts,
            created=datetime.fromtimestamp(row.created, UTC),
            changed=datetime.fromtimestamp(row.changed, UTC),
            lease_left=row.lease_left,
            error=row.error,
            request_id=row.request_id,
            expires=None if (row.expires or math.inf) > _LAST else datetime.fromtimestamp(row.expires, UTC),
        )

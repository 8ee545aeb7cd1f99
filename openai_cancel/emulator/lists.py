"""A page of the list of responses, as a dialect shows it. Pure: the caller passes the time."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from openai_cancel.emulator.dialects import Dialect, List
from openai_cancel.emulator.documents import describe
from openai_cancel.emulator.work import Work


class ListError(Exception):
    """A parameter that the server refuses. Its argument is the message."""


def page(works: Iterable[Work], dialect: Dialect, form: List, query: Mapping[str, str], now: float) -> dict[str, Any]:
    """Return a page of a list.

    The responses are in the order of their creation, by whole seconds; those of one second are in the order of their
    ids, whichever way the list goes.

    Args:
        works: the responses that the server knows.
        dialect: the dialect.
        form: how the dialect lists.
        query: the parameters of the request.
        now: the time in seconds of the emulator's clock.

    Raises:
        ListError: a parameter has a value that the server refuses.
    """
    limit, order, after = query.get("limit", str(form.default)), query.get("order", "desc"), query.get("after")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= form.largest):
        raise ListError(f"limit: Input should be a whole number from 1 to {form.largest}")
    if order not in {"asc", "desc"}:
        raise ListError("order: Input should be 'asc' or 'desc'")
    sign = 1 if order == "asc" else -1
    places = {work.id: (sign * math.floor(work.started), work.id) for work in works}
    if after is not None and dialect.read_id(after) not in places:
        raise ListError(form.unknown_cursor.format(id=after))
    begin = None if after is None else places[dialect.read_id(after)]
    model = query.get("model") if form.takes_model else None
    found = [
        work
        for work in sorted(works, key=lambda work: places[work.id])
        if (begin is None or places[work.id] > begin) and model in {None, work.request.get("model")}
    ]
    reports = {status: reply.reports for status, reply in dialect.retrieve.items() if reply.reports}
    data = [describe(work, dialect, now, reports) for work in found[: int(limit)]]
    ends = [data[0]["id"], data[-1]["id"]] if data else ["", ""]
    return {
        "object": "list",
        "data": data,
        "first_id": ends[0],
        "last_id": ends[1],
        "has_more": len(found) > int(limit),
    }

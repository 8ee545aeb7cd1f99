"""A response as a dialect describes it: the object, and the events of its stream. Pure: the caller passes the time."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from openai_cancel.emulator.dialects import Dialect
from openai_cancel.emulator.work import Work

_TOKENS = re.compile(r"\W*\w+|\W+")


@attrs.frozen
class Event:
    """An event of a stream.

    Attributes:
        at: when it happens, in seconds of the emulator's clock. `math.inf` if it never does.
        type: its type.
        fields: its fields except `type`, `sequence_number` and `response`.
        status: the status of the response that it shows. None if it shows none.
    """

    at: float
    type: str
    fields: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    status: str | None = None


def describe(
    work: Work, dialect: Dialect, now: float, reports: Mapping[str, str], *, status: str | None = None
) -> dict[str, Any]:
    """Return a response as a dialect describes it.

    Args:
        work: the response.
        dialect: the dialect.
        now: the time in seconds of the emulator's clock.
        reports: the status to report in place of another.
        status: its status, if it is not the one at that time.
    """
    document = {**work.document(now, status), **dialect.adds, "id": dialect.show_id(work.id)}
    if work.cancelled is not None and work.cancelled <= now < work.cancelled + dialect.cancelling_for:
        document["status"] = "cancelling"
    if dialect.dates_cancelled and work.cancelled is not None and document["status"] == "cancelled":
        document["completed_at"] = math.floor(work.cancelled)
    document["status"] = reports.get(document["status"], document["status"])
    return {name: value for name, value in document.items() if name not in dialect.lacks}


def events(work: Work, dialect: Dialect) -> Iterator[Event]:
    """Yield the events of a response's stream, in order, as if nobody cancelled it.

    The first piece of its text comes when it begins to run, the others evenly over the time that it runs.

    See https://platform.openai.com/docs/api-reference/responses-streaming.
    """
    begins, ends = work.begins(), work.ends()
    created = _created_status(work, dialect)
    yield Event(work.started, "response.created", status=created)
    if created == "queued":
        yield Event(work.started, "response.queued", status=created)
    yield Event(begins, "response.in_progress", status="in_progress")
    item = work.message("in_progress")
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = item["content"][0]
    yield Event(begins, "response.output_item.added", {"output_index": 0, "item": {**item, "content": []}})
    yield Event(begins, "response.content_part.added", {**place, "part": {**part, "text": ""}})
    pieces = _TOKENS.findall(work.script.says)
    for number, piece in enumerate(pieces):
        # Not `inf * 0`, which is no number.
        passed = work.script.runs_for * number / len(pieces) if number else 0.0
        yield Event(begins + passed, "response.output_text.delta", {**place, "delta": piece, "logprobs": []})
    becomes = work.script.becomes
    if becomes != "failed":
        yield Event(ends, "response.output_text.done", {**place, "text": part["text"], "logprobs": []})
        yield Event(ends, "response.content_part.done", {**place, "part": part})
        yield Event(ends, "response.output_item.done", {"output_index": 0, "item": work.message(becomes)})
    yield Event(ends, f"response.{becomes}", status=becomes)


def _created_status(work: Work, dialect: Dialect) -> str:
    if not work.background:
        return "in_progress"
    return "queued" if work.script.queued_for else dialect.create.get("in_progress", "in_progress")

"""JSON documents of outcomes: the lines of the output and of a log."""

import json
from datetime import UTC, datetime
from typing import Any

import orjson

from openai_cancel.outcome import Outcome


def outcome_as_document(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as a JSON document, with the current time."""
    return {
        "id": outcome.response_id,
        "verdict": outcome.verdict,
        "stopped": outcome.stopped,
        "status": outcome.response and outcome.response.status,
        "attempts": outcome.attempts,
        "elapsed": round(outcome.elapsed, 6),
        "request_id": outcome.request_id,
        "error": outcome.error and outcome.error.to_dict(),
        "at": now(),
    }


def now() -> str:
    """Return the current time as it is written in documents."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_json(document: object) -> str:
    """Return a document as one line of JSON, with null for NaN and infinities, which JSON does not have."""
    try:
        return orjson.dumps(document).decode()
    except TypeError:  # a lone surrogate, or an integer of more than 64 bits
        text = json.dumps(document)
    return json.dumps(json.loads(text, parse_constant=lambda _: None), allow_nan=False)

"""JSON documents of outcomes: the lines of the output and of a log, as they are written and read."""

import json
from collections.abc import Iterable, Iterator
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


def to_json(document: dict[str, Any]) -> str:
    """Return a document as one line of JSON."""
    try:
        return orjson.dumps(document).decode()  # writes null for NaN, which JSON does not have
    except TypeError:  # a lone surrogate, or an integer of more than 64 bits
        return json.dumps(document)


def read_documents(lines: Iterable[bytes]) -> Iterator[dict[str, Any] | None]:
    """Yield the document of each line of a log, or None for a line that is not JSON.

    A run that was killed can leave such a line. Blank lines and JSON that is no object are left out.
    """
    for line in lines:
        try:
            document: Any = orjson.loads(line)
        except ValueError:
            if line.strip():
                yield None
            continue
        if isinstance(document, dict):
            yield document


def read_results(lines: Iterable[bytes]) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Yield the id of each line of a log about a response, whether it is stopped, and the document of the line."""
    for document in read_documents(lines):
        if document is None:
            continue
        response_id, stopped = document.get("id"), document.get("stopped")
        if isinstance(response_id, str) and isinstance(stopped, bool):
            yield response_id, stopped, document

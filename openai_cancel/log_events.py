"""The records of the log, for machines that read them: the loggers, the events, and the fields of every record.

| logger | |
|---|---|
| `openai_cancel` | outcomes that no call returns (of guards, waits and watches), attempts, and failures |
| `openai_cancel.outcomes` | outcomes that a call returns. They are not printed unless logging is configured |
| `openai_cancel.ledger` | the ledger: its database, leases and sweeps |
| `openai_cancel.sweeper` | `openai-cancel ledger sweep`: its start, its rounds, and its end |

A response that was stopped is INFO, and one that was not is a WARNING with the reason. A dry run is always INFO.
Attempts are DEBUG. A record contains no key, and no text of a server.

Every record has all of these fields, so that formats such as `%(response_id)s` work. They are None where they do not
apply. With python-json-logger, structlog and similar packages, they are keys of the JSON. (`event` alone would replace
the message in structlog, and is an object in the Elastic Common Schema.)

| field | type | |
|---|---|---|
| `event_name` | str | a name that stays the same when the text changes: a key of `EVENTS` |
| `response_id` | str | the id, as it was passed in |
| `verdict` | str | the `Verdict` |
| `attempts` | int | the number of requests |
| `elapsed` | float | the duration in seconds |
| `request_id` | str | the server's id of the last request |
| `error_type` | str | the class of the error that is the reason, such as `RateLimitError` |
| `affected` | int | the number of responses that a record without an id is about |
"""

from collections.abc import Mapping

FIELDS = ("event_name", "response_id", "verdict", "attempts", "elapsed", "request_id", "error_type", "affected")
"""The names of the fields. None of them is an attribute of `logging.LogRecord`."""

_OUTCOME = frozenset({"response_id", "verdict", "attempts", "elapsed", "request_id", "error"})
_NONE = frozenset[str]()

EVENTS: Mapping[str, frozenset[str]] = {
    "stopped": _OUTCOME,  # an outcome, also of a dry run
    "not_stopped": _OUTCOME,  # an outcome
    "stop_failed": frozenset({"response_id", "error"}),  # a guard or a watch has no outcome: no time, or an error
    "attempt": frozenset({"response_id", "attempts", "request_id", "error"}),
    "stream_refused": frozenset({"response_id", "error"}),  # a wait polls instead
    "wait_failed": frozenset({"response_id", "verdict", "error"}),
    "on_update_failed": frozenset({"response_id", "error"}),
    "on_outcome_failed": frozenset({"response_id", "verdict", "error"}),
    "abandoned_failed": frozenset({"error"}),
    "answer_unreadable": frozenset({"error"}),
    "creation_failed": frozenset({"error"}),  # a response that a client has created may run on
    "other_account": _NONE,
    "other_context": _NONE,
    "other_server": _NONE,
    "loop_closed": frozenset({"affected"}),
    "metrics_failed": frozenset({"error"}),
    "forked": frozenset({"error"}),
    "ledger_failed": frozenset({"error"}),
    "ledger_recovered": _NONE,
    "ledger_recreated": _NONE,
    "ledger_replaced": _NONE,
    "ledger_missed": frozenset({"affected"}),  # rows that are written again
    "ledger_unwritten": frozenset({"affected"}),
    "lease_taken": frozenset({"response_id", "verdict", "attempts", "request_id", "error"}),
    "sweep_claimed": frozenset({"affected"}),
    "sweeper_started": _NONE,
    "sweeper_round": frozenset({"affected", "elapsed"}),
    "sweeper_idle": frozenset({"elapsed"}),
    "sweeper_failed": frozenset({"error"}),
    "sweeper_neglected": frozenset({"affected"}),  # overdue responses that this sweeper does not stop
    "sweeper_ended": _NONE,
}
"""The events, and the fields that each of them sets. `error` sets `error_type`."""


def log_fields(
    event: str,
    *,
    response_id: str | None = None,
    verdict: str | None = None,
    attempts: int | None = None,
    elapsed: float | None = None,
    request_id: str | None = None,
    error: object = None,
    affected: int | None = None,
) -> dict[str, object]:
    """Return the fields of a record, as the `extra` of a call of `logging`.

    Args:
        event: the name of the event.
        response_id: the id.
        verdict: the verdict.
        attempts: the number of requests.
        elapsed: the duration in seconds.
        request_id: the server's id of the last request.
        error: an exception, whose class is recorded; anything else is no error.
        affected: the number of responses.
    """
    return {
        "event_name": event,
        "response_id": response_id,
        "verdict": None if verdict is None else str(verdict),
        "attempts": attempts,
        "elapsed": elapsed,
        "request_id": request_id,
        "error_type": type(error).__qualname__ if isinstance(error, BaseException) else None,
        "affected": affected,
    }

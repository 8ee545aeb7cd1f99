"""Parse the faults of the emulated server, as they are written on the command line.

A fault is `[OPERATION:]WHAT[+WHAT…][*COUNT]`, such as `cancel:503+retry-after=1*2`.
"""

import math
import re
from typing import Literal

from openai_cancel.cli.exit_status import UsageError
from openai_cancel.emulator import Fault

OPERATIONS = ("create", "retrieve", "cancel", "delete", "list")
"""The operations that a fault can affect. Without one, it affects any."""

COUNT_LIMIT = 100_000
"""The maximum number of requests that one fault affects."""

LONGEST = 1e9
"""The maximum number of seconds of a delay, or of a retry-after."""

WHAT = "a status such as 503, a delay such as 2s, retry-after=SECONDS, html, hang, cut, cut-body or lost"
"""The effects of a fault, for messages."""

_FAULT = re.compile(r"(?:([a-z]+):)?([^*]+?)(?:\*([0-9]{1,9}))?")
_STATUS = re.compile(r"[2-5][0-9]{2}")
_DELAY = re.compile(r"([0-9]+(?:\.[0-9]+)?)s")
_RETRY_AFTER = re.compile(r"retry-after=([0-9]+(?:\.[0-9]+)?)")
_PAGE = "<html><head><title>{status}</title></head><body><h1>{status}</h1><p>The emulated gateway.</p></body></html>\n"


def read_faults(text: str) -> list[Fault]:
    """Return the fault, once for each request that it affects.

    Raises:
        UsageError: the text is not a fault.
    """
    parts = _FAULT.fullmatch(text)
    if parts is None:
        raise _wrong(text, "write [OPERATION:]WHAT[+WHAT][*COUNT], such as cancel:503*2")
    operation, whats, count = parts[1], parts[2].split("+"), int(parts[3] or 1)
    if operation not in {*OPERATIONS, None}:
        raise _wrong(text, f"{operation} is no operation: use {', '.join(OPERATIONS)}, or leave it out for any")
    if not 1 <= count <= COUNT_LIMIT:
        raise _wrong(text, f"the count must be 1 to {COUNT_LIMIT:,}")
    effects = _Effects()
    for what in whats:
        if not effects.read(what):
            if any(kind.fullmatch(what) for kind in (_STATUS, _DELAY, _RETRY_AFTER)):
                raise _wrong(text, f"{what} is the second of its kind: leave out one of them")
            raise _wrong(text, f"{what!r} is none of {WHAT}")
    return [effects.fault(text, operation)] * count


class _Effects:
    """The effects of a fault, as they are read."""

    def __init__(self) -> None:
        self._status: int | None = None
        self._delay: float | None = None
        self._retry_after: float | None = None
        self._flags: set[str] = set()

    def read(self, what: str) -> bool:
        """Read an effect, and return whether it is one, and can be added to the others."""
        if self._status is None and _STATUS.fullmatch(what):
            self._status = int(what)
        elif self._delay is None and (delay := _DELAY.fullmatch(what)):
            self._delay = min(float(delay[1]), LONGEST)
        elif self._retry_after is None and (seconds := _RETRY_AFTER.fullmatch(what)):
            self._retry_after = min(float(seconds[1]), LONGEST)
        elif what in {"html", "hang", "cut", "cut-body", "lost"}:
            self._flags.add(what)
        else:
            return False
        return True

    def fault(self, text: str, operation: str | None) -> Fault:
        """Return the fault.

        Raises:
            UsageError: the effects do not fit together.
        """
        flags = self._flags
        ends = flags & {"hang", "cut", "lost"}
        if len(ends) > 1 or (ends and (self._status or "html" in flags or "cut-body" in flags)):
            raise _wrong(text, f"{min(ends)} sends no answer: leave out the rest")
        if self._status is None and ("html" in flags or self._retry_after is not None):
            raise _wrong(text, "html and retry-after need a status, such as 503+html")
        cut: Literal["connection", "body"] | None = "body" if "cut-body" in flags else None
        if flags & {"cut", "lost"}:
            cut = "connection"
        body, headers = self._answer()
        return Fault(
            on=operation,  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - it is one of OPERATIONS
            delay=math.inf if "hang" in flags else self._delay or 0.0,
            act="lost" in flags,
            status=self._status,
            headers=headers,
            body=body,
            cut=cut,
        )

    def _answer(self) -> tuple[object, dict[str, str]]:
        """Return the body and the headers of the answer."""
        headers = {"content-type": "application/json"}
        body: object = {"error": {"message": "The emulator was told to fail.", "type": "server_error", "code": None}}
        if "html" in self._flags:
            headers, body = {"content-type": "text/html"}, _PAGE.format(status=self._status)
        if f"{self._status}".startswith("3"):
            headers["location"] = "/elsewhere"
        if self._retry_after is not None:
            headers["retry-after-ms"] = f"{self._retry_after * 1000:.15g}"
            headers["retry-after"] = f"{math.ceil(self._retry_after)}"
        return body, headers


def _wrong(text: str, problem: str) -> UsageError:
    return UsageError(f"--fault {text}: {problem}.")

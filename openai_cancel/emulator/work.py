"""The emulator's responses. Each runs for a while and then ends; its state is computed from the clock alone."""

import math
import secrets
from collections.abc import Mapping
from typing import Any, Self

import attrs

from openai_cancel.emulator.checks import check_seconds, one_of

_SECONDS = ("queued_for", "runs_for", "resumes_after")


class ScriptError(ValueError):
    """The metadata of a request does not describe a script."""


@attrs.frozen
class Script:
    """The course of a background response.

    Attributes:
        queued_for: seconds in `queued`.
        runs_for: seconds in `in_progress` after that. `math.inf` to run forever.
        becomes: the status at the end: `completed`, `failed` or `incomplete`.
        says: the text of a completed response. A stream sends it in pieces, the first at once, the others evenly over
            `runs_for`.
        resumes_after: seconds after a cancel until the response goes on as if it had not been cancelled. `math.inf`
            to stay cancelled.
        resumes: the number of cancels after which it goes on in this way.

    Raises:
        ValueError: a time is negative or NaN, or `becomes` is not one of these statuses.
    """

    queued_for: float = attrs.field(default=0.0, validator=check_seconds)
    runs_for: float = attrs.field(default=60.0, validator=check_seconds)
    becomes: str = attrs.field(default="completed", validator=one_of("completed", "failed", "incomplete"))
    says: str = "Forty-two."
    resumes_after: float = attrs.field(default=math.inf, validator=check_seconds)
    resumes: int = 1

    def amended(self, metadata: Any) -> Self:
        """Return a copy with the changes that the metadata of a request asks for.

        Args:
            metadata: new values, as strings, for any attribute except `resumes`. Other names are ignored.

        Raises:
            ScriptError: a value is not valid.
        """
        if metadata.__class__ is not dict or any(value.__class__ is not str for value in metadata.values()):
            raise ScriptError("expected an object of strings.")
        changes: dict[str, Any] = {name: metadata[name] for name in ("becomes", "says") if name in metadata}
        try:
            changes |= {name: float(metadata[name]) for name in _SECONDS if name in metadata}
            return attrs.evolve(self, **changes)
        except ValueError as error:
            raise ScriptError(f"{error.args[0]}.") from error


@attrs.define
class Work:
    """A response. Its state follows from the clock, so that no task runs for it.

    Attributes:
        request: the body of the request that created it.
        script: its course.
        started: when it was created, in seconds of the emulator's clock.
        cancelled: when it was last cancelled, or None.
        cancels: how many times it was cancelled.
        id: its id.
        replica: the number of the emulator's replica that created it, from 0.
    """

    request: Mapping[str, Any]
    script: Script
    started: float
    cancelled: float | None = None
    cancels: int = 0
    id: str = attrs.field(factory=lambda: f"resp_{secrets.token_hex(25)}")
    replica: int = 0

    @property
    def background(self) -> bool:
        """Whether it runs in the background. If not, it runs only while its request is answered."""
        return self.request.get("background") is True

    @property
    def streamed(self) -> bool:
        """Whether its request asked for a stream. If not, and not for the background, it ends as soon as it begins."""
        return self.request.get("stream") is True

    def cancel(self, now: float) -> None:
        """Cancel it.

        Args:
            now: the time in seconds of the emulator's clock.
        """
        self.cancelled = now
        self.cancels += 1

    def begins(self) -> float:
        """Return when it begins to run, in seconds of the emulator's clock. Only the background has a queue."""
        return self.started + (self.script.queued_for if self.background else 0.0)

    def ends(self) -> float:
        """Return when it ends unless it is cancelled, in seconds of the emulator's clock."""
        return self.begins() + (self.script.runs_for if self.background or self.streamed else 0.0)

    def is_over(self, now: float) -> bool:
        """Return whether it was cancelled and stays so.

        Args:
            now: the time in seconds of the emulator's clock.
        """
        return self.status(now) == "cancelled" and not (
            self.cancels <= self.script.resumes and self.script.resumes_after < math.inf
        )

    def is_active(self, now: float) -> bool:
        """Return whether it is queued or running.

        Args:
            now: the time in seconds of the emulator's clock.
        """
        return self.status(now) in {"queued", "in_progress"}

    def status(self, now: float) -> str:
        """Return its status at a time.

        Args:
            now: the time in seconds of the emulator's clock.
        """
        if self.cancelled is not None and (
            self.cancels > self.script.resumes or now < self.cancelled + self.script.resumes_after
        ):
            return "cancelled"
        if now >= self.ends():
            return self.script.becomes
        return "queued" if now < self.begins() else "in_progress"

    def document(self, now: float, status: str | None = None) -> dict[str, Any]:
        """Return the response object as OpenAI sends it.

        Args:
            now: the time in seconds of the emulator's clock.
            status: its status, if it is not the one at that time.
        """
        status = status or self.status(now)
        has_output = status in {"completed", "incomplete"}
        failure = {"code": "server_error", "message": "The emulator was told to fail."}
        return {
            "id": self.id,
            "object": "response",
            "created_at": math.floor(self.started),
            "status": status,
            "background": self.background,
            "completed_at": math.floor(self.ends()) if status == "completed" else None,
            "error": failure if status == "failed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [self.message(status)] if has_output else [],
            "service_tier": "default" if status == "completed" else "auto",
            "usage": _USAGE if has_output else None,
            **_options(self.request),
        }

    def message(self, status: str) -> dict[str, Any]:
        """Return its output item.

        Args:
            status: the status of the item.
        """
        return {
            "id": self.id.replace("resp_", "msg_", 1),
            "type": "message",
            "status": status,
            "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": self.script.says}],
            "role": "assistant",
        }


def _options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that repeat the options of the request, or OpenAI's defaults."""
    return {
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": request["model"],
        "parallel_tool_calls": True,
        "previous_response_id": request.get("previous_response_id"),
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
        "metadata": request.get("metadata") or {},
    }


_USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 123,
}

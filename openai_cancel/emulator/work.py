"""What the emulator pretends to do: a response that runs for a while and then ends, computed from the clock alone."""

import math
import secrets
from collections.abc import Mapping
from typing import Any, Self

import attrs

TERMINAL = frozenset({"completed", "failed", "incomplete", "cancelled"})


_SECONDS = ("queued_for", "runs_for", "resumes_after")


class ScriptError(ValueError):
    """A metadata entry that no script can be made of."""


@attrs.frozen
class Script:
    """How a background response goes.

    Attributes:
        queued_for: seconds in `queued`.
        runs_for: seconds in `in_progress`, after that; `math.inf` for ever.
        becomes: the status at the end: `completed`, `failed` or `incomplete`.
        says: the text of a completed response.
        resumes_after: seconds after which it goes on as if it had not been cancelled; `math.inf`: it stays so.
        resumes: how many cancels it shakes off in this way.

    Raises:
        ValueError: a time is less than 0, or `becomes` is no such status.
    """

    queued_for: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    runs_for: float = attrs.field(default=60.0, validator=attrs.validators.ge(0))
    becomes: str = attrs.field(
        default="completed", validator=attrs.validators.in_(("completed", "failed", "incomplete"))
    )
    says: str = "Forty-two."
    resumes_after: float = attrs.field(default=math.inf, validator=attrs.validators.ge(0))
    resumes: int = 1

    def amended(self, metadata: Any) -> Self:
        """The script with what the metadata of a request changes: any of its attributes but `resumes`.

        Raises:
            ScriptError: a value cannot be read.
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
    """One response. Its state follows from the clock: nothing runs in the background.

    Attributes:
        request: the body of the request that created it.
        script: how it goes.
        started: when it was created, in seconds of the emulator's clock.
        cancelled: when it was cancelled last, or None.
        cancels: how often it was.
        id: what the server calls it.
    """

    request: Mapping[str, Any]
    script: Script
    started: float
    cancelled: float | None = None
    cancels: int = 0
    id: str = attrs.field(factory=lambda: f"resp_{secrets.token_hex(25)}")

    @property
    def background(self) -> bool:
        """Whether it was created to run in the background; otherwise it was done when the request was answered."""
        return self.request.get("background") is True

    def cancel(self, now: float) -> None:
        """Cancel it, at a time of the emulator's clock."""
        self.cancelled = now
        self.cancels += 1

    def ends(self) -> float:
        """When it ends by itself, in seconds of the emulator's clock."""
        return self.started + (self.script.queued_for + self.script.runs_for if self.background else 0.0)

    def status(self, now: float) -> str:
        """The status at a time of the emulator's clock."""
        if self.cancelled is not None and (
            self.cancels > self.script.resumes or now < self.cancelled + self.script.resumes_after
        ):
            return "cancelled"
        if now >= self.ends():
            return self.script.becomes
        return "queued" if now < self.started + self.script.queued_for else "in_progress"

    def document(self, now: float) -> dict[str, Any]:
        """The response object, as OpenAI sends it at that time."""
        status = self.status(now)
        request = self.request
        completed = status == "completed"
        return {
            "id": self.id,
            "object": "response",
            "created_at": math.floor(self.started),
            "status": status,
            "background": self.background,
            "completed_at": math.floor(self.ends()) if completed else None,
            "error": {"code": "server_error", "message": "The emulator was told to fail."}
            if status == "failed"
            else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.get("instructions"),
            "max_output_tokens": request.get("max_output_tokens"),
            "max_tool_calls": None,
            "model": request["model"],
            "output": [self._message(status)] if status in {"completed", "incomplete"} else [],
            "parallel_tool_calls": True,
            "previous_response_id": request.get("previous_response_id"),
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default" if completed else "auto",
            "store": True,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": _USAGE if status in {"completed", "incomplete"} else None,
            "user": None,
            "metadata": request.get("metadata") or {},
        }

    def _message(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id.replace("resp_", "msg_", 1),
            "type": "message",
            "status": status,
            "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": self.script.says}],
            "role": "assistant",
        }


_USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 123,
}

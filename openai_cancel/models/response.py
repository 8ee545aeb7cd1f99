"""The response itself.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from datetime import UTC, datetime
from typing import Literal, TypeAlias

import attrs

from openai_cancel.models.shared import Model, Problem, Unknown, model
from openai_cancel.models.unions import OutputItem

Status: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"] | str

TERMINAL = frozenset({"completed", "failed", "cancelled", "incomplete"})


@model
class InputTokensDetails(Model):
    """Which input tokens came from a cache, and which were written to it."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_tokens_details: Unknown | None = None


@model
class OutputTokensDetails(Model):
    """Which output tokens were reasoning."""

    reasoning_tokens: int | None = None


@model
class Usage(Model):
    """How many tokens the response took so far."""

    input_tokens: int | None = None
    input_tokens_details: InputTokensDetails | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputTokensDetails | None = None
    total_tokens: int | None = None


@model
class ResponseError(Model):
    """Why the response failed. Not an exception: a part of the document."""

    code: str | None = None
    message: str | None = None


@model
class IncompleteDetails(Model):
    """Why the response is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"] | str | None = None


@model
class Response(Model):
    """A response, as the server last described it.

    Only `id` or `status` is sure to be there. What the server left out, sent as null, or sent in another shape is
    None; `problems` lists the last of these, and `to_dict()` has the document exactly as it came.
    """

    id: str | None = None
    object: str | None = None
    status: Status | None = None
    created_at: float | None = None
    completed_at: float | None = None
    background: bool | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem] | None = None
    usage: Usage | None = None
    model: str | None = None
    instructions: str | list[Unknown] | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    conversation: Unknown | None = None
    prompt: Unknown | None = None
    tools: list[Unknown] | None = None
    tool_choice: str | Unknown | None = None
    tool_usage: Unknown | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | str | None = None
    reasoning: Unknown | None = None
    text: Unknown | None = None
    image: Unknown | None = None
    moderation: Unknown | None = None
    access_programs: Unknown | None = None
    input_transformations: list[Unknown] | None = None
    service_tier: str | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Unknown | None = None
    prompt_cache_diagnostics: Unknown | None = None
    safety_identifier: str | None = None
    user: str | None = None

    request_id: str | None = attrs.field(default=None, init=False)
    """The server's id of the request that brought this document; None where it sent none. Not part of the document."""

    @property
    def is_terminal(self) -> bool:
        """Whether the server says that the work is over."""
        return self.status in TERMINAL

    @property
    def output_text(self) -> str:
        """The text of all messages, joined; empty where there is none."""
        # Imported here: a document without items pays for none of their classes.
        from openai_cancel.models.content import OutputText
        from openai_cancel.models.items import Message

        parts = (
            part.text
            for item in self.output or ()
            if isinstance(item, Message)
            for part in item.content or ()
            if isinstance(part, OutputText)
        )
        return "".join(text for text in parts if text)

    @property
    def created(self) -> datetime | None:
        """When the response was created, in UTC."""
        return _moment(self.created_at)

    @property
    def completed(self) -> datetime | None:
        """When the response was completed, in UTC."""
        return _moment(self.completed_at)

    def __repr__(self) -> str:
        """What tells one response from another: id, status, model, the kinds of output, tokens."""
        shown: list[str] = [f"id={self.id!r}", f"status={self.status!r}"]
        if self.model is not None:
            shown.append(f"model={self.model!r}")
        if self.output is not None:
            shown.append(f"output=[{', '.join(str(item.type) for item in self.output)}]")
        if self.usage is not None:
            shown.append(f"total_tokens={self.usage.total_tokens}")
        if self.problems:
            shown.append(f"problems={len(self.problems)}")
        return f"Response({', '.join(shown)})"

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every place of the document whose value is not what the API says."""
        return tuple(self._walk_problems("$"))


def _moment(timestamp: float | None) -> datetime | None:
    try:
        return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)
    except (OverflowError, ValueError, OSError):  # beyond what a datetime can say
        return None

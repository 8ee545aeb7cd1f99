"""The items of a response's `output`.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from typing import Literal, TypeAlias

from openai_cancel.models.shared import Model, Unknown, model
from openai_cancel.models.unions import MessageContent, ReasoningContent, ReasoningSummary

ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"] | str


@model
class Message(Model):
    """A message of the model."""

    type: Literal["message"] = "message"
    id: str | None = None
    role: str | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | str | None = None
    content: list[MessageContent] | None = None


@model
class Reasoning(Model):
    """What the model thought before it answered."""

    type: Literal["reasoning"] = "reasoning"
    id: str | None = None
    status: ItemStatus | None = None
    summary: list[ReasoningSummary] | None = None
    content: list[ReasoningContent] | None = None
    encrypted_content: str | None = None


@model
class FunctionCall(Model):
    """A call of one of the caller's functions; `arguments` is JSON text, as the model wrote it."""

    type: Literal["function_call"] = "function_call"
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    status: ItemStatus | None = None
    async_: bool | None = None
    caller: Unknown | None = None

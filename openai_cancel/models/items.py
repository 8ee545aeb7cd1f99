"""The items of a response's `output`.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Literal, TypeAlias

from openai_cancel.models.agents import Agent
from openai_cancel.models.calls import ToolItem
from openai_cancel.models.computer import ComputerCall, ComputerCallOutput
from openai_cancel.models.content import MessageContent, ReasoningText, SummaryText
from openai_cancel.models.shared import Model, Unknown
from openai_cancel.models.tools import Tool

__all__ = [
    "AdditionalTools",
    "Compaction",
    "Message",
    "OutputItem",
    "Program",
    "ProgramOutput",
    "Reasoning",
]


class Message(Model):
    """A message from the model."""

    type: Literal["message"] = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    role: Literal["assistant"] | str | None = None
    content: list[MessageContent] | None = None
    phase: Literal["commentary", "final_answer"] | str | None = None
    agent: Agent | None = None


class Reasoning(Model):
    """The model's reasoning before its answer."""

    type: Literal["reasoning"] = "reasoning"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    summary: list[SummaryText | Unknown] | None = None
    content: list[ReasoningText | Unknown] | None = None
    encrypted_content: str | None = None
    agent: Agent | None = None


class Compaction(Model):
    """The context so far, compacted and encrypted."""

    type: Literal["compaction"] = "compaction"
    id: str | None = None
    encrypted_content: str | None = None
    created_by: str | None = None
    agent: Agent | None = None


class AdditionalTools(Model):
    """Tools that become available at this item."""

    type: Literal["additional_tools"] = "additional_tools"
    id: str | None = None
    role: (
        Literal["unknown", "user", "assistant", "system", "critic", "discriminator", "developer", "tool"] | str | None
    ) = None
    tools: list[Tool] | None = None
    agent: Agent | None = None


class Program(Model):
    """A program that the model wrote to call tools."""

    type: Literal["program"] = "program"
    id: str | None = None
    call_id: str | None = None
    code: str | None = None
    fingerprint: str | None = None
    agent: Agent | None = None


class ProgramOutput(Model):
    """The output of a program."""

    type: Literal["program_output"] = "program_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["completed", "incomplete"] | str | None = None
    result: str | None = None
    agent: Agent | None = None


Item: TypeAlias = (
    Reasoning | ToolItem | ComputerCall | ComputerCallOutput | AdditionalTools | Program | ProgramOutput | Compaction
)
OutputItem: TypeAlias = Message | Item | Unknown

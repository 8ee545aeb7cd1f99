"""The agents and programs that make items, and what agents say to each other.

See https://github.com/openai/openai-python/tree/main/src/openai/types/beta.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Literal, TypeAlias

from openai_cancel.models.content import (
    ComputerScreenshot,
    InputFile,
    InputImage,
    InputText,
    OutputText,
    ReasoningText,
    Refusal,
    SummaryText,
)
from openai_cancel.models.shared import Model, Unknown

__all__ = [
    "Agent",
    "AgentMessage",
    "AgentText",
    "Caller",
    "DirectCaller",
    "EncryptedContent",
    "MultiAgentCall",
    "MultiAgentCallOutput",
    "ProgramCaller",
]


class Agent(Model):
    """The agent that produced an item."""

    agent_name: str | None = None


class DirectCaller(Model):
    """The caller of a tool that the model called directly."""

    type: Literal["direct"] = "direct"


class ProgramCaller(Model):
    """The caller of a tool that a program called; `caller_id` is the call ID of the program item."""

    type: Literal["program"] = "program"
    caller_id: str | None = None


Caller: TypeAlias = DirectCaller | ProgramCaller | Unknown


class AgentText(Model):
    """A text that one agent sends to another."""

    type: Literal["text"] = "text"
    text: str | None = None


class EncryptedContent(Model):
    """Content that only the server can decrypt."""

    type: Literal["encrypted_content"] = "encrypted_content"
    encrypted_content: str | None = None


AgentContent: TypeAlias = (
    InputText
    | OutputText
    | AgentText
    | SummaryText
    | ReasoningText
    | Refusal
    | InputImage
    | ComputerScreenshot
    | InputFile
    | EncryptedContent
    | Unknown
)


class AgentMessage(Model):
    """A message from one agent to another."""

    type: Literal["agent_message"] = "agent_message"
    id: str | None = None
    author: str | None = None
    recipient: str | None = None
    content: list[AgentContent] | None = None
    agent: Agent | None = None


class MultiAgentCall(Model):
    """An action of one agent on others; `arguments` is JSON text."""

    type: Literal["multi_agent_call"] = "multi_agent_call"
    id: str | None = None
    call_id: str | None = None
    action: (
        Literal["spawn_agent", "interrupt_agent", "list_agents", "send_message", "followup_task", "wait_agent"]
        | str
        | None
    ) = None
    arguments: str | None = None
    agent: Agent | None = None


class MultiAgentCallOutput(Model):
    """The output of an action of one agent on others."""

    type: Literal["multi_agent_call_output"] = "multi_agent_call_output"
    id: str | None = None
    call_id: str | None = None
    action: (
        Literal["spawn_agent", "interrupt_agent", "list_agents", "send_message", "followup_task", "wait_agent"]
        | str
        | None
    ) = None
    output: list[OutputText | Unknown] | None = None
    agent: Agent | None = None

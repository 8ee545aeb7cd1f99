"""Input items, which `instructions` may contain.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import ClassVar, Literal, TypeAlias

from openai_cancel.models.agents import Agent
from openai_cancel.models.config import ReasoningConfig, TextConfig
from openai_cancel.models.content import MessageContent
from openai_cancel.models.items import Item
from openai_cancel.models.shared import Model, Unknown

__all__ = [
    "CompactionTrigger",
    "ConfigurationUpdate",
    "InputItem",
    "InputMessage",
    "ItemReference",
]


class InputMessage(Model):
    """A message in the input."""

    implied_by: ClassVar[str | None] = "role"

    type: Literal["message"] = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    role: Literal["user", "assistant", "system", "developer"] | str | None = None
    content: str | list[MessageContent] | None = None
    phase: Literal["commentary", "final_answer"] | str | None = None
    agent: Agent | None = None


class ConfigurationUpdate(Model):
    """A change of the configuration for the items that follow."""

    type: Literal["configuration_update"] = "configuration_update"
    id: str | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    agent: Agent | None = None


class CompactionTrigger(Model):
    """A request to compact the context."""

    type: Literal["compaction_trigger"] = "compaction_trigger"
    id: str | None = None
    agent: Agent | None = None


class ItemReference(Model):
    """A reference to an earlier item, by its ID."""

    implied_by: ClassVar[str | None] = "id"

    type: Literal["item_reference"] = "item_reference"
    id: str | None = None
    agent: Agent | None = None


InputItem: TypeAlias = InputMessage | Item | CompactionTrigger | ConfigurationUpdate | ItemReference | Unknown

"""The items of an input, which `instructions` may be a list of.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, and not for all at import

from typing import ClassVar, Literal, TypeAlias

from openai_cancel.models.config import ReasoningConfig, TextConfig
from openai_cancel.models.content import MessageContent
from openai_cancel.models.items import Item
from openai_cancel.models.shared import Model, Unknown


class InputMessage(Model):
    """A message to the model, or one that it wrote before."""

    implied_by: ClassVar[str | None] = "role"

    type: Literal["message"] = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    role: Literal["user", "assistant", "system", "developer"] | str | None = None
    content: str | list[MessageContent] | None = None
    phase: Literal["commentary", "final_answer"] | str | None = None


class ConfigurationUpdate(Model):
    """A change to the configuration, from here on."""

    type: Literal["configuration_update"] = "configuration_update"
    id: str | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None


class CompactionTrigger(Model):
    """The wish that what came before be made short."""

    type: Literal["compaction_trigger"] = "compaction_trigger"
    id: str | None = None


class ItemReference(Model):
    """An earlier item, by its id."""

    implied_by: ClassVar[str | None] = "id"

    type: Literal["item_reference"] = "item_reference"
    id: str | None = None


InputItem: TypeAlias = InputMessage | Item | CompactionTrigger | ConfigurationUpdate | ItemReference | Unknown

"""How the model was to think and to write: parts of the request that come back.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, and not for all at import

from typing import Any, Literal, TypeAlias

from openai_cancel.models.shared import Model, Unknown


class ReasoningConfig(Model):
    """How much the model was to think, and what of it to tell."""

    context: Literal["auto", "current_turn", "all_turns"] | str | None = None
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | str | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | str | None = None
    mode: str | Literal["standard", "pro"] | None = None
    summary: Literal["auto", "concise", "detailed"] | str | None = None


class PlainTextFormat(Model):
    """Text of any form."""

    type: Literal["text"] = "text"


class JSONSchemaFormat(Model):
    """JSON that follows a schema."""

    type: Literal["json_schema"] = "json_schema"
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JSONObjectFormat(Model):
    """JSON of any form."""

    type: Literal["json_object"] = "json_object"


TextFormat: TypeAlias = PlainTextFormat | JSONSchemaFormat | JSONObjectFormat | Unknown


class GrammarFormat(Model):
    """Text that follows a grammar."""

    type: Literal["grammar"] = "grammar"
    definition: str | None = None
    syntax: Literal["lark", "regex"] | str | None = None


class TextConfig(Model):
    """What form the text was to have, and how long it was to be."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | str | None = None

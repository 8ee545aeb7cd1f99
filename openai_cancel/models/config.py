"""The configuration of reasoning and text, as it was requested.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Any, Literal, TypeAlias

from openai_cancel.models.shared import Model, Unknown

__all__ = [
    "GrammarFormat",
    "JSONObjectFormat",
    "JSONSchemaFormat",
    "PlainTextFormat",
    "ReasoningConfig",
    "TextConfig",
    "TextFormat",
]


class ReasoningConfig(Model):
    """The effort to spend on reasoning, and the summary of it to return."""

    context: Literal["auto", "current_turn", "all_turns"] | str | None = None
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | str | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | str | None = None
    mode: str | Literal["standard", "pro"] | None = None
    summary: Literal["auto", "concise", "detailed"] | str | None = None


class PlainTextFormat(Model):
    """Plain text."""

    type: Literal["text"] = "text"


class JSONSchemaFormat(Model):
    """JSON that follows a schema."""

    type: Literal["json_schema"] = "json_schema"
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JSONObjectFormat(Model):
    """JSON without a schema."""

    type: Literal["json_object"] = "json_object"


TextFormat: TypeAlias = PlainTextFormat | JSONSchemaFormat | JSONObjectFormat | Unknown


class GrammarFormat(Model):
    """Text that follows a grammar."""

    type: Literal["grammar"] = "grammar"
    definition: str | None = None
    syntax: Literal["lark", "regex"] | str | None = None


class TextConfig(Model):
    """The format and the verbosity of the text."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | str | None = None

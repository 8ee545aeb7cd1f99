"""Which tool the model was told to use.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, and not for all at import

from typing import Any, Literal, TypeAlias

from openai_cancel.models.shared import Model, Unknown
from openai_cancel.models.tools import ProgrammaticToolCalling


class AllowedToolsChoice(Model):
    """One of these tools, if any (`auto`), or in any case (`required`)."""

    type: Literal["allowed_tools"] = "allowed_tools"
    mode: Literal["auto", "required"] | str | None = None
    tools: list[dict[str, Any]] | None = None


class HostedToolChoice(Model):
    """A tool that the server has, by its `type`."""

    type: Literal[
        "file_search",
        "web_search_preview",
        "computer",
        "computer_use_preview",
        "computer_use",
        "web_search_preview_2025_03_11",
        "image_generation",
        "code_interpreter",
    ] = "file_search"


class FunctionChoice(Model):
    """A function of the caller's."""

    type: Literal["function"] = "function"
    name: str | None = None


class McpChoice(Model):
    """A tool of an MCP server, or any of its tools."""

    type: Literal["mcp"] = "mcp"
    name: str | None = None
    server_label: str | None = None


class CustomChoice(Model):
    """A custom tool of the caller's."""

    type: Literal["custom"] = "custom"
    name: str | None = None


class ApplyPatchChoice(Model):
    """Changes to files."""

    type: Literal["apply_patch"] = "apply_patch"


class ShellChoice(Model):
    """The shell."""

    type: Literal["shell"] = "shell"


ToolChoice: TypeAlias = (
    AllowedToolsChoice
    | HostedToolChoice
    | FunctionChoice
    | McpChoice
    | CustomChoice
    | ApplyPatchChoice
    | ShellChoice
    | ProgrammaticToolCalling
    | Unknown
)

"""The tool choice of a request.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Any, Literal, TypeAlias

from openai_cancel.models.shared import Model, Unknown
from openai_cancel.models.tools import ProgrammaticToolCalling

__all__ = [
    "AllowedToolsChoice",
    "ApplyPatchChoice",
    "CustomChoice",
    "FunctionChoice",
    "HostedToolChoice",
    "McpChoice",
    "ShellChoice",
    "ToolChoice",
]


class AllowedToolsChoice(Model):
    """A list of tools that the model may (`auto`) or must (`required`) choose from."""

    type: Literal["allowed_tools"] = "allowed_tools"
    mode: Literal["auto", "required"] | str | None = None
    tools: list[dict[str, Any]] | None = None


class HostedToolChoice(Model):
    """A tool hosted by the server, selected by its `type`."""

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
    """A function of the application, selected by its name."""

    type: Literal["function"] = "function"
    name: str | None = None


class McpChoice(Model):
    """A tool of an MCP server, or any of its tools if `name` is None."""

    type: Literal["mcp"] = "mcp"
    name: str | None = None
    server_label: str | None = None


class CustomChoice(Model):
    """A custom tool, selected by its name."""

    type: Literal["custom"] = "custom"
    name: str | None = None


class ApplyPatchChoice(Model):
    """The apply-patch tool."""

    type: Literal["apply_patch"] = "apply_patch"


class ShellChoice(Model):
    """The shell tool."""

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

"""Tool calls and their outputs.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Any, Literal, TypeAlias

from openai_cancel.models.agents import Agent, AgentMessage, Caller, MultiAgentCall, MultiAgentCallOutput
from openai_cancel.models.content import InputContent
from openai_cancel.models.mcp import McpApprovalRequest, McpApprovalResponse, McpCall, McpListTools
from openai_cancel.models.shared import Model, Unknown
from openai_cancel.models.shell import (
    ApplyPatchCall,
    ApplyPatchCallOutput,
    LocalShellCall,
    LocalShellCallOutput,
    ShellCall,
    ShellCallOutput,
)
from openai_cancel.models.tools import Tool

__all__ = [
    "CodeInterpreterCall",
    "CodeInterpreterImage",
    "CodeInterpreterLogs",
    "CustomToolCall",
    "CustomToolCallOutput",
    "FileSearchCall",
    "FileSearchResult",
    "FindInPageAction",
    "FunctionCall",
    "FunctionCallOutput",
    "ImageGenerationCall",
    "ImageGenerationError",
    "ImageModeration",
    "OpenPageAction",
    "SearchAction",
    "SearchSource",
    "SvgUsage",
    "ToolSearchCall",
    "ToolSearchOutput",
    "WebSearchCall",
]


class FunctionCall(Model):
    """A call to a function of the application; `arguments` is JSON text as the model wrote it."""

    type: Literal["function_call"] = "function_call"
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    arguments: str | None = None
    async_: bool | None = None
    caller: Caller | None = None
    namespace: str | None = None
    agent: Agent | None = None


class FunctionCallOutput(Model):
    """The output of a function call."""

    type: Literal["function_call_output"] = "function_call_output"
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    output: str | list[InputContent] | None = None
    caller: Caller | None = None
    created_by: str | None = None
    namespace: str | None = None
    agent: Agent | None = None


class CustomToolCall(Model):
    """A call to a custom tool; `input` is text as the model wrote it."""

    type: Literal["custom_tool_call"] = "custom_tool_call"
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    input: str | None = None
    async_: bool | None = None
    caller: Caller | None = None
    namespace: str | None = None
    agent: Agent | None = None


class CustomToolCallOutput(Model):
    """The output of a custom tool call."""

    type: Literal["custom_tool_call_output"] = "custom_tool_call_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    output: str | list[InputContent] | None = None
    caller: Caller | None = None
    created_by: str | None = None
    agent: Agent | None = None


class FileSearchResult(Model):
    """A passage that a file search found; `score` is from 0 to 1."""

    attributes: dict[str, str | float | bool] | None = None
    file_id: str | None = None
    filename: str | None = None
    score: float | None = None
    text: str | None = None


class FileSearchCall(Model):
    """A search in vector stores."""

    type: Literal["file_search_call"] = "file_search_call"
    id: str | None = None
    status: Literal["in_progress", "searching", "completed", "incomplete", "failed"] | str | None = None
    queries: list[str] | None = None
    results: list[FileSearchResult | Unknown] | None = None
    agent: Agent | None = None


class SearchSource(Model):
    """A source that a web search used."""

    type: Literal["url"] = "url"
    url: str | None = None


class SearchAction(Model):
    """A web search action that runs queries."""

    type: Literal["search"] = "search"
    queries: list[str] | None = None
    query: str | None = None
    sources: list[SearchSource | Unknown] | None = None


class OpenPageAction(Model):
    """A web search action that opens a page."""

    type: Literal["open_page"] = "open_page"
    url: str | None = None


class FindInPageAction(Model):
    """A web search action that looks for a pattern in a page."""

    type: Literal["find_in_page"] = "find_in_page"
    pattern: str | None = None
    url: str | None = None


class WebSearchCall(Model):
    """A step of a web search."""

    type: Literal["web_search_call"] = "web_search_call"
    id: str | None = None
    status: Literal["in_progress", "searching", "completed", "failed", "incomplete"] | str | None = None
    action: SearchAction | OpenPageAction | FindInPageAction | Unknown | None = None
    agent: Agent | None = None


class CodeInterpreterLogs(Model):
    """The logs of code that ran."""

    type: Literal["logs"] = "logs"
    logs: str | None = None


class CodeInterpreterImage(Model):
    """An image that the code created."""

    type: Literal["image"] = "image"
    url: str | None = None


class CodeInterpreterCall(Model):
    """Python code that ran in a container, and its outputs."""

    type: Literal["code_interpreter_call"] = "code_interpreter_call"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete", "interpreting", "failed"] | str | None = None
    code: str | None = None
    container_id: str | None = None
    outputs: list[CodeInterpreterLogs | CodeInterpreterImage | Unknown] | None = None
    agent: Agent | None = None


class ImageModeration(Model):
    """The reasons why moderation blocked an image."""

    categories: list[str] | None = None
    moderation_stage: Literal["input", "output", "unknown"] | str | None = None


class ImageGenerationError(Model):
    """The reason why no image was generated."""

    type: str | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
    moderation_details: ImageModeration | None = None


class SvgUsage(Model):
    """The tokens used to draw an SVG image."""

    input_tokens: int | None = None
    model: str | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None


class ImageGenerationCall(Model):
    """The generation of an image; `result` is the image in base64."""

    type: Literal["image_generation_call"] = "image_generation_call"
    id: str | None = None
    status: Literal["in_progress", "completed", "generating", "failed"] | str | None = None
    result: str | None = None
    action: Literal["generate", "edit", "auto"] | str | None = None
    background: Literal["transparent", "opaque", "auto"] | str | None = None
    error: ImageGenerationError | None = None
    output_format: Literal["png", "webp", "jpeg", "gif", "svg"] | str | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto"] | str | None = None
    revised_prompt: str | None = None
    size: str | Literal["1024x1024", "1024x1536", "1536x1024"] | None = None
    svg_usage: SvgUsage | None = None
    agent: Agent | None = None


class ToolSearchCall(Model):
    """A search for tools."""

    type: Literal["tool_search_call"] = "tool_search_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    arguments: Any = None
    execution: Literal["server", "client"] | str | None = None
    created_by: str | None = None
    agent: Agent | None = None


class ToolSearchOutput(Model):
    """The tools that a tool search found."""

    type: Literal["tool_search_output"] = "tool_search_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    execution: Literal["server", "client"] | str | None = None
    tools: list[Tool] | None = None
    created_by: str | None = None
    agent: Agent | None = None


ToolItem: TypeAlias = (
    FunctionCall
    | FunctionCallOutput
    | CustomToolCall
    | CustomToolCallOutput
    | FileSearchCall
    | WebSearchCall
    | CodeInterpreterCall
    | ImageGenerationCall
    | LocalShellCall
    | LocalShellCallOutput
    | ShellCall
    | ShellCallOutput
    | ApplyPatchCall
    | ApplyPatchCallOutput
    | McpListTools
    | McpApprovalRequest
    | McpApprovalResponse
    | McpCall
    | ToolSearchCall
    | ToolSearchOutput
    | AgentMessage
    | MultiAgentCall
    | MultiAgentCallOutput
)

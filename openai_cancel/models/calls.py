"""Tool calls and their outputs.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Any, Literal, TypeAlias

from openai_cancel.models.content import InputContent
from openai_cancel.models.mcp import McpApprovalRequest, McpApprovalResponse, McpCall, McpListTools
from openai_cancel.models.shared import Model, Unknown
from openai_cancel.models.tools import ContainerReference, LocalEnvironment, Tool

__all__ = [
    "ApplyPatchCall",
    "ApplyPatchCallOutput",
    "Caller",
    "CodeInterpreterCall",
    "CodeInterpreterImage",
    "CodeInterpreterLogs",
    "CreateFile",
    "CustomToolCall",
    "CustomToolCallOutput",
    "DeleteFile",
    "DirectCaller",
    "FileSearchCall",
    "FileSearchResult",
    "FindInPageAction",
    "FunctionCall",
    "FunctionCallOutput",
    "ImageGenerationCall",
    "ImageGenerationError",
    "ImageModeration",
    "LocalShellAction",
    "LocalShellCall",
    "LocalShellCallOutput",
    "OpenPageAction",
    "ProgramCaller",
    "SearchAction",
    "SearchSource",
    "ShellAction",
    "ShellCall",
    "ShellCallOutput",
    "ShellExit",
    "ShellOutput",
    "ShellTimeout",
    "SvgUsage",
    "ToolSearchCall",
    "ToolSearchOutput",
    "UpdateFile",
    "WebSearchCall",
]


class DirectCaller(Model):
    """The caller of a tool that the model called directly."""

    type: Literal["direct"] = "direct"


class ProgramCaller(Model):
    """The caller of a tool that a program called; `caller_id` is the call ID of the program item."""

    type: Literal["program"] = "program"
    caller_id: str | None = None


Caller: TypeAlias = DirectCaller | ProgramCaller | Unknown


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


class CustomToolCallOutput(Model):
    """The output of a custom tool call."""

    type: Literal["custom_tool_call_output"] = "custom_tool_call_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    output: str | list[InputContent] | None = None
    caller: Caller | None = None
    created_by: str | None = None


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


class LocalShellAction(Model):
    """A command for the local shell; `timeout_ms` is in milliseconds."""

    type: Literal["exec"] = "exec"
    command: list[str] | None = None
    env: dict[str, str] | None = None
    timeout_ms: int | None = None
    user: str | None = None
    working_directory: str | None = None


class LocalShellCall(Model):
    """A command for a shell on the client's machine."""

    type: Literal["local_shell_call"] = "local_shell_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    action: LocalShellAction | Unknown | None = None


class LocalShellCallOutput(Model):
    """The output of a local shell call, as JSON text."""

    type: Literal["local_shell_call_output"] = "local_shell_call_output"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    output: str | None = None


class ShellAction(Model):
    """Commands for a shell; `timeout_ms` is in milliseconds, `max_output_length` in characters."""

    commands: list[str] | None = None
    max_output_length: int | None = None
    timeout_ms: int | None = None


class ShellCall(Model):
    """A call to the shell tool."""

    type: Literal["shell_call"] = "shell_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    action: ShellAction | None = None
    environment: LocalEnvironment | ContainerReference | Unknown | None = None
    caller: Caller | None = None
    created_by: str | None = None


class ShellTimeout(Model):
    """The outcome of a command that exceeded its time limit."""

    type: Literal["timeout"] = "timeout"


class ShellExit(Model):
    """The outcome of a command that finished."""

    type: Literal["exit"] = "exit"
    exit_code: int | None = None


class ShellOutput(Model):
    """The output and the outcome of one command."""

    outcome: ShellTimeout | ShellExit | Unknown | None = None
    stderr: str | None = None
    stdout: str | None = None
    created_by: str | None = None


class ShellCallOutput(Model):
    """The output of a shell call."""

    type: Literal["shell_call_output"] = "shell_call_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    max_output_length: int | None = None
    output: list[ShellOutput | Unknown] | None = None
    caller: Caller | None = None
    created_by: str | None = None


class CreateFile(Model):
    """An instruction to create a file."""

    type: Literal["create_file"] = "create_file"
    diff: str | None = None
    path: str | None = None


class DeleteFile(Model):
    """An instruction to delete a file."""

    type: Literal["delete_file"] = "delete_file"
    path: str | None = None


class UpdateFile(Model):
    """An instruction to update a file."""

    type: Literal["update_file"] = "update_file"
    diff: str | None = None
    path: str | None = None


class ApplyPatchCall(Model):
    """A call to the apply-patch tool, which changes one file."""

    type: Literal["apply_patch_call"] = "apply_patch_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed"] | str | None = None
    operation: CreateFile | DeleteFile | UpdateFile | Unknown | None = None
    caller: Caller | None = None
    created_by: str | None = None


class ApplyPatchCallOutput(Model):
    """The output of an apply-patch call."""

    type: Literal["apply_patch_call_output"] = "apply_patch_call_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["completed", "failed"] | str | None = None
    caller: Caller | None = None
    created_by: str | None = None
    output: str | None = None


class ToolSearchCall(Model):
    """A search for tools."""

    type: Literal["tool_search_call"] = "tool_search_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    arguments: Any = None
    execution: Literal["server", "client"] | str | None = None
    created_by: str | None = None


class ToolSearchOutput(Model):
    """The tools that a tool search found."""

    type: Literal["tool_search_output"] = "tool_search_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    execution: Literal["server", "client"] | str | None = None
    tools: list[Tool] | None = None
    created_by: str | None = None


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
)

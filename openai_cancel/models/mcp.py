"""Calls to tools of Model Context Protocol servers (https://modelcontextprotocol.io).

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Any, Literal

from openai_cancel.models.agents import Agent
from openai_cancel.models.shared import Model, Unknown

__all__ = [
    "McpApprovalRequest",
    "McpApprovalResponse",
    "McpCall",
    "McpHTTPError",
    "McpListTools",
    "McpListedTool",
    "McpProtocolError",
    "McpToolExecutionError",
]


class McpListedTool(Model):
    """A tool of an MCP server."""

    name: str | None = None
    input_schema: Any = None
    annotations: Any = None
    description: str | None = None


class McpListTools(Model):
    """The list of an MCP server's tools."""

    type: Literal["mcp_list_tools"] = "mcp_list_tools"
    id: str | None = None
    server_label: str | None = None
    tools: list[McpListedTool | Unknown] | None = None
    error: str | None = None
    agent: Agent | None = None


class McpApprovalRequest(Model):
    """A request to approve a call to an MCP tool."""

    type: Literal["mcp_approval_request"] = "mcp_approval_request"
    id: str | None = None
    name: str | None = None
    arguments: str | None = None
    server_label: str | None = None
    agent: Agent | None = None


class McpApprovalResponse(Model):
    """The answer to an approval request."""

    type: Literal["mcp_approval_response"] = "mcp_approval_response"
    id: str | None = None
    approval_request_id: str | None = None
    approve: bool | None = None
    reason: str | None = None
    agent: Agent | None = None


class McpProtocolError(Model):
    """An error of the MCP protocol, reported by the server."""

    type: Literal["mcp_protocol_error"] = "mcp_protocol_error"
    code: int | None = None
    message: str | None = None


class McpToolExecutionError(Model):
    """An error of the tool itself."""

    type: Literal["mcp_tool_execution_error"] = "mcp_tool_execution_error"
    content: Any = None


class McpHTTPError(Model):
    """An error of the HTTP request to the MCP server."""

    type: Literal["http_error"] = "http_error"
    code: int | None = None
    message: str | None = None


class McpCall(Model):
    """A call to a tool of an MCP server; `arguments` is JSON text."""

    type: Literal["mcp_call"] = "mcp_call"
    id: str | None = None
    name: str | None = None
    status: Literal["in_progress", "completed", "incomplete", "calling", "failed"] | str | None = None
    arguments: str | None = None
    server_label: str | None = None
    approval_request_id: str | None = None
    error: McpProtocolError | McpToolExecutionError | McpHTTPError | Unknown | None = None
    output: str | None = None
    agent: Agent | None = None

"""The tools that the model may use.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from threading import local
from typing import Any, Literal, Self, TypeAlias

import attrs

from openai_cancel.models.config import GrammarFormat, PlainTextFormat, ReasoningConfig
from openai_cancel.models.fields import ShapeError
from openai_cancel.models.shared import Model, Unknown

__all__ = [
    "ApplyPatchTool",
    "CodeInterpreterContainer",
    "CodeInterpreterTool",
    "ComparisonFilter",
    "CompoundFilter",
    "ComputerTool",
    "ComputerUsePreviewTool",
    "ContainerAuto",
    "ContainerReference",
    "CustomTool",
    "DomainSecret",
    "FileSearchTool",
    "FunctionTool",
    "HybridSearch",
    "ImageGenerationTool",
    "ImageMask",
    "InlineSkill",
    "InlineSkillSource",
    "LocalEnvironment",
    "LocalShellTool",
    "LocalSkill",
    "McpApprovalFilter",
    "McpTool",
    "McpToolFilter",
    "NamespaceTool",
    "NetworkPolicy",
    "NetworkPolicyAllowlist",
    "NetworkPolicyDisabled",
    "ProgrammaticToolCalling",
    "RankingOptions",
    "ShellTool",
    "SkillReference",
    "SvgOptions",
    "Tool",
    "ToolSearchTool",
    "UserLocation",
    "WebSearchFilters",
    "WebSearchPreviewTool",
    "WebSearchTool",
]

_DEEPEST = 32  # levels of filters: enough for any search, and far from the end of the stack
_nesting = local()


class FunctionTool(Model):
    """A function of the application; `parameters` is a JSON schema."""

    type: Literal["function"] = "function"
    name: str | None = None
    parameters: Any = None
    strict: bool | None = None
    allowed_callers: list[Literal["direct", "programmatic"] | str] | None = None
    async_: bool | None = None
    defer_loading: bool | None = None
    description: str | None = None
    output_schema: dict[str, Any] | None = None


class ComparisonFilter(Model):
    """A comparison with a file attribute; `type` is the operator."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"] = "eq"
    key: str | None = None
    value: str | float | bool | list[str | float] | None = None


class CompoundFilter(Model):
    """Filters that are combined by `and` or `or`. Those that are nested more than 32 levels deep become `Unknown`."""

    type: Literal["and", "or"] = "and"
    filters: list[ComparisonFilter | CompoundFilter | Unknown] | None = None

    @classmethod
    def __structure__(cls, document: Any) -> Self:
        # No other class contains itself. The filters inside are made at once, so that their levels can be counted.
        level: int = getattr(_nesting, "level", 0)
        if level == _DEEPEST:
            raise ShapeError(("", "fewer levels"))
        _nesting.level = level + 1
        try:
            compound = super().__structure__(document)
            _ = compound.filters
        finally:
            _nesting.level = level
        return compound


class HybridSearch(Model):
    """The weights of semantic search and keyword search."""

    embedding_weight: float | None = None
    text_weight: float | None = None


class RankingOptions(Model):
    """Options for ranking the results of a search."""

    hybrid_search: HybridSearch | None = None
    ranker: Literal["auto", "default-2024-11-15"] | str | None = None
    score_threshold: float | None = None


class FileSearchTool(Model):
    """A search in vector stores."""

    type: Literal["file_search"] = "file_search"
    vector_store_ids: list[str] | None = None
    filters: ComparisonFilter | CompoundFilter | Unknown | None = None
    max_num_results: int | None = None
    ranking_options: RankingOptions | None = None


class ComputerTool(Model):
    """The use of a computer."""

    type: Literal["computer"] = "computer"


class ComputerUsePreviewTool(Model):
    """The use of a computer, in its preview version; the display size is in pixels."""

    type: Literal["computer_use_preview"] = "computer_use_preview"
    display_height: int | None = None
    display_width: int | None = None
    environment: Literal["windows", "mac", "linux", "ubuntu", "browser"] | str | None = None


class UserLocation(Model):
    """The approximate location of the user."""

    type: Literal["approximate"] = "approximate"
    city: str | None = None
    country: str | None = None
    region: str | None = None
    timezone: str | None = None


class WebSearchFilters(Model):
    """Filters for a web search."""

    allowed_domains: list[str] | None = None


class WebSearchTool(Model):
    """A web search."""

    type: Literal["web_search", "web_search_2025_08_26"] = "web_search"
    external_web_access: bool | None = None
    filters: WebSearchFilters | None = None
    search_context_size: Literal["low", "medium", "high"] | str | None = None
    user_location: UserLocation | Unknown | None = None


class WebSearchPreviewTool(Model):
    """A web search, in its preview version."""

    type: Literal["web_search_preview", "web_search_preview_2025_03_11"] = "web_search_preview"
    search_content_types: list[Literal["text", "image"] | str] | None = None
    search_context_size: Literal["low", "medium", "high"] | str | None = None
    user_location: UserLocation | Unknown | None = None


class McpToolFilter(Model):
    """A selection of an MCP server's tools."""

    read_only: bool | None = None
    tool_names: list[str] | None = None


class McpApprovalFilter(Model):
    """The tools of an MCP server that always or never need approval."""

    always: McpToolFilter | None = None
    never: McpToolFilter | None = None


class McpTool(Model):
    """The tools of a Model Context Protocol server (https://modelcontextprotocol.io)."""

    type: Literal["mcp"] = "mcp"
    server_label: str | None = None
    allowed_callers: list[Literal["direct", "programmatic"] | str] | None = None
    allowed_tools: McpToolFilter | list[str] | None = None
    authorization: str | None = attrs.field(default=None, repr=False)
    connector_id: (
        Literal[
            "connector_dropbox",
            "connector_gmail",
            "connector_googlecalendar",
            "connector_googledrive",
            "connector_microsoftteams",
            "connector_outlookcalendar",
            "connector_outlookemail",
            "connector_sharepoint",
        ]
        | str
        | None
    ) = None
    defer_loading: bool | None = None
    headers: dict[str, str] | None = attrs.field(default=None, repr=False)
    require_approval: McpApprovalFilter | Literal["always", "never"] | str | None = None
    server_description: str | None = None
    server_url: str | None = None
    tunnel_id: str | None = None


class NetworkPolicyDisabled(Model):
    """A network policy that denies all access."""

    type: Literal["disabled"] = "disabled"


class DomainSecret(Model):
    """A secret that is added to requests to a domain."""

    name: str | None = None
    domain: str | None = None
    value: str | None = attrs.field(default=None, repr=False)


class NetworkPolicyAllowlist(Model):
    """A network policy that allows access to some domains."""

    type: Literal["allowlist"] = "allowlist"
    allowed_domains: list[str] | None = None
    domain_secrets: list[DomainSecret | Unknown] | None = None


NetworkPolicy: TypeAlias = NetworkPolicyDisabled | NetworkPolicyAllowlist | Unknown


class CodeInterpreterContainer(Model):
    """A container to create for the code."""

    type: Literal["auto"] = "auto"
    file_ids: list[str] | None = None
    memory_limit: Literal["1g", "4g", "16g", "64g"] | str | None = None
    network_policy: NetworkPolicy | None = None


class CodeInterpreterTool(Model):
    """A Python interpreter in a container, which may be given by its ID."""

    type: Literal["code_interpreter"] = "code_interpreter"
    container: str | CodeInterpreterContainer | Unknown | None = None
    allowed_callers: list[Literal["direct", "programmatic"] | str] | None = None


class ProgrammaticToolCalling(Model):
    """Tool calls by a program that the model writes, both as a tool and as a tool choice."""

    type: Literal["programmatic_tool_calling"] = "programmatic_tool_calling"


class ImageMask(Model):
    """The part of an image to edit."""

    file_id: str | None = None
    image_url: str | None = None


class SvgOptions(Model):
    """Options for drawing SVG images."""

    model: str | None = None
    reasoning: ReasoningConfig | None = None


class ImageGenerationTool(Model):
    """The generation of images."""

    type: Literal["image_generation"] = "image_generation"
    action: Literal["generate", "edit", "auto"] | str | None = None
    background: Literal["transparent", "opaque", "auto"] | str | None = None
    complexity: Literal["low", "medium", "high"] | str | None = None
    frame_count: int | None = None
    frame_duration_ms: int | None = None
    input_fidelity: Literal["high", "low"] | str | None = None
    input_image_mask: ImageMask | None = None
    model: str | None = None
    moderation: Literal["auto", "low"] | str | None = None
    output_compression: int | None = None
    output_format: Literal["png", "webp", "jpeg", "gif", "svg"] | str | None = None
    partial_images: int | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto"] | str | None = None
    size: str | Literal["1024x1024", "1024x1536", "1536x1024", "auto"] | None = None
    svg: SvgOptions | None = None


class LocalShellTool(Model):
    """A shell on the client's machine."""

    type: Literal["local_shell"] = "local_shell"


class SkillReference(Model):
    """A skill, by its ID."""

    type: Literal["skill_reference"] = "skill_reference"
    skill_id: str | None = None
    version: str | None = None


class InlineSkillSource(Model):
    """The files of a skill, in base64."""

    type: Literal["base64"] = "base64"
    data: str | None = None
    media_type: Literal["application/zip"] | str | None = None


class InlineSkill(Model):
    """A skill that the request contains."""

    type: Literal["inline"] = "inline"
    name: str | None = None
    description: str | None = None
    source: InlineSkillSource | Unknown | None = None


class LocalSkill(Model):
    """A skill in a folder on the client's machine."""

    name: str | None = None
    description: str | None = None
    path: str | None = None


class ContainerAuto(Model):
    """A container to create for the shell."""

    type: Literal["container_auto"] = "container_auto"
    file_ids: list[str] | None = None
    memory_limit: Literal["1g", "4g", "16g", "64g"] | str | None = None
    network_policy: NetworkPolicy | None = None
    skills: list[SkillReference | InlineSkill | Unknown] | None = None


class LocalEnvironment(Model):
    """The client's machine."""

    type: Literal["local"] = "local"
    skills: list[LocalSkill | Unknown] | None = None


class ContainerReference(Model):
    """An existing container, by its ID."""

    type: Literal["container_reference"] = "container_reference"
    container_id: str | None = None


class ShellTool(Model):
    """A shell."""

    type: Literal["shell"] = "shell"
    allowed_callers: list[Literal["direct", "programmatic"] | str] | None = None
    environment: ContainerAuto | LocalEnvironment | ContainerReference | Unknown | None = None


class CustomTool(Model):
    """A custom tool of the application, which takes text."""

    type: Literal["custom"] = "custom"
    name: str | None = None
    allowed_callers: list[Literal["direct", "programmatic"] | str] | None = None
    async_: bool | None = None
    defer_loading: bool | None = None
    description: str | None = None
    format: PlainTextFormat | GrammarFormat | Unknown | None = None


class NamespaceTool(Model):
    """A group of tools under a common name."""

    type: Literal["namespace"] = "namespace"
    name: str | None = None
    description: str | None = None
    tools: list[FunctionTool | CustomTool | Unknown] | None = None


class ToolSearchTool(Model):
    """A search for tools."""

    type: Literal["tool_search"] = "tool_search"
    description: str | None = None
    execution: Literal["server", "client"] | str | None = None
    parameters: Any = None


class ApplyPatchTool(Model):
    """A tool that changes files by patches."""

    type: Literal["apply_patch"] = "apply_patch"
    allowed_callers: list[Literal["direct", "programmatic"] | str] | None = None


Tool: TypeAlias = (
    FunctionTool
    | FileSearchTool
    | WebSearchTool
    | WebSearchPreviewTool
    | ComputerTool
    | ComputerUsePreviewTool
    | McpTool
    | CodeInterpreterTool
    | ImageGenerationTool
    | LocalShellTool
    | ShellTool
    | ApplyPatchTool
    | CustomTool
    | NamespaceTool
    | ToolSearchTool
    | ProgrammaticToolCalling
    | Unknown
)

"""The tools that the model may use.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, and not for all at import

from typing import Any, Literal, TypeAlias

import attrs

from openai_cancel.models.config import GrammarFormat, PlainTextFormat, ReasoningConfig
from openai_cancel.models.shared import Model, Unknown


class FunctionTool(Model):
    """A function of the caller's; `parameters` is a JSON schema."""

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
    """A condition on an attribute of files; `type` is the comparison."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"] = "eq"
    key: str | None = None
    value: str | float | bool | list[str | float] | None = None


class CompoundFilter(Model):
    """Conditions of which all (`and`) or one (`or`) must hold."""

    type: Literal["and", "or"] = "and"
    filters: list[ComparisonFilter | CompoundFilter | Unknown] | None = None


class HybridSearch(Model):
    """How much meaning and words count against each other."""

    embedding_weight: float | None = None
    text_weight: float | None = None


class RankingOptions(Model):
    """How results are ranked, and from which score on they count."""

    hybrid_search: HybridSearch | None = None
    ranker: Literal["auto", "default-2024-11-15"] | str | None = None
    score_threshold: float | None = None


class FileSearchTool(Model):
    """Search in vector stores."""

    type: Literal["file_search"] = "file_search"
    vector_store_ids: list[str] | None = None
    filters: ComparisonFilter | CompoundFilter | Unknown | None = None
    max_num_results: int | None = None
    ranking_options: RankingOptions | None = None


class ComputerTool(Model):
    """Use of a computer."""

    type: Literal["computer"] = "computer"


class ComputerUsePreviewTool(Model):
    """Use of a computer, as first released; the display is in pixels."""

    type: Literal["computer_use_preview"] = "computer_use_preview"
    display_height: int | None = None
    display_width: int | None = None
    environment: Literal["windows", "mac", "linux", "ubuntu", "browser"] | str | None = None


class UserLocation(Model):
    """Roughly where the user is."""

    type: Literal["approximate"] = "approximate"
    city: str | None = None
    country: str | None = None
    region: str | None = None
    timezone: str | None = None


class WebSearchFilters(Model):
    """Where a web search may look."""

    allowed_domains: list[str] | None = None


class WebSearchTool(Model):
    """Search of the web."""

    type: Literal["web_search", "web_search_2025_08_26"] = "web_search"
    external_web_access: bool | None = None
    filters: WebSearchFilters | None = None
    search_context_size: Literal["low", "medium", "high"] | str | None = None
    user_location: UserLocation | Unknown | None = None


class WebSearchPreviewTool(Model):
    """Search of the web, as first released."""

    type: Literal["web_search_preview", "web_search_preview_2025_03_11"] = "web_search_preview"
    search_content_types: list[Literal["text", "image"] | str] | None = None
    search_context_size: Literal["low", "medium", "high"] | str | None = None
    user_location: UserLocation | Unknown | None = None


class McpToolFilter(Model):
    """A choice among the tools of an MCP server."""

    read_only: bool | None = None
    tool_names: list[str] | None = None


class McpApprovalFilter(Model):
    """Which of an MCP server's tools need approval."""

    always: McpToolFilter | None = None
    never: McpToolFilter | None = None


class McpTool(Model):
    """Tools of a Model Context Protocol server (https://modelcontextprotocol.io)."""

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
    """A container without a network."""

    type: Literal["disabled"] = "disabled"


class DomainSecret(Model):
    """A secret that is put into requests to a domain."""

    name: str | None = None
    domain: str | None = None
    value: str | None = attrs.field(default=None, repr=False)


class NetworkPolicyAllowlist(Model):
    """A container that reaches some domains."""

    type: Literal["allowlist"] = "allowlist"
    allowed_domains: list[str] | None = None
    domain_secrets: list[DomainSecret | Unknown] | None = None


NetworkPolicy: TypeAlias = NetworkPolicyDisabled | NetworkPolicyAllowlist | Unknown


class CodeInterpreterContainer(Model):
    """A container that is made for the code."""

    type: Literal["auto"] = "auto"
    file_ids: list[str] | None = None
    memory_limit: Literal["1g", "4g", "16g", "64g"] | str | None = None
    network_policy: NetworkPolicy | None = None


class CodeInterpreterTool(Model):
    """Running Python in a container, which may be named by its id."""

    type: Literal["code_interpreter"] = "code_interpreter"
    container: str | CodeInterpreterContainer | Unknown | None = None
    allowed_callers: list[Literal["direct", "programmatic"] | str] | None = None


class ProgrammaticToolCalling(Model):
    """Tools that are called by a program that the model writes: as a tool, and as the choice of it."""

    type: Literal["programmatic_tool_calling"] = "programmatic_tool_calling"


class ImageMask(Model):
    """Which part of an image to change."""

    file_id: str | None = None
    image_url: str | None = None


class SvgOptions(Model):
    """Which model draws vectors, and how."""

    model: str | None = None
    reasoning: ReasoningConfig | None = None


class ImageGenerationTool(Model):
    """Making of images."""

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
    """A shell on the caller's machine, as first released."""

    type: Literal["local_shell"] = "local_shell"


class SkillReference(Model):
    """A skill by its id."""

    type: Literal["skill_reference"] = "skill_reference"
    skill_id: str | None = None
    version: str | None = None


class InlineSkillSource(Model):
    """The files of a skill, in base64."""

    type: Literal["base64"] = "base64"
    data: str | None = None
    media_type: Literal["application/zip"] | str | None = None


class InlineSkill(Model):
    """A skill that came with the request."""

    type: Literal["inline"] = "inline"
    name: str | None = None
    description: str | None = None
    source: InlineSkillSource | Unknown | None = None


class LocalSkill(Model):
    """A skill in a folder of the caller's machine."""

    name: str | None = None
    description: str | None = None
    path: str | None = None


class ContainerAuto(Model):
    """A container that is made for the shell."""

    type: Literal["container_auto"] = "container_auto"
    file_ids: list[str] | None = None
    memory_limit: Literal["1g", "4g", "16g", "64g"] | str | None = None
    network_policy: NetworkPolicy | None = None
    skills: list[SkillReference | InlineSkill | Unknown] | None = None


class LocalEnvironment(Model):
    """The caller's machine."""

    type: Literal["local"] = "local"
    skills: list[LocalSkill | Unknown] | None = None


class ContainerReference(Model):
    """A container by its id."""

    type: Literal["container_reference"] = "container_reference"
    container_id: str | None = None


class ShellTool(Model):
    """A shell."""

    type: Literal["shell"] = "shell"
    allowed_callers: list[Literal["direct", "programmatic"] | str] | None = None
    environment: ContainerAuto | LocalEnvironment | ContainerReference | Unknown | None = None


class CustomTool(Model):
    """A tool of the caller's that takes text."""

    type: Literal["custom"] = "custom"
    name: str | None = None
    allowed_callers: list[Literal["direct", "programmatic"] | str] | None = None
    async_: bool | None = None
    defer_loading: bool | None = None
    description: str | None = None
    format: PlainTextFormat | GrammarFormat | Unknown | None = None


class NamespaceTool(Model):
    """Tools under a common name."""

    type: Literal["namespace"] = "namespace"
    name: str | None = None
    description: str | None = None
    tools: list[FunctionTool | CustomTool | Unknown] | None = None


class ToolSearchTool(Model):
    """Search for tools."""

    type: Literal["tool_search"] = "tool_search"
    description: str | None = None
    execution: Literal["server", "client"] | str | None = None
    parameters: Any = None


class ApplyPatchTool(Model):
    """Changes to files, as patches."""

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

"""The response object.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, TypeVar

from openai_cancel.models.choices import ToolChoice
from openai_cancel.models.config import ReasoningConfig, TextConfig
from openai_cancel.models.content import InputContent, OutputText
from openai_cancel.models.fields import document_of
from openai_cancel.models.inputs import InputItem
from openai_cancel.models.items import Message, OutputItem
from openai_cancel.models.problems import SHORT
from openai_cancel.models.shared import Model, Unknown
from openai_cancel.models.tools import Tool
from openai_cancel.models.usage import ToolUsage, Usage

__all__ = [
    "AccessPrograms",
    "CacheComparisonNotFound",
    "CacheDiagnostics",
    "CacheDiagnosticsUnavailable",
    "CacheHit",
    "CacheMiss",
    "Conversation",
    "ErrorCode",
    "ImageOptions",
    "IncompleteDetails",
    "InputTransformation",
    "Misalignment",
    "MisalignmentSteer",
    "Moderation",
    "ModerationError",
    "ModerationResult",
    "Prompt",
    "PromptCacheOptions",
    "Response",
    "ResponseError",
    "Status",
]

_M = TypeVar("_M", bound=Model)

Status: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"] | str
ErrorCode: TypeAlias = (
    Literal[
        "server_error",
        "rate_limit_exceeded",
        "invalid_prompt",
        "data_residency_mismatch",
        "bio_policy",
        "misalignment_policy_violation",
        "vector_store_timeout",
        "invalid_image",
        "invalid_image_format",
        "invalid_base64_image",
        "invalid_image_url",
        "image_too_large",
        "image_too_small",
        "image_parse_error",
        "image_content_policy_violation",
        "invalid_image_mode",
        "image_file_too_large",
        "unsupported_image_media_type",
        "empty_image_file",
        "failed_to_download_image",
        "image_file_not_found",
    ]
    | str
)

CANCELLED_STATUSES = frozenset({"cancelled", "canceled"})
# "canceled" and "complete" are not statuses of the API, but some servers send them.
TERMINAL = CANCELLED_STATUSES | {"completed", "failed", "incomplete", "complete", "already_completed"}

LAST_EVENTS = frozenset(f"response.{status}" for status in TERMINAL)
"""The types of the events that may end a stream of a response."""


class AccessPrograms(Model):
    """The access programs that the account belongs to."""

    cyber: Literal["standard", "daybreak_blue", "daybreak_red"] | str | None = None


class MisalignmentSteer(Model):
    """The message that the model was sent to correct it."""

    message: str | None = None


class Misalignment(Model):
    """An action of the model that the user did not intend."""

    detailed_explanation: str | None = None
    error_type: (
        str
        | Literal[
            "potentially_unintended_data_transfer",
            "potentially_unintended_data_access",
            "potentially_unintended_destructive_activity",
            "other",
        ]
        | None
    ) = None
    review_target: str | None = None
    steer: MisalignmentSteer | None = None


class ResponseError(Model):
    """The reason why the response failed. It is a part of the document, not an exception."""

    type: str | None = None
    code: ErrorCode | None = None
    message: str | None = None
    misalignment: Misalignment | None = None
    param: str | None = None


class IncompleteDetails(Model):
    """The reason why the response is incomplete."""

    reason: Literal["max_output_tokens", "max_messages", "content_filter", "steered"] | str | None = None


class Conversation(Model):
    """The conversation that the response belongs to."""

    id: str | None = None


class ImageOptions(Model):
    """Options for images."""

    context_compression: Literal["enabled", "disabled"] | str | None = None


class InputTransformation(Model):
    """A change to an input item before the model received it."""

    type: Literal["reasoning"] = "reasoning"
    id: str | None = None
    action: Literal["removed"] | str | None = None
    reason: (
        Literal["organization_mismatch", "end_user_mismatch", "model_mismatch", "prefix_mismatch", "turn_boundary"]
        | str
        | None
    ) = None


class ModerationResult(Model):
    """The result of a moderation by category; scores are from 0 to 1."""

    type: Literal["moderation_result"] = "moderation_result"
    categories: dict[str, bool] | None = None
    category_applied_input_types: dict[str, list[Literal["text", "image"] | str]] | None = None
    category_scores: dict[str, float] | None = None
    flagged: bool | None = None
    model: str | None = None


class ModerationError(Model):
    """The reason why there is no moderation result."""

    type: Literal["error"] = "error"
    code: str | None = None
    message: str | None = None


class Moderation(Model):
    """The moderation of the input and the output."""

    input: ModerationResult | ModerationError | Unknown | None = None
    output: ModerationResult | ModerationError | Unknown | None = None


class Prompt(Model):
    """The prompt template that the request used."""

    id: str | None = None
    variables: dict[str, InputContent | str] | None = None
    version: str | None = None


class CacheMiss(Model):
    """A cache miss of the prompt, and its reason."""

    type: Literal["cache_miss"] = "cache_miss"
    cache_missed_tokens: int | None = None
    reason: (
        Literal[
            "model_changed",
            "prompt_cache_key_changed",
            "tools_changed",
            "text_format_changed",
            "reasoning_effort_changed",
            "verbosity_changed",
            "context_compacted",
            "input_changed",
            "service_tier_changed",
        ]
        | str
        | None
    ) = None
    comparison_reusable_tokens: int | None = None


class CacheHit(Model):
    """A cache hit of the prompt."""

    type: Literal["cache_hit"] = "cache_hit"


class CacheComparisonNotFound(Model):
    """The response to compare with was not found."""

    type: Literal["comparison_response_not_found"] = "comparison_response_not_found"


class CacheDiagnosticsUnavailable(Model):
    """No diagnostics are available."""

    type: Literal["unavailable"] = "unavailable"


CacheDiagnostics: TypeAlias = CacheMiss | CacheHit | CacheComparisonNotFound | CacheDiagnosticsUnavailable | Unknown


class PromptCacheOptions(Model):
    """Options for caching the prompt."""

    mode: Literal["implicit", "explicit"] | str | None = None
    ttl: Literal["30m", "12h"] | str | None = None
    comparison_response_id: str | None = None


class Response(Model):
    """A response, as the server last described it.

    The server sends at least an `id` or a `status`. A field is None if the server left it out, sent null, or sent a
    value of another shape, which `problems` lists; `to_dict()` returns the document exactly as the server sent it.
    """

    id: str | None = None
    object: str | None = None
    status: Status | None = None
    created_at: float | None = None
    completed_at: float | None = None
    background: bool | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem] | None = None
    usage: Usage | None = None
    tool_usage: ToolUsage | None = None
    model: str | None = None
    instructions: str | list[InputItem] | None = None
    input_transformations: list[InputTransformation | Unknown] | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    conversation: Conversation | None = None
    prompt: Prompt | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | str | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    image: ImageOptions | None = None
    moderation: Moderation | None = None
    access_programs: AccessPrograms | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | str | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_diagnostics: CacheDiagnostics | None = None
    safety_identifier: str | None = None
    user: str | None = None

    # These describe the call that returned the document, and are no part of it.

    @property
    def request_id(self) -> str | None:
        """The request ID that the server sent, or None."""
        request_id: str | None = self.__values__.get("request_id")
        return request_id

    @property
    def retry_after(self) -> float | None:
        """The seconds after which the server asks to be called again, or None."""
        retry_after: float | None = self.__values__.get("retry_after")
        return retry_after

    @property
    def attempts(self) -> int:
        """The number of requests that the call made."""
        attempts: int = self.__values__.get("attempts", 0)
        return attempts

    @property
    def age(self) -> float | None:
        """The seconds since its creation by the clock of the server, if `running` returned it; otherwise None."""
        age: float | None = self.__values__.get("age")
        return age

    @property
    def is_terminal(self) -> bool:
        """Whether the status says that the response has ended."""
        return self.status in TERMINAL

    @property
    def output_text(self) -> str:
        """The text of all messages, joined; empty if there is none."""
        parts = (part for item in self.items(Message) for part in item.content or () if isinstance(part, OutputText))
        return "".join(part.text for part in parts if part.text)

    def items(self, kind: type[_M]) -> list[_M]:
        """Return the items of `output` that are of a class, such as `FunctionCall`."""
        return [item for item in self.output or () if isinstance(item, kind)]

    @property
    def created(self) -> datetime | None:
        """The time when the response was created, in UTC."""
        return _moment(self.created_at)

    @property
    def completed(self) -> datetime | None:
        """The time when the response was completed, in UTC."""
        return _moment(self.completed_at)

    def __repr__(self) -> str:
        """Show the ID, the status, the model, the types of the output, and the tokens. Long values are cut."""
        shown = [f"id={SHORT.repr(self.id)}", f"status={SHORT.repr(self.status)}"]
        if self.model is not None:
            shown.append(f"model={SHORT.repr(self.model)}")
        if self.output is not None:
            shown.append(f"output={SHORT.repr([item.type for item in self.output])}")
        if self.usage is not None:
            shown.append(f"total_tokens={SHORT.repr(self.usage.total_tokens)}")
        if self.problems:
            shown.append(f"problems={len(self.problems)}")
        return f"Response({', '.join(shown)})"


def record_call(
    response: Response,
    *,
    request_id: str | None = None,
    retry_after: float | None = None,
    attempts: int | None = None,
    age: float | None = None,
) -> None:
    """Set the fields that describe the call, on a response that no user has yet. None leaves a field as it is."""
    values = response.__values__
    if request_id is not None:
        values["request_id"] = request_id
    if retry_after is not None:
        values["retry_after"] = retry_after
    if attempts is not None:
        values["attempts"] = attempts
    if age is not None:
        values["age"] = age


def progress_of(response: Response) -> object:
    """Return what changes in the document of a response while it makes progress: status, output, times of updates."""
    document: dict[str, Any] = document_of(response)
    updates = {name: value for name, value in document.items() if "updated" in name}
    return document.get("status"), document.get("output"), updates


def is_same_progress(one: object, other: object) -> bool:
    """Return whether two results of `progress_of` are equal; not if they are nested too deeply to be compared."""
    try:
        return one == other
    except RecursionError:
        return False


def _moment(timestamp: float | None) -> datetime | None:
    try:
        return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)
    except (OverflowError, ValueError, OSError):  # outside the range of a datetime
        return None

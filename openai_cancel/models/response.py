"""The response itself.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, and not for all at import

from datetime import UTC, datetime
from typing import Literal, TypeAlias, TypeVar

import attrs

from openai_cancel.models.choices import ToolChoice
from openai_cancel.models.config import ReasoningConfig, TextConfig
from openai_cancel.models.content import InputContent, OutputText
from openai_cancel.models.inputs import InputItem
from openai_cancel.models.items import Message, OutputItem
from openai_cancel.models.shared import SHORT, Model, Problem, Unknown
from openai_cancel.models.tools import Tool
from openai_cancel.models.usage import ToolUsage, Usage

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
# The second and the last are what servers were seen to say, and not what the API calls it.
TERMINAL = CANCELLED_STATUSES | {"completed", "failed", "incomplete", "complete"}


class AccessPrograms(Model):
    """Programs for which the account is admitted."""

    cyber: Literal["standard", "daybreak_blue", "daybreak_red"] | str | None = None


class MisalignmentSteer(Model):
    """What the model was told about it."""

    message: str | None = None


class Misalignment(Model):
    """What the model did that it should not have done."""

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
    """Why the response failed. Not an exception: a part of the document."""

    type: str | None = None
    code: ErrorCode | None = None
    message: str | None = None
    misalignment: Misalignment | None = None
    param: str | None = None


class IncompleteDetails(Model):
    """Why the response is incomplete."""

    reason: Literal["max_output_tokens", "max_messages", "content_filter", "steered"] | str | None = None


class Conversation(Model):
    """The conversation that the response is a part of."""

    id: str | None = None


class ImageOptions(Model):
    """What was done to images."""

    context_compression: Literal["enabled", "disabled"] | str | None = None


class InputTransformation(Model):
    """An input that was changed before the model saw it."""

    type: Literal["reasoning"] = "reasoning"
    id: str | None = None
    action: Literal["removed"] | str | None = None
    reason: (
        Literal["organization_mismatch", "end_user_mismatch", "model_mismatch", "prefix_mismatch", "turn_boundary"]
        | str
        | None
    ) = None


class ModerationResult(Model):
    """What a moderation found, by category; scores are from 0 to 1."""

    type: Literal["moderation_result"] = "moderation_result"
    categories: dict[str, bool] | None = None
    category_applied_input_types: dict[str, list[Literal["text", "image"] | str]] | None = None
    category_scores: dict[str, float] | None = None
    flagged: bool | None = None
    model: str | None = None


class ModerationError(Model):
    """Why there is no moderation."""

    type: Literal["error"] = "error"
    code: str | None = None
    message: str | None = None


class Moderation(Model):
    """The moderation of input and output."""

    input: ModerationResult | ModerationError | Unknown | None = None
    output: ModerationResult | ModerationError | Unknown | None = None


class Prompt(Model):
    """The prompt template that was used."""

    id: str | None = None
    variables: dict[str, InputContent | str] | None = None
    version: str | None = None


class CacheMiss(Model):
    """The prompt was not cached, and why."""

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
    """The prompt was cached."""

    type: Literal["cache_hit"] = "cache_hit"


class CacheComparisonNotFound(Model):
    """The response to compare with is not known."""

    type: Literal["comparison_response_not_found"] = "comparison_response_not_found"


class CacheDiagnosticsUnavailable(Model):
    """Nothing is known of the cache."""

    type: Literal["unavailable"] = "unavailable"


CacheDiagnostics: TypeAlias = CacheMiss | CacheHit | CacheComparisonNotFound | CacheDiagnosticsUnavailable | Unknown


class PromptCacheOptions(Model):
    """How the prompt was to be cached."""

    mode: Literal["implicit", "explicit"] | str | None = None
    ttl: Literal["30m", "12h"] | str | None = None
    comparison_response_id: str | None = None


class Response(Model):
    """A response, as the server last described it.

    Only `id` or `status` is sure to be there. What the server left out, sent as null, or sent in another shape is
    None; `problems` lists the last of these, and `to_dict()` has the document exactly as it came.
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

    # Of the call that brought this document, and no part of it.
    request_id: str | None = attrs.field(default=None, init=False)
    """The server's id of the request; None where it sent none."""
    retry_after: float | None = attrs.field(default=None, init=False)
    """Seconds after which the server wants to be asked again; None where it did not say."""
    attempts: int = attrs.field(default=0, init=False)
    """How many requests the call took."""

    @property
    def is_terminal(self) -> bool:
        """Whether the server says that the work is over."""
        return self.status in TERMINAL

    @property
    def output_text(self) -> str:
        """The text of all messages, joined; empty where there is none."""
        parts = (part for item in self.items(Message) for part in item.content or () if isinstance(part, OutputText))
        return "".join(part.text for part in parts if part.text)

    def items(self, kind: type[_M]) -> list[_M]:
        """The items of `output` that are of a class, such as `FunctionCall`."""
        return [item for item in self.output or () if isinstance(item, kind)]

    @property
    def created(self) -> datetime | None:
        """When the response was created, in UTC."""
        return _moment(self.created_at)

    @property
    def completed(self) -> datetime | None:
        """When the response was completed, in UTC."""
        return _moment(self.completed_at)

    def __repr__(self) -> str:
        """What tells one response from another: id, status, model, kinds of output, tokens; long values cut short."""
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

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every place of the document whose value is not what the API says."""
        return tuple(self._walk_problems())


def _moment(timestamp: float | None) -> datetime | None:
    try:
        return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)
    except (OverflowError, ValueError, OSError):  # beyond what a datetime can say
        return None

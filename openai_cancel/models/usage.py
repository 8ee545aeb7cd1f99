"""What a response took: tokens, and uses of tools.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, and not for all at import

from openai_cancel.models.shared import Model


class CacheWriteTokensDetails(Model):
    """For how long the tokens were cached that were written to a cache."""

    ttl_12h_tokens: int | None = None
    ttl_30m_tokens: int | None = None


class InputTokensDetails(Model):
    """Which input tokens came from a cache, and which were written to one."""

    cache_write_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens_details: CacheWriteTokensDetails | None = None


class OutputTokensDetails(Model):
    """Which output tokens were reasoning."""

    reasoning_tokens: int | None = None


class Usage(Model):
    """How many tokens the response took so far."""

    input_tokens: int | None = None
    input_tokens_details: InputTokensDetails | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputTokensDetails | None = None
    total_tokens: int | None = None


class ImageTokensDetails(Model):
    """Which tokens were of images, and which of text."""

    image_tokens: int | None = None
    text_tokens: int | None = None


class CachedImageTokensDetails(Model):
    """Which cached tokens were of images, and which of text."""

    cached_image_tokens: int | None = None
    cached_text_tokens: int | None = None


class ImageGenerationUsage(Model):
    """How many tokens the making of images took."""

    input_tokens: int | None = None
    input_tokens_details: ImageTokensDetails | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cached_tokens_details: CachedImageTokensDetails | None = None
    output_tokens_details: ImageTokensDetails | None = None


class WebSearchUsage(Model):
    """How often the web was searched."""

    num_requests: int | None = None


class ToolUsage(Model):
    """What the tools took."""

    image_gen: ImageGenerationUsage | None = None
    web_search: WebSearchUsage | None = None

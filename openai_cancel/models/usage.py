"""The usage of tokens and tools.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from openai_cancel.models.shared import Model

__all__ = [
    "CacheWriteTokensDetails",
    "CachedImageTokensDetails",
    "ImageGenerationUsage",
    "ImageTokensDetails",
    "InputTokensDetails",
    "OutputTokensDetails",
    "ToolUsage",
    "Usage",
    "WebSearchUsage",
]


class CacheWriteTokensDetails(Model):
    """A breakdown of the tokens written to the cache, by lifetime."""

    ttl_12h_tokens: int | None = None
    ttl_30m_tokens: int | None = None


class InputTokensDetails(Model):
    """A breakdown of the input tokens."""

    cache_write_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens_details: CacheWriteTokensDetails | None = None


class OutputTokensDetails(Model):
    """A breakdown of the output tokens."""

    reasoning_tokens: int | None = None


class Usage(Model):
    """The tokens that the response has used so far."""

    input_tokens: int | None = None
    input_tokens_details: InputTokensDetails | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputTokensDetails | None = None
    total_tokens: int | None = None


class ImageTokensDetails(Model):
    """A breakdown into image tokens and text tokens."""

    image_tokens: int | None = None
    text_tokens: int | None = None


class CachedImageTokensDetails(Model):
    """A breakdown of cached tokens into image tokens and text tokens."""

    cached_image_tokens: int | None = None
    cached_text_tokens: int | None = None


class ImageGenerationUsage(Model):
    """The tokens used to generate images."""

    input_tokens: int | None = None
    input_tokens_details: ImageTokensDetails | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cached_tokens_details: CachedImageTokensDetails | None = None
    output_tokens_details: ImageTokensDetails | None = None


class WebSearchUsage(Model):
    """The number of web searches."""

    num_requests: int | None = None


class ToolUsage(Model):
    """The usage of tools."""

    image_gen: ImageGenerationUsage | None = None
    web_search: WebSearchUsage | None = None

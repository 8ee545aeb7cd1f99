"""The content of messages, reasoning and tool outputs: texts, images, files and annotations.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Literal, TypeAlias

from openai_cancel.models.shared import Model, Unknown

__all__ = [
    "Annotation",
    "ComputerScreenshot",
    "ContainerFileCitation",
    "FileCitation",
    "FilePath",
    "InputContent",
    "InputFile",
    "InputImage",
    "InputText",
    "Logprob",
    "MessageContent",
    "OutputText",
    "PromptCacheBreakpoint",
    "ReasoningText",
    "Refusal",
    "SummaryText",
    "TopLogprob",
    "URLCitation",
]


class PromptCacheBreakpoint(Model):
    """A point up to which the prompt is cached; `ttl` is a duration such as `30m`."""

    mode: Literal["explicit"] | str | None = None
    ttl: Literal["30m", "12h"] | str | None = None


class InputText(Model):
    """A text in the input."""

    type: Literal["input_text"] = "input_text"
    text: str | None = None
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class InputImage(Model):
    """An image in the input, by its URL, which may be a data URL, or its file ID."""

    type: Literal["input_image"] = "input_image"
    detail: Literal["low", "high", "auto", "original"] | str | None = None
    file_id: str | None = None
    image_url: str | None = None
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class InputFile(Model):
    """A file in the input, by its URL or its file ID, or as base64 data."""

    type: Literal["input_file"] = "input_file"
    detail: Literal["auto", "low", "high"] | str | None = None
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


InputContent: TypeAlias = InputText | InputImage | InputFile | Unknown


class FileCitation(Model):
    """A citation of a file; `index` is its position in the list of files."""

    type: Literal["file_citation"] = "file_citation"
    file_id: str | None = None
    filename: str | None = None
    index: int | None = None


class URLCitation(Model):
    """A citation of a web page; `start_index` and `end_index` are positions in the text, in characters."""

    type: Literal["url_citation"] = "url_citation"
    end_index: int | None = None
    start_index: int | None = None
    title: str | None = None
    url: str | None = None


class ContainerFileCitation(Model):
    """A citation of a file in a container; `start_index` and `end_index` are positions in the text, in characters."""

    type: Literal["container_file_citation"] = "container_file_citation"
    container_id: str | None = None
    end_index: int | None = None
    file_id: str | None = None
    filename: str | None = None
    start_index: int | None = None


class FilePath(Model):
    """A file that was generated; `index` is its position in the list of files."""

    type: Literal["file_path"] = "file_path"
    file_id: str | None = None
    index: int | None = None


Annotation: TypeAlias = FileCitation | URLCitation | ContainerFileCitation | FilePath | Unknown


class TopLogprob(Model):
    """A likely token at a position of the text, with the natural logarithm of its probability."""

    token: str | None = None
    bytes: list[int] | None = None
    logprob: float | None = None


class Logprob(Model):
    """A token of the text, with the natural logarithm of its probability."""

    token: str | None = None
    bytes: list[int] | None = None
    logprob: float | None = None
    top_logprobs: list[TopLogprob | Unknown] | None = None


class OutputText(Model):
    """A text that the model generated."""

    type: Literal["output_text"] = "output_text"
    annotations: list[Annotation] | None = None
    text: str | None = None
    logprobs: list[Logprob | Unknown] | None = None


class Refusal(Model):
    """The model's explanation of why it refused."""

    type: Literal["refusal"] = "refusal"
    refusal: str | None = None


MessageContent: TypeAlias = OutputText | Refusal | InputText | InputImage | InputFile | Unknown


class ReasoningText(Model):
    """A text of the model's reasoning."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str | None = None


class SummaryText(Model):
    """A summary of the model's reasoning."""

    type: Literal["summary_text"] = "summary_text"
    text: str | None = None


class ComputerScreenshot(Model):
    """A screenshot, by its URL or its file ID."""

    type: Literal["computer_screenshot"] = "computer_screenshot"
    detail: Literal["low", "high", "auto", "original"] | str | None = None
    file_id: str | None = None
    image_url: str | None = None
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None

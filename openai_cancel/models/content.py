"""What messages, reasoning and outputs of tools consist of: texts, images, files, annotations.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, and not for all at import

from typing import Literal, TypeAlias

from openai_cancel.models.shared import Model, Unknown


class PromptCacheBreakpoint(Model):
    """A place up to which the prompt is cached; `ttl` is a duration such as `30m`."""

    mode: Literal["explicit"] | str | None = None
    ttl: Literal["30m", "12h"] | str | None = None


class InputText(Model):
    """Text that was given to the model."""

    type: Literal["input_text"] = "input_text"
    text: str | None = None
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class InputImage(Model):
    """An image that was given to the model, by its URL (or data URL) or its file id."""

    type: Literal["input_image"] = "input_image"
    detail: Literal["low", "high", "auto", "original"] | str | None = None
    file_id: str | None = None
    image_url: str | None = None
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class InputFile(Model):
    """A file that was given to the model, by its URL, its file id, or its data in base64."""

    type: Literal["input_file"] = "input_file"
    detail: Literal["auto", "low", "high"] | str | None = None
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


InputContent: TypeAlias = InputText | InputImage | InputFile | Unknown


class FileCitation(Model):
    """A file that a part of the text rests on; `index` counts characters of the text."""

    type: Literal["file_citation"] = "file_citation"
    file_id: str | None = None
    filename: str | None = None
    index: int | None = None


class URLCitation(Model):
    """A web page that the characters from `start_index` to `end_index` rest on."""

    type: Literal["url_citation"] = "url_citation"
    end_index: int | None = None
    start_index: int | None = None
    title: str | None = None
    url: str | None = None


class ContainerFileCitation(Model):
    """A file in a code interpreter's container that the text from `start_index` to `end_index` speaks of."""

    type: Literal["container_file_citation"] = "container_file_citation"
    container_id: str | None = None
    end_index: int | None = None
    file_id: str | None = None
    filename: str | None = None
    start_index: int | None = None


class FilePath(Model):
    """A file that was made; `index` counts characters of the text."""

    type: Literal["file_path"] = "file_path"
    file_id: str | None = None
    index: int | None = None


Annotation: TypeAlias = FileCitation | URLCitation | ContainerFileCitation | FilePath | Unknown


class TopLogprob(Model):
    """A token that could have stood there, and the natural logarithm of its probability."""

    token: str | None = None
    bytes: list[int] | None = None
    logprob: float | None = None


class Logprob(Model):
    """A token of the text, and the natural logarithm of its probability."""

    token: str | None = None
    bytes: list[int] | None = None
    logprob: float | None = None
    top_logprobs: list[TopLogprob | Unknown] | None = None


class OutputText(Model):
    """Text that the model wrote."""

    type: Literal["output_text"] = "output_text"
    annotations: list[Annotation] | None = None
    text: str | None = None
    logprobs: list[Logprob | Unknown] | None = None


class Refusal(Model):
    """Why the model refused."""

    type: Literal["refusal"] = "refusal"
    refusal: str | None = None


MessageContent: TypeAlias = OutputText | Refusal | InputText | InputImage | InputFile | Unknown


class ReasoningText(Model):
    """Reasoning as the model wrote it."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str | None = None


class SummaryText(Model):
    """A summary of the reasoning."""

    type: Literal["summary_text"] = "summary_text"
    text: str | None = None


class ComputerScreenshot(Model):
    """A picture of the screen, by its URL or its file id."""

    type: Literal["computer_screenshot"] = "computer_screenshot"
    file_id: str | None = None
    image_url: str | None = None

"""What messages and reasoning consist of: texts, refusals, annotations, log probabilities.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from typing import Literal

from openai_cancel.models.shared import Model, Unknown, model
from openai_cancel.models.unions import Annotation


@model
class FileCitation(Model):
    """A file that a part of the text rests on; `index` counts characters of the text."""

    type: Literal["file_citation"] = "file_citation"
    file_id: str | None = None
    filename: str | None = None
    index: int | None = None


@model
class URLCitation(Model):
    """A web page that the characters from `start_index` to `end_index` rest on."""

    type: Literal["url_citation"] = "url_citation"
    url: str | None = None
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


@model
class ContainerFileCitation(Model):
    """A file in a code interpreter's container that the text from `start_index` to `end_index` speaks of."""

    type: Literal["container_file_citation"] = "container_file_citation"
    container_id: str | None = None
    file_id: str | None = None
    filename: str | None = None
    start_index: int | None = None
    end_index: int | None = None


@model
class FilePath(Model):
    """A file that was made; `index` counts characters of the text."""

    type: Literal["file_path"] = "file_path"
    file_id: str | None = None
    index: int | None = None


@model
class TopLogprob(Model):
    """A token that could have stood there, and the natural logarithm of its probability."""

    token: str | None = None
    logprob: float | None = None
    bytes: list[int] | None = None


@model
class Logprob(Model):
    """A token of the text, and the natural logarithm of its probability."""

    token: str | None = None
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob | Unknown] | None = None


@model
class OutputText(Model):
    """Text that the model wrote."""

    type: Literal["output_text"] = "output_text"
    text: str | None = None
    annotations: list[Annotation] | None = None
    logprobs: list[Logprob | Unknown] | None = None


@model
class Refusal(Model):
    """Why the model refused."""

    type: Literal["refusal"] = "refusal"
    refusal: str | None = None


@model
class ReasoningText(Model):
    """Reasoning as the model wrote it."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str | None = None


@model
class SummaryText(Model):
    """A summary of the reasoning."""

    type: Literal["summary_text"] = "summary_text"
    text: str | None = None

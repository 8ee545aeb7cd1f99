"""The open unions: which class each `type` stands for. A `type` that is not listed becomes `Unknown`.

The members are named and not imported, so that a document pays only for the classes that it needs.
"""

from typing import TYPE_CHECKING, Annotated, TypeAlias

from openai_cancel.models.shared import Variants

if TYPE_CHECKING:
    from openai_cancel.models import (
        ContainerFileCitation,
        FileCitation,
        FilePath,
        FunctionCall,
        Message,
        OutputText,
        Reasoning,
        ReasoningText,
        Refusal,
        SummaryText,
        Unknown,
        URLCitation,
    )

OutputItem: TypeAlias = Annotated[
    "Message | Reasoning | FunctionCall | Unknown",
    Variants({"message": "Message", "reasoning": "Reasoning", "function_call": "FunctionCall"}),
]
MessageContent: TypeAlias = Annotated[
    "OutputText | Refusal | Unknown",
    Variants({"output_text": "OutputText", "refusal": "Refusal"}),
]
ReasoningContent: TypeAlias = Annotated["ReasoningText | Unknown", Variants({"reasoning_text": "ReasoningText"})]
ReasoningSummary: TypeAlias = Annotated["SummaryText | Unknown", Variants({"summary_text": "SummaryText"})]
Annotation: TypeAlias = Annotated[
    "FileCitation | URLCitation | ContainerFileCitation | FilePath | Unknown",
    Variants(
        {
            "file_citation": "FileCitation",
            "url_citation": "URLCitation",
            "container_file_citation": "ContainerFileCitation",
            "file_path": "FilePath",
        }
    ),
]

"""The classes that a response is made of; each module is imported when one of its classes is first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai_cancel.models.content import *  # noqa: F403 - exports all of them to checkers
    from openai_cancel.models.items import *  # noqa: F403
    from openai_cancel.models.response import *  # noqa: F403
    from openai_cancel.models.shared import *  # noqa: F403

_HOMES = {
    "ContainerFileCitation": "content",
    "FileCitation": "content",
    "FilePath": "content",
    "FunctionCall": "items",
    "IncompleteDetails": "response",
    "InputTokensDetails": "response",
    "Logprob": "content",
    "Message": "items",
    "OutputText": "content",
    "OutputTokensDetails": "response",
    "Problem": "shared",
    "Reasoning": "items",
    "ReasoningText": "content",
    "Refusal": "content",
    "Response": "response",
    "ResponseError": "response",
    "SummaryText": "content",
    "TopLogprob": "content",
    "URLCitation": "content",
    "Unknown": "shared",
    "Usage": "response",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]

"""Ends background responses of the OpenAI Responses API, on any server that speaks it."""

from typing import TYPE_CHECKING, Any

from openai_cancel.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    InternalServerError,
    InvalidResponseIdError,
    NotFoundError,
    OpenAICancelError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    SessionStateError,
    UnprocessableEntityError,
)
from openai_cancel.session import AsyncSession, CallOptions
from openai_cancel.settings import ApiKey, Options, __version__
from openai_cancel.sync import Session
from openai_cancel.wire import HasId, ResponseId

if TYPE_CHECKING:
    from openai_cancel.models import Response

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "ApiKey",
    "AsyncSession",
    "AuthenticationError",
    "BadRequestError",
    "CallOptions",
    "ConfigurationError",
    "ConflictError",
    "HasId",
    "InternalServerError",
    "InvalidResponseIdError",
    "NotFoundError",
    "OpenAICancelError",
    "Options",
    "PermissionDeniedError",
    "RateLimitError",
    "Response",
    "ResponseDecodeError",
    "ResponseId",
    "Session",
    "SessionStateError",
    "UnprocessableEntityError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name != "Response":  # the one public name whose module is imported when it is needed, and not before
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from openai_cancel.models import Response

    return Response

"""Stop background responses of the OpenAI Responses API, on any server that speaks it."""

from openai_cancel.caller import CallOptions, RequestOptions
from openai_cancel.clients import Client
from openai_cancel.clock import Clock
from openai_cancel.errors import (
    AbandonedError,
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    InsecureTransportWarning,
    InternalServerError,
    InvalidResponseIdError,
    LeaseTakenError,
    LedgerError,
    ListingError,
    NotFoundError,
    OpenAICancelError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    SessionStateError,
    UnprocessableEntityError,
    UnsupportedError,
)
from openai_cancel.guard import Guard
from openai_cancel.models import Response
from openai_cancel.outcome import Outcome, Verdict
from openai_cancel.session import AsyncSession
from openai_cancel.settings import ApiKey, Options, __version__
from openai_cancel.sync import BlockingWatch, Session
from openai_cancel.wait import WaitTimeoutError
from openai_cancel.wait_many import WaitResult
from openai_cancel.watch import Watch
from openai_cancel.wire import HasId, ResponseId

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AbandonedError",
    "ApiKey",
    "AsyncSession",
    "AuthenticationError",
    "BadRequestError",
    "BlockingWatch",
    "CallOptions",
    "Client",
    "Clock",
    "ConfigurationError",
    "ConflictError",
    "Guard",
    "HasId",
    "InsecureTransportWarning",
    "InternalServerError",
    "InvalidResponseIdError",
    "LeaseTakenError",
    "LedgerError",
    "ListingError",
    "NotFoundError",
    "OpenAICancelError",
    "Options",
    "Outcome",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestOptions",
    "Response",
    "ResponseDecodeError",
    "ResponseId",
    "Session",
    "SessionStateError",
    "UnprocessableEntityError",
    "UnsupportedError",
    "Verdict",
    "WaitResult",
    "WaitTimeoutError",
    "Watch",
    "__version__",
]

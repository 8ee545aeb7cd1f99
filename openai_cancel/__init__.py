"""Stop background responses of the OpenAI Responses API, on any server that speaks it."""

from typing import TYPE_CHECKING

from openai_cancel.version import __version__

if TYPE_CHECKING:
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
    from openai_cancel.settings import ApiKey, Options
    from openai_cancel.sync import BlockingWatch, Session
    from openai_cancel.wait import WaitTimeoutError
    from openai_cancel.wait_many import WaitResult
    from openai_cancel.watch import Watch
    from openai_cancel.wire import HasId, ResponseId
else:
    # The command shows its help without aiohttp, which takes long to import. Names are looked for in these modules,
    # the lightest first.
    _MODULES = (
        *("errors", "outcome", "clock", "models", "clients", "settings", "wire", "caller"),
        *("guard", "wait", "wait_many", "watch", "session", "sync"),
    )

    def __getattr__(name: str) -> object:
        """Import a public name or a module of this package when it is first used."""
        from importlib import import_module, util  # not needed by the command

        if name in __all__:
            homes = (vars(import_module(f"{__name__}.{module}")) for module in _MODULES)
            found = next(home[name] for home in homes if name in home)
            return globals().setdefault(name, found)
        if name.startswith("_") or util.find_spec(f"{__name__}.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


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

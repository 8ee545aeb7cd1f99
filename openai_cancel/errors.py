"""The exceptions of this package.

```text
OpenAICancelError
 ├─ ConfigurationError          refused before anything was sent: keys, URLs, headers, timeouts
 │   └─ InvalidResponseIdError  (also ValueError)
 ├─ SessionStateError           (also RuntimeError) not open, closed, another event loop or process
 ├─ APIError                    a request failed
 │   ├─ APIConnectionError      no answer: refused, reset, cut off, not HTTP
 │   │   └─ APITimeoutError     (also TimeoutError)
 │   ├─ APIStatusError          the server answered with an error
 │   │   ├─ BadRequestError           400
 │   │   ├─ AuthenticationError       401
 │   │   ├─ PermissionDeniedError     403
 │   │   ├─ NotFoundError             404
 │   │   ├─ ConflictError             409
 │   │   ├─ UnprocessableEntityError  422
 │   │   ├─ RateLimitError            429
 │   │   ├─ UnsupportedError          405, 501, and 404 for a list
 │   │   └─ InternalServerError       other 5xx
 │   ├─ ResponseDecodeError     the server reported success, but the body is not a response
 │   └─ ListingError            the server's list of responses cannot be read to its end
 ├─ WaitTimeoutError            (also TimeoutError) the response did not end in time
 ├─ AbandonedError              nobody waits for a block any more, for example because its client has disconnected
 └─ LedgerError                 the ledger's database failed or does not answer
     └─ LeaseTakenError         another process has stopped a guarded response
```

The names are those of the official SDK where it has one. The base class is not called `CancelError`, so that nothing
here is mistaken for `asyncio.CancelledError`. `InsecureTransportWarning` is a warning.

Servers report errors in many forms. All of them become attributes of an `APIStatusError`: `status`, `code`, `type`,
`param`, `message`, `request_id`, `headers`, `body` and `retry_after`. Every error also has `attempts`, the number of
attempts of the failed call. All exceptions can be pickled, and none contains a key.
"""

import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

_E = TypeVar("_E", bound=BaseException)


class OpenAICancelError(Exception):
    """The base class of every exception of this package."""

    attempts: int = 0
    """The number of attempts that the failed call made."""

    def to_dict(self) -> dict[str, Any]:
        """Return the class and the message of the error as a JSON document."""
        return {"type": type(self).__name__, "message": str(self)}

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception pickles by calling the class with `args`, which keyword-only constructors do not accept.
        return _restore, (type(self), self.args, self.__dict__)


class InsecureTransportWarning(UserWarning):
    """The key is sent over the network in plain text: the base URL is http:// and its host is another machine."""


def detached(error: _E) -> _E:
    """Return an error that is kept as a result, without the frames that it and its causes passed through.

    Frames hold whatever their functions worked with. A chain of causes may contain a cycle, as after `raise e from e`.
    """
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        link = pending.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.__traceback__ = None
        pending += (link.__cause__, link.__context__)
        pending += getattr(link, "exceptions", ())  # of an exception group
    return error


def _restore(cls: type[OpenAICancelError], args: tuple[Any, ...], state: dict[str, Any]) -> OpenAICancelError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class StopResult(Protocol):
    """An `openai_cancel.Outcome`, as far as this module, which is below it, knows it."""

    @property
    def verdict(self) -> str:
        """The verdict about the response."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether the server has reported that the work is over."""
        ...

    @property
    def error(self) -> OpenAICancelError | None:
        """The reason why the response was not stopped."""


class ConfigurationError(OpenAICancelError):
    """A setting or an argument cannot work. Nothing was sent."""


class InvalidResponseIdError(ConfigurationError, ValueError):
    """The id cannot be one segment of a URL path. Nothing was sent."""


class SessionStateError(OpenAICancelError, RuntimeError):
    """The session is not open, is already closed, or belongs to another event loop or process."""


class APIError(OpenAICancelError):
    """A request failed: no answer, an error status, or a body that is not a response.

    Attributes:
        outcome: the `Outcome` of stopping the response, if `wait` gave up because of this error; otherwise None.
    """

    outcome: StopResult | None = None


class APIConnectionError(APIError):
    """No usable answer arrived. The server may have received the request."""

    permanent: bool = False
    """True if another attempt cannot help, for example when the certificate is not trusted."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """No complete answer arrived in time. The server may have received the request."""


class _AnswerError(APIError):
    """An error that came with an HTTP answer."""

    def __init__(
        self, message: str, *, status: int, headers: Mapping[str, str], body: bytes, request_id: str | None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.headers = headers
        self.body = body
        self.request_id = request_id


class APIStatusError(_AnswerError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status.
        message: the server's message.
        code, type, param: the fields of the server's error, or None. `code` may be an int.
        request_id: the server's id of the request, for its support; or None.
        headers: the response headers, a case-insensitive mapping.
        body: the body in bytes; empty if it was larger than the limit.
        retry_after: seconds that the server asks to wait, or None.
        should_retry: the value of `x-should-retry`, or None.
        hint: what to do next, as a sentence; may be empty.

    See https://platform.openai.com/docs/guides/error-codes.
    """

    hint: str = ""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        request_id: str | None = None,
        code: str | int | None = None,
        type: str | None = None,  # noqa: A002 - the name of the field in the API
        param: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message, status=status, headers=headers, body=body, request_id=request_id)
        self.code = code
        self.type = type
        self.param = param
        self.retry_after = retry_after
        self.should_retry = should_retry

    def to_dict(self) -> dict[str, Any]:
        """Return the class, the message, the status, the code and the request ID as a JSON document."""
        return {**super().to_dict(), "status": self.status, "code": self.code, "request_id": self.request_id}

    def __str__(self) -> str:
        """Return the status, the server's message, what to do next, and the request id."""
        words = re.sub(rf"^{self.status}(?!\d)", "", self.message).strip(" :.")
        hint = f" {self.hint}" if self.hint else ""
        request = f" (request id {self.request_id})" if self.request_id else ""
        return f"{self.status}: {words}.{hint}{request}"


class BadRequestError(APIStatusError):
    """400: often the response has already ended, or was not created with `background=true`."""

    hint = "Retrieve the response to see whether it is still running."


class AuthenticationError(APIStatusError):
    """401: the key is missing, or this server does not accept it."""

    hint = "Check the API key, and that it belongs to this server."


class PermissionDeniedError(APIStatusError):
    """403: the key is valid but lacks the permission."""

    hint = "Check the organization, the project and the permissions of the key."


class NotFoundError(APIStatusError):
    """404: the server does not know the response, or no longer keeps it."""

    hint = "Check the id, the base URL (most end in /v1), and that the key's project created the response."


class ConflictError(APIStatusError):
    """409: the response cannot be cancelled in its current state."""

    hint = "Retrieve the response to see whether it is still running."


class UnprocessableEntityError(APIStatusError):
    """422: the server understood the request but rejects it."""

    hint = "Check the id and the query parameters."


class RateLimitError(APIStatusError):
    """429: too many requests, or the quota is exhausted."""

    hint = "Wait before the next request. If the quota is exhausted, check your plan and billing details."


class UnsupportedError(APIStatusError):
    """The server does not implement the call: 405 or 501, and for a list of responses also 404."""

    hint = "This server does not support the call."


class InternalServerError(APIStatusError):
    """5xx: the server, or a gateway in front of it, failed."""

    hint = "The response may still be running: try again later."


class ResponseDecodeError(_AnswerError):
    """The server reported success, but the body is not a response. The response may have been cancelled.

    Attributes:
        status: the HTTP status.
        message: what is wrong with the body.
        headers: the response headers, a case-insensitive mapping.
        body: the body in bytes; empty if it was larger than the limit.
        request_id: the server's id of the request, for its support; or None.
    """

    def __str__(self) -> str:
        """Return what is wrong with the body, and what to do next."""
        return f"{self.status}: {self.message}. Retrieve the response to see what became of it."


class ListingError(APIError):
    """The server's list of responses cannot be read to its end, for example because it repeats pages.

    There may be more responses than those that were found.
    """


class AbandonedError(OpenAICancelError):
    """Nobody waits for a block any more, as the function `abandoned` of its guard reports.

    The guard has tried to stop its responses, and `outcome` says whether that worked. Register a handler for the error
    in your web framework, which otherwise logs a traceback.

    Attributes:
        outcome: the `Outcome` of stopping the response, or of the first one of several; None if the guard stopped
            nothing, because it had no response or because of `on_abandon="leave"`.
    """

    outcome: StopResult | None = None


class LedgerError(OpenAICancelError):
    """The ledger's database failed or does not answer. Check it: running responses may not be recorded."""


class LeaseTakenError(LedgerError):
    """Another process stops a guarded response, or has stopped it, for example because its `max_age` is over.

    It is never raised. It is the `error` of the guard's outcome.
    """

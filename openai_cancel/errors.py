"""Every exception that this package raises.

OpenAICancelError
 ├─ ConfigurationError          refused before anything was sent: keys, URLs, headers, time-outs
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
 │   │   └─ InternalServerError       5xx
 │   └─ ResponseDecodeError     the server said yes, in words that are not a response
 ├─ WaitTimeoutError            (also TimeoutError) the response was not over in time
 └─ LedgerError                 the ledger's database failed, or does not answer

The names are those of the official SDK, where it has one. The base is not called `CancelError`: nothing here may be
mistaken for `asyncio.CancelledError`. All of them pickle, and none holds a key. `InsecureTransportWarning` is a
warning.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openai_cancel.models import Response
    from openai_cancel.outcome import Outcome


_E = TypeVar("_E", bound=BaseException)


class OpenAICancelError(Exception):
    """The base of every exception of this package."""

    attempts: int = 0
    """How many attempts the call that failed had made."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception pickles by calling the class with `args`, which keyword-only constructors do not take.
        return _restore, (type(self), self.args, self.__dict__)


class InsecureTransportWarning(UserWarning):
    """The key goes over the network in plain text: the base URL is http://, and its host is another machine."""


def detached(error: _E) -> _E:
    """The error as a result, which need not keep the frames that it and its causes passed through."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _restore(cls: type[OpenAICancelError], args: tuple[Any, ...], state: dict[str, Any]) -> OpenAICancelError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(OpenAICancelError):
    """A setting cannot work; nothing was sent."""


class InvalidResponseIdError(ConfigurationError, ValueError):
    """The id cannot be one segment of a URL; nothing was sent."""


class SessionStateError(OpenAICancelError, RuntimeError):
    """The session is not open, is closed already, or belongs to another event loop or process."""


class APIError(OpenAICancelError):
    """A request failed: no answer, an error for an answer, or one that is no response."""


class APIConnectionError(APIError):
    """No usable answer arrived. The request may or may not have reached the server."""

    permanent: bool = False
    """True where another attempt cannot help, as with a certificate that is not trusted."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """No complete answer arrived in time. The request may or may not have reached the server."""


class _AnswerError(APIError):
    """What every error has that came with an HTTP answer."""

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
        status: HTTP status, an int.
        message: the server's own words.
        code, type, param: as the server sent them; None where it did not. `code` may be an int.
        request_id: what to quote to the server's operators, or None.
        headers: response headers, a case-insensitive mapping.
        body: the body, as bytes; empty where it was over the limit.
        retry_after: seconds that the server asks to wait, a float, or None.
        should_retry: what `x-should-retry` said, or None.

    See https://platform.openai.com/docs/guides/error-codes.
    """

    _hint: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        request_id: str | None = None,
        code: str | int | None = None,
        type: str | None = None,  # noqa: A002 - the API's own name for it
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

    def __str__(self) -> str:
        """Status and words of the server, what to do next, and the request id."""
        words = re.sub(rf"^{self.status}(?!\d)", "", self.message).strip(" :.")
        hint = f" {self._hint}" if self._hint else ""
        request = f" (request id {self.request_id})" if self.request_id else ""
        return f"{self.status}: {words}.{hint}{request}"


class BadRequestError(APIStatusError):
    """400: often a response that is over already, or was not created with `background=true`."""

    _hint = "Retrieve the response to see whether it still runs."


class AuthenticationError(APIStatusError):
    """401: no key, or one that this server does not take."""

    _hint = "Check the API key, and that it belongs to this server."


class PermissionDeniedError(APIStatusError):
    """403: the key is known but may not do this."""

    _hint = "Check the organization, the project and what the key may do."


class NotFoundError(APIStatusError):
    """404: the server does not know the response, or has forgotten it."""

    _hint = "Check the id, that the base URL is whole (most end in /v1), and that the key's project made the response."


class ConflictError(APIStatusError):
    """409: the response cannot be cancelled in its state."""

    _hint = "Retrieve the response to see whether it still runs."


class UnprocessableEntityError(APIStatusError):
    """422: the server understood the request and refuses it."""

    _hint = "Check the id and the query parameters."


class RateLimitError(APIStatusError):
    """429: too many requests, or a quota that is used up."""

    _hint = "Wait before the next request; a used-up quota needs the plan or billing changed."


class InternalServerError(APIStatusError):
    """5xx: the server, or a gateway before it, failed."""

    _hint = "The response may still run: try again later."


class ResponseDecodeError(_AnswerError):
    """The server answered with success, and its body is no response. The work may have been cancelled.

    Attributes:
        status: HTTP status, an int.
        message: what is wrong with the body.
        headers: response headers, a case-insensitive mapping.
        body: the body, as bytes; empty where it was over the limit.
        request_id: what to quote to the server's operators, or None.
    """

    def __str__(self) -> str:
        """What is wrong with the body, and what to do next."""
        return f"{self.status}: {self.message}. Retrieve the response to see what became of it."


class WaitTimeoutError(OpenAICancelError, TimeoutError):
    """The response was not over in time.

    Attributes:
        response: the response as it was last seen, or None.
        outcome: what became of it when it was stopped; None if it was left running.
    """

    def __init__(self, message: str, *, response: Response | None = None, outcome: Outcome | None = None) -> None:
        super().__init__(message)
        self.response = response
        self.outcome = outcome


class LedgerError(OpenAICancelError):
    """The ledger's database failed, or does not answer. Look at the database: what runs may not be written down."""

"""The wire format: an id becomes a request, and an answer becomes a `Response` or an error. Pure: no I/O.

See https://platform.openai.com/docs/api-reference/responses/cancel.
"""

import json
import marshal
import re
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isfinite
from typing import Any, NamedTuple, Protocol, Self, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import attrs
import orjson
from multidict import CIMultiDict  # aiohttp's own type of headers

from openai_cancel.checks import SECRET_LENGTH, check_headers, merge_query
from openai_cancel.converter import response_hook
from openai_cancel.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    InvalidResponseIdError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    UnprocessableEntityError,
    UnsupportedError,
)
from openai_cancel.models import Response
from openai_cancel.models.fields import keep_body, parse_exactly
from openai_cancel.models.response import record_call
from openai_cancel.secret_values import Secret
from openai_cancel.settings import Settings
from openai_cancel.version import __version__

MESSAGE_LIMIT = 1000
"""The maximum number of characters of an error's message. Its `body` is complete."""

_BOM = b"\xef\xbb\xbf"  # some frameworks write one, and RFC 8259 lets a reader ignore it

SEGMENT = re.compile(r"(?!\.{1,2}\Z)(?=.*\S)[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
"""A string that can be an id: one segment of a path, percent-encoded.

Servers create ids of any form. Only `.` and `..` cannot be sent, because they are resolved in a path.
"""

_PLAIN = re.compile(r"\w[\w-]*", re.ASCII)  # most ids need no encoding

EVENT_STREAM = "text/event-stream"
"""The media type of server-sent events."""

_ACCEPT = "application/json"

NO_JSON = object()
"""The document of a body that is not JSON."""

_PLAIN_LIMIT = 8192  # bytes of a body that is not JSON in which an error message is looked for

# RFC 9110, section 15.
_SUCCESS = range(200, 300)
_REDIRECTION = range(300, 400)
_ASKED = {"openai-poll-after-ms": 1000.0, "retry-after-ms": 1000.0, "retry-after": 1.0}
"""The headers with the time to wait, and how many of their units are a second."""
_SERVER_ERROR = range(500, 600)

_KINDS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    405: UnsupportedError,
    501: UnsupportedError,
}

_LIST_KINDS = {**_KINDS, 404: UnsupportedError}
_DASHBOARD_KINDS = {**_LIST_KINDS, 401: UnsupportedError, 403: UnsupportedError}

_NO_LIST = (
    "This server has no list of responses, so their ids have to be known. A ledger keeps them: see "
    "`AsyncSession.watch` and `openai-cancel ledger`. Or check the base URL: most end in /v1."
)


class HasId(Protocol):
    """An object with an id: a `Response` of this package or of the openai package."""

    @property
    def id(self) -> str | None:
        """The id of the response."""


ResponseId: TypeAlias = str | HasId


class Request(NamedTuple):
    """One HTTP request without a body."""

    method: str
    url: str
    headers: Mapping[str, str]


class Page(NamedTuple):
    """One page of a server's list of responses.

    Attributes:
        responses: the responses.
        has_more: whether another page follows; None if the server does not say so.
        date: the time by the clock of the server, in seconds since the epoch; None if it does not say so.
    """

    responses: Sequence[Response]
    has_more: bool | None
    date: float | None


class Answer(NamedTuple):
    """One HTTP answer. `complete` is false if the body was larger than the limit, or went to a `Receiver`."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool = True


class Receiver(Protocol):
    """Takes a body piece by piece, as it arrives."""

    def accepts(self, answer: Answer) -> bool:
        """Return whether it takes the body of this answer, whose body is not read yet."""
        ...

    def feed(self, chunk: bytes) -> bool:
        """Take the next piece, and return whether it needs no more."""
        ...


@attrs.frozen
class Wire:
    """The parts that all requests of a session share, computed once."""

    prefix: str
    key_header: str
    query: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    suffix: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Compute the parts from settings. If a function returns the key, `sign` adds it later."""
        headers = {"accept": _ACCEPT, "user-agent": f"openai-cancel/{__version__}", **settings.headers}
        wire = cls(
            prefix=f"{settings.base_url}/responses/",
            key_header=settings.key_header,
            query=settings.query,
            suffix=_encode(settings.query),
            headers=headers,
        )
        if isinstance(settings.api_key, Secret):
            headers |= wire.sign(Request("", "", headers), settings.api_key).headers
        return wire

    def with_options(self, *, headers: Mapping[str, str] | None, query: Mapping[str, str] | None) -> Self:
        """Return a copy whose requests have extra headers and query parameters.

        Raises:
            ConfigurationError: a header or a query parameter cannot be sent.
        """
        merged = self.headers if headers is None else {**self.headers, **check_headers(headers)}
        parameters = self.query if query is None else merge_query(self.query, query)
        return attrs.evolve(self, headers=merged, query=parameters, suffix=_encode(parameters))

    def request(self, method: str, response_id: ResponseId, action: str = "") -> Request:
        """Return the request for one response.

        Raises:
            InvalidResponseIdError: the id is empty, blank, `.`, `..`, not a string, or contains control characters.
        """
        text: object = response_id if isinstance(response_id, str) else getattr(response_id, "id", None)
        if not isinstance(text, str):
            raise InvalidResponseIdError(
                f"A response id must be a string, or an object with a string .id, not {type(response_id).__name__}."
            )
        if _PLAIN.fullmatch(text):
            segment = text
        elif SEGMENT.fullmatch(text):
            segment = quote(text, safe="")
        else:
            raise InvalidResponseIdError(
                f"{text[:80]!r} cannot be a response id: pass an id that the server returned, such as 'resp_123'."
            )
        url = f"{self.prefix}{segment}{action}{self.suffix}"
        return Request(method, Secret(url) if self.suffix else url, self.headers)

    def page(self, parameters: Mapping[str, str]) -> Request:
        """Return the request for a page of the list of responses.

        Args:
            parameters: the parameters of the page, such as `limit` and `after`.
        """
        query = [(name, value) for name, value in self.query if name not in parameters]
        return Request("GET", Secret(self.prefix[:-1] + _encode([*query, *parameters.items()])), self.headers)

    def stream_request(self, response_id: ResponseId, after: int | None) -> Request:
        """Return the request for the events of a response.

        Args:
            response_id: the id.
            after: the number of the event after which the stream begins; None for all.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
        """
        query = {"stream": "true"} if after is None else {"stream": "true", "starting_after": str(after)}
        request = attrs.evolve(self, suffix=_encode(merge_query(self.query, query))).request("GET", response_id)
        if request.headers["accept"] != _ACCEPT:  # the caller's own
            return request
        return request._replace(headers={**request.headers, "accept": f"{EVENT_STREAM}, {_ACCEPT}"})

    def sign(self, request: Request, key: Secret) -> Request:
        """Return the request with the key in its header, unless the caller's headers already set it."""
        value = key if self.key_header == "api-key" else Secret(f"Bearer {key}")
        return request._replace(headers={self.key_header: value, **request.headers})


def decode(answer: Answer, request: Request) -> Response:
    """Turn an answer into a `Response`.

    Args:
        answer: the server's answer.
        request: the request. If the server repeats its credentials, they are removed from the error.

    Raises:
        APIStatusError: the server answered with an error, even if its status is a success.
        ResponseDecodeError: the status is a success, but the body is not a response.
    """
    exact = False
    try:
        document: Any = orjson.loads(answer.body) if answer.complete else None
    except orjson.JSONDecodeError:
        document, exact = _parse(answer.body), True
    if answer.status in _SUCCESS and document.__class__ is dict:
        known = isinstance(document.get("status"), str) or (
            isinstance(document.get("id"), str) and not document.get("error")
        )
        if known and document.get("object") != "error":
            response = response_hook()(document)
            if not exact:
                keep_body(response, answer.body)
            headers = answer.headers
            request_id = headers.get("x-request-id") or headers.get("apim-request-id")
            asked = "retry-after" in headers or "retry-after-ms" in headers or "openai-poll-after-ms" in headers
            record_call(response, request_id=request_id, retry_after=_retry_after(headers) if asked else None)
            return response
    answer = _redact(answer, request)
    del document  # the locals of a traceback would show it
    raise _error(answer, request, _parse(answer.body) if answer.complete else None)


def decode_page(answer: Answer, request: Request) -> Page:
    """Turn an answer into a page of a list of responses.

    Args:
        answer: the server's answer.
        request: the request.

    Raises:
        UnsupportedError: the server has no such list, or does not show it to holders of keys.
        APIStatusError: the server answered with another error.
        ResponseDecodeError: the status is a success, but the body is not a list of responses.
    """
    document: Any = None
    if answer.status in _SUCCESS and answer.complete:
        document = _parse_fast(answer.body)
    items: Any = document.get("data") if document.__class__ is dict else None
    if items.__class__ is list and all(item.__class__ is dict and isinstance(item.get("id"), str) for item in items):
        more = document.get("has_more")
        return Page([*map(response_hook(), items)], more if isinstance(more, bool) else None, _date(answer.headers))
    answer = _redact(answer, request)
    del document, items  # the locals of a traceback would show them
    # OpenAI has a list for its dashboard, which refuses keys: it "must be made with a session key".
    kinds = _DASHBOARD_KINDS if b"session key" in answer.body else _LIST_KINDS
    error = _error(answer, request, _parse(answer.body) if answer.complete else None, kinds=kinds)
    if isinstance(error, UnsupportedError):
        error.hint = _NO_LIST
    elif isinstance(error, ResponseDecodeError) and answer.complete:
        error.message = "The body is not a list of responses with ids"
    raise error


def _error(
    answer: Answer, request: Request, document: Any, *, kinds: Mapping[int, type[APIStatusError]] = _KINDS
) -> APIStatusError | ResponseDecodeError:
    status, headers, body, complete = answer
    details = _Details.read(document)
    request_id = headers.get("x-request-id") or headers.get("apim-request-id") or details.request_id
    kind_by = status
    if status in _SUCCESS:
        if not details.is_error:
            return ResponseDecodeError(
                _misfit(answer, document), status=status, headers=headers, body=body, request_id=request_id
            )
        # The code of an error inside a success may be the status that was meant.
        kind_by = details.code if isinstance(details.code, int) else status
    if status in _REDIRECTION and "location" in headers:
        message = (
            f"The server redirects to {headers['location']}. Redirects are not followed, because a POST would become "
            "a GET: set the base URL to the address of the API."
        )
    else:
        message = details.message or _plain_text(body) or reason_of(status)
    if not complete:
        message += " (the body is damaged, or larger than the limit of the session, and was not read)"
    kind = kinds.get(kind_by, InternalServerError if kind_by in _SERVER_ERROR else APIStatusError)
    error = kind(
        message[:MESSAGE_LIMIT],
        status=status,
        headers=headers,
        body=body,
        request_id=request_id,
        code=details.code,
        type=details.type,
        param=details.param,
        retry_after=_retry_after(headers),
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "").lower()),
    )
    if isinstance(error, UnsupportedError):
        error.hint = f"This server cannot {'cancel' if request.method == 'POST' else 'retrieve'} responses."
    return error


def _misfit(answer: Answer, document: Any) -> str:
    """Return why a body that came with a success is not a response."""
    if not answer.complete:
        return "The body is larger than the limit of the session and was not read"
    if not answer.body.strip():
        return "The body is empty"
    if document is NO_JSON:
        return "The body is not JSON"
    return "The body has neither an id nor a status" if isinstance(document, dict) else "The body is not a JSON object"


class _Details(NamedTuple):
    """The details of an error in a body, in any of the many forms that servers use."""

    message: str
    is_error: bool = False
    code: str | int | None = None
    type: str | None = None
    param: str | None = None
    request_id: str | None = None

    @classmethod
    def read(cls, document: Any) -> Self:
        if document.__class__ is not dict:
            return cls(_words(document))
        inner = document
        for envelope in ("detail", "error"):  # FastAPI's, when its detail is an object, and OpenAI's
            found = inner.get(envelope)
            inner = found if found.__class__ is dict else inner
        code = inner.get("code", inner.get("statusCode"))
        if code.__class__ is float and code.is_integer():  # JSON does not tell 404.0 from 404
            code = int(code)
        more = inner.get("additionalInfo")
        more = more if more.__class__ is dict else document
        return cls(
            message=_words(inner),
            is_error=bool(document.get("error")) or document.get("object") == "error",
            code=code if code.__class__ in {str, int} else None,
            type=_string(inner.get("type")),
            param=_string(inner.get("param")),
            request_id=_string(more.get("request_id")),
        )


def _words(value: Any, depth: int = 4) -> str:
    """Return the message in an error body or in a part of one. A hostile body may be deeply nested."""
    if isinstance(value, str):
        return value
    if value.__class__ is list and depth:
        return "; ".join(filter(None, (_words(item, depth - 1) for item in value)))
    if value.__class__ is not dict or not depth:
        return ""
    # The order matters: problem+json (RFC 9457) has a title beside its detail, NestJS an error beside its message.
    words = ""
    for name in ("message", "msg", "detail", "error", "title"):
        words = words or _words(value.get(name), depth - 1)
    if value.get("loc").__class__ is list:  # one of FastAPI's validation errors
        return f"{'.'.join(str(step) for step in value['loc'] if step.__class__ in {str, int})}: {words}"
    return words


def _plain_text(body: bytes) -> str:
    """Return the text of a body that is not JSON; of an HTML page, the title or the text between its tags."""
    text = body[:_PLAIN_LIMIT].decode(errors="replace")
    if text.lstrip().startswith("<"):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
        if title and title[1].strip().lower() == "error":  # Express, which says more in the body of the page
            text, title = text[title.end() :], None
        text = title[1] if title else re.sub(r"<[^>]*>", " ", text)
    return " ".join(text.split())


def reason_of(status: int) -> str:
    """Return the message of an error whose body says nothing."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "The server gave no reason"


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait from `retry-after` (RFC 9110, section 10.2.3) or a variant of it, or None.

    A date is relative to the `date` header of the answer, so that the clock of this machine does not matter.
    """
    for name, unit in _ASKED.items():
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if isfinite(seconds):
            return max(seconds, 0.0)
    try:
        wait = parsedate_to_datetime(headers["retry-after"]) - parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError, OverflowError):  # TypeError: only one has a time zone
        return None
    return max(wait.total_seconds(), 0.0)


def _date(headers: Mapping[str, str]) -> float | None:
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None


def _parse_fast(body: bytes) -> Any:
    try:
        return parse_exactly(body)
    except orjson.JSONDecodeError:
        return _parse(body)


def _parse(body: bytes) -> Any:
    """Parse JSON that orjson refuses but others write: with a BOM, NaN, or a lone surrogate. Return it or `NO_JSON`."""
    try:
        document = json.loads(body.removeprefix(_BOM))
        marshal.dumps(document)  # to_dict() does this, and it refuses a document that is nested too deeply
    except (ValueError, RecursionError):
        return NO_JSON
    return document


_SECRET_NAME = re.compile("auth|cookie|credential|key|passw|secret|sig|token", re.IGNORECASE)


def _redact(answer: Answer, request: Request) -> Answer:
    """Return the answer without the credentials of the request, which a server may repeat in any form.

    The headers are a copy that can be pickled. Bytes in them that are not UTF-8 are replaced.
    """
    headers = [(name, value.encode(errors="replace").decode()) for name, value in answer.headers.items()]
    body = answer.body
    for secret in _secrets(request):
        if len(secret) >= SECRET_LENGTH:
            pattern = "".join(map(_any_form, secret))
            headers = [(name, re.sub(pattern, "***", value, flags=re.IGNORECASE)) for name, value in headers]
            body = re.sub(pattern.encode(), b"***", body, flags=re.IGNORECASE)
    return answer._replace(headers=CIMultiDict(headers), body=body)


def _secrets(request: Request) -> list[str]:
    """Return the values of headers and of the query whose names sound like those of credentials, the longest first."""
    named = [*request.headers.items(), *parse_qsl(urlsplit(request.url).query)]
    return sorted({value.rpartition(" ")[2] for name, value in named if _SECRET_NAME.search(name)}, key=len)[::-1]


def _any_form(character: str) -> str:
    """Return a pattern that matches a character and its escapes in JSON, HTML and URLs."""
    if character.isalnum():
        return character
    code = ord(character)
    return rf"(?:\\?{re.escape(character)}|%{code:02x}|\\u{code:04x}|&#{code};|&#x{code:x};)"


def _encode(query: Sequence[tuple[str, str]]) -> str:
    return f"?{urlencode(query)}" if query else ""

"""What goes over the wire: an id becomes a request, an answer becomes a `Response` or an error. Pure: no I/O.

See https://platform.openai.com/docs/api-reference/responses/cancel.
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isfinite
from typing import Any, NamedTuple, Protocol, Self, TypeAlias
from urllib.parse import quote, urlencode

import attrs
import orjson
from multidict import CIMultiDict  # aiohttp's own type of headers

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
)
from openai_cancel.models import Response
from openai_cancel.settings import Secret, Settings, __version__, check_headers, check_query

MESSAGE_LIMIT = 1000
"""How many characters an error's message has at most; its `body` has all of it."""

SECRET_LENGTH = 8
"""A shorter key is a placeholder such as `none`, and may well stand in an error by chance."""

_BOM = b"\xef\xbb\xbf"  # some frameworks write one, and RFC 8259 lets a reader ignore it

# One segment of a path, percent-encoded whole: `.` and `..` would be resolved away, and nothing else is amiss.
_SEGMENT = re.compile(r"(?!\.{1,2}\Z)(?=.*\S)[^\x00-\x1f\x7f\ud800-\udfff]+")

_PLAIN_LIMIT = 8192  # bytes of a body that is not JSON that are looked at for words

_KINDS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}
_KINDS_END = 500  # from here on all are InternalServerError


class HasId(Protocol):
    """An object with an id: a `Response` of this package or of the openai package."""

    @property
    def id(self) -> str | None:
        """What the server calls it."""


ResponseId: TypeAlias = str | HasId


class Request(NamedTuple):
    """One HTTP request without a body."""

    method: str
    url: str
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """One HTTP answer. `complete` is false where the body was over the limit and only its beginning is here."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool = True


@attrs.frozen
class Wire:
    """What all requests of a session have in common, put together once."""

    prefix: str
    key_header: str
    query: Mapping[str, str] = attrs.field(repr=False)
    suffix: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Put together what the settings say. A key that a function gives is left to `sign`."""
        headers = {"accept": "application/json", "user-agent": f"openai-cancel/{__version__}", **settings.headers}
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

    def request(
        self,
        method: str,
        response_id: ResponseId,
        action: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Request:
        """The request for one response.

        Raises:
            InvalidResponseIdError: the id is empty, blank, `.`, `..`, no string, or holds control characters. Servers
                make ids of any form, so nothing else is refused.
            ConfigurationError: a header or a query parameter cannot be sent.
        """
        text: object = response_id if isinstance(response_id, str) else getattr(response_id, "id", None)
        if not isinstance(text, str):
            raise InvalidResponseIdError(
                f"A response id must be a string, or an object with a string .id, not {type(response_id).__name__}."
            )
        if not _SEGMENT.fullmatch(text):
            raise InvalidResponseIdError(
                f"{text[:80]!r} cannot be a response id: pass what the server called it, such as 'resp_123'."
            )
        suffix = self.suffix if query is None else _encode({**self.query, **check_query(query)})
        merged = self.headers if headers is None else {**self.headers, **check_headers(headers)}
        return Request(method, f"{self.prefix}{quote(text, safe='')}{action}{suffix}", merged)

    def sign(self, request: Request, key: Secret) -> Request:
        """The request with the key in its header, unless the caller's own headers have one there."""
        value = key if self.key_header == "api-key" else Secret(f"Bearer {key}")
        return request._replace(headers={self.key_header: value, **request.headers})


def decode(answer: Answer, key: str | None = None) -> Response:
    """Make a `Response` of an answer.

    Args:
        answer: what the server sent.
        key: taken out of what the error shows, should the server repeat it.

    Raises:
        APIStatusError: the server answered with an error, be it with a status of success.
        ResponseDecodeError: it answered with success, and the body is no response.
    """
    try:
        document: Any = orjson.loads(answer.body.removeprefix(_BOM)) if answer.complete else None
    except orjson.JSONDecodeError:
        document = None
    if (
        200 <= answer.status < 300  # noqa: PLR2004 - RFC 9110, section 15.3
        and document.__class__ is dict
        and (isinstance(document.get("id"), str) or isinstance(document.get("status"), str))
    ):
        response = response_hook()(document)
        # The class is frozen for its users; nobody else has this object yet.
        headers = answer.headers
        response.__dict__["request_id"] = headers.get("x-request-id") or headers.get("apim-request-id")
        return response
    if key is not None:
        answer, document = _redact(answer, document, key)
    raise _error(answer, document)


def _error(answer: Answer, document: Any) -> APIStatusError | ResponseDecodeError:
    # A copy, for the transport's mapping cannot be pickled.
    status, headers, body = answer.status, CIMultiDict(answer.headers), answer.body
    details = _Details.read(document)
    request_id = headers.get("x-request-id") or headers.get("apim-request-id") or details.request_id
    kind_by = status
    if 200 <= status < 300:  # noqa: PLR2004 - as above
        if not details.is_error:
            return ResponseDecodeError(
                _misfit(answer, document), status=status, headers=headers, body=body, request_id=request_id
            )
        # An error inside a success says in its code which one it is meant to be.
        kind_by = details.code if isinstance(details.code, int) else status
    if 300 <= status < 400:  # noqa: PLR2004 - RFC 9110, section 15.4
        message = (
            f"The server redirects to {headers.get('location', 'nowhere')}, and redirects are not followed, since a "
            "POST would become a GET: set base_url to the address where the API is."
        )
    else:
        message = details.message or _plain_text(body) or _reason(status)
    kind = InternalServerError if kind_by >= _KINDS_END else _KINDS.get(kind_by, APIStatusError)
    return kind(
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


def _misfit(answer: Answer, document: Any) -> str:
    """Why a body that came with a success is no response."""
    if not answer.complete:
        return "The body is larger than max_body_bytes and was not read"
    if not answer.body.strip():
        return "The body is empty"
    if document is None:
        return "The body is not JSON"
    return "The body has neither an id nor a status" if isinstance(document, dict) else "The body is no JSON object"


class _Details(NamedTuple):
    """What a body says of an error, whichever of the many forms it has."""

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
        for envelope in ("detail", "error"):  # FastAPI's when it was given an object, and OpenAI's
            found = inner.get(envelope)
            inner = found if found.__class__ is dict else inner
        code = inner.get("code", inner.get("statusCode"))
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
    """The words in an error body, or in a part of one; a hostile body may be nested a thousand deep."""
    if isinstance(value, str):
        return value
    if value.__class__ is list and depth:
        return "; ".join(filter(None, (_words(item, depth - 1) for item in value)))
    if value.__class__ is not dict or not depth:
        return ""
    # In this order: problem+json (RFC 9457) has a title beside its detail, NestJS an error beside its message.
    words = ""
    for name in ("message", "msg", "detail", "error", "title"):
        words = words or _words(value.get(name), depth - 1)
    if value.get("loc").__class__ is list:  # one of FastAPI's validation errors
        return f"{'.'.join(map(str, value['loc']))}: {words}"
    return words


def _plain_text(body: bytes) -> str:
    """The words of a body that is not JSON; of a page of HTML its title, or what stands between its tags."""
    text = body[:_PLAIN_LIMIT].decode(errors="replace")
    if text.lstrip().startswith("<"):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
        text = title[1] if title else re.sub(r"<[^>]*>", " ", text)
    return " ".join(text.split())


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "The server gave no reason"


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: `retry-after-ms`, else `retry-after` in either of its forms (RFC 9110, section 10.2.3)."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if isfinite(seconds):
            return max(seconds, 0.0)
    try:
        # Against the server's own clock, so that ours does not matter.
        wait = parsedate_to_datetime(headers["retry-after"]) - parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError):  # TypeError: one with a zone, the other without
        return None
    return max(wait.total_seconds(), 0.0)


def _redact(answer: Answer, document: Any, key: str) -> tuple[Answer, Any]:
    """The answer and the JSON in it without the key, should the server have repeated it."""
    if len(key) < SECRET_LENGTH:
        return answer, document
    headers = CIMultiDict((name, value.replace(key, "***")) for name, value in answer.headers.items())
    body = answer.body.replace(key.encode(), b"***")
    if document is not None and body != answer.body:
        document = orjson.loads(body.removeprefix(_BOM))
    return answer._replace(headers=headers, body=body), document


def _encode(query: Mapping[str, str]) -> str:
    return f"?{urlencode(query)}" if query else ""

"""What goes over the wire: an id becomes a request, an answer becomes a `Response` or an error. Pure: no I/O.

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
from urllib.parse import quote, urlencode

import attrs
import orjson
from multidict import CIMultiDict  # aiohttp's own type of headers

from openai_cancel.checks import SECRET_LENGTH, Secret, check_headers, merge_query
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
from openai_cancel.settings import Settings, __version__

MESSAGE_LIMIT = 1000
"""How many characters an error's message has at most; its `body` has all of it."""

_BOM = b"\xef\xbb\xbf"  # some frameworks write one, and RFC 8259 lets a reader ignore it

SEGMENT = re.compile(r"(?!\.{1,2}\Z)(?=.*\S)[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
"""What an id can be: one segment of a path, percent-encoded whole.

`.` and `..` would be resolved away, and nothing else is amiss.
"""

_PLAIN = re.compile(r"\w[\w-]*", re.ASCII)  # most ids, which need no encoding

NO_JSON = object()
"""What stands for the document of a body that is not JSON."""

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
    """One HTTP answer. `complete` is false where the body was over the limit, and is not here."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool = True


@attrs.frozen
class Wire:
    """What all requests of a session have in common, put together once."""

    prefix: str
    key_header: str
    query: tuple[tuple[str, str], ...] = attrs.field(repr=False)
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
        if _PLAIN.fullmatch(text):
            segment = text
        elif SEGMENT.fullmatch(text):
            segment = quote(text, safe="")
        else:
            raise InvalidResponseIdError(
                f"{text[:80]!r} cannot be a response id: pass what the server called it, such as 'resp_123'."
            )
        suffix = self.suffix if query is None else _encode(merge_query(self.query, query))
        merged = self.headers if headers is None else {**self.headers, **check_headers(headers)}
        return Request(method, f"{self.prefix}{segment}{action}{suffix}", merged)

    def sign(self, request: Request, key: Secret) -> Request:
        """The request with the key in its header, unless the caller's own headers have one there."""
        value = key if self.key_header == "api-key" else Secret(f"Bearer {key}")
        return request._replace(headers={self.key_header: value, **request.headers})


def decode(answer: Answer, request: Request) -> Response:
    """Make a `Response` of an answer.

    Args:
        answer: what the server sent.
        request: what was asked; its credentials are taken out of what the error shows, should the server repeat them.

    Raises:
        APIStatusError: the server answered with an error, be it with a status of success.
        ResponseDecodeError: it answered with success, and the body is no response.
    """
    try:
        document: Any = orjson.loads(answer.body) if answer.complete else None
    except orjson.JSONDecodeError:
        document = _parse(answer.body)
    if 200 <= answer.status < 300 and document.__class__ is dict:  # noqa: PLR2004 - RFC 9110, section 15.3
        known = isinstance(document.get("status"), str) or (
            isinstance(document.get("id"), str) and not document.get("error")
        )
        if known and document.get("object") != "error":
            response = response_hook()(document)
            headers = answer.headers
            # The class is frozen for its users; nobody else has this object yet.
            values = response.__dict__
            values["request_id"] = headers.get("x-request-id") or headers.get("apim-request-id")
            if "retry-after" in headers or "retry-after-ms" in headers:
                values["retry_after"] = _retry_after(headers)
            return response
    answer = _redact(answer, request)
    del document  # which a traceback with locals would show as it came
    raise _error(answer, _parse(answer.body) if answer.complete else None)


def _error(answer: Answer, document: Any) -> APIStatusError | ResponseDecodeError:
    status, headers, body, complete = answer
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
    if 300 <= status < 400 and "location" in headers:  # noqa: PLR2004 - RFC 9110, section 15.4
        message = (
            f"The server redirects to {headers['location']}, and redirects are not followed, since a POST would "
            "become a GET: set base_url to the address where the API is."
        )
    else:
        message = details.message or _plain_text(body) or _reason(status)
    if not complete:
        message += " (the body is larger than max_body_bytes and was not read)"
    kind = InternalServerError if 500 <= kind_by < 600 else _KINDS.get(kind_by, APIStatusError)  # noqa: PLR2004
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
    if document is NO_JSON:
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
        return f"{'.'.join(str(step) for step in value['loc'] if step.__class__ in {str, int})}: {words}"
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
    """Seconds to wait: `retry-after-ms`, else `retry-after` in either of its forms (RFC 9110, section 10.2.3).

    A date counts from the answer's own, so that no clock of ours has to be right.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if isfinite(seconds):
            return max(seconds, 0.0)
    try:
        wait = parsedate_to_datetime(headers["retry-after"]) - parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError, OverflowError):  # TypeError: one with a zone, the other without
        return None
    return max(wait.total_seconds(), 0.0)


def _parse(body: bytes) -> Any:
    """The JSON in a body, or `NO_JSON`; with what orjson refuses and others write: a BOM, NaN, half a surrogate."""
    try:
        document = json.loads(body.removeprefix(_BOM))
        marshal.dumps(document)  # which to_dict() needs, and which refuses what is too deep; orjson does that itself
    except (ValueError, RecursionError):
        return NO_JSON
    return document


def _redact(answer: Answer, request: Request) -> Answer:
    """The answer without the credentials of the request, should the server have repeated them in any form.

    Its headers are a copy: the transport's own cannot be pickled. Bytes in them that are not UTF-8 are replaced.
    """
    headers = [(name, value.encode(errors="replace").decode()) for name, value in answer.headers.items()]
    body = answer.body
    for name in ("authorization", "api-key"):
        secret = request.headers.get(name, "").rpartition(" ")[2]
        if len(secret) >= SECRET_LENGTH:
            pattern = "".join(map(_any_form, secret))
            headers = [(name, re.sub(pattern, "***", value, flags=re.IGNORECASE)) for name, value in headers]
            body = re.sub(pattern.encode(), b"***", body, flags=re.IGNORECASE)
    return answer._replace(headers=CIMultiDict(headers), body=body)


def _any_form(character: str) -> str:
    """A pattern for a character as it is, and as JSON, HTML and URLs may write it."""
    if character.isalnum():
        return character
    code = ord(character)
    return rf"(?:\\?{re.escape(character)}|%{code:02x}|\\u{code:04x}|&#{code};|&#x{code:x};)"


def _encode(query: Sequence[tuple[str, str]]) -> str:
    return f"?{urlencode(query)}" if query else ""

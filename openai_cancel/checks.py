"""What callers pass, checked before anything is sent: each refusal says what to do, and quotes no secret."""

import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from yarl import URL  # aiohttp's own URL type, so that both read a URL alike

from openai_cancel.errors import ConfigurationError

_T = TypeVar("_T")

# RFC 9110, section 5.6.2: what a header's name may be made of.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
SECRET_LENGTH = 8
"""A shorter key is a placeholder such as `none`, and may well stand in an error by chance."""


class Secret(str):
    """A string that does not show itself in a repr, and so not in a traceback's locals either."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Three stars, whatever the string."""
        return "'***'"


def hidden(value: _T) -> _T:
    """A string so that a traceback's locals do not show it; anything else as it is."""
    return cast("_T", Secret(value)) if isinstance(value, str) else value


def check_seconds(name: str, value: float) -> float:
    """Refuse what no time-out can be: zero, negative, NaN, not a number."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (0 < value <= sys.float_info.max or value == math.inf)
    ):
        raise ConfigurationError(
            f"{name} must be a number of seconds greater than 0 (math.inf for no limit), not {value!r}."
        )
    return value


def check_count(name: str, value: int, *, least: int = 0) -> int:
    """Refuse what no count can be: a float, a bool, less than `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return value


def check_headers(headers: Mapping[str, str], source: str = "headers") -> dict[str, str]:
    """Headers with their names in lower case, so that merging them is merging dictionaries.

    A value is not quoted in the error: it may be a secret.
    """
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"{source} must be a mapping of names to values, not {type(headers).__name__}.")
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ConfigurationError(f"{source}: {name!r} is no header name; use letters, digits and hyphens.")
        if not isinstance(value, str) or CONTROL.search(value):
            raise ConfigurationError(
                f"{source}: the value of {name!r} must be a string without line breaks or control characters."
            )
        if name.lower() in {"content-length", "transfer-encoding"}:
            raise ConfigurationError(f"{source}: {name!r} frames the request and cannot be set; leave it out.")
        checked[name.lower()] = Secret(value)
    return checked


def merge_query(query: Iterable[tuple[str, str]], more: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Query parameters in which `more` takes the place of others of the same name."""
    if not isinstance(more, Mapping):
        raise ConfigurationError(f"query must be a mapping of names to values, not {type(more).__name__}.")
    for name, value in more.items():
        if not isinstance(name, str) or not isinstance(value, str) or CONTROL.search(name + value):
            raise ConfigurationError(f"query: {name!r} and its value must be strings without control characters.")
    return (*((name, value) for name, value in query if name not in more), *more.items())


def check_key(key: object, source: str) -> Secret:
    """Refuse what no key can be. The key is not quoted in the error."""
    if not isinstance(key, str):
        raise ConfigurationError(f"{source} must be a string, not {type(key).__name__}.")
    key = Secret(key)
    if not key:
        raise ConfigurationError(f"{source} is empty.")
    if key != key.strip():
        raise ConfigurationError(
            f"{source} begins or ends with white space, such as the newline of a file that was read without "
            "strip(): strip it."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(
            f"{source} holds a space or a character that no key has: give the key alone, without 'Bearer'."
        )
    return key


def check_url(url: str, source: str, like: str) -> URL:
    """Read an http(s) URL. It is not quoted in the error: it may hold a password."""
    if not isinstance(url, str):
        raise ConfigurationError(f"{source} must be a string, not {type(url).__name__}.")
    try:
        parsed = URL(url)
        parsed.port  # noqa: B018 - reading it is what checks it
        (parsed.raw_host or "").encode("idna")  # as the look-up of the name will
    except ValueError:  # of which UnicodeError is one
        raise ConfigurationError(f"{source} is not a URL: write it like {like}.") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host or re.search(r"[\s\x00-\x1f]", url):
        raise ConfigurationError(
            f"{source} must be an http:// or https:// URL with a host and without white space, like {like}."
        )
    return parsed

"""Validation of what callers pass, before anything is sent. Errors say what to do, and quote no secret."""

import inspect
import math
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import cast

from yarl import URL  # aiohttp's own URL type, so that both read a URL alike

from openai_cancel.errors import ConfigurationError
from openai_cancel.secret_values import Secret, kind_of

# RFC 9110, section 5.6.2: the characters of a header name.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
SECRET_LENGTH = 8
"""The length of the shortest key that is treated as a secret. `none` and the like may occur in an error by chance."""

_PACKAGE = __name__.partition(".")[0]


def check_seconds(name: str, value: float) -> float:
    """Refuse a duration that is zero, negative, NaN, or not a number."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (0 < value <= sys.float_info.max or value == math.inf)
    ):
        raise ConfigurationError(
            f"{name} must be a number of seconds greater than 0 (math.inf for no limit), not {value!r}."
        )
    return value


def check_limit(name: str, value: float | None, *, minimum: float = 0.0) -> float | None:
    """Refuse a limit in seconds that is not a finite number, or is shorter than `minimum`. None is no limit."""
    if value is not None and check_seconds(name, value) == math.inf:
        raise ConfigurationError(f"{name} must be finite; leave it out for no limit.")
    if value is not None and value < minimum:
        raise ConfigurationError(f"{name} must be at least {minimum:g} s, not {value:g}.")
    return value


def check_function(name: str, value: object) -> None:
    """Refuse what is not a function, and a generator function: calling one only makes a generator."""
    if not callable(value):
        raise ConfigurationError(f"{name} must be a function, not {kind_of(value)}.")
    if inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
        raise ConfigurationError(f"{name} must be a function without `yield`, which would not run.")


def check_count(name: str, value: int, *, minimum: int = 0) -> int:
    """Refuse a count that is a float, a bool, or less than `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(f"{name} must be a whole number of at least {minimum}, not {value!r}.")
    return value


def check_headers(headers: Mapping[str, str], source: str = "headers") -> dict[str, str]:
    """Return headers with names in lower case, so that dictionaries of them can be merged.

    The error does not quote a value, which may be a secret.
    """
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"{source} must be a mapping of names to values, not {kind_of(headers)}.")
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ConfigurationError(f"{source}: {name!r} is not a header name; use letters, digits and hyphens.")
        if not isinstance(value, str) or CONTROL.search(value):
            raise ConfigurationError(
                f"{source}: the value of {name!r} must be a string without line breaks or control characters."
            )
        if name.lower() in {"content-length", "transfer-encoding"}:
            raise ConfigurationError(f"{source}: {name!r} frames the request and cannot be set; remove it.")
        checked[name.lower()] = Secret(value)
    return checked


def merge_query(query: Iterable[tuple[str, str]], more: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return query parameters in which those of `more` replace others of the same name."""
    if not isinstance(more, Mapping):
        raise ConfigurationError(f"query must be a mapping of names to values, not {kind_of(more)}.")
    for name, value in more.items():
        if not isinstance(name, str) or not isinstance(value, str) or CONTROL.search(name + value):
            raise ConfigurationError(f"query: {name!r} and its value must be strings without control characters.")
    kept = ((name, value) for name, value in query if name not in more)
    return tuple((name, cast("str", Secret(value))) for name, value in (*kept, *more.items()))


def check_key(key: object, source: str) -> Secret:
    """Refuse a string that cannot be a key. The error does not quote it."""
    if not isinstance(key, str):
        raise ConfigurationError(f"{source} must be a string, not {kind_of(key)}.")
    key = Secret(key)
    if not key:
        raise ConfigurationError(f"{source} is empty.")
    if key != key.strip():
        raise ConfigurationError(
            f"{source} begins or ends with white space, such as the newline at the end of a file: remove it."
        )
    if key[0] in {'"', "'"}:
        raise ConfigurationError(f"{source} is in quotes, which are no part of a key: remove them.")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(
            f"{source} contains a space or a character that is not ASCII: pass the key alone, without 'Bearer'."
        )
    return key


def check_url(url: str, source: str, like: str) -> URL:
    """Parse an http(s) URL. The error does not quote it, since it may contain a password."""
    if not isinstance(url, str):
        raise ConfigurationError(f"{source} must be a string, not {kind_of(url)}.")
    if fault := _find_fault(url):
        raise ConfigurationError(f"{source} {fault} like {like}.")
    return URL(url)


def check_base_url(url: str, source: str, like: str, *, credentials: str) -> None:
    """Refuse what is not the base URL of an API. The error does not quote it.

    Args:
        url: the URL.
        source: the name of the option or the variable that it comes from.
        like: an example.
        credentials: what to use instead of a user name and a password in the URL.
    """
    if fault := _find_base_fault(check_url(url, source, like), credentials):
        raise ConfigurationError(f"{source} must {fault}.")


def _find_base_fault(url: URL, credentials: str) -> str:
    """Return what a base URL must not have, or an empty string. No local of `check_base_url` is the parsed URL."""
    if url.user is not None or url.password is not None:
        return f"not contain a user name or password: {credentials}"
    if url.fragment:
        return "not contain a fragment: remove everything from the # on"
    if url.raw_path.rstrip("/").endswith("/responses"):
        return "be the URL of the API, not of its responses: remove /responses"
    return ""


def _find_fault(url: str) -> str:
    """Return what is wrong with an http(s) URL, or an empty string. No local of `check_url` is the parsed URL."""
    try:
        parsed = URL(url)
        _ = parsed.port, parsed.host  # properties that raise if the port is not a number, or the host is not IDNA
        (parsed.raw_host or "").encode("idna")  # as the resolver does later
    except ValueError:  # the base class of UnicodeError
        return "is not a URL: write it"
    if parsed.scheme not in {"http", "https"} or not parsed.host or re.search(r"[\s\x00-\x1f]", url):
        return "must be an http:// or https:// URL with a host and without white space,"
    return ""


def warn_caller(message: str, category: type[Warning]) -> None:
    """Issue a warning that points to the line outside this package that has called it."""
    level, frame = 1, inspect.currentframe()
    # A constructor that attrs has generated has no module name.
    while frame and frame.f_globals.get("__name__", _PACKAGE).partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)

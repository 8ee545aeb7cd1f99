"""The settings of a session: from arguments, then from the environment; validated before anything is sent."""

import hashlib
import inspect
import ipaddress
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from functools import lru_cache, partial
from typing import Any, Literal, Self, TypeAlias, TypedDict, Unpack, cast
from urllib.parse import parse_qsl

import attrs
from aiohttp import TraceConfig
from yarl import URL  # aiohttp's own URL type, so that both read a URL alike

from openai_cancel.cancellation import contain
from openai_cancel.checks import (
    CONTROL,
    SECRET_LENGTH,
    check_base_url,
    check_count,
    check_function,
    check_headers,
    check_key,
    check_seconds,
    merge_query,
    warn_caller,
)
from openai_cancel.clock import Clock
from openai_cancel.errors import ConfigurationError, InsecureTransportWarning
from openai_cancel.ledger_protocols import SessionLedger
from openai_cancel.outcome import OnOutcome
from openai_cancel.proxies import check_proxy, environment_proxy
from openai_cancel.secret_values import Secret, hidden
from openai_cancel.threads import HelperThread

DEFAULT_BASE_URL = "https://api.openai.com/v1"

ApiKey: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""A key, or a function, sync or async, that returns one and is called before each attempt."""

_CREDENTIALS = frozenset({"authorization", "api-key"})


class Limits(TypedDict, total=False):
    """The options that become settings without a change."""

    timeout: float
    connect_timeout: float
    deadline: float
    max_retries: int
    max_body_bytes: int
    max_connections: int
    proxy: str | None
    trace_configs: Sequence[TraceConfig]
    ledger: SessionLedger | None
    ledger_required: bool
    account: str | None
    on_outcome: OnOutcome | None


class Options(Limits, total=False):
    """The keyword arguments that all constructors of sessions share, for code that passes them on.

    See `AsyncSession` for their meaning.
    """

    headers: Mapping[str, str] | None
    query: Mapping[str, str] | None
    clock: Clock


_LIKE_PROXY = "http://proxy.example:3128 (for a SOCKS proxy, pass a client_session that supports it)"


def _is_seconds(_: Any, attribute: "attrs.Attribute[float]", value: float) -> None:
    check_seconds(attribute.name, value)


def _is_count(_: Any, attribute: "attrs.Attribute[int]", value: int) -> None:
    check_count(attribute.name, value)


def _is_size(_: Any, attribute: "attrs.Attribute[int]", value: int) -> None:
    check_count(attribute.name, value, minimum=1)


def _is_proxy(_: Any, attribute: "attrs.Attribute[str | None]", value: str | None) -> None:
    if value is not None:
        check_proxy(value, attribute.name, _LIKE_PROXY)


def _is_ledger(_: Any, __: Any, value: object) -> None:
    if value is not None and not isinstance(value, SessionLedger):
        raise ConfigurationError(f"ledger must be an openai_cancel.ledger.Ledger, not {type(value).__name__}.")


def _is_hook(_: Any, __: Any, value: object) -> None:
    if value is not None:
        check_function("on_outcome", value)


def _is_name(_: Any, attribute: "attrs.Attribute[str | None]", value: str | None) -> None:
    if value is not None and (not isinstance(value, str) or not value or CONTROL.search(value)):
        raise ConfigurationError(
            f"{attribute.name} must be a non-empty string without control characters, not {value!r}."
        )


@attrs.frozen(kw_only=True)
class Settings:
    """Everything that is constant for a session. The class methods read the environment, too."""

    base_url: str
    """Without a query and without a trailing slash."""
    api_key: Secret | Callable[[], str | Awaitable[str]] | None = attrs.field(repr=False)
    """None if `headers` contain the credentials."""
    key_header: Literal["authorization", "api-key"] = "authorization"
    headers: Mapping[str, str] = attrs.field(repr=False)
    """With names in lower case."""
    query: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    timeout: float = attrs.field(default=30.0, validator=_is_seconds)
    connect_timeout: float = attrs.field(default=5.0, validator=_is_seconds)
    deadline: float = attrs.field(default=60.0, validator=_is_seconds)
    max_retries: int = attrs.field(default=4, validator=_is_count)
    max_body_bytes: int = attrs.field(default=64 * 2**20, validator=_is_size)
    max_connections: int = attrs.field(default=100, validator=_is_size)
    proxy: str | None = attrs.field(default=None, repr=False, validator=_is_proxy)
    trace_configs: Sequence[TraceConfig] = attrs.field(default=(), repr=False)
    ledger: SessionLedger | None = attrs.field(default=None, validator=_is_ledger)
    ledger_required: bool = False
    account: str | None = attrs.field(default=None, validator=_is_name)
    on_outcome: OnOutcome | None = attrs.field(default=None, repr=False, validator=_is_hook)

    def __attrs_post_init__(self) -> None:
        """Warn if others on the network can read the key. A short key is a placeholder."""
        url = URL(self.base_url)
        placeholder = isinstance(self.api_key, str) and len(self.api_key) < SECRET_LENGTH
        if url.scheme == "http" and not placeholder and not _is_loopback(url.host or ""):
            warn_caller(
                f"The key goes to {url.host} in plain text: use https:// in the base URL.",
                InsecureTransportWarning,
            )

    @classmethod
    def openai(
        cls,
        *,
        api_key: ApiKey | None = None,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        **limits: Unpack[Limits],
    ) -> Self:
        """Make the settings for OpenAI, and for every server that accepts a Bearer key.

        Defaults come from `OPENAI_API_KEY`, `OPENAI_BASE_URL`, `OPENAI_ORG_ID`, `OPENAI_PROJECT_ID` and
        `OPENAI_CUSTOM_HEADERS` (lines of `Name: value`).
        """
        merged = _custom_headers(with_credentials=api_key is None)
        for name, argument, variable in (
            ("organization", organization, "OPENAI_ORG_ID"),
            ("project", project, "OPENAI_PROJECT_ID"),
        ):
            value, source = _given(argument, name, variable)
            if value is not None:
                merged |= check_headers({f"openai-{name}": value}, source)
        merged |= check_headers(headers or {})
        url, source = _given(base_url, "base_url", "OPENAI_BASE_URL")
        base_url, url_query = _split(DEFAULT_BASE_URL if url is None else url, source)
        return cls(
            base_url=base_url,
            api_key=_key(api_key, "OPENAI_API_KEY", merged),
            headers=merged,
            query=merge_query(url_query, query or {}),
            **limits,
        )

    @classmethod
    def azure(
        cls,
        endpoint: str | None = None,
        *,
        api_key: ApiKey | None = None,
        token_provider: Callable[[], str | Awaitable[str]] | None = None,
        api_version: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        **limits: Unpack[Limits],
    ) -> Self:
        """Make the settings for Azure OpenAI, with an `api-key` header or a Bearer token from `token_provider`.

        Without `api_version`, or with `preview`, this is the v1 API (`/openai/v1`); with a date, the API of that date.
        Defaults come from `AZURE_OPENAI_ENDPOINT`, `AZURE_OPENAI_API_KEY` and `OPENAI_API_VERSION`.

        See https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle.
        """
        if api_key is not None and token_provider is not None:
            raise ConfigurationError("Pass api_key or token_provider, not both.")
        url, source = _given(endpoint, "endpoint", "AZURE_OPENAI_ENDPOINT")
        if url is None:
            raise ConfigurationError("No Azure endpoint: pass endpoint, or set AZURE_OPENAI_ENDPOINT.")
        base_url, url_query = _split(url, source)
        base_url = re.sub(r"/openai(/v1)?$", "", base_url) + "/openai"
        version = api_version or _environment("OPENAI_API_VERSION")
        if version:
            url_query = merge_query(url_query, {"api-version": version})
        if not version or not version[0].isdigit():
            base_url += "/v1"
        merged = _custom_headers(with_credentials=api_key is None and token_provider is None)
        merged |= check_headers(headers or {})
        return cls(
            base_url=base_url,
            api_key=_key(api_key if token_provider is None else token_provider, "AZURE_OPENAI_API_KEY", merged),
            key_header="api-key" if token_provider is None else "authorization",
            headers=merged,
            query=merge_query(url_query, query or {}),
            **limits,
        )

    @classmethod
    def from_openai(
        cls,
        client: Any,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        **limits: Unpack[Limits],
    ) -> Self:
        """Make the settings of an `OpenAI`, `AsyncOpenAI`, `AzureOpenAI` or `AsyncAzureOpenAI` client.

        Its key, base URL, organization, project, headers and query are copied. The environment is not read again.
        """
        if not hasattr(client, "api_key") or not hasattr(client, "base_url"):
            raise ConfigurationError(f"from_openai takes a client of the openai package, not {type(client).__name__}.")

        def private(name: str) -> Any:
            # These have no public attribute. A version of the client without one has nothing to copy.
            return getattr(client, f"_{name}", None)

        token = private("azure_ad_token_provider") or private("azure_ad_token")
        key: Any = hidden(token or private("api_key_provider") or client.api_key)
        own = {"openai-organization": client.organization, "openai-project": client.project}
        theirs = hidden(_texts({**own, **(private("custom_headers") or {})}))
        merged = check_headers(theirs, "the client's default_headers")
        merged |= check_headers(headers or {})
        if isinstance(key, str) and key in _NO_KEYS:
            key = None
        if key is None and "authorization" not in merged:
            raise ConfigurationError(
                "This client authenticates in a way that cannot be copied: create the session with api_key= and a "
                "function that returns a token."
            )
        url = hidden(str(client.base_url))
        if private("azure_endpoint") and private("azure_deployment"):
            # The client uses the deployment's path for a few old endpoints only.
            url = hidden(str(private("azure_endpoint")).rstrip("/") + "/openai")
        base_url, url_query = _split(url, "the client's base_url")
        is_azure = hasattr(client, "_azure_ad_token_provider")
        return cls(
            base_url=base_url,
            api_key=None if key is None else _key(key, "", {}),
            key_header="api-key" if is_azure and not token else "authorization",
            headers=merged,
            query=merge_query(merge_query(url_query, hidden(_texts(client.default_query))), query or {}),
            **limits,
        )

    def environment_proxy(self) -> str | None:
        """Return the proxy for the base URL, from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.

        Raises:
            ConfigurationError: it is not an HTTP proxy.
        """
        return environment_proxy(self.base_url)

    def fingerprint(self) -> str:
        """Return a string that identifies the account and does not reveal its key. Computing it takes some 40 ms.

        If a function returns the key, only the organization and the project identify the account.
        """
        if self.account is not None:
            return self.account
        key = "" if callable(self.api_key) else self.api_key or ""
        names = ("authorization", "api-key", "openai-organization", "openai-project")
        parts = [key, *(self.headers.get(name, "") for name in names)]
        return _slow_hash(Secret("\n".join(parts)))

    def calling_keys_in(self, helper: HelperThread) -> Self:
        """Return settings whose key function is called in another thread, unless it is a coroutine function."""
        function = self.api_key
        if not callable(function) or inspect.iscoroutinefunction(getattr(function, "function", function)):
            return self
        settings = copy(self)  # `attrs.evolve` would warn of plain text once more
        object.__setattr__(settings, "api_key", partial(_call_in, helper, function))
        return settings

    def telling_outcomes_in(self, helper: HelperThread) -> Self:
        """Return settings whose `on_outcome` is called in another thread, unless it is a coroutine function."""
        function = self.on_outcome
        if function is None or inspect.iscoroutinefunction(function):
            return self
        from openai_cancel.outcome_hook import OneByOne  # keeps the import of the package fast

        settings = copy(self)
        object.__setattr__(settings, "on_outcome", OneByOne(helper, function))
        return settings

    async def ask_for_key(self) -> Secret:
        """Call the key function, for one attempt.

        Raises:
            ConfigurationError: it returned something that cannot be a key.
        """
        key = cast("Callable[[], str | Awaitable[str]]", self.api_key)()
        if inspect.isawaitable(key):
            key = await contain(key)
        key = hidden(key)
        return check_key(key, "the key that the api_key function returned")


@lru_cache(maxsize=256)  # sessions of one key compute it once
def _slow_hash(text: Secret) -> str:
    # Slow on purpose (https://www.rfc-editor.org/rfc/rfc7914): a short key could be guessed from a fast hash.
    return hashlib.scrypt(text.encode(), salt=b"openai-cancel account", n=2**14, r=8, p=1, dklen=16).hex()


async def _call_in(helper: HelperThread, function: Callable[[], str | Awaitable[str]]) -> str:
    key = await helper.call(function)
    return await key if inspect.isawaitable(key) else key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761, section 6.3


# Placeholders in the official client for a key, if it authenticates in another way.
_NO_KEYS = frozenset({"", "workload-identity-auth", "<missing API key>"})


def _environment(name: str) -> str | None:
    return hidden(os.environ.get(name) or None)


def _given(value: str | None, argument: str, variable: str) -> tuple[str | None, str]:
    """Return an argument or the variable that is its default, and the name of the one used, for error messages."""
    return (value, argument) if value is not None else (_environment(variable), variable)


def _custom_headers(*, with_credentials: bool) -> dict[str, str]:
    """Read OPENAI_CUSTOM_HEADERS. Credentials in it are ignored if there are some in an argument."""
    headers: dict[str, str] = {}
    for number, line in enumerate((_environment("OPENAI_CUSTOM_HEADERS") or "").splitlines(), 1):
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
        elif line.strip():
            raise ConfigurationError(f"OPENAI_CUSTOM_HEADERS: line {number} has no colon; write `Name: value`.")
    checked = check_headers(headers, "OPENAI_CUSTOM_HEADERS")
    return {name: value for name, value in checked.items() if with_credentials or name not in _CREDENTIALS}


def _split(base_url: str, source: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the base URL without its query and trailing slash, and the query."""
    check_base_url(base_url, source, DEFAULT_BASE_URL, credentials="pass api_key or headers")
    url = URL(base_url)
    query = parse_qsl(url.raw_query_string, keep_blank_values=True)
    return str(url.with_query(None)).rstrip("/"), merge_query(query, {})


def _key(api_key: ApiKey | None, variable: str, headers: Mapping[str, str]) -> Secret | Callable[[], Any] | None:
    if callable(api_key):
        return api_key
    key, source = _given(api_key, "api_key", variable)
    key = hidden(key)
    if key is not None:
        return check_key(key, source)
    if headers.keys() & _CREDENTIALS:
        return None
    raise ConfigurationError(
        f"No API key: set {variable} or pass api_key=. If the server needs no key, any word will do."
    )


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of an official client's mapping that can be sent. Others may be `Omit` or None."""
    return {name: str(value) for name, value in values.items() if isinstance(value, str | int | float)}

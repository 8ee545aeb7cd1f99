"""Clients of the openai package and of httpx, told by their attributes: neither package is imported."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote_to_bytes

from yarl import URL  # aiohttp's own URL type, so that both read a URL alike

from openai_cancel.errors import ConfigurationError
from openai_cancel.secret_values import Secret
from openai_cancel.settings import Settings

_IDENTITY = ("openai-organization", "openai-project")
_SENT_IDENTITY = tuple((name, name.encode()) for name in _IDENTITY)
_FROM_OPENAI = "create the session with from_openai(client)"

# https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle: both paths lead to the same responses.
_AZURE = re.compile(r"(/openai)(?:/v1)?\Z")


class Client(Protocol):
    """An `OpenAI`, `AsyncOpenAI`, `AzureOpenAI` or `AsyncAzureOpenAI`, or an `httpx.Client` or `httpx.AsyncClient`.

    Also those of httpx2, on which the openai package is built since its version 3.
    """

    @property
    def base_url(self) -> Any:
        """The address of the API, as far as the client knows it."""


def is_client(value: object) -> bool:
    """Return whether a value is meant to be a client, and not an id."""
    if isinstance(value, str | bytes) or isinstance(getattr(value, "id", None), str):
        return False
    return any(hasattr(value, name) for name in ("base_url", "send", "responses", "_client"))


def http_client(client: object) -> Any:
    """Return the httpx client that makes the requests of a client.

    Raises:
        ConfigurationError: it is no client of the openai package, and no httpx client.
    """
    inner: Any = getattr(client, "_client", None) if hasattr(client, "api_key") else client
    is_class = isinstance(client, type)
    if is_class or not all(hasattr(inner, name) for name in ("send", "build_request", "event_hooks", "__dict__")):
        kind = f"the class {client.__name__}" if isinstance(client, type) else type(client).__name__
        raise ConfigurationError(
            "Pass a client of the openai package, such as AsyncOpenAI(), or the httpx client that it was given as "
            f"http_client, not {kind}."
        )
    return inner


def is_async(inner: object) -> bool:
    """Return whether an httpx client is one for asyncio."""
    return hasattr(inner, "aclose")  # `send` may have been replaced by a function that returns a coroutine


class ApiAccount(NamedTuple):
    """The server and the account of a session: it can stop the responses that requests create there.

    Attributes:
        origin: the scheme, the host and the port.
        paths: the paths of the API, without percent-encoding, since libraries encode them in their own ways.
        key: the key, or None if a function returns it, and it cannot be compared.
        identity: the organization and the project, as far as they are known.
    """

    origin: tuple[str, str, int]
    paths: frozenset[bytes]
    key: str | None
    identity: Mapping[str, str]

    @classmethod
    def from_settings(cls, settings: Settings) -> "ApiAccount":
        """Return the account of a session's settings."""
        url = URL(settings.base_url)
        path = url.raw_path.rstrip("/")
        paths = {path, _AZURE.sub(r"\1", path), _AZURE.sub(r"\1/v1", path)}
        return cls(
            (url.scheme, url.host or "", url.port or 0),
            frozenset(map(unquote_to_bytes, paths)),
            _key(settings.api_key, settings.headers),
            {name: settings.headers[name] for name in _IDENTITY if name in settings.headers},
        )

    def check(self, client: object) -> None:
        """Make sure that a session with this account can stop what a client creates.

        Of an httpx client, and of a key that a function returns, only the requests can tell that.

        Raises:
            ConfigurationError: the client talks to another server, or with another account.
        """
        if not hasattr(client, "api_key"):
            return
        try:
            other = ApiAccount.from_settings(_ClientSettings.from_openai(client))
        except ConfigurationError:  # for example, it authenticates in a way that cannot be copied
            return
        if other.origin != self.origin or not other.paths & self.paths:
            raise ConfigurationError(
                f"The client talks to {_where(other)}, and the session to {_where(self)}: {_FROM_OPENAI}."
            )
        if (self.key is not None and other.key is not None and self.key != other.key) or (
            dict(self.identity) != dict(other.identity)
        ):
            raise ConfigurationError(
                "The client has another key, organization or project than the session, which may not be able to stop "
                f"what it creates: {_FROM_OPENAI}."
            )

    def is_at(self, url: Any, path: bytes) -> bool:
        """Return whether an httpx URL, whose path begins with `path`, belongs to the server."""
        port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
        return unquote_to_bytes(path) in self.paths and (url.scheme, url.host, port) == self.origin

    def has_sent(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether the headers of a request may be those of the account.

        Args:
            headers: the headers, with names in lower case.
        """
        keys = (headers.get(b"authorization", b"").removeprefix(b"Bearer "), headers.get(b"api-key"))
        identity = {name: headers[sent].decode(errors="replace") for name, sent in _SENT_IDENTITY if sent in headers}
        return (self.key is None or self.key.encode() in keys) and identity == self.identity


class _ClientSettings(Settings):
    # Without attrs, which would write the constructor once more, at import.

    def __attrs_post_init__(self) -> None:
        """Warn of nothing: the client sends its key anyway."""


def _key(key: Any, headers: Mapping[str, str]) -> str | None:
    """Return a key that can be compared: headers take precedence over it."""
    for name in ("authorization", "api-key"):
        if name in headers:
            return Secret(headers[name].removeprefix("Bearer "))
    return key if isinstance(key, str) else None


def _where(account: ApiAccount) -> str:
    scheme, host, port = account.origin
    path = quote(min(account.paths, default=b""))
    return str(URL.build(scheme=scheme, host=host, port=port, path=path, encoded=True))

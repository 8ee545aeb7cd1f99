"""The proxy that the environment names for a URL."""

import re
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.request import getproxies, getproxies_environment, proxy_bypass

from yarl import URL  # aiohttp's own URL type

from openai_cancel.checks import check_url
from openai_cancel.errors import ConfigurationError
from openai_cancel.secret_values import hidden

# [scheme://] host or [address] [/length of a network] [:port]
_ENTRY = re.compile(
    r"(?:(?P<scheme>[a-z]+)://)?(?:\[(?P<address>[^\]]+)\]|(?P<host>[^\[\]]*?))(?P<length>/\d+)?(?::(?P<port>\d+))?"
)


def environment_proxy(base_url: str) -> str | None:
    """Return the proxy for a URL, from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, or from the system.

    Names in lower case take precedence.

    Raises:
        ConfigurationError: it is not an HTTP proxy.
    """
    url = URL(base_url)
    proxy = hidden(_proxy_for(url))
    if proxy is not None:
        check_proxy(proxy, f"the proxy for {url.scheme} in the environment", "http://proxy.example:3128")
    return proxy


def check_proxy(proxy: str, source: str, like: str) -> None:
    """Refuse what is not the URL of an HTTP proxy. The error does not quote it, since it may contain a password."""
    if not _can_send_credentials(check_url(proxy, source, like)):
        raise ConfigurationError(
            f"{source} has a user name with a colon or credentials outside of Latin-1, which HTTP cannot send: "
            "use others."
        )


def _can_send_credentials(proxy: URL) -> bool:
    """Return whether the credentials in a URL can be sent (https://www.rfc-editor.org/rfc/rfc7617#section-2)."""
    try:
        f"{proxy.user}{proxy.password}".encode("latin-1")
    except UnicodeEncodeError:
        return False
    return ":" not in (proxy.user or "")


def _proxy_for(url: URL) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or is_exempt(url, proxies.get("no", "")):
        return None
    if not getproxies_environment() and proxy_bypass(f"{url.host}:{url.port}"):  # the settings of the system
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_exempt(url: URL, no_proxy: str) -> bool:
    """Return whether a URL is requested without a proxy.

    The entries are those of curl and of httpx: `*`; domains, which include their subdomains, also with a leading dot;
    `*.example.com`, which is only the subdomains; addresses; networks such as `10.0.0.0/8` and `fd00::/8`; each with a
    port or a scheme if it is meant for these. IPv6 addresses may have brackets, and need them before a port.

    See https://curl.se/libcurl/c/CURLOPT_NOPROXY.html and https://www.python-httpx.org/environment_variables/.
    """
    return any(_matches(url, entry) for entry in no_proxy.lower().replace(",", " ").split())


def _matches(url: URL, entry: str) -> bool:
    if _address(entry) is not None or _is_network(entry):  # an IPv6 address contains colons, but has no port
        entry = re.sub(r"([^/]+)(.*)", r"[\1]\2", entry)
    parts = _ENTRY.fullmatch(entry)
    if parts is None or parts["scheme"] not in (None, "all", url.scheme):
        return False
    if parts["port"] and int(parts["port"]) != url.port:
        return False
    pattern = (parts["address"] or parts["host"]) + (parts["length"] or "")
    hosts = {(host or "").lower().rstrip(".") for host in (url.host, url.raw_host)}
    return any(_host_matches(host, pattern) for host in hosts)


def _host_matches(host: str, pattern: str) -> bool:
    address = _address(host)
    if pattern == "*":
        return True
    if address is not None:
        with suppress(ValueError):
            return address in ip_network(pattern, strict=False)
        return False
    if pattern.startswith("*."):
        return host.endswith(pattern.rstrip(".")[1:])
    domain = pattern.strip(".")
    return domain != "" and f".{host}".endswith(f".{domain}")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True

"""The resolver of host names."""

import socket
from collections.abc import Sequence
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from openai_cancel.threads import run_in_thread

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class ThreadResolver(AbstractResolver):
    """Resolves each name with the system's resolver, in a thread that ends with it.

    aiohttp's own resolver uses the executor of the event loop, which refuses work once the main thread has ended. A
    guard must stop its response there, too.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host.

        Raises:
            OSError: it has none.
        """
        return await run_in_thread(_resolve, host, port, family, name="openai-cancel-resolver")

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _resolve(host: str, port: int, family: int) -> list[ResolveResult]:
    # Without a network, only loopback addresses are configured, and the flag would hide the name of these.
    flags = 0 if host.rstrip(".").lower() == "localhost" else socket.AI_ADDRCONFIG
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=flags)
    return [
        ResolveResult(hostname=host, host=_literal(address), port=port, family=kind, proto=proto, flags=_NUMERIC)
        for kind, _, proto, _, address in found
    ]


def _literal(address: Sequence[Any]) -> str:
    """Return an address as text, with the zone of a link-local one (https://www.rfc-editor.org/rfc/rfc4007#section-11)."""
    if address[3:] and address[3]:
        return socket.getnameinfo(tuple(address), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    return str(address[0])

"""A TCP relay whose connections can die without a word, as behind a load balancer, a NAT, or in a frozen process."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


class Relay:
    """A relay on a port of this machine. It knows nothing of HTTP or of PostgreSQL.

    Args:
        server_url: the URL of the server behind it; that of PostgreSQL may name the folder of its socket.

    Attributes:
        server_url: the URL of the server behind it, for new connections.
        base_url: the URL for the client.
        connections: the number of connections that were accepted.
        gate: new connections wait until it is set, as it is at first.
        fatal: bytes that are forwarded to the server, and then end the connection of the client.
    """

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self.gate = asyncio.Event()
        self.gate.set()
        self.fatal: bytes | None = None
        self._frozen: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        server = urlsplit(self.server_url)
        user, at, _ = server.netloc.rpartition("@")
        self.base_url = f"{server.scheme}://{user}{at}127.0.0.1:{port}{server.path}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def freeze(self) -> None:
        """Forward nothing more on the connections that are open: what arrives is accepted, and never answered."""
        self._frozen |= self._open

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._open.add(writer)
        await self.gate.wait()
        server_reader, server_writer = await self._connect()
        back = asyncio.create_task(self._forward(server_reader, writer, writer))
        try:
            await self._forward(reader, server_writer, writer)
        except asyncio.CancelledError:
            return  # asyncio's server would report it
        finally:
            back.cancel()
            for end in (writer, server_writer):
                end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        server = urlsplit(self.server_url)
        if folder := parse_qs(server.query).get("host"):
            return await asyncio.open_unix_connection(f"{folder[0]}/.s.PGSQL.5432")
        return await asyncio.open_connection(server.hostname, server.port)

    async def _forward(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(2**16):
                if client not in self._frozen:
                    target.write(data)
                    await target.drain()
                if self.fatal and self.fatal in data:
                    self.fatal = None
                    client.transport.abort()

"""A TCP relay whose connections can die without a word, as behind a load balancer, a NAT, or in a frozen process."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Relay:
    """A relay on a port of this machine. It knows nothing of HTTP.

    Args:
        server_url: the base URL of the server behind it.

    Attributes:
        base_url: the base URL for the client.
        connections: the number of connections that were accepted.
    """

    def __init__(self, server_url: str) -> None:
        self._server = urlsplit(server_url)
        self._frozen: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        self.base_url = f"{self._server.scheme}://127.0.0.1:{port}{self._server.path}"
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
        server_reader, server_writer = await asyncio.open_connection(self._server.hostname, self._server.port)
        back = asyncio.create_task(self._forward(server_reader, writer, writer))
        try:
            await self._forward(reader, server_writer, writer)
        except asyncio.CancelledError:
            return  # asyncio's server would report it
        finally:
            back.cancel()
            for end in (writer, server_writer):
                end.close()

    async def _forward(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(2**16):
                if client not in self._frozen:
                    target.write(data)
                    await target.drain()

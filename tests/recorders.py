"""Servers that record every byte that clients send them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from faults import head


@asynccontextmanager
async def recording_server(
    answer: bytes = head("HTTP/1.1 200 OK", "Content-Length: 0"),
) -> AsyncIterator[tuple[str, bytearray]]:
    """Run a server that gives every request the same answer. Yield its origin and the bytes that it receives."""
    received = bytearray()
    tasks: set[asyncio.Task] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with suppress(ConnectionError):
            while piece := await reader.read(2**16):
                received.extend(piece)
                if received.endswith(b"\r\n\r\n"):
                    writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", received
    listener.close()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)  # the event loop closes a socket in its next iteration


@asynccontextmanager
async def recording_proxy() -> AsyncIterator[tuple[str, bytearray]]:
    """Run an HTTP proxy for CONNECT requests. Yield its origin and the bytes that it receives from clients."""
    received = bytearray()
    tasks: set[asyncio.Task] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: bytearray) -> None:
        while piece := await reader.read(2**16):
            copy.extend(piece)
            writer.write(piece)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        request = await reader.readuntil(b"\r\n\r\n")
        received.extend(request)
        host, _, port = request.split()[1].decode().rpartition(":")
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        writer.write(head("HTTP/1.1 200 Connected"))
        await asyncio.gather(pump(reader, server_writer, received), pump(server_reader, writer, bytearray()))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", received
    listener.close()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)

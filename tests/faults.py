"""Network faults as data, and a proxy that causes them on bare sockets.

The proxy understands only as much HTTP as the emulator uses: requests without a body, and answers with a length.
"""

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from socket import SO_LINGER, SOL_SOCKET, create_server, socket
from ssl import SSLContext
from types import TracebackType
from typing import Literal, Self, TypeAlias
from urllib.parse import urlsplit

import attrs

Sends: TypeAlias = Callable[[bytes, bytes], Iterable[bytes]]
"""A function from the headers and the body of the server's answer to the pieces that are sent instead."""


@attrs.frozen(kw_only=True)
class NetFault:
    """A fault in one exchange.

    Attributes:
        reads: whether the proxy reads the request at all.
        forwards: whether the proxy forwards the request to the server.
        sends: changes the answer; None to send it unchanged.
        cut: the number of bytes that are sent, or with a minus sign the number that are left out; None for all.
        pause: seconds before each byte; 0 to send everything at once.
        ends: what happens to the connection afterwards: it is kept for the next request, closed, reset, or left silent
            until the client closes it.
    """

    reads: bool = True
    forwards: bool = True
    sends: Sends | None = None
    cut: int | None = None
    pause: float = 0.0
    ends: Literal["keep", "close", "reset", "stall"] = "keep"


class FaultProxy:
    """A proxy on a local port that causes faults.

    Args:
        server_url: the base URL of the server behind it.
        choose: returns the fault of the next exchange; None to take the first one of `faults`.
        tls: the certificate for clients; None for plain HTTP.

    Attributes:
        base_url: the base URL for clients.
        faults: the faults of the next exchanges.
        connections: the number of connections so far.
    """

    def __init__(
        self, server_url: str, *, choose: Callable[[], NetFault | None] | None = None, tls: SSLContext | None = None
    ) -> None:
        self._server = urlsplit(server_url)
        self._choose = choose or (lambda: self.faults.popleft() if self.faults else None)
        self._tls = tls
        self._open: set[asyncio.Task] = set()
        self.faults: deque[NetFault] = deque()
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._listener = create_server(("127.0.0.1", 0), backlog=1000)
        self._listener.setblocking(False)
        port = self._listener.getsockname()[1]
        self.base_url = f"http{'s' if self._tls else ''}://127.0.0.1:{port}{self._server.path}"
        # `asyncio.start_server` fails if it is closed while it accepts a connection.
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        await asyncio.sleep(0)  # so that the task of each new connection has started
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self.connections += 1
            task = asyncio.create_task(self._serve(connection))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _serve(self, connection: socket) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls)
        except OSError:  # the TLS handshake failed, for example because the client does not trust the certificate
            connection.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                fault = self._choose() or NetFault()
                request = await reader.readuntil(b"\r\n\r\n") if fault.reads else b""
                answer = b"", b""
                if fault.forwards and fault.reads:
                    server = server or await asyncio.open_connection(self._server.hostname, self._server.port)
                    answer = await _exchange(*server, request)
                await _send(writer, fault, answer)
                if fault.ends == "stall":
                    await reader.read()
                if fault.ends == "reset":
                    raw: socket = writer.get_extra_info("socket")
                    raw.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                    transport.abort()
                if fault.ends != "keep":
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client has left
        except asyncio.CancelledError:
            transport.abort()
        finally:
            writer.close()
            if server:
                server[1].close()


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[bytes, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head, await reader.readexactly(int(length.partition(b":")[2]))


async def _send(writer: asyncio.StreamWriter, fault: NetFault, answer: tuple[bytes, bytes]) -> None:
    pieces: Iterable[bytes] = answer if fault.sends is None else fault.sends(*answer)
    if fault.cut is not None or fault.pause:
        whole = b"".join(pieces)[: fault.cut]
        pieces = (whole[place : place + 1] for place in range(len(whole))) if fault.pause else [whole]
    elif isinstance(pieces, list | tuple):
        pieces = [b"".join(pieces)]  # in one segment, so that the client reads it at once
    for piece in pieces:
        await asyncio.sleep(fault.pause)
        writer.write(piece)
        await writer.drain()


def head(*lines: str) -> bytes:
    """Return the status line and the headers of an answer."""
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def with_headers(*lines: str, status: str = "HTTP/1.1 200 OK", after: bytes = b"") -> Sends:
    """Send the server's body with another status line and headers, in which `{length}` is the length of the body."""
    return lambda _, body: [head(status, *lines).replace(b"{length}", b"%d" % len(body)), body, after]


def in_chunks(form: bytes) -> Sends:
    """Send the server's body in chunks. In the form, `SIZE` and `BODY` stand for its size and its bytes."""
    start = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")
    return lambda _, body: [start, form.replace(b"SIZE", b"%x" % len(body)).replace(b"BODY", body)]


def preceded_by(*heads: bytes) -> Sends:
    """Send other status lines and headers before the server's answer."""
    return lambda start, body: [*heads, start, body]


def replaced_by(*pieces: bytes) -> Sends:
    """Send something else instead of the server's answer."""
    return lambda _, __: pieces


def compressed(encoding: str, *, times: int = 1, wbits: int = 31, cut: int | None = None) -> Sends:
    """Send the server's body compressed."""

    def send(_: bytes, body: bytes) -> Iterable[bytes]:
        for _ in range(times):
            compressor = zlib.compressobj(wbits=wbits)
            body = compressor.compress(body) + compressor.flush()
        body = body[:cut]
        return [head("HTTP/1.1 200 OK", f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}"), body]

    return send


def bomb(encoding: str, wbits: int, blocks: int) -> Sends:
    """Send a small body that decompresses to that many blocks of a MiB."""

    def send(_: bytes, __: bytes) -> Iterator[bytes]:
        yield head("HTTP/1.1 200 OK", f"Content-Encoding: {encoding}", "Connection: close")
        compressor = zlib.compressobj(wbits=wbits)
        zeros = bytes(2**20)
        yield compressor.compress(zeros) + compressor.flush(zlib.Z_FULL_FLUSH)
        block = compressor.compress(zeros) + compressor.flush(zlib.Z_FULL_FLUSH)  # independent of the blocks before it
        yield from repeat(block * 250, blocks // 250)  # more than the client reads at once

    return send


def endless(first: bytes, piece: bytes, times: int) -> Sends:
    """Send the same piece many times, and never the end of the answer."""
    return lambda _, __: chain([first], repeat(piece, times))


OK_LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKS = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")
OTHER_BODY = b'{"id": "resp_of_another_client", "status": "completed"}'
UNSOLICITED = head("HTTP/1.1 200 OK", f"Content-Length: {len(OTHER_BODY)}") + OTHER_BODY
KIB = bytes(range(97, 113)) * 64

FAULTS = {
    # The connection.
    "reset before the request is read": NetFault(reads=False, ends="reset"),
    "closed before the request is read": NetFault(reads=False, ends="close"),
    "reset before the server acts": NetFault(forwards=False, ends="reset"),
    "closed before the server acts": NetFault(forwards=False, ends="close"),
    "reset after the server acted": NetFault(cut=0, ends="reset"),
    "closed after the server acted": NetFault(cut=0, ends="close"),
    "reset in the headers": NetFault(cut=40, ends="reset"),
    "closed in the headers": NetFault(cut=40, ends="close"),
    "reset in the body": NetFault(cut=-40, ends="reset"),
    "closed in the body": NetFault(cut=-40, ends="close"),
    "closed after the body": NetFault(ends="close"),
    # Time.
    "stalled before the server acts": NetFault(forwards=False, ends="stall"),
    "stalled after the server acted": NetFault(cut=0, ends="stall"),
    "stalled in the headers": NetFault(cut=40, ends="stall"),
    "stalled in the body": NetFault(cut=-1, ends="stall"),
    "one byte every 20 ms": NetFault(pause=0.02),
    # Lengths.
    "length too long, connection closed": NetFault(sends=with_headers("Content-Length: 9999"), ends="close"),
    "length too long, connection kept open": NetFault(sends=with_headers("Content-Length: 9999"), ends="stall"),
    "length too short": NetFault(sends=with_headers("Content-Length: 30")),
    "length zero": NetFault(sends=with_headers("Content-Length: 0")),
    "length negative": NetFault(sends=with_headers("Content-Length: -1"), ends="close"),
    "length not a number": NetFault(sends=with_headers("Content-Length: many"), ends="close"),
    "length of 5,000 digits": NetFault(sends=with_headers("Content-Length: " + "9" * 5000), ends="close"),
    "duplicate length": NetFault(sends=with_headers("Content-Length: {length}", "Content-Length: {length}")),
    "two lengths": NetFault(sends=with_headers("Content-Length: {length}", "Content-Length: 30"), ends="close"),
    "no length, connection closed": NetFault(sends=with_headers(), ends="close"),
    "no length, truncated": NetFault(sends=with_headers(), cut=-40, ends="close"),
    # Chunks.
    "chunks": NetFault(sends=in_chunks(b"SIZE\r\nBODY\r\n0\r\n\r\n")),
    "chunks with extensions and a trailer": NetFault(sends=in_chunks(b"SIZE;a=b\r\nBODY\r\n0\r\nA: b\r\n\r\n")),
    "chunks and a length": NetFault(
        sends=lambda _, body: [
            head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Content-Length: 30"),
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        ],
    ),
    "chunk size not a number": NetFault(sends=in_chunks(b"zz\r\nBODY\r\n0\r\n\r\n"), ends="close"),
    "chunk size negative": NetFault(sends=in_chunks(b"-1\r\nBODY\r\n0\r\n\r\n"), ends="close"),
    "chunk size too long": NetFault(sends=in_chunks(b"ffffffffffffffffff\r\nBODY"), ends="close"),
    "chunk size missing": NetFault(sends=in_chunks(b"BODY\r\n0\r\n\r\n"), ends="close"),
    "chunk longer than announced": NetFault(sends=in_chunks(b"1e\r\nBODY\r\n0\r\n\r\n"), ends="close"),
    "chunks without the last one": NetFault(sends=in_chunks(b"SIZE\r\nBODY\r\n"), ends="close"),
    "truncated chunk": NetFault(sends=in_chunks(b"SIZE\r\nBODY"), cut=-40, ends="close"),
    # Answers that are not HTTP/1.1.
    "not HTTP": NetFault(sends=replaced_by(b"220 smtp.example ESMTP\r\n\r\n"), ends="close"),
    "body without headers": NetFault(sends=lambda _, body: [body], ends="close"),
    "TLS alert": NetFault(sends=replaced_by(b"\x15\x03\x01\x00\x02\x02\x46"), ends="close"),
    "HTTP/2 frames": NetFault(sends=replaced_by(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)), ends="close"),
    "binary garbage": NetFault(sends=replaced_by(bytes(range(256)) * 16), ends="close"),
    "HTTP/1.0": NetFault(sends=with_headers(status="HTTP/1.0 200 OK"), ends="close"),
    "HTTP/9.9": NetFault(sends=with_headers(status="HTTP/9.9 200 OK"), ends="close"),
    "status of two digits": NetFault(sends=with_headers(status="HTTP/1.1 20 OK"), ends="close"),
    "no reason phrase": NetFault(sends=with_headers("Content-Length: {length}", status="HTTP/1.1 200 ")),
    "bare line feeds": NetFault(
        sends=lambda _, body: [b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(body), body], ends="close"
    ),
    # Headers.
    "duplicate headers": NetFault(
        sends=with_headers(
            "Content-Length: {length}", "Content-Type: text/html", "Content-Type: application/json", "X-Request-Id: a",
            "X-Request-Id: b", "Date: yesterday", "Date: tomorrow",
        )
    ),
    "header without a colon": NetFault(sends=with_headers("Content-Length: {length}", "nonsense"), ends="close"),
    "header without a name": NetFault(sends=with_headers("Content-Length: {length}", ": nonsense"), ends="close"),
    "header with a NUL": NetFault(sends=with_headers("Content-Length: {length}", "A: b\0c"), ends="close"),
    "folded header": NetFault(sends=with_headers("Content-Length: {length}", "A: b", " c"), ends="close"),
    "headers that are not text": NetFault(sends=with_headers("Content-Length: {length}", "A: \xff\xfe", "B: \x80")),
    "header of 100 MB": NetFault(sends=endless(OK_LINE + b"A: ", KIB, 100_000), ends="close"),
    "100 MB of headers": NetFault(sends=endless(OK_LINE, b"A: " + KIB[:100] + b"\r\n", 1_000_000), ends="close"),
    "status line of 100 MB": NetFault(sends=endless(b"HTTP/1.1 200 ", KIB, 100_000), ends="close"),
    "trailer of 100 MB": NetFault(sends=endless(CHUNKS + b"0\r\nA: ", KIB, 100_000), ends="close"),
    "100 MB of trailers": NetFault(
        sends=endless(CHUNKS + b"0\r\n", b"A: " + KIB[:100] + b"\r\n", 1_000_000), ends="close"
    ),
    "chunk extension of 100 MB": NetFault(sends=endless(CHUNKS + b"1;", KIB, 100_000), ends="close"),
    # Status.
    "100 before the answer": NetFault(sends=preceded_by(head("HTTP/1.1 100 Continue"))),
    "103 before the answer": NetFault(
        sends=preceded_by(head("HTTP/1.1 103 Early Hints", "Link: </a>"), head("HTTP/1.1 102 Processing"))
    ),
    "100 without an answer": NetFault(sends=replaced_by(head("HTTP/1.1 100 Continue")), ends="close"),
    "endless 100": NetFault(sends=endless(b"", head("HTTP/1.1 100 Continue"), 10**9), ends="close"),
    "101": NetFault(
        forwards=False,
        sends=with_headers("Connection: upgrade", "Upgrade: h2c", status="HTTP/1.1 101 Switching"),
        ends="close",
    ),
    "204": NetFault(sends=replaced_by(head("HTTP/1.1 204 No Content"))),
    "204 with a body": NetFault(sends=with_headers("Content-Length: {length}", status="HTTP/1.1 204 No Content")),
    "205": NetFault(sends=replaced_by(head("HTTP/1.1 205 Reset", "Content-Length: 0"))),
    "206": NetFault(sends=with_headers("Content-Length: {length}", status="HTTP/1.1 206 Partial Content")),
    **{
        str(status): NetFault(
            forwards=False,
            sends=replaced_by(head(f"HTTP/1.1 {status} Go", "Location: /v1/ok", "Content-Length: 0")),
        )
        for status in (301, 303, 307)
    },
    "304": NetFault(forwards=False, sends=replaced_by(head("HTTP/1.1 304 Not Modified"))),
    "502": NetFault(forwards=False, sends=replaced_by(head("HTTP/1.1 502 Bad Gateway", "Content-Length: 0"))),
    "504 after the server acted": NetFault(sends=replaced_by(head("HTTP/1.1 504 Timeout", "Content-Length: 0"))),
    # Bodies.
    "gzip": NetFault(sends=compressed("gzip")),
    "deflate": NetFault(sends=compressed("deflate", wbits=15)),
    "raw deflate": NetFault(sends=compressed("deflate", wbits=-15)),
    "gzip in gzip": NetFault(sends=compressed("gzip", times=2)),
    "gzip in gzip, announced": NetFault(sends=compressed("gzip, gzip", times=2)),
    "truncated gzip": NetFault(sends=compressed("gzip", cut=-40)),
    "invalid gzip": NetFault(sends=with_headers("Content-Encoding: gzip", "Content-Length: {length}")),
    "empty gzip": NetFault(
        sends=replaced_by(head("HTTP/1.1 200 OK", "Content-Encoding: gzip", "Content-Length: 0"))
    ),
    "invalid deflate": NetFault(sends=with_headers("Content-Encoding: deflate", "Content-Length: {length}")),
    "unknown encoding": NetFault(sends=with_headers("Content-Encoding: rot13", "Content-Length: {length}")),
    "invalid brotli": NetFault(sends=with_headers("Content-Encoding: br", "Content-Length: {length}")),
    "invalid zstd": NetFault(sends=with_headers("Content-Encoding: zstd", "Content-Length: {length}")),
    "gzip bomb": NetFault(sends=bomb("gzip", 31, 10_000), ends="close"),
    "deflate bomb": NetFault(sends=bomb("deflate", 15, 10_000), ends="close"),
    "wrong charset": NetFault(sends=with_headers("Content-Type: text/x; charset=utf-16", "Content-Length: {length}")),
    "invalid charset": NetFault(sends=with_headers("Content-Type: text/x; charset=\xff", "Content-Length: {length}")),
    "UTF-16": NetFault(
        sends=lambda _, body: [head("HTTP/1.1 200 OK"), body.decode().encode("utf-16")], ends="close"
    ),
    "Latin-1": NetFault(sends=replaced_by(head("HTTP/1.1 200 OK", "Content-Length: 10"), b'{"id":"\xe9"}')),
    "HTML page": NetFault(
        sends=replaced_by(head("HTTP/1.1 200 OK", "Content-Length: 29"), b"<html>Log in, please.</html>\n")
    ),
    "endless body": NetFault(sends=endless(head("HTTP/1.1 200 OK"), KIB, 10**9), ends="close"),
    # Data after the answer.
    "garbage after the answer": NetFault(sends=with_headers("Content-Length: {length}", after=b"\0garbage")),
    "unsolicited answer after the answer": NetFault(sends=with_headers("Content-Length: {length}", after=UNSOLICITED)),
}  # fmt: skip
"""All faults by name. Faults of TLS are made with certificates, in the tests."""

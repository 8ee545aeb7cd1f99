"""What goes wrong between a client and a server, as data, and a proxy that makes it happen: bare sockets, no library.

The proxy knows as much of HTTP as the emulator speaks: requests without a body, answers with a length.
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


@attrs.frozen(kw_only=True)
class NetFault:
    """One thing that goes wrong with one exchange.

    Attributes:
        reads: whether the request is read at all.
        acts: whether the server gets it.
        sends: makes what the client gets of the head and the body of the server's answer; None: just these.
        cut: where that ends, as in a slice; None: with its last byte.
        pause: seconds before each byte; 0: all of it at once.
        ends: whether the connection is kept afterwards, closed, reset, or held until the client leaves.
    """

    reads: bool = True
    acts: bool = True
    sends: Sends | None = None
    cut: int | None = None
    pause: float = 0.0
    ends: Literal["keep", "close", "reset", "stall"] = "keep"


class FaultProxy:
    """A proxy on a port of this machine, in whose connections things go wrong.

    Args:
        server_url: the base URL of the server behind it.
        choose: is asked before each exchange what goes wrong with it; by default, the first of `faults` does.
        tls: what it shows to clients; None for plain HTTP.

    Attributes:
        base_url: what a client is given.
        faults: what goes wrong next.
        connections: how many there were.
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
        # Not `asyncio.start_server`, which fails if it is closed while it accepts.
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        await asyncio.sleep(0)  # each connection has a task, and that has begun now
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
        except OSError:  # no TLS comes about, as with a client that does not trust us
            connection.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                fault = self._choose() or NetFault()
                request = await reader.readuntil(b"\r\n\r\n") if fault.reads else b""
                answer = b"", b""
                if fault.acts and fault.reads:
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
    """The head of an answer."""
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def framed(*lines: str, ok: str = "HTTP/1.1 200 OK", after: bytes = b"") -> Sends:
    """The server's body under another head, in which `{length}` is the length of the body."""
    return lambda _, body: [head(ok, *lines).replace(b"{length}", b"%d" % len(body)), body, after]


def chunked(form: bytes) -> Sends:
    """The server's body in the form of chunks, in which `SIZE` and `BODY` stand for its own."""
    start = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")
    return lambda _, body: [start, form.replace(b"SIZE", b"%x" % len(body)).replace(b"BODY", body)]


def before(*heads: bytes) -> Sends:
    """Other heads before the server's answer."""
    return lambda start, body: [*heads, start, body]


def instead(*pieces: bytes) -> Sends:
    """Something else than the server's answer."""
    return lambda _, __: pieces


def packed(encoding: str, *, times: int = 1, wbits: int = 31, cut: int | None = None) -> Sends:
    """The server's body, compressed."""

    def send(_: bytes, body: bytes) -> Iterable[bytes]:
        for _ in range(times):
            squeeze = zlib.compressobj(wbits=wbits)
            body = squeeze.compress(body) + squeeze.flush()
        body = body[:cut]
        return [head("HTTP/1.1 200 OK", f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}"), body]

    return send


def bomb(encoding: str, wbits: int, blocks: int) -> Sends:
    """A body that is a thousand times its size: so many blocks of a MiB."""

    def send(_: bytes, __: bytes) -> Iterator[bytes]:
        yield head("HTTP/1.1 200 OK", f"Content-Encoding: {encoding}", "Connection: close")
        squeeze = zlib.compressobj(wbits=wbits)
        zeros = bytes(2**20)
        yield squeeze.compress(zeros) + squeeze.flush(zlib.Z_FULL_FLUSH)
        block = squeeze.compress(zeros) + squeeze.flush(zlib.Z_FULL_FLUSH)  # which depends on nothing before it
        yield from repeat(block * 250, blocks // 250)  # more than a read of the client takes

    return send


def endless(first: bytes, piece: bytes, times: int) -> Sends:
    """The same again and again, and no end to it."""
    return lambda _, __: chain([first], repeat(piece, times))


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKS = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")
OTHER = b'{"id": "resp_of_somebody_else", "status": "completed"}'
STRAY = head("HTTP/1.1 200 OK", f"Content-Length: {len(OTHER)}") + OTHER
KIB = bytes(range(97, 113)) * 64

FAULTS = {
    # The connection.
    "reset before the request is read": NetFault(reads=False, ends="reset"),
    "closed before the request is read": NetFault(reads=False, ends="close"),
    "reset before the server acts": NetFault(acts=False, ends="reset"),
    "closed before the server acts": NetFault(acts=False, ends="close"),
    "reset after the server acted": NetFault(cut=0, ends="reset"),
    "closed after the server acted": NetFault(cut=0, ends="close"),
    "reset in the headers": NetFault(cut=40, ends="reset"),
    "closed in the headers": NetFault(cut=40, ends="close"),
    "reset in the body": NetFault(cut=-40, ends="reset"),
    "closed in the body": NetFault(cut=-40, ends="close"),
    "closed after the body": NetFault(ends="close"),
    # Time.
    "stalled before the server acts": NetFault(acts=False, ends="stall"),
    "stalled after the server acted": NetFault(cut=0, ends="stall"),
    "stalled in the headers": NetFault(cut=40, ends="stall"),
    "stalled in the body": NetFault(cut=-1, ends="stall"),
    "a byte from time to time": NetFault(pause=0.02),
    # Lengths.
    "length too long, closed": NetFault(sends=framed("Content-Length: 9999"), ends="close"),
    "length too long, kept": NetFault(sends=framed("Content-Length: 9999"), ends="stall"),
    "length too short": NetFault(sends=framed("Content-Length: 30")),
    "length zero": NetFault(sends=framed("Content-Length: 0")),
    "length negative": NetFault(sends=framed("Content-Length: -1"), ends="close"),
    "length no number": NetFault(sends=framed("Content-Length: many"), ends="close"),
    "length of 5,000 digits": NetFault(sends=framed("Content-Length: " + "9" * 5000), ends="close"),
    "length twice": NetFault(sends=framed("Content-Length: {length}", "Content-Length: {length}")),
    "two lengths": NetFault(sends=framed("Content-Length: {length}", "Content-Length: 30"), ends="close"),
    "no length, closed": NetFault(sends=framed(), ends="close"),
    "no length, cut": NetFault(sends=framed(), cut=-40, ends="close"),
    # Chunks.
    "chunks": NetFault(sends=chunked(b"SIZE\r\nBODY\r\n0\r\n\r\n")),
    "chunks with extensions and a trailer": NetFault(sends=chunked(b"SIZE;a=b\r\nBODY\r\n0\r\nA: b\r\n\r\n")),
    "chunks and a length": NetFault(
        sends=lambda _, body: [
            head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Content-Length: 30"),
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        ],
    ),
    "chunk size no number": NetFault(sends=chunked(b"zz\r\nBODY\r\n0\r\n\r\n"), ends="close"),
    "chunk size negative": NetFault(sends=chunked(b"-1\r\nBODY\r\n0\r\n\r\n"), ends="close"),
    "chunk size too long": NetFault(sends=chunked(b"ffffffffffffffffff\r\nBODY"), ends="close"),
    "chunk size missing": NetFault(sends=chunked(b"BODY\r\n0\r\n\r\n"), ends="close"),
    "chunk longer than said": NetFault(sends=chunked(b"1e\r\nBODY\r\n0\r\n\r\n"), ends="close"),
    "chunks without an end": NetFault(sends=chunked(b"SIZE\r\nBODY\r\n"), ends="close"),
    "chunk cut": NetFault(sends=chunked(b"SIZE\r\nBODY"), cut=-40, ends="close"),
    # What is no answer of HTTP/1.1.
    "not HTTP": NetFault(sends=instead(b"220 smtp.example ESMTP\r\n\r\n"), ends="close"),
    "no head": NetFault(sends=lambda _, body: [body], ends="close"),
    "a TLS alert": NetFault(sends=instead(b"\x15\x03\x01\x00\x02\x02\x46"), ends="close"),
    "HTTP/2": NetFault(sends=instead(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)), ends="close"),
    "garbage": NetFault(sends=instead(bytes(range(256)) * 16), ends="close"),
    "HTTP/1.0": NetFault(sends=framed(ok="HTTP/1.0 200 OK"), ends="close"),
    "HTTP/9.9": NetFault(sends=framed(ok="HTTP/9.9 200 OK"), ends="close"),
    "status of two digits": NetFault(sends=framed(ok="HTTP/1.1 20 OK"), ends="close"),
    "no reason phrase": NetFault(sends=framed("Content-Length: {length}", ok="HTTP/1.1 200 ")),
    "bare line feeds": NetFault(
        sends=lambda _, body: [b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(body), body], ends="close"
    ),
    # Headers.
    "headers twice": NetFault(
        sends=framed(
            "Content-Length: {length}", "Content-Type: text/html", "Content-Type: application/json", "X-Request-Id: a",
            "X-Request-Id: b", "Date: yesterday", "Date: tomorrow",
        )
    ),
    "a header without a colon": NetFault(sends=framed("Content-Length: {length}", "nonsense"), ends="close"),
    "a header without a name": NetFault(sends=framed("Content-Length: {length}", ": nonsense"), ends="close"),
    "a header with a NUL": NetFault(sends=framed("Content-Length: {length}", "A: b\0c"), ends="close"),
    "a folded header": NetFault(sends=framed("Content-Length: {length}", "A: b", " c"), ends="close"),
    "headers that are no text": NetFault(sends=framed("Content-Length: {length}", "A: \xff\xfe", "B: \x80")),
    "a header of 100 MB": NetFault(sends=endless(OK + b"A: ", KIB, 100_000), ends="close"),
    "100 MB of headers": NetFault(sends=endless(OK, b"A: " + KIB[:100] + b"\r\n", 1_000_000), ends="close"),
    "a status line of 100 MB": NetFault(sends=endless(b"HTTP/1.1 200 ", KIB, 100_000), ends="close"),
    "a trailer of 100 MB": NetFault(sends=endless(CHUNKS + b"0\r\nA: ", KIB, 100_000), ends="close"),
    "100 MB of trailers": NetFault(
        sends=endless(CHUNKS + b"0\r\n", b"A: " + KIB[:100] + b"\r\n", 1_000_000), ends="close"
    ),
    "a chunk extension of 100 MB": NetFault(sends=endless(CHUNKS + b"1;", KIB, 100_000), ends="close"),
    # Status.
    "100 before it": NetFault(sends=before(head("HTTP/1.1 100 Continue"))),
    "103 before it": NetFault(sends=before(head("HTTP/1.1 103 Early Hints", "Link: </a>"), head("HTTP/1.1 102 Hm"))),
    "100 and no more": NetFault(sends=instead(head("HTTP/1.1 100 Continue")), ends="close"),
    "100 for ever": NetFault(sends=endless(b"", head("HTTP/1.1 100 Continue"), 10**9), ends="close"),
    "101": NetFault(
        acts=False, sends=framed("Connection: upgrade", "Upgrade: h2c", ok="HTTP/1.1 101 Switching"), ends="close"
    ),
    "204": NetFault(sends=instead(head("HTTP/1.1 204 No Content"))),
    "204 with a body": NetFault(sends=framed("Content-Length: {length}", ok="HTTP/1.1 204 No Content")),
    "205": NetFault(sends=instead(head("HTTP/1.1 205 Reset", "Content-Length: 0"))),
    "206": NetFault(sends=framed("Content-Length: {length}", ok="HTTP/1.1 206 Partial Content")),
    **{
        str(status): NetFault(
            acts=False,
            sends=instead(head(f"HTTP/1.1 {status} Go", "Location: /v1/ok", "Content-Length: 0")),
        )
        for status in (301, 303, 307)
    },
    "304": NetFault(acts=False, sends=instead(head("HTTP/1.1 304 Not Modified"))),
    "502": NetFault(acts=False, sends=instead(head("HTTP/1.1 502 Bad Gateway", "Content-Length: 0"))),
    "504 after the server acted": NetFault(sends=instead(head("HTTP/1.1 504 Timeout", "Content-Length: 0"))),
    # Bodies.
    "gzip": NetFault(sends=packed("gzip")),
    "deflate": NetFault(sends=packed("deflate", wbits=15)),
    "deflate without its header": NetFault(sends=packed("deflate", wbits=-15)),
    "gzip in gzip": NetFault(sends=packed("gzip", times=2)),
    "gzip in gzip, announced": NetFault(sends=packed("gzip, gzip", times=2)),
    "gzip that is cut": NetFault(sends=packed("gzip", cut=-40)),
    "gzip that is none": NetFault(sends=framed("Content-Encoding: gzip", "Content-Length: {length}")),
    "gzip that is empty": NetFault(
        sends=instead(head("HTTP/1.1 200 OK", "Content-Encoding: gzip", "Content-Length: 0"))
    ),
    "deflate that is none": NetFault(sends=framed("Content-Encoding: deflate", "Content-Length: {length}")),
    "an unknown encoding": NetFault(sends=framed("Content-Encoding: rot13", "Content-Length: {length}")),
    "brotli that is none": NetFault(sends=framed("Content-Encoding: br", "Content-Length: {length}")),
    "zstd that is none": NetFault(sends=framed("Content-Encoding: zstd", "Content-Length: {length}")),
    "a gzip bomb": NetFault(sends=bomb("gzip", 31, 10_000), ends="close"),
    "a deflate bomb": NetFault(sends=bomb("deflate", 15, 10_000), ends="close"),
    "a wrong charset": NetFault(sends=framed("Content-Type: text/x; charset=utf-16", "Content-Length: {length}")),
    "a charset that is none": NetFault(sends=framed("Content-Type: text/x; charset=\xff", "Content-Length: {length}")),
    "UTF-16": NetFault(
        sends=lambda _, body: [head("HTTP/1.1 200 OK"), body.decode().encode("utf-16")], ends="close"
    ),
    "Latin-1": NetFault(sends=instead(head("HTTP/1.1 200 OK", "Content-Length: 10"), b'{"id":"\xe9"}')),
    "a page": NetFault(sends=instead(head("HTTP/1.1 200 OK", "Content-Length: 29"), b"<html>Log in, please.</html>\n")),
    "a body without an end": NetFault(sends=endless(head("HTTP/1.1 200 OK"), KIB, 10**9), ends="close"),
    # What comes after it.
    "garbage after it": NetFault(sends=framed("Content-Length: {length}", after=b"\0garbage")),
    "another answer after it": NetFault(sends=framed("Content-Length: {length}", after=STRAY)),
}  # fmt: skip
"""All that can go wrong between the two, by name. What goes wrong with TLS is not a matter of bytes."""

"""What goes wrong between a client and a server, on demand."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeAlias, cast

import attrs
from aiohttp import web

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.frozen(kw_only=True)
class Fault:
    """One thing that goes wrong, once.

    Attributes:
        on: the only operation that it strikes, or None for any.
        delay: seconds before anything else happens; `math.inf` hangs until the client leaves.
        act: whether the request takes effect before its answer is replaced.
        status: of the answer in place of the real one; None leaves the real one.
        headers: of that answer.
        body: of that answer: bytes, text, or what JSON can hold.
        cut: `connection` closes it without an answer, `body` in the middle of the body.
        raw: bytes that are sent as they are, in place of HTTP.
    """

    on: Literal["create", "retrieve", "cancel", "delete"] | None = None
    delay: float = 0.0
    act: bool = False
    status: int | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    body: Any = b""
    cut: Literal["connection", "body"] | None = None
    raw: bytes | None = None

    async def strike(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer the request in the way that this fault says."""
        if self.delay == float("inf"):
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay)
        answer = await handler(request) if self.act or self._keeps_answer() else None
        if self.raw is not None or self.cut == "connection":
            # Handlers are cancelled when their client leaves: as long as one runs, there is a transport.
            transport = cast("asyncio.Transport", request.transport)
            transport.write(self.raw or b"")
            transport.close()
            return web.Response()
        if self.status is not None or answer is None:
            answer = web.Response(status=self.status or 500, body=self._bytes(), headers=self.headers)
        if self.cut == "body":
            return await _cut_short(request, answer)
        return answer

    def _keeps_answer(self) -> bool:
        return self.status is None and self.raw is None and self.cut != "connection"

    def _bytes(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


async def _cut_short(request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
    """Send the first half of a body, and close the connection."""
    body = answer.body if isinstance(answer, web.Response) and isinstance(answer.body, bytes) else b""
    half = web.StreamResponse(status=answer.status, headers=answer.headers)
    half.content_length = len(body)
    await half.prepare(request)
    await half.write(body[: len(body) // 2])
    request.protocol.force_close()
    return half

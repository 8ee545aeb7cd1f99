"""Faults between a client and the emulator, on demand."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeAlias, cast

import attrs
from aiohttp import web

from openai_cancel.emulator.checks import check_length, check_seconds, one_of
from openai_cancel.emulator.stream import EventStream

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.frozen(kw_only=True)
class Fault:
    """A fault that strikes one request.

    Attributes:
        on: the operation that it strikes, or None for any.
        delay: seconds to wait first. `math.inf` waits until the client disconnects.
        act: whether the request takes effect although its answer is replaced.
        status: the status of an answer that replaces the real one. None to keep the real one.
        headers: the headers of that answer.
        body: the body of that answer: bytes, text, or anything that JSON can hold.
        cut: `connection` closes the connection without an answer, `body` in the middle of the body.
        cut_after: the bytes of the body before that. None for half of it; of a stream, for its first event.
        raw: bytes to send in place of an HTTP answer.

    Raises:
        ValueError: the delay or `cut_after` is negative or no number, `cut_after` is set without a body to cut, or `on`
            or `cut` has a value that is not listed here.
    """

    on: Literal["create", "retrieve", "cancel", "delete", "list"] | None = attrs.field(
        default=None, validator=one_of("create", "retrieve", "cancel", "delete", "list", None)
    )
    delay: float = attrs.field(default=0.0, validator=check_seconds)
    act: bool = False
    status: int | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    body: Any = b""
    cut: Literal["connection", "body"] | None = attrs.field(default=None, validator=one_of("connection", "body", None))
    cut_after: int | None = attrs.field(default=None, validator=check_length)
    raw: bytes | None = None

    def __attrs_post_init__(self) -> None:
        if self.cut_after is not None and self.cut != "body":
            raise ValueError("'cut_after' is the length of a body that is cut: pass cut='body' as well")

    async def strike(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request with this fault.

        Args:
            request: the request.
            handler: returns the real answer.
        """
        if self.delay == math.inf:
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay)
        answer = await handler(request) if self.act or self._keeps_answer() else None
        if self.raw is not None or self.cut == "connection":
            # aiohttp cancels the handler when its client disconnects, so here the request still has a transport.
            transport = cast("asyncio.Transport", request.transport)
            transport.write(self.raw or b"")
            transport.close()
            return web.Response()
        if self.status is not None or answer is None:
            answer = web.Response(status=self.status or 500, body=self._bytes(), headers=self.headers)
        if self.cut == "body":
            if isinstance(answer, EventStream):
                answer.cut(self.cut_after)
                return answer
            return await cut_body(request, answer, self.cut_after)
        return answer

    def _keeps_answer(self) -> bool:
        return self.status is None and self.raw is None and self.cut != "connection"

    def _bytes(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


async def cut_body(request: web.Request, answer: web.StreamResponse, length: int | None) -> web.StreamResponse:
    """Announce the whole body, send so many bytes of it, or half of it, and close the connection."""
    body = answer.body if isinstance(answer, web.Response) and isinstance(answer.body, bytes) else b""
    part = web.StreamResponse(status=answer.status, headers=answer.headers)
    part.content_length = len(body)
    await part.prepare(request)
    await part.write(body[: len(body) // 2 if length is None else length])
    request.protocol.force_close()
    return part

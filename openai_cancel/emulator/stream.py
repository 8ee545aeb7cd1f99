"""Responses in server-sent events: each event is sent when it happens on the emulator's clock."""

import asyncio
import json
from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from openai_cancel.emulator.dialects import Dialect
from openai_cancel.emulator.documents import Event, describe, events
from openai_cancel.emulator.work import Work

_LOOK_EVERY = 0.01
"""Seconds between looks at the clock, which a test may set, and at the state, which a cancel changes."""


class EventStream(web.StreamResponse):
    """An answer that sends the events of a response until it ends, is cancelled, or the client disconnects.

    If the client disconnects, a response that does not run in the background is cancelled.

    Args:
        work: the response.
        dialect: describes it, and says what happens to the stream if it is cancelled.
        clock: returns the time in seconds.
        after: the sequence number after which to start.

    See https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
    """

    def __init__(self, work: Work, dialect: Dialect, clock: Callable[[], float], *, after: int = -1) -> None:
        super().__init__(
            headers={hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8", hdrs.CACHE_CONTROL: "no-cache"}
        )
        self._work = work
        self._dialect = dialect
        self._clock = clock
        self._after = after
        self._cut = False
        self._room: int | None = None

    def cut(self, length: int | None) -> None:
        """Close the connection after so many bytes of the body. None to close it after the first event."""
        self._cut = True
        self._room = length

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the headers and all events. Called by aiohttp once, when the answer has passed the middlewares."""
        writer = await super().prepare(request)
        try:
            await self._send_all(request)
        finally:
            now = self._clock()
            if not self._work.background and self._work.is_active(now):
                self._work.cancel(now)
        return writer

    async def _send_all(self, request: web.BaseRequest) -> None:
        work = self._work
        number = -1
        for number, event in enumerate(events(work, self._dialect)):
            await self._wait_for(event)
            if work.cancelled is not None and work.is_over(self._clock()) and event.at > work.cancelled:
                break
            if number > self._after:
                await self._send(request, event, number)
        else:
            return
        if self._dialect.cancelled_stream == "hangs":
            await asyncio.Event().wait()
        if self._dialect.cancelled_stream == "fails":
            await self._send(request, Event(work.cancelled, "response.failed", status="cancelled"), number)

    async def _wait_for(self, event: Event) -> None:
        """Wait until an event happens, or never will because the response was cancelled."""
        # No asyncio.Event tells when a test sets the clock.
        while (now := self._clock()) < event.at and not self._work.is_over(now):  # noqa: ASYNC110
            await asyncio.sleep(min(event.at - now, _LOOK_EVERY))

    async def _send(self, request: web.BaseRequest, event: Event, number: int) -> None:
        document: dict[str, object] = {"type": event.type, "sequence_number": number, **event.fields}
        if event.status is not None:
            document["response"] = describe(self._work, self._dialect, event.at, {}, status=event.status)
        data = f"event: {event.type}\ndata: {json.dumps(document, separators=(',', ':'))}\n\n".encode()
        if not self._cut:
            await self.write(data)
            return
        room = len(data) if self._room is None else self._room
        await self.write(data[:room])
        self._room = room - len(data)
        if self._room <= 0:
            request.protocol.force_close()
            raise ConnectionResetError("The emulator was told to cut this stream.")

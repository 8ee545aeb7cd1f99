"""`StreamFollower`: follow the events of a response, as its server streams them, to learn of its end at once.

See https://platform.openai.com/docs/guides/background#streaming-a-background-response.
"""

import asyncio
import logging
import math
from http import HTTPStatus
from typing import Any, cast

import orjson

from openai_cancel.caller import Caller
from openai_cancel.cancellation import wait_through_cancellation
from openai_cancel.clock import Clock
from openai_cancel.converter import response_hook
from openai_cancel.errors import APIStatusError, OpenAICancelError
from openai_cancel.log_events import log_fields
from openai_cancel.models import Response
from openai_cancel.models.fields import parse_exactly
from openai_cancel.models.response import LAST_EVENTS, TERMINAL, is_same_progress, progress_of
from openai_cancel.retry import MAX_DELAY, POLL_SHARE, is_transient, poll_delay
from openai_cancel.sse import EventParser, ServerSentEvent
from openai_cancel.wire import EVENT_STREAM, Answer

MAX_EMPTY_ANSWERS = 3
"""The number of answers in a row without a new event after which the follower gives up."""

STEADY = 1.0
"""Seconds that a connection must last at first to be resumed at once; later 2 % of the age, up to 8 seconds."""

_OF_RESPONSE = "response."
"""The beginning of the types of events that tell of the response. Gateways add others, such as `heartbeat`."""

_log = logging.getLogger("openai_cancel")


class StreamFollower:
    """Follows the events of a response in a task of its own. It keeps nothing of their text.

    A stream that is cut is resumed after the last event, with a back-off. What the stream says of the end has to be
    checked with a look. Looks are also needed when it says nothing, because a connection can die without a sign.

    Args:
        caller: makes the requests.
        response_id: the id of the response.
        poll: the maximum time between two connections, in seconds.
        after: the number of the last event that an earlier wait has received, so that only later ones are requested.

    Attributes:
        answer: the response, if the server has answered with it instead of a stream; otherwise None.
        has_begun: whether there has been a stream.
        is_over: whether no more events will come.
        is_running: whether an event has shown that the response has left the queue.
        progressed: the time of the last new event, on the caller's clock; minus infinity if there was none.
        last_event: the number of the last event, or None.
    """

    def __init__(self, caller: Caller, response_id: str, poll: float, *, after: int | None = None) -> None:
        self._caller = caller
        self._response_id = response_id
        self._poll = poll
        self.answer: Response | None = None
        self.has_begun: bool = False
        self.is_over: bool = False
        self.is_running: bool = False
        self._needs_look = False
        self.progressed: float = -math.inf
        self._began = caller.clock.monotonic()
        self.last_event: int | None = after
        self._response: Response | None = None
        self._progress: object = None
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())

    async def news_within(self, seconds: float) -> None:
        """Wait until the stream has told something, but no longer than that."""
        sleep = asyncio.ensure_future(self._caller.clock.sleep(seconds))
        try:
            await asyncio.wait((sleep, self._news), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            cancellation = await wait_through_cancellation(sleep)
            if cancellation is not None:
                raise cancellation
        if self._news.done():
            self._news = self._news.get_loop().create_future()
        if not sleep.cancelled():
            sleep.result()

    def take_need(self) -> bool:
        """Return whether a look is needed, and forget it."""
        needs_look, self._needs_look = self._needs_look, False
        return needs_look

    def take_response(self) -> Response | None:
        """Return the last response that an event has carried since the last call, or None."""
        response, self._response = self._response, None
        return response

    async def close(self) -> None:
        """Close the connection, and wait until that is done."""
        self._task.cancel()
        cancellation = await wait_through_cancellation(self._task)
        if not self._task.cancelled():
            self._task.exception()  # asyncio would log an exception that nobody has looked at
        if cancellation is not None:
            raise cancellation

    async def end(self) -> None:
        """Wait until the task has ended, which is over, and raise what it has raised, for example a key function."""
        await asyncio.wait((self._task,))
        self._task.result()

    async def _run(self) -> None:
        try:
            await self._follow()
        finally:
            self.is_over = self._needs_look = True
            self._tell()

    async def _follow(self) -> None:
        """Connect again and again, until the response has ended or there is no sense in it."""
        clock = self._caller.clock
        tries = failures = 0
        while True:
            stream = _Stream(self, clock, limit=self._caller.settings.max_body_bytes)
            result = await self._caller.listen(self._response_id, stream, after=self.last_event)
            asked: float | None = getattr(result, "retry_after", None)
            if self._is_final(stream, result):
                return
            was_answered = stream.began is not None or isinstance(result, APIStatusError)
            del result  # its traceback refers to this frame, which would refer to it
            now = clock.monotonic()
            age = now - self._began
            if stream.began is not None and now - stream.began >= min(max(STEADY, POLL_SHARE * age), MAX_DELAY):
                tries = failures = 0
            else:
                # A stream that is cut so soon may lag behind the response.
                self._needs_look = True
                self._tell()
                failures = 0 if stream.brought_news else failures + was_answered
            if failures == MAX_EMPTY_ANSWERS:
                _log.debug(
                    "%s: its stream brings no events; polling", self._response_id,
                    extra=log_fields("stream_refused", response_id=self._response_id, error=None),
                )  # fmt: skip
                return
            delay = poll_delay(tries, asked=asked, random=clock.random(), age=age, longest=self._poll)
            await clock.sleep(max(delay, min(stream.parser.retry or 0.0, self._poll)))
            tries += 1

    def _is_final(self, stream: "_Stream", result: Response | OpenAICancelError) -> bool:
        """Return whether there is no sense in another connection."""
        if isinstance(result, Response):
            self.answer = result
            _log.debug(
                "%s: the server sends no stream; polling", self._response_id,
                extra=log_fields("stream_refused", response_id=self._response_id, error=None),
            )  # fmt: skip
            return True
        if stream.saw_end:
            return True
        if is_transient(result):
            return False
        status = getattr(result, "status", "")
        _log.debug(
            "%s: no stream (%s); polling", self._response_id, f"{type(result).__name__} {status}".strip(),
            extra=log_fields("stream_refused", response_id=self._response_id, error=result),
        )  # fmt: skip
        return True

    def _tell(self) -> None:
        if not self._news.done():
            self._news.set_result(None)

    def on_stream(self) -> None:
        """Note that a stream has begun."""
        self.has_begun = True
        self._tell()

    def is_new(self, number: object, *, is_resumed: bool) -> bool:
        """Return whether the event with a number is new, and note it.

        Args:
            number: its number. An event without one may have been sent before, unless its stream is the first one.
            is_resumed: whether there has been a stream before.
        """
        if isinstance(number, float) and number.is_integer():  # the only type of number that some languages have
            number = int(number)
        if not isinstance(number, int):
            return not is_resumed
        if self.last_event is not None and number <= self.last_event:
            return False
        self.last_event = number
        return True

    def on_output(self) -> None:
        """Note an event that shows progress, and carries no response."""
        self.is_running = True
        self.progressed = self._caller.clock.monotonic()

    def on_response(self, document: dict[str, Any]) -> bool:
        """Keep the response that an event carries, and return whether it shows progress since the last one."""
        response = response_hook()(document)
        progress = progress_of(response)
        if is_same_progress(progress, self._progress):
            return False
        self._progress, self._response = progress, response
        self.is_running = response.status != "queued"
        self.progressed = self._caller.clock.monotonic()
        self._tell()
        return True


class _Stream:
    """The events that come over one connection: a `Receiver` of its body.

    Attributes:
        parser: the parser of its bytes.
        began: the time at which it began, on the clock; None if there is no stream.
        brought_news: whether an event has shown progress.
        saw_end: whether the response has ended.
    """

    def __init__(self, follower: StreamFollower, clock: Clock, *, limit: int) -> None:
        self._follower = follower
        self._clock = clock
        self._is_resumed = follower.has_begun
        self.parser: EventParser = EventParser(limit)
        self.began: float | None = None
        self.brought_news: bool = False
        self.saw_end: bool = False

    def accepts(self, answer: Answer) -> bool:
        """Return whether the body is a stream of events."""
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if answer.status != HTTPStatus.OK or media_type != EVENT_STREAM:
            return False
        self.began = self._clock.monotonic()
        self._follower.on_stream()
        return True

    def feed(self, chunk: bytes) -> bool:
        """Read the next bytes, and return whether the response has ended. The long last event is not read."""
        for event in self.parser.feed(chunk):
            self._read(event)
        self.saw_end = self.saw_end or self.parser.type in LAST_EVENTS
        return self.saw_end

    def _read(self, event: ServerSentEvent) -> None:
        self.saw_end = self.saw_end or event.type in LAST_EVENTS
        try:
            document = parse_exactly(event.data)
        except orjson.JSONDecodeError:  # such as `[DONE]`
            return
        if not isinstance(document, dict):
            return
        payload = cast("dict[str, Any]", document)
        named = payload.get("type")
        kind = named if isinstance(named, str) else event.type
        number = payload.get("sequence_number")
        response: dict[str, Any] | None = payload.get("response")
        status = response.get("status") if isinstance(response, dict) else None
        if kind in LAST_EVENTS or (isinstance(status, str) and status in TERMINAL):
            self.saw_end = True
        elif kind.startswith(_OF_RESPONSE) and self._follower.is_new(number, is_resumed=self._is_resumed):
            if response is None or not isinstance(status, str):
                self._follower.on_output()
                self.brought_news = True
            elif self._follower.on_response(response):
                self.brought_news = True

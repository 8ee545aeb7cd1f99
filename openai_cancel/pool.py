"""Connection pools that replace connections which died without a word, and the attempts that notice it."""

import asyncio
import math
from abc import ABC, abstractmethod
from time import monotonic
from typing import Any

import aiohttp
import attrs
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from openai_cancel.cancellation import Timeout

REUSED_ANSWER_TIMEOUT = 5.0
"""Seconds that an answer may take to begin on a reused connection, unless the server has been slower before."""


@attrs.define(eq=False)
class Attempt(Timeout):
    """The time of one attempt. It ends early on a reused connection on which no answer begins.

    A load balancer, a NAT or a frozen process may have dropped an idle connection without a word. A dead connection
    cannot be told from a slow server, so the attempt must leave time for another one.

    Attributes:
        reuse_limit: seconds after which it ends early on a reused connection; `math.inf` if no other attempt would
            follow.
        reused_pool: the pool, if the connection may have been used before; otherwise None.
        ends_early: whether it ends before the whole of its time is over.
    """

    reuse_limit: float = math.inf
    reused_pool: "Connections | None" = None
    ends_early: bool = False

    _end: float = math.inf

    def on_reuse(self, pool: "Connections", patience: float) -> None:
        """Note that the connection may have been used before. An answer should begin within `patience` seconds."""
        self.reused_pool = pool
        self.reuse_limit = min(patience, self.reuse_limit)
        self._end, early = self.until, self.scheduler.loop.time() + self.reuse_limit
        if early < self.until:
            self.ends_early = True
            self.until = early
            if early < self.scheduler.at:
                self.scheduler.schedule(early)

    def on_answer(self) -> None:
        """Note that an answer begins, although the attempt was to end early. The rest of it has the whole time."""
        self.ends_early = False
        self.until: float = self._end


class Connections(ABC):
    """The connections of a transport, and what is known of the speed of their server."""

    _took: float = 0.0  # seconds until an answer of a slow server began
    _measures: bool = False  # whether the speed of the server matters

    @abstractmethod
    def drop_idle(self, seconds: float = 0.0) -> None:
        """Use no connection again that has been idle for longer than that many seconds."""

    def note_reuse(self, attempt: Attempt) -> None:
        """Note that the connection of an attempt may have been used before."""
        attempt.on_reuse(self, self._patience)

    @property
    def _patience(self) -> float:
        return max(REUSED_ANSWER_TIMEOUT, 2 * self._took)

    def note_silence(self) -> None:
        """Note that a reused connection had no answer: the others may be dead, too."""
        self._measures = True
        self.drop_idle()

    def note_answer(self, attempt: Attempt) -> None:
        """Note that an answer begins. A slow server is not mistaken for a dead connection again and again."""
        if attempt.ends_early:
            attempt.on_answer()
        if self._measures:
            self._took = attempt.scheduler.loop.time() - (attempt.until - attempt.seconds)
            self._measures = self._patience > REUSED_ANSWER_TIMEOUT


class Pool(Connections, aiohttp.TCPConnector):
    """A connector that tells attempts whether their connection was used before.

    It also drops idle connections with unsolicited data, which would be read as the next answer. A gateway may report
    a timeout after it has answered, or be tricked into sending one answer too many.

    Attributes:
        attempts: the attempts that are under way, by the task that makes the exchange.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType] - aiohttp's annotations have a gap
        self.attempts: dict[asyncio.Task[Any] | None, Attempt] = {}

    def drop_idle(self, seconds: float = 0.0) -> None:
        """Close the connections that have been idle for longer than that many seconds."""
        latest = monotonic() - seconds  # aiohttp's clock
        for key, connections in [*self._conns.items()]:
            for protocol, since in [*connections]:
                if since <= latest:
                    connections.remove((protocol, since))
                    protocol.abort()  # a TLS connection would wait for the other side's farewell
            if not connections:
                del self._conns[key]

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) and connection.protocol is not None:
            if not connection.protocol.should_close:
                attempt = self.attempts.get(asyncio.current_task())
                if attempt is not None:
                    self.note_reuse(attempt)
                break
            connection.close()
        return connection


class BorrowedConnections(Connections):
    """The connections of a caller's client, which are never closed here.

    Attributes:
        generation: a number that changes when no connection may be used again that was used before.
    """

    def __init__(self) -> None:
        self.generation: int = 0
        self._may_be_idle = True  # whether a connection of this generation may have been used before

    def drop_idle(self, seconds: float = 0.0) -> None:  # noqa: ARG002 - the age of these connections is not known
        """Use no connection again that was used before."""
        self.generation += 1
        self._may_be_idle = False

    def note_request(self, attempt: Attempt) -> None:
        """Note that an attempt sends its request."""
        if self._may_be_idle:
            self.note_reuse(attempt)

    def note_answer(self, attempt: Attempt) -> None:
        """Note that an answer begins, whose connection may be used again."""
        self._may_be_idle = True
        super().note_answer(attempt)

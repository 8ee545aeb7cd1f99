"""`watch`: a whole service's responses, in the ledger before the code that creates them knows their ids."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from openai_cancel import tracing
from openai_cancel.caller import Caller
from openai_cancel.cancellation import shielded_from_anyio, wait_through_cancellation
from openai_cancel.clients import ApiAccount, Client, http_client
from openai_cancel.ledger_protocols import Tracker
from openai_cancel.log_events import log_fields
from openai_cancel.outcome import Outcome, ended
from openai_cancel.session_loop import PendingCreations, SessionLoop
from openai_cancel.stop import stop
from openai_cancel.tap import tap, untap
from openai_cancel.wire import ResponseId

_log = logging.getLogger("openai_cancel")


class Watch:
    """Records the responses that clients create in the background, until they are seen to end.

    A response is in the session's ledger before the code that creates it has its id, and its lease is renewed while
    this process lives. If the process dies, a sweep stops it. A response leaves the ledger when a watched client, or
    the session, sees it end.

    The watch ends with `close`, with its `async with` block, or with the session. Responses that have not ended by then
    are left to the next sweep.

    Watches are created by `AsyncSession.watch`.
    """

    def __init__(
        self,
        caller: Caller,
        clients: Sequence[Client],
        *,
        grace: float,
        max_retries: int | None,
        tracker: Tracker,
        session_loop: SessionLoop,
        watches: "list[Watch]",
    ) -> None:
        self._caller = caller
        self._watches = watches
        self._clients: list[Any] = []
        self._responses = WatchedResponses(
            caller, grace=grace, max_retries=max_retries, tracker=tracker, session_loop=session_loop
        )
        watches.append(self)
        caller.endings.add(self._responses.discard)
        try:
            for client in clients:
                self.add(client)
        except BaseException:
            self._end()
            raise

    def __repr__(self) -> str:
        """Return the number of responses."""
        return f"<{type(self).__name__} {f'{self._responses.held} running' if self._responses.is_open else 'closed'}>"

    @property
    def response_ids(self) -> tuple[str, ...]:
        """The ids of the responses that are in the ledger and were not seen to end."""
        return self._responses.ids

    def add(self, client: Client) -> None:
        """Watch another client.

        Raises:
            ConfigurationError: it is not a supported client, or belongs to another server or account.
        """
        inner = http_client(client)
        self._responses.account.check(client)
        if inner not in self._clients and self._responses.is_open:
            self._clients.append(inner)
            tap(inner, self._responses)

    def release(self, response_id: ResponseId) -> None:
        """Let a response run on without a lease, for example because it has ended somewhere else.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
        """
        self._responses.release(self._caller.identify(response_id))

    async def close(self) -> None:
        """End the watch, and leave the responses that run to the next sweep. Closing twice does nothing.

        Creations that are in progress are waited for, within the `grace`. A cancellation of the task takes effect after
        that.
        """
        self._untap()
        with shielded_from_anyio():
            cancellation = await self._responses.wait_for_creations()
            self._end()
            cancellation = await self._responses.hand_over() or cancellation
        if cancellation is not None:
            raise cancellation

    def _end(self) -> None:
        self._untap()
        if self._responses.is_open:
            self._responses.is_open = False
            self._watches.remove(self)
            self._caller.endings.remove(self._responses.discard)

    def _untap(self) -> None:
        clients, self._clients = self._clients, []
        for client in clients:
            untap(client, self._responses)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class WatchedResponses:
    """The responses of a watch. It is a `Listener` of its clients, and a `Holder` of the metrics.

    Attributes:
        account: the account of the session.
        kind: `watch`, for the metrics.
        base_url: the address of the server.
        session_loop: the event loop of the session.
        is_open: whether the watch has not ended.
    """

    def __init__(
        self, caller: Caller, *, grace: float, max_retries: int | None, tracker: Tracker, session_loop: SessionLoop
    ) -> None:
        self._caller = caller
        self._grace = grace
        self._max_retries = max_retries
        self._tracker = tracker
        self._held: dict[str, float] = {}  # the time at which each id was added
        self._pending = PendingCreations(caller.clock)
        self.account: ApiAccount = ApiAccount.from_settings(caller.settings)
        self.session_loop: SessionLoop = session_loop
        self.kind: str = "watch"
        self.base_url: str = caller.settings.base_url
        self.is_open: bool = True

    @property
    def held(self) -> int:
        """The number of the responses. It can be read in any thread."""
        return len(self._held)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the responses."""
        return (*self._held,)

    def release(self, response_id: str) -> None:
        """Let a response run on without a lease."""
        if self._held.pop(response_id, None) is not None:
            self._tracker.release_soon([response_id])

    async def wait_for_creations(self) -> asyncio.CancelledError | None:
        """Wait for the creations that are under way, within the grace.

        Cancellations of this task do not end the wait; the last one is returned, for the caller to raise.
        """
        clock = self._caller.clock
        cancellation: asyncio.CancelledError | None = None
        until = clock.monotonic() + self._grace
        while self._pending and (left := until - clock.monotonic()) > 0:
            cancellation = await self._pending.wait(left) or cancellation
        return cancellation

    async def hand_over(self) -> asyncio.CancelledError | None:
        """Leave the responses to the next sweep.

        Cancellations of this task do not end the wait; the last one is returned, for the caller to raise.
        """
        if not (names := self.ids):
            return None
        self._held.clear()
        return await wait_through_cancellation(asyncio.create_task(self._tracker.settle(names, {})))

    def is_concerned(self) -> bool:
        """Return True: every response of a client is recorded."""
        return True

    def creation_started(self, creation: object) -> None:
        """Note that a creation is under way."""
        self._pending.add(creation)

    def creation_ended(self, creation: object) -> None:
        """Note that a creation is over."""
        self._pending.discard(creation)

    def creation_orphaned(self, creation: object) -> None:
        """Note that the task that has made a creation was cancelled."""
        self._pending.add(creation)

    def orphan_handled(self, creation: object) -> None:
        """Note that the response of such a creation was passed to `stop_orphan`."""
        self._pending.discard(creation)

    def admit(self, response_id: str) -> bool:
        """Hold a response, and return whether to `record` it."""
        if not self.is_open:
            return False
        self._held[response_id] = self._caller.clock.monotonic()
        if tracing.has_metrics():
            from openai_cancel import metrics  # not imported unless metrics are used

            metrics.observe(self)
        return True

    async def record(self, response_id: str) -> None:
        """Write a response to the ledger."""
        await self._tracker.begin([response_id])

    def stop_orphan(self, response_id: str) -> None:
        """Stop a response that nobody knows."""
        if self._held.pop(response_id, None) is not None:
            self._pending.add(response_id)
            self.session_loop.start(lambda: self._stop(response_id))

    async def _stop(self, response_id: str) -> None:
        outcomes: dict[str, Outcome] = {}
        try:
            await stop(
                self._caller,
                response_id,
                deadline=self._grace,
                max_retries=self._max_retries,
                recently_created=True,
                log_outcome=True,
                on_verdict=partial(outcomes.__setitem__, response_id),
            )
        except BaseException as error:
            if response_id not in outcomes:
                _log.warning(
                    "%s was not stopped (%s)", response_id, type(error).__name__,
                    extra=log_fields("stop_failed", response_id=response_id, error=error),
                )  # fmt: skip
            raise
        finally:
            try:
                await self._tracker.settle([response_id], outcomes)  # a sweep stops what was not stopped
            finally:
                self._pending.discard(response_id)

    def holds(self, response_id: str) -> bool:
        """Return whether a response is in the ledger and was not seen to end."""
        return response_id in self._held

    def discard(self, response_id: str) -> None:
        """Take a response out of the ledger that was seen to end."""
        if self._held.pop(response_id, None) is not None:
            self._tracker.settle_soon(ended(response_id))

"""`watch`: a whole service's responses, in the ledger before the code that creates them knows their ids."""

import asyncio
import logging
from functools import partial
from types import TracebackType
from typing import Any, Self

from openai_cancel import tracing
from openai_cancel.caller import Caller
from openai_cancel.cancellation import shielded_from_anyio, wait_through_cancellation
from openai_cancel.clients import Account, Client, http_client
from openai_cancel.home import Arrivals, Home, Work
from openai_cancel.outcome import Outcome, ended
from openai_cancel.records import fields
from openai_cancel.stop import stop
from openai_cancel.tap import tap, untap
from openai_cancel.tracking import Tracker
from openai_cancel.wire import ResponseId

_log = logging.getLogger("openai_cancel")


class Watch:
    """Records the responses that clients create in the background, until they are seen to end.

    A response is in the session's ledger before the code that creates it has its id, and its lease is renewed while
    this process lives. If the process dies, a sweep stops it. A response leaves the ledger when a watched client, or
    the session, sees it end.

    The watch ends with `close`, with its `async with` block, or with the session. Responses that have not ended by then
    are left to the next sweep.

    Watches are created by `AsyncSession.watch`. It is a `Listener` of the clients.

    Attributes:
        account: the account of the session.
        kind: `watch`, for the metrics.
        base_url: the address of the server.
        home: the event loop of the session.
    """

    def __init__(
        self,
        caller: Caller,
        *,
        grace: float,
        max_retries: int | None,
        tracker: Tracker,
        home: Home,
        watches: "list[Watch]",
    ) -> None:
        self._caller = caller
        self._grace = grace
        self._max_retries = max_retries
        self._tracker = tracker
        self._watches = watches
        self._clients: list[Any] = []
        self._held: dict[str, float] = {}  # the time at which each id was added
        self._arrivals = Arrivals(caller.clock)
        self._is_closed = False
        self.account: Account = Account.from_settings(caller.settings)
        self.home: Home = home
        self.kind: str = "watch"
        self.base_url: str = caller.settings.base_url
        watches.append(self)
        caller.endings.listeners += (self.leave,)

    def __repr__(self) -> str:
        """Return the number of responses."""
        return f"<{type(self).__name__} {'closed' if self._is_closed else f'{len(self._held)} running'}>"

    @property
    def held(self) -> int:
        """The number of these responses. It can be read in any thread."""
        return len(self._held)

    @property
    def response_ids(self) -> tuple[str, ...]:
        """The ids of the responses that are in the ledger and were not seen to end."""
        return (*self._held,)

    def add(self, client: Client) -> None:
        """Watch another client.

        Raises:
            ConfigurationError: it is no client, or one of another server or account.
        """
        inner = http_client(client)
        self.account.check(client)
        if inner not in self._clients and not self._is_closed:
            self._clients.append(inner)
            tap(inner, self)

    def release(self, response_id: ResponseId) -> None:
        """Let a response run on without a lease, for example because it has ended somewhere else.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
        """
        name = self._caller.identify(response_id)
        if self._held.pop(name, None) is not None:
            self._tracker.release_soon([name])

    async def close(self) -> None:
        """End the watch, and leave the responses that run to the next sweep. Closing twice does nothing.

        Creations that are under way are waited for, within the `grace`. Meanwhile a cancellation of the task is held
        back.
        """
        self._untap()
        clock = self._caller.clock
        cancellation = None
        with shielded_from_anyio():
            until = clock.monotonic() + self._grace
            while self._arrivals and (left := until - clock.monotonic()) > 0:
                cancellation = await self._arrivals.wait(left) or cancellation
            self.end()
            if names := self.response_ids:
                self._held.clear()
                settling = asyncio.create_task(self._tracker.settle(names, {}))
                cancellation = await wait_through_cancellation(settling) or cancellation
        if cancellation is not None:
            raise cancellation

    def end(self) -> None:
        """End the watch without a look at its responses, whose leases expire."""
        self._untap()
        if not self._is_closed:
            self._is_closed = True
            self._watches.remove(self)
            endings = self._caller.endings
            endings.listeners = tuple(one for one in endings.listeners if one != self.leave)

    def _untap(self) -> None:
        clients, self._clients = self._clients, []
        for client in clients:
            untap(client, self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def is_concerned(self) -> bool:
        """Return True: every response of a client is recorded."""
        return True

    def expect(self, creation: object) -> None:
        """Note that a creation is under way."""
        self._arrivals.expect(creation)

    def note(self, creation: object) -> None:
        """Note that a creation is over."""
        self._arrivals.note(creation)

    def forsake(self, creation: object) -> None:
        """Note that the task that has made a creation was cancelled."""
        self._arrivals.expect(creation)

    def settle(self, creation: object) -> None:
        """Note that the response of such a creation was passed to `abandon`."""
        self._arrivals.note(creation)

    def join(self, response_id: str) -> Work | None:
        """Record a response."""
        if self._is_closed:
            return None
        self._held[response_id] = self._caller.clock.monotonic()
        if tracing.has_metrics():
            from openai_cancel import metrics  # not imported unless metrics are used

            metrics.observe(self)
        return lambda: self._tracker.begin([response_id])

    def abandon(self, response_id: str) -> None:
        """Stop a response that nobody knows."""
        if self._held.pop(response_id, None) is not None:
            self._arrivals.expect(response_id)
            self.home.start(lambda: self._stop(response_id))

    async def _stop(self, response_id: str) -> None:
        outcomes: dict[str, Outcome] = {}
        try:
            await stop(
                self._caller,
                response_id,
                deadline=self._grace,
                max_retries=self._max_retries,
                young=True,
                unseen=True,
                keep=partial(outcomes.__setitem__, response_id),
            )
        except BaseException as error:
            if response_id not in outcomes:
                _log.warning(
                    "%s was not stopped (%s)", response_id, type(error).__name__,
                    extra=fields("stop_failed", response_id=response_id, error=error),
                )  # fmt: skip
            raise
        finally:
            try:
                await self._tracker.settle([response_id], outcomes)  # a sweep stops what was not stopped
            finally:
                self._arrivals.note(response_id)

    def holds(self, response_id: str) -> bool:
        """Return whether a response is in the ledger and was not seen to end."""
        return response_id in self._held

    def leave(self, response_id: str) -> None:
        """Take a response out of the ledger that was seen to end."""
        if self._held.pop(response_id, None) is not None:
            self._tracker.settle_soon(ended(response_id))

"""`Scope`: what clients create while the block of a guard runs, as far as the block itself makes them do it.

The context decides, not the client: tasks inherit it from the code that starts them, see
https://docs.python.org/3/library/contextvars.html.
"""

import logging
import threading
from collections.abc import Collection
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from openai_cancel.clients import ApiAccount
from openai_cancel.guarded_responses import GuardedResponses
from openai_cancel.log_events import log_fields
from openai_cancel.session_loop import SessionLoop
from openai_cancel.settings import Settings
from openai_cancel.tap import tap, untap

_log = logging.getLogger("openai_cancel")

_scopes: ContextVar["tuple[Scope, ...] | None"] = ContextVar("openai_cancel_scopes", default=None)

_of_main_thread: "list[Scope]" = []
"""The blocks that the main thread is in, which count for the threads that it starts, too."""


class Scope:
    """One run of a guard's block. It is a `Listener` of the clients of the guard.

    Args:
        settings: the settings of the session.
        session_loop: the event loop of the session.
        responses: the responses of the guard.

    Attributes:
        session_loop: as above.
    """

    def __init__(self, settings: Settings, session_loop: SessionLoop, responses: GuardedResponses) -> None:
        self.session_loop: SessionLoop = session_loop
        self._settings = settings
        self._account: ApiAccount | None = None
        self._responses = responses
        self._clients: list[Any] = []
        self._is_open = True
        self._has_failed = False
        self._older: WeakSet[threading.Thread] | None = None  # threads that the block has not started

    @property
    def account(self) -> ApiAccount:
        """The account of the session."""
        if self._account is None:
            self._account = ApiAccount.from_settings(self._settings)
        return self._account

    def enter(self) -> None:
        """Let the current context create for this block."""
        scopes = _scopes.get()
        around = _scopes_of_thread() if scopes is None else scopes
        _scopes.set((*(scope for scope in around if scope._is_open), self))

    def enter_thread(self) -> None:
        """Let the current thread create for this block; if it is the main thread, also the threads that it starts."""
        self.enter()
        if threading.current_thread() is threading.main_thread():
            self._older = WeakSet(threading.enumerate())
            _of_main_thread.append(self)

    def add(self, clients: Collection[Any]) -> None:
        """Listen to httpx clients."""
        for client in clients:
            if client not in self._clients:
                self._clients.append(client)
                tap(client, self)

    def fail(self) -> None:
        """Note that an exception ends the block: what was begun in it is stopped, whenever it arrives."""
        self._has_failed = True

    def check_context(self) -> None:
        """Warn if the block is left in a different context from the one it was entered in: it has seen nothing."""
        if self._clients and self not in (_scopes.get() or ()):
            _log.warning(
                "a guard was exited in a different context from the one it was entered in, so it did not see what its "
                "clients created. Enter it in the task or thread that calls them",
                extra=log_fields("other_context"),
            )

    def close(self) -> None:
        """Listen to no client any more, and leave the current context. Creations that are under way are still seen."""
        self._is_open = False
        scopes = _scopes.get() or ()
        if self in scopes:
            _scopes.set(tuple(scope for scope in scopes if scope is not self))
        if self in _of_main_thread:
            _of_main_thread.remove(self)
        clients, self._clients = self._clients, []
        for client in clients:
            untap(client, self)

    def is_concerned(self) -> bool:
        """Return whether the current context belongs to the block."""
        scopes = _scopes.get()
        return self in (scopes if scopes is not None else _scopes_of_thread())

    def creation_started(self, creation: object) -> None:
        """Note that a creation is under way."""
        self._responses.pending.add(creation)

    def creation_ended(self, creation: object) -> None:
        """Note that a creation is over."""
        self._responses.pending.discard(creation)

    def creation_orphaned(self, creation: object) -> None:
        """Note that the task that has made a creation was cancelled."""
        if self._is_open:
            self._responses.orphans.add(creation)

    def orphan_handled(self, creation: object) -> None:
        """Note that the response of such a creation was passed to `stop_orphan`."""
        self._responses.orphans.discard(creation)

    def admit(self, response_id: str) -> bool:
        """Guard a response, and return whether to `record` it, or to stop it since the block was left by an exception.

        A block that has ended normally lets its responses run on.
        """
        if self._is_open:
            return self._responses.admit(response_id)
        if self._has_failed:
            self._responses.admit(response_id)
        return self._has_failed

    async def record(self, response_id: str) -> None:
        """Write a response to the ledger. If the block was left by an exception, stop it."""
        await self._responses.record(response_id)
        if self._has_failed and not self._is_open:
            await self._responses.stop_one(response_id)

    def stop_orphan(self, response_id: str) -> None:
        """Stop a response that nobody knows."""
        if self._responses.holds(response_id):
            self._responses.orphans.add(response_id)
            self.session_loop.start(lambda: self._stop(response_id))

    async def _stop(self, response_id: str) -> None:
        try:
            await self._responses.stop_one(response_id)
        finally:
            self._responses.orphans.discard(response_id)

    def holds(self, response_id: str) -> bool:
        """Return whether the response is guarded."""
        return self._responses.holds(response_id)

    def discard(self, response_id: str) -> None:
        """Let go of a response that was seen to end."""
        self._responses.discard(response_id)

    def has_started(self, thread: threading.Thread) -> bool:
        """Return whether a thread was started after the block began."""
        return self._older is not None and thread not in self._older


def _scopes_of_thread() -> list[Scope]:
    """Return the blocks to which a thread without a context of its own belongs."""
    if not _of_main_thread:
        return []
    thread = threading.current_thread()
    return [scope for scope in [*_of_main_thread] if scope.has_started(thread)]

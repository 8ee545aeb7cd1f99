"""`tap`: show what an httpx client creates to guards and watches, without a change for those who use the client.

The client's public method `send`, through which all requests pass, is replaced as long as somebody listens. Requests
that create a response in the background run in a task of their own: if the task that has made one is cancelled, the
answer with the id still arrives. An event hook reads the id before other hooks, the client's `auth` or a subclass
get the answer, since these may raise. See https://www.python-httpx.org/api/#asyncclient and
https://www.python-httpx.org/advanced/event-hooks/.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial
from threading import Lock
from typing import Any, Protocol, cast
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from openai_cancel.body_observer import BodyObserver, observed
from openai_cancel.clients import ApiAccount, is_async
from openai_cancel.errors import LedgerError
from openai_cancel.log_events import log_fields
from openai_cancel.session_loop import CoroutineFunction, SessionLoop, in_asyncio
from openai_cancel.wire import SEGMENT

_PATH = re.compile(rb"(?P<api>.*)/responses(?:/(?P<id>[^/?]+)(?:/cancel)?)?(?:\?.*)?", re.DOTALL)
_BACKGROUND = re.compile(rb'"background"\s*:\s*true')

_UNSET = object()

_log = logging.getLogger("openai_cancel")


class Listener(Protocol):
    """A guard or a watch, as a tap sees it. Its methods can be called from any thread, and do not block.

    Attributes:
        session_loop: the event loop of its session.
    """

    session_loop: SessionLoop

    @property
    def account(self) -> ApiAccount:
        """The account whose responses it can stop."""
        ...

    def is_concerned(self) -> bool:
        """Return whether it wants to know what the current task, or thread, creates."""
        ...

    def creation_started(self, creation: object) -> None:
        """Note that a creation is under way."""

    def creation_ended(self, creation: object) -> None:
        """Note that a creation is over. If it has created a response, `admit` was called before."""

    def creation_orphaned(self, creation: object) -> None:
        """Note that the task that has made a creation was cancelled, so that nobody else will know the response."""

    def orphan_handled(self, creation: object) -> None:
        """Note that the response of such a creation, if there is one, was passed to `stop_orphan`."""

    def admit(self, response_id: str) -> bool:
        """Take in a response that was created, and return whether to call `record` before anybody else knows its id."""
        ...

    async def record(self, response_id: str) -> None:
        """Do what is left to do for a response that was taken in. It is called in the event loop of the session."""

    def stop_orphan(self, response_id: str) -> None:
        """Stop a response that nobody else knows, because the call that has created it was cancelled or failed."""

    def holds(self, response_id: str) -> bool:
        """Return whether a response was taken in, and has not left."""
        ...

    def discard(self, response_id: str) -> None:
        """Let go of a response that was seen to end."""


_lock = Lock()
_taps: "WeakKeyDictionary[Any, list[_AsyncTap | _BlockingTap]]" = WeakKeyDictionary()


def tap(client: Any, listener: Listener) -> None:
    """Show to a listener what an httpx client creates."""
    with _lock:
        taps = _taps.setdefault(client, [])
        if not taps or not taps[-1].is_installed:
            taps.append((_AsyncTap if is_async(client) else _BlockingTap)(client))
            client.send = taps[-1].send
        taps[-1].listeners = [*taps[-1].listeners, listener]
        taps[-1].set_hook()


def untap(client: Any, listener: Listener) -> None:
    """Remove a listener. The last one leaves the client as it was."""
    with _lock:
        for found in [*_taps[client]]:
            found.listeners = [other for other in found.listeners if other is not listener]
            if not found.listeners:
                _taps[client].remove(found)
                found.remove()
        if not _taps[client]:
            del _taps[client]


class _Creation:
    """A request that creates a response in the background.

    Attributes:
        listeners: those who want to know its id.
        is_streamed: whether the caller of `send` reads the body.
        seen: the answer that was looked at last. A subclass of the client may send a request more than once.
        response_id: the id, once it was seen.
    """

    def __init__(self, listeners: list[Listener], *, is_streamed: bool) -> None:
        self.listeners = listeners
        self.is_streamed = is_streamed
        self.seen: Any = None
        self.response_id: str | None = None


class _Tap:
    """Replaces the `send` of an httpx client."""

    def __init__(self, client: Any) -> None:
        self.listeners: list[Listener] = []
        self._client: Any = client
        self._attributes = cast("dict[str, Any]", vars(client))
        self._own: Any = self._attributes.get("send")  # if somebody else has replaced it, too
        self._warnings: set[str] = set()
        self._mark = f"openai_cancel.{id(self)}"
        """The key of the extension of a request that has its `_Creation`, which redirects keep."""

    send: Callable[..., Any]
    _on_response: Callable[[Any], Any]

    @property
    def _real(self) -> Callable[..., Any]:
        """The method that sends a request. It is looked up each time, since somebody may replace it in the class."""
        if self._own is not None:
            return cast("Callable[..., Any]", self._own)
        client: object = self._client
        method: Any = next(vars(base)["send"] for base in type(client).__mro__ if "send" in vars(base))
        return cast("Callable[..., Any]", method.__get__(client) if hasattr(method, "__get__") else method)

    @property
    def is_installed(self) -> bool:
        """Whether requests still pass through it."""
        return bool(self._attributes.get("send") == self.send)

    def set_hook(self) -> None:
        """Put the event hook before all others, or remove it if nobody listens."""
        hooks = self._client.event_hooks
        others = [hook for hook in hooks["response"] if hook != self._on_response]
        # A new list, since a request may be iterating over the old one.
        hooks["response"] = [self._on_response, *others] if self.listeners else others

    def remove(self) -> None:
        """Leave the client as it was. If somebody has replaced `send` since, they pass through unobserved."""
        self.set_hook()
        if self.is_installed:
            del self._client.send
            if self._own is not None:
                self._client.send = self._own

    def _concerned(self, request: Any) -> tuple[list[Listener], str | None]:
        """Return those whom a request concerns, and the id of the response that it is about; None for a creation."""
        url = request.url
        path: bytes = url.raw_path
        found = _PATH.fullmatch(path) if b"/responses" in path else None
        if found is None:
            return [], None
        if found["id"] is not None:
            response_id = unquote(found["id"].decode())
            return [one for one in self.listeners if one.holds(response_id)], response_id
        if request.method != "POST":
            return [], None
        concerned = [one for one in self.listeners if _is_concerned(one)]
        if not concerned or not _is_background(request):
            return [], None
        there = [one for one in concerned if one.account.is_at(url, found["api"])]
        headers = {name.lower(): value for name, value in request.headers.raw}  # httpx searches all for each one
        ours = [one for one in there if one.account.has_sent(headers)]
        if not there and self._is_first("server"):
            _log.warning(
                "a client creates responses at another server than the session's, which cannot stop them",
                extra=log_fields("other_server"),
            )
        if len(ours) < len(there) and self._is_first("account"):
            _log.warning(
                "a client creates responses with another account than the session's, which cannot stop them",
                extra=log_fields("other_account"),
            )
        return ours, None

    def _is_first(self, warning: str) -> bool:
        is_first = warning not in self._warnings
        self._warnings.add(warning)
        return is_first

    def _begin(self, request: Any, listeners: list[Listener], *, stream: bool) -> _Creation:
        creation = _Creation(listeners, is_streamed=stream)
        encodings = {name.strip().lower() for name in request.headers.get("accept-encoding", "").split(",")}
        if not encodings <= {"", "identity", "gzip"}:
            request.headers["accept-encoding"] = "gzip"  # the id has to be read from the middle of the body
        request.extensions[self._mark] = creation
        if self._on_response not in self._client.event_hooks["response"]:  # somebody has set others
            with _lock:
                self.set_hook()
        for listener in listeners:
            listener.creation_started(creation)
        return creation

    def _admit(self, creation: _Creation, observer: BodyObserver) -> list[tuple[SessionLoop, CoroutineFunction]]:
        """Tell the id to the listeners, and return what to do in their event loops before anybody else knows it."""
        works: list[tuple[SessionLoop, CoroutineFunction]] = []
        response_id = observer.response_id
        if response_id is None:
            observer.on_id = partial(self._admit_late, creation)
        elif SEGMENT.fullmatch(response_id):
            creation.response_id = response_id
            observer.on_end = partial(_leave, creation.listeners, response_id)
            works = [
                (one.session_loop, partial(one.record, response_id))
                for one in creation.listeners
                if one.admit(response_id)
            ]
        _end(creation)
        return works

    def _admit_late(self, creation: _Creation, observer: BodyObserver) -> None:
        """Do the same if the id comes late in a stream. The reader of the stream does not wait for it."""
        with _without_failure():
            for session_loop, work in self._admit(creation, observer):
                session_loop.start(work)


def _is_concerned(listener: Listener) -> bool:
    return listener.is_concerned() and listener.session_loop.is_alive


def _is_background(request: Any) -> bool:
    try:
        return bool(_BACKGROUND.search(request.content))
    except Exception:  # noqa: BLE001 - of httpx, if the body can be read only once
        return False


def _observe(response: Any, observer: BodyObserver) -> Any:
    """Let an observer look at an answer, unless it is an error. Return its new stream, if it has one."""
    if response.is_success:
        with _without_failure():
            return observed(response, observer)
    return None


def _end_of(task: "asyncio.Task[Any]") -> "asyncio.Future[None]":
    """Return a future that waits for a task and does not cancel it. It costs half as much as `asyncio.wait`."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    task.add_done_callback(wake)
    return waiter


def _take_over(context: Context, before: Context) -> None:
    """Set the variables here that an event hook or an instrumentation has set in the context of a creation."""
    for variable, value in context.items():
        if before.get(variable, _UNSET) is not value:
            variable.set(value)


def _end(creation: _Creation) -> None:
    """Tell those who expect a response that no more will come."""
    for listener in creation.listeners:
        listener.creation_ended(creation)


def _leave(listeners: Iterable[Listener], response_id: str) -> None:
    for listener in listeners:
        listener.discard(response_id)


def _abandon(creation: _Creation) -> None:
    """Give up a response whose id nobody knows."""
    if creation.response_id is not None:
        for listener in creation.listeners:
            with _without_failure():
                listener.stop_orphan(creation.response_id)


@contextmanager
def _without_failure() -> Generator[None, None, None]:
    """Log a failure that is not the client's, unless the ledger is required."""
    try:
        yield
    except LedgerError:
        raise
    except Exception as error:  # noqa: BLE001 - the client's call goes on
        _log.warning(
            "a response that a client has created may run on: %s", type(error).__name__,
            extra=log_fields("creation_failed", error=error),
        )  # fmt: skip


class _AsyncTap(_Tap):
    """Replaces the `send` of an `httpx.AsyncClient`."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._cleanups: set[asyncio.Task[None]] = set()

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request, as `httpx.AsyncClient.send` does."""
        listeners, response_id = self._concerned(request)
        if not listeners:
            return await self._real(request, stream=stream, **options)
        if response_id is not None:
            response = await self._real(request, stream=stream, **options)
            _observe(response, BodyObserver(response, partial(_leave, listeners, response_id)))
            return response
        creation = self._begin(request, listeners, stream=stream)
        if not in_asyncio():
            return await self._create(creation, request, stream=stream, options=options)
        before = copy_context()
        context = before.copy()
        task = asyncio.create_task(self._create(creation, request, stream=stream, options=options), context=context)
        try:
            await _end_of(task)
        except asyncio.CancelledError:
            for listener in listeners:
                listener.creation_orphaned(creation)
            self._clean_up(self._abandon(task, creation))
            raise
        _take_over(context, before)
        try:
            return task.result()
        finally:
            del task  # the traceback of its exception refers to this frame

    async def _create(self, creation: _Creation, request: Any, *, stream: bool, options: Mapping[str, Any]) -> Any:
        """Send the request, and read so much of the answer that the id is known."""
        response = None
        try:
            response = await self._real(request, stream=stream, **options)
            if creation.seen is None:
                await self._see(creation, response)
            if not stream:
                await response.aread()
        except BaseException:
            _end(creation)
            _abandon(creation)  # something failed after the id was seen, and nobody else has that
            if response is not None:
                await response.aclose()
            raise
        finally:
            request.extensions.pop(self._mark, None)
        return response

    async def _on_response(self, response: Any) -> None:
        """Look at the answer to a creation. This is an event hook."""
        creation = response.request.extensions.get(self._mark)
        if creation is not None and response.is_success and creation.seen is not response:
            await self._see(creation, response)

    async def _see(self, creation: _Creation, response: Any) -> None:
        creation.seen = response
        observer = BodyObserver(response)
        if not (creation.is_streamed or observer.knows_encoding):
            await response.aread()  # httpx knows more encodings
        body = _observe(response, observer)
        if body is not None:
            await body.read_ahead()
        for session_loop, work in self._admit(creation, observer):
            with _without_failure():
                await session_loop.run_async(work)

    async def _abandon(self, task: "asyncio.Task[Any]", creation: _Creation) -> None:
        """Wait for the answer to a creation whose own task was cancelled, and give up what it has created."""
        try:
            await _end_of(task)
            _abandon(creation)
        finally:
            for listener in creation.listeners:
                listener.orphan_handled(creation)
        if not task.cancelled() and task.exception() is None:
            with suppress(Exception):  # of a connection that nobody uses any more
                await task.result().aclose()

    def _clean_up(self, coroutine: Coroutine[Any, Any, None]) -> None:
        cleanup = asyncio.create_task(coroutine)
        self._cleanups.add(cleanup)
        cleanup.add_done_callback(self._cleanups.discard)


class _BlockingTap(_Tap):
    """Replaces the `send` of an `httpx.Client`."""

    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request, as `httpx.Client.send` does."""
        listeners, response_id = self._concerned(request)
        if not listeners:
            return self._real(request, stream=stream, **options)
        if response_id is not None:
            response = self._real(request, stream=stream, **options)
            _observe(response, BodyObserver(response, partial(_leave, listeners, response_id)))
            return response
        creation = self._begin(request, listeners, stream=stream)
        response = None
        try:
            response = self._real(request, stream=stream, **options)
            if creation.seen is None:
                self._see(creation, response)
            if not stream:
                response.read()
        except BaseException:  # also Ctrl-C
            _end(creation)
            _abandon(creation)
            if response is not None:
                response.close()
            raise
        finally:
            request.extensions.pop(self._mark, None)
        return response

    def _on_response(self, response: Any) -> None:
        """Look at the answer to a creation. This is an event hook."""
        creation = response.request.extensions.get(self._mark)
        if creation is not None and response.is_success and creation.seen is not response:
            self._see(creation, response)

    def _see(self, creation: _Creation, response: Any) -> None:
        creation.seen = response
        observer = BodyObserver(response)
        if not (creation.is_streamed or observer.knows_encoding):
            response.read()  # httpx knows more encodings
        body = _observe(response, observer)
        if body is not None:
            body.read_ahead()
        for session_loop, work in self._admit(creation, observer):
            with _without_failure():
                session_loop.run_blocking(work)

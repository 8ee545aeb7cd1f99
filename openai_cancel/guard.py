"""`guard`: responses that run no longer than the block that needs them."""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, cast

from openai_cancel import tracing
from openai_cancel.abandonment import AbandonmentMonitor
from openai_cancel.caller import Caller
from openai_cancel.cancellation import shielded_from_anyio, wait_through_cancellation
from openai_cancel.clients import ApiAccount, Client, http_client, is_client
from openai_cancel.errors import SessionStateError
from openai_cancel.guarded_responses import GuardedResponses
from openai_cancel.ledger_protocols import Tracker
from openai_cancel.log_events import log_fields
from openai_cancel.outcome import Outcome
from openai_cancel.retry import MAX_POLL
from openai_cancel.scope import Scope
from openai_cancel.session_loop import CoroutineFunction, SessionLoop, in_asyncio
from openai_cancel.wire import ResponseId

OnExit: TypeAlias = Literal["leave", "stop"]
"""The fate of responses if the block of a guard ends normally."""

_log = logging.getLogger("openai_cancel")


class Guard:
    """Stops responses if its block is left by an exception: an error, a timeout, a cancelled task, Ctrl-C.

    The responses are stopped first. Then the same exception is raised. While the responses are being stopped, further
    cancellations of the task are held back; they take effect afterwards. A response that could not be stopped is
    mentioned in a note of the exception. A block that ends normally leaves the responses alone, unless the guard was
    told to stop them then, too.

    If the session is closed while the block runs, the responses are stopped then, and the block goes on.

    A client that is guarded adds the responses that it creates in the background, as `AsyncSession.guard` explains.

    Guards are created by `AsyncSession.guard` and `Session.guard`.
    """

    def __init__(
        self,
        caller: Caller,
        *,
        grace: float,
        poll: float = MAX_POLL,
        on_exit: OnExit = "leave",
        max_retries: int | None = None,
        tracker: Tracker | None = None,
        monitor: AbandonmentMonitor | None = None,
        open_guards: "OpenGuards | None" = None,
        run: Callable[[CoroutineFunction], object] | None = None,
    ) -> None:
        self._caller = caller
        self._on_exit = on_exit
        self._run = run  # in the loop, for other threads
        self._tracker = tracker
        self._monitor = monitor
        self._responses = GuardedResponses(caller, grace=grace, poll=poll, max_retries=max_retries, tracker=tracker)
        self._open_guards = OpenGuards(caller.settings.base_url) if open_guards is None else open_guards
        self._clients: list[Any] = []
        self._entered = False
        self._cancelling = 0  # the number of cancellations of the task when the block began

    def __repr__(self) -> str:
        """Return the guarded ids."""
        nothing = "without a response" if self._clients else "disarmed"
        return f"<{type(self).__name__} {', '.join(self._responses.ids) or nothing}>"

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """The outcomes of the responses by id, once they were stopped, by this guard or by another process."""
        return {**self._responses.taken, **self._responses.outcomes}

    @property
    def outcome(self) -> Outcome | None:
        """The outcome of the response, or of the first one of several; None if none was stopped."""
        outcomes = self.outcomes
        return next((outcomes[name] for name in self._responses.ids if name in outcomes), None)

    @property
    def armed(self) -> bool:
        """Whether any response is guarded, or may still arrive."""
        return bool(self._responses.ids) or bool(self._responses.pending)

    @property
    def responses(self) -> GuardedResponses:
        """The responses, for `BlockingGuard`."""
        return self._responses

    @property
    def scope(self) -> Scope:
        """The run of the block, for `BlockingGuard`."""
        return self._scope

    def add(self, guarded: ResponseId | Client) -> None:
        """Guard another response, for example one that was just created, or what a client creates from now on.

        Args:
            guarded: an id, an object that has it as `.id`, or a client.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
            ConfigurationError: the client cannot be guarded, or its responses cannot be stopped by the session.
        """
        if is_client(guarded):
            self._add_client(guarded)
            return
        name = self._caller.identify(cast("ResponseId", guarded))
        if self._tracker and self._entered and name not in self._responses.ids:
            self._tracker.begin_soon(name)
        self._responses.ids[name] = self._caller.clock.monotonic()

    def _add_client(self, client: object) -> None:
        inner = http_client(client)
        ApiAccount.from_settings(self._caller.settings).check(client)
        self._clients.append(inner)
        if self._entered:
            self._scope.add(self._clients)

    def disarm(self) -> None:
        """Stop guarding the responses so far, and let them run on. Later ones are guarded again."""
        if self._tracker and self._entered:
            self._tracker.release_soon(self._responses.unsettled())
        self._responses.ids.clear()

    def _lets_run(self, error: BaseException | None) -> bool:
        return error is None and self._on_exit == "leave"

    def end_at_once(self, error: BaseException | None) -> bool:
        """End the block, and return True, if nothing has to be stopped or written. Works in any thread.

        It is for `BlockingGuard`.
        """
        responses = self._responses
        if self.armed and (not self._lets_run(error) or responses.is_tracked or responses.orphans):
            return False
        self._entered = False
        self._open_guards.discard(responses)
        self._scope.close()
        return True

    async def __aenter__(self) -> Self:
        self._caller.transport.check_open()  # a guard that could stop nothing refuses its block
        if self._entered:
            raise SessionStateError("The block of this guard is still running: use another guard for another block.")
        self._entered = True
        self._cancelling = cast("asyncio.Task[Any]", asyncio.current_task()).cancelling()
        self._responses.begin()
        self._scope = Scope(self._caller.settings, SessionLoop(asyncio.get_running_loop(), self._run), self._responses)
        self._open_guards.add(self._responses)
        try:
            self._open_guards.check_open()
            if self._tracker and self._responses.ids:
                await self._tracker.begin([*self._responses.ids])
            self._scope.enter()
            self._scope.add(self._clients)
        except BaseException as error:  # there will be no block that could be left
            await self._leave(error)
            raise
        if self._monitor:
            self._monitor.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._run is None:  # otherwise the caller is in another thread
            self._scope.check_context()
        if self._monitor is None or not in_asyncio():
            await self._leave(error)
            return
        abandonment, cancellation = await self._monitor.end(error)
        await self._leave(abandonment or error, cancellation)
        if abandonment is not None:
            abandonment.outcome = self.outcome
            raise abandonment from error

    async def _leave(self, error: BaseException | None, cancellation: asyncio.CancelledError | None = None) -> None:
        """End the block.

        Args:
            error: the exception that ends it, or None.
            cancellation: a cancellation of the task that has been held back.
        """
        self._entered = False
        responses = self._responses
        lets_run = self._lets_run(error)
        if not lets_run:
            self._scope.fail()
        try:
            if lets_run and responses.orphans and in_asyncio():
                cancellation = await responses.finish() or cancellation
            if lets_run and not responses.under_way:
                self._open_guards.discard(responses)  # before any await: closing the session must not stop them
                self._scope.close()
                if self._tracker and (names := responses.left_running()):
                    await self._tracker.release(names)
            elif (responses.ids or responses.pending) and in_asyncio():
                cancellation = await responses.run() or cancellation
                responses.report(error)
                responses.raise_exit(error)
            elif responses.ids:
                _log.warning(
                    "%r could not stop its responses: its event loop is closed", self,
                    extra=log_fields("loop_closed", affected=len(responses.ids)),
                )  # fmt: skip
        finally:
            self._open_guards.discard(responses)
            self._scope.close()
        if cancellation is not None and not isinstance(error, asyncio.CancelledError):
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            asyncio.get_running_loop().call_soon(_cancel_again, task, self._cancelling, cancellation.args)


class OpenGuards:
    """The guards of a session whose blocks run. It is a `Holder` of the metrics.

    Attributes:
        kind: `guard`.
        base_url: the address of the server.
    """

    def __init__(self, base_url: str) -> None:
        self._guarded: set[GuardedResponses] = set()
        self._closing = False
        self.kind: str = "guard"
        self.base_url: str = base_url

    @property
    def held(self) -> int:
        """The number of guarded responses. It can be read in any thread."""
        return sum(len(responses.ids) for responses in [*self._guarded])

    def add(self, responses: GuardedResponses) -> None:
        """Add a guard whose block begins."""
        self._guarded.add(responses)
        if tracing.has_metrics():
            from openai_cancel import metrics  # not imported unless metrics are used

            metrics.observe(self)

    def discard(self, responses: GuardedResponses) -> None:
        """Remove a guard whose block has ended. Can be called from any thread."""
        self._guarded.discard(responses)

    def check_open(self) -> None:
        """Make sure that the session is not about to close.

        Raises:
            SessionStateError: it is.
        """
        if self._closing:
            raise SessionStateError("The session is being closed: create another one.")

    async def close(self) -> asyncio.CancelledError | None:
        """Stop the responses of all guards, and refuse new ones.

        Cancellations of this task do not end the wait; the last one is returned, for the caller to raise.
        """
        self._closing = True
        cancellation: asyncio.CancelledError | None = None
        with shielded_from_anyio():
            # A loop that shuts down may cancel these tasks before they begin. New guards stop their responses, too.
            while open_ones := [responses for responses in [*self._guarded] if not responses.closed]:
                tasks = [asyncio.create_task(responses.close()) for responses in open_ones]
                cancellation = await wait_through_cancellation(*tasks) or cancellation
        return cancellation


def _cancel_again(task: "asyncio.Task[Any]", cancelling: int, arguments: tuple[Any, ...]) -> None:
    """Deliver the cancellation that was held back, unless its sender has undone it, as `asyncio.timeout` does."""
    if task.cancelling() > cancelling and not task.done():
        task.uncancel()
        task.cancel(*arguments)

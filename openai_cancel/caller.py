"""`Caller`: one call of the API, with its retries. Everything that a session offers is built on it.

See https://platform.openai.com/docs/api-reference/responses.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self, TypedDict, TypeVar

import attrs

from openai_cancel.checks import check_count, check_seconds
from openai_cancel.clock import Clock
from openai_cancel.errors import APIConnectionError, APITimeoutError, OpenAICancelError, SessionStateError
from openai_cancel.log_events import log_fields
from openai_cancel.models import Response
from openai_cancel.models.response import TERMINAL, record_call
from openai_cancel.outcome import OnOutcome, reports_state
from openai_cancel.pool import Attempt
from openai_cancel.rate_limiter import RateLimiter
from openai_cancel.retry import RetryPolicy
from openai_cancel.settings import Settings
from openai_cancel.transport import Transport
from openai_cancel.wire import Answer, Page, Receiver, Request, ResponseId, Wire, decode, decode_page

if TYPE_CHECKING:
    from openai_cancel.outcome_hook import OutcomeHook

_E = TypeVar("_E", bound=BaseException)
_Result = TypeVar("_Result", Response, Page)

_log = logging.getLogger("openai_cancel")
_LOGGED_STATUSES = TERMINAL | {"queued", "in_progress", "cancelling"}  # another one could be any text


class RequestOptions(TypedDict, total=False):
    """The keyword arguments that `guard`, `wait` and `Ledger.sweep` pass to each request, for code that passes them on.

    See `AsyncSession.cancel` for their meaning.
    """

    max_retries: int | None
    headers: Mapping[str, str] | None
    query: Mapping[str, str] | None


class CallOptions(RequestOptions, total=False):
    """The keyword arguments of `cancel` and `retrieve`, for code that passes them on."""

    timeout: float | None
    deadline: float | None


@attrs.define(eq=False)
class EndNotifier:
    """Tells watches which responses the session has seen to end.

    Attributes:
        listeners: are called with the id.
    """

    listeners: tuple[Callable[[str], None], ...] = ()

    def add(self, listener: Callable[[str], None]) -> None:
        """Call a function with the id of each response that ends."""
        self.listeners += (listener,)

    def remove(self, listener: Callable[[str], None]) -> None:
        """Stop calling a function."""
        self.listeners = tuple(other for other in self.listeners if other != listener)

    def notify(self, response_id: ResponseId | None) -> None:
        """Tell all listeners that a response has ended."""
        for listener in self.listeners:
            listener(str(getattr(response_id, "id", response_id)))


@attrs.frozen(kw_only=True)
class Caller:
    """Makes calls of the API, each with its retries.

    A call waits for its turn, signs the request, sends it, decodes the answer, notes the result, and decides whether
    to try again.

    A session creates its own, `session.caller`, and takes no other. `with_options` and `with_limiter` return copies of
    it. To see or change requests, give the session a `client_session` with middlewares.

    Attributes:
        settings: the settings of the session.
        wire: builds the requests.
        policy: the limits of a call.
        timeout: seconds that one attempt may take, from connect to the last byte of the body.
        transport: sends the requests.
        clock: the clock and the source of randomness.
        limiter: limits the rate of requests, together with other callers; None for no limit.
        is_urgent: whether its requests stop responses, and so go before others of the same limiter.
        is_repeated: whether the code that makes a call repeats it if it fails.
        endings: tells others which responses have ended.
        hook: calls the session's `on_outcome`; or None.
    """

    settings: Settings
    wire: Wire
    policy: RetryPolicy
    timeout: float
    transport: Transport
    clock: Clock
    limiter: RateLimiter | None = None
    is_urgent: bool = False
    is_repeated: bool = False
    endings: EndNotifier = attrs.field(factory=EndNotifier)
    hook: "OutcomeHook | None" = None

    @classmethod
    def from_settings(cls, settings: Settings, transport: Transport, wire: Wire, clock: Clock) -> Self:
        """Make a caller with the limits of the settings."""
        policy = RetryPolicy(settings.max_retries, settings.deadline)
        return cls(
            settings=settings,
            wire=wire,
            policy=policy,
            timeout=settings.timeout,
            transport=transport,
            clock=clock,
            hook=None if settings.on_outcome is None else _hook(settings.on_outcome),
        )

    def with_options(
        self,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Self:
        """Return a caller with other limits, or with extra headers and query parameters. None changes nothing.

        Raises:
            ConfigurationError: an option cannot work.
        """
        caller = self
        if timeout is not None:
            caller = attrs.evolve(caller, timeout=check_seconds("timeout", timeout))
        if deadline is not None or max_retries is not None:
            policy = self.policy.limited(
                deadline=None if deadline is None else check_seconds("deadline", deadline),
                max_retries=None if max_retries is None else check_count("max_retries", max_retries),
            )
            caller = attrs.evolve(caller, policy=policy)
        if headers is not None or query is not None:
            caller = attrs.evolve(caller, wire=self.wire.with_options(headers=headers, query=query))
        return caller

    def with_limiter(self, limiter: RateLimiter, *, is_urgent: bool = False) -> Self:
        """Return a caller whose requests have a limited rate."""
        return attrs.evolve(self, limiter=limiter, is_urgent=is_urgent)

    def repeated(self) -> Self:
        """Return a caller for code that repeats failed calls itself."""
        return attrs.evolve(self, is_repeated=True)

    def identify(self, response_id: ResponseId) -> str:
        """Return the id as a string.

        Raises:
            InvalidResponseIdError: the id cannot be sent.
        """
        self.wire.request("GET", response_id)
        return str(getattr(response_id, "id", response_id))

    async def cancel(
        self, response_id: ResponseId, *, deadline: float | None = None, max_retries: int | None = None
    ) -> Response:
        """Cancel a response: `POST /responses/{response_id}/cancel`. For the errors, see `AsyncSession.cancel`.

        Args:
            response_id: the id, or an object that has it as `.id`.
            deadline: seconds that all attempts may take together, instead of the policy's.
            max_retries: the number of attempts after the first one, instead of the policy's.
        """
        self.transport.check_open()
        request = self.wire.request("POST", response_id, "/cancel")
        return await self._call(request, response_id, decode, deadline=deadline, max_retries=max_retries)

    async def retrieve(
        self, response_id: ResponseId, *, deadline: float | None = None, max_retries: int | None = None
    ) -> Response:
        """Retrieve a response: `GET /responses/{response_id}`. For the errors, see `AsyncSession.retrieve`.

        Args:
            response_id: the id, or an object that has it as `.id`.
            deadline: as for `cancel`.
            max_retries: as for `cancel`.
        """
        self.transport.check_open()
        request = self.wire.request("GET", response_id)
        return await self._call(request, response_id, decode, deadline=deadline, max_retries=max_retries)

    async def list_page(self, parameters: Mapping[str, str]) -> Page:
        """Return a page of the server's list of responses: `GET /responses`.

        Args:
            parameters: the parameters of the page, such as `limit` and `after`.

        Raises:
            UnsupportedError: the server has no such list.
            APIError: the request failed, as for `AsyncSession.retrieve`.
        """
        self.transport.check_open()
        return await self._call(self.wire.page(parameters), None, decode_page)

    async def listen(
        self, response_id: ResponseId, receiver: Receiver, *, after: int | None = None
    ) -> Response | OpenAICancelError:
        """Ask once for the events of a response: `GET /responses/{response_id}?stream=true`.

        The timeout of an attempt holds until the stream begins.

        Args:
            response_id: the id, or an object that has it as `.id`.
            receiver: takes the stream, if it accepts the answer.
            after: the number of the event after which the stream begins; None for all.

        Returns:
            The response, if the server answers with it instead of a stream; otherwise the reason why there is no
            stream, or no more of it.

        See https://platform.openai.com/docs/api-reference/responses/get.
        """
        self.transport.check_open()
        request = self.wire.stream_request(response_id, after)
        if not self.transport.begin_stream():
            failure = APIConnectionError("No connection is free for a stream: at most half of them are for that.")
            failure.permanent = True
            return failure
        try:
            result = await self._attempt(request, decode, self.policy, left=math.inf, is_last=False, receiver=receiver)
        finally:
            self.transport.end_stream()
        self._note(request, response_id, result, 0.0, 1)
        self._tell_end(response_id, result)
        return result

    async def _call(
        self,
        request: Request,
        response_id: ResponseId | None,
        read: Callable[[Answer, Request], _Result],
        *,
        deadline: float | None = None,
        max_retries: int | None = None,
    ) -> _Result:
        transport, clock = self.transport, self.clock
        policy = self.policy
        if deadline is not None or max_retries is not None:
            policy = policy.limited(deadline=deadline, max_retries=max_retries)
        began = clock.monotonic()
        attempts = 0
        while True:
            sent = await self._turn(began + policy.deadline, attempts)
            attempts += 1
            left = policy.deadline - (clock.monotonic() - began)
            is_last = attempts > policy.max_retries and not self.is_repeated
            attempt = self._attempt(request, read, policy, left=left, is_last=is_last)
            if self.limiter is None:
                result = await attempt
            else:
                with self.limiter.silence.sending():
                    result = await attempt
            self._note(request, response_id, result, sent, attempts)
            if not isinstance(result, OpenAICancelError):
                if self.endings.listeners:
                    self._tell_end(response_id, result)
                return result
            elapsed = clock.monotonic() - began
            delay = policy.delay(result, attempts=attempts, elapsed=elapsed, random=clock.random())
            try:
                if delay is None:
                    raise result
            finally:
                del result  # its traceback refers to this frame, which would refer to it
            await clock.sleep(delay)
            transport.check_open()

    async def _turn(self, until: float, attempts: int) -> float:
        """Wait until the limiter allows a request, and return the time."""
        if self.limiter is None:
            return 0.0
        try:
            return await self.limiter.acquire(until, is_urgent=self.is_urgent)
        except APITimeoutError as error:
            error.attempts = attempts
            raise

    def _tell_end(self, response_id: ResponseId | None, result: Response | Page | OpenAICancelError) -> None:
        if isinstance(result, Response) and result.is_terminal and reports_state(result):
            self.endings.notify(response_id)

    async def _attempt(
        self,
        request: Request,
        read: Callable[[Answer, Request], _Result],
        policy: RetryPolicy,
        *,
        left: float,
        is_last: bool,
        receiver: Receiver | None = None,
    ) -> _Result | OpenAICancelError:
        """Make one attempt in the time that is left, and return what was read from the answer, or the error."""
        seconds = min(self.timeout, left)
        attempt = Attempt(self.transport.scheduler, seconds, reuse_limit=math.inf if is_last else left / 2)
        try:
            with attempt:
                if callable(self.settings.api_key):
                    request = self.wire.sign(request, await self.settings.ask_for_key())
                answers = [await self.transport.send(request, attempt, receiver)]
                if attempt.is_lifted:
                    return APIConnectionError("The stream has ended.")
                return read(answers.pop(), request)  # the locals of a traceback would show the answer
        except OpenAICancelError as error:
            return error
        except asyncio.CancelledError as error:
            _drop_frames(error)
            task = asyncio.current_task()
            if self.transport.pool_is_closed and task and not task.cancelling():
                # Nobody has cancelled this task: closing the pool cancels the name resolution that it waits for.
                return SessionStateError("The session was closed while the call was under way.")
            raise
        except TimeoutError as error:
            if not attempt.expired:  # the key function raised it
                raise
            if attempt.reused_pool is not None:
                attempt.reused_pool.note_silence()
            failure = APITimeoutError(_describe(attempt, self.timeout, policy.deadline))
            failure.__cause__ = _drop_frames(error)
            return failure

    def _note(
        self,
        request: Request,
        response_id: ResponseId | None,
        result: Response | Page | OpenAICancelError,
        sent: float,
        attempts: int,
    ) -> None:
        """Note the attempt in the result, in the limiter, and in the log."""
        error: OpenAICancelError | None = None
        if isinstance(result, Response):
            record_call(result, attempts=attempts)
        elif isinstance(result, OpenAICancelError):
            error = result
            error.attempts = attempts
        if self.limiter is not None:
            self.limiter.note(sent, error)
        if _log.isEnabledFor(logging.DEBUG):
            _log_attempt(request, response_id, result, attempts)


def _hook(on_outcome: OnOutcome) -> "OutcomeHook":
    from openai_cancel.outcome_hook import OutcomeHook  # keeps the import of the package fast

    return OutcomeHook(on_outcome)


def _drop_frames(error: _E) -> _E:
    """Drop the frames of an error and of its cause: those of aiohttp show the password of a proxy.

    Its context may be an exception that the caller handles, which keeps its frames.
    """
    for link in (error, error.__cause__):
        if link is not None:
            link.__traceback__ = None
    return error


def _describe(attempt: Attempt, timeout: float, deadline: float) -> str:
    """Return what an attempt has waited for in vain."""
    if attempt.ends_early:
        return f"No answer within {round(attempt.reuse_limit, 3):g} s on a reused connection, which may be dead."
    within = f"{timeout:g} s" if attempt.seconds == timeout else f"the deadline of {round(deadline, 3):g} s"
    return f"No complete answer within {within}."


def _log_attempt(
    request: Request, response_id: ResponseId | None, result: Response | Page | OpenAICancelError, attempts: int
) -> None:
    """Log an attempt. Of an error only the class and the status are logged, since its text comes from the server."""
    status = getattr(result, "status", None)
    if isinstance(result, Response):
        said = str(status) if status in _LOGGED_STATUSES else "another status"
    elif isinstance(result, Page):
        said = f"{len(result.responses)} responses"
    else:
        said = f"{type(result).__name__} {status}" if status else type(result).__name__
    call = "cancel" if request.method == "POST" else "retrieve"
    call, name = ("list", "responses") if response_id is None else (call, getattr(response_id, "id", response_id))
    request_id: str | None = getattr(result, "request_id", None)
    _log.debug(
        "%s %s: attempt %d: %s (request id: %s)", call, name, attempts, said, request_id,
        extra=log_fields(
            "attempt",
            response_id=None if response_id is None else str(name),
            attempts=attempts,
            request_id=request_id,
            error=result,
        ),
    )  # fmt: skip

"""`stop`: cancel a response, and make sure that it is over, whichever server holds it."""

import logging

import attrs

from openai_cancel import tracing
from openai_cancel.caller import Caller
from openai_cancel.errors import APIError, APITimeoutError, AuthenticationError, OpenAICancelError, detached
from openai_cancel.models import Response
from openai_cancel.outcome import STOPPED_VERDICTS, Outcome, Verdict, judge, may_have_acted
from openai_cancel.retry import is_transient, poll_delay

CANCEL_SHARE = 0.75
"""The share of the remaining time that a cancel may take. The rest is for a look, in case no answer comes."""

CANCEL_EVERY = 4
"""One look in this many cancels again: some servers forget a cancel, and none objects to another one."""

LEAST_TIME = 0.5
"""Seconds that must remain for another request."""

_log = logging.getLogger("openai_cancel")


async def stop(
    caller: Caller, response_id: str, *, deadline: float, confirm: float | None = None, dry_run: bool = False
) -> Outcome:
    """Stop a response, and report its fate. For the arguments, see `AsyncSession.stop`."""
    work = _Stop(caller=caller, response_id=response_id, deadline=deadline, confirm=confirm, dry_run=dry_run)
    if not tracing.is_active():
        return await work.run()
    with tracing.stop_span(response_id, caller.settings.base_url, dry_run=dry_run) as span:
        return span.end(await work.run())


@attrs.define(kw_only=True)
class _Stop:
    """A `stop` that is under way."""

    caller: Caller
    response_id: str
    deadline: float
    confirm: float | None
    dry_run: bool

    _began: float = attrs.field(init=False)
    _attempts: int = 0
    _response: Response | None = None
    _request_id: str | None = None
    _reached: bool = False
    """Whether a cancel may have had an effect: one was accepted, or had no answer."""

    async def run(self) -> Outcome:
        """Stop the response, if that is possible before the deadline."""
        self._began = self.caller.clock.monotonic()
        verdict, error = await (self._look_only() if self.dry_run else self._settle())
        if self.confirm is not None and verdict is Verdict.CANCELLED:
            verdict, error = await self._confirm(self.confirm)
            if verdict is Verdict.STILL_RUNNING:
                verdict, error = await self._settle()
                if verdict is Verdict.CANCELLED:
                    verdict, error = await self._confirm(self.confirm)
        outcome = Outcome(
            response_id=self.response_id,
            verdict=verdict,
            response=self._response,
            error=error,
            attempts=self._attempts,
            elapsed=self.caller.clock.monotonic() - self._began,
            request_id=self._request_id,
        )
        _log.info(
            "%s: %s (attempts: %d, %.3f s, request id: %s)",
            outcome.response_id, outcome.verdict, outcome.attempts, outcome.elapsed, outcome.request_id,
        )  # fmt: skip
        return outcome

    async def _settle(self) -> tuple[Verdict, OpenAICancelError | None]:
        """Cancel, and look until the state decides or the time is over."""
        clock = self.caller.clock
        refusal: OpenAICancelError | None = None
        error: OpenAICancelError | None = None
        looks = 0
        while True:
            # After a failed look, cancel again: an accepted cancel reports the state, too.
            if error is not None or refusal is not None or looks % CANCEL_EVERY == 0:
                error = refusal = await self._cancel()
                self._reached = self._reached or may_have_acted(refusal)
                if refusal is not None and not isinstance(refusal, AuthenticationError):
                    # The cancel has already been retried, so one look is enough.
                    error = await self._retrieve(max_retries=0 if is_transient(refusal) else None)
            else:
                error = await self._retrieve()
            verdict = judge(self._response, refusal=refusal, error=error, reached=self._reached)
            if verdict is not None:
                return verdict, None if verdict in STOPPED_VERDICTS else error or refusal
            left = self._left()
            if left < LEAST_TIME:
                return Verdict.UNKNOWN if self._response is None else Verdict.STILL_RUNNING, error or refusal
            asked: float | None = getattr(error or refusal or self._response, "retry_after", None)
            # The looks come closer together towards the deadline, so that the last one is close to it.
            await clock.sleep(min(poll_delay(looks, asked=asked, random=clock.random()), left / 2))
            looks += 1

    async def _look_only(self) -> tuple[Verdict, OpenAICancelError | None]:
        """Report the state without a cancel, for a dry run."""
        error = await self._retrieve()
        verdict = judge(self._response, refusal=error, error=error, reached=False)
        return verdict or (Verdict.STILL_RUNNING if error is None else Verdict.UNKNOWN), error

    async def _confirm(self, seconds: float) -> tuple[Verdict, OpenAICancelError | None]:
        """Look again whether a cancelled response has stayed cancelled. If the look fails, the verdict stands."""
        await self.caller.clock.sleep(min(seconds, self._left() / 2))
        error = await self._retrieve()
        if error is not None:
            return Verdict.CANCELLED, error
        return judge(self._response, refusal=None, error=None, reached=True) or Verdict.STILL_RUNNING, None

    async def _cancel(self) -> OpenAICancelError | None:
        """Cancel in a share of the remaining time, and return the error, if there is one."""
        left = self._left() * CANCEL_SHARE
        if left <= 0:
            return self._too_late()
        try:
            self._response = await self.caller.cancel(self.response_id, deadline=left)
        except APIError as error:
            self._count(error)
            return detached(error)
        self._count(self._response)
        return None

    async def _retrieve(self, *, max_retries: int | None = None) -> OpenAICancelError | None:
        """Look in the remaining time, and return the error, if there is one."""
        left = self._left()
        if left <= 0:
            return self._too_late()
        try:
            self._response = await self.caller.retrieve(self.response_id, deadline=left, max_retries=max_retries)
        except APIError as error:
            self._count(error)
            return detached(error)
        self._count(self._response)
        return None

    def _count(self, answer: Response | APIError) -> None:
        """Count the attempts of an answer, and keep its request id."""
        self._attempts += answer.attempts
        self._request_id = getattr(answer, "request_id", None)

    def _too_late(self) -> APITimeoutError:
        return APITimeoutError(f"The deadline of {self.deadline:g} s has passed.")

    def _left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - (self.caller.clock.monotonic() - self._began)

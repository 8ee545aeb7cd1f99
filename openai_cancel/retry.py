"""Whether to try again, and when. Pure: the clock and random numbers are arguments."""

from http import HTTPStatus
from typing import Self

import attrs

from openai_cancel.errors import (
    APIConnectionError,
    APIStatusError,
    InternalServerError,
    OpenAICancelError,
    RateLimitError,
)

INITIAL_DELAY = 0.5
MAX_DELAY = 8.0
MAX_RETRY_AFTER = 60.0

MIN_POLL = 0.25
"""The shortest time between two looks, in seconds."""

MAX_POLL = 60.0
"""The maximum time between two polls, in seconds, unless the caller sets another one."""

FINAL_POLL_TIME = 2.0
"""Seconds for one more look after a limit: if the process was frozen, the response may have ended meanwhile."""

POLL_SHARE = 0.02
"""The time between two looks, as a share of the age of the response."""

LATE_SPREAD = 0.5
"""Seconds by which the time between two looks varies, once it has reached `MAX_DELAY`."""


@attrs.frozen
class RetryPolicy:
    """The limits of a call.

    Attributes:
        max_retries: the number of attempts after the first one.
        deadline: seconds that all attempts and the waits between them may take.
    """

    max_retries: int
    deadline: float

    def limited(self, *, deadline: float | None, max_retries: int | None) -> Self:
        """Return a policy with other limits. None changes nothing."""
        return type(self)(
            self.max_retries if max_retries is None else max_retries, self.deadline if deadline is None else deadline
        )

    def delay(self, error: OpenAICancelError, *, attempts: int, elapsed: float, random: float) -> float | None:
        """Return the seconds to wait before the next attempt, or None to give up.

        The wait is the one that the server asks for, up to a minute, or exponential back-off with full jitter
        (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). A wait that would exceed the
        deadline is not started.

        Args:
            error: the error of the last attempt.
            attempts: the number of attempts so far.
            elapsed: seconds since the first attempt began.
            random: a number from 0 up to 1.
        """
        if attempts > self.max_retries or not is_transient(error):
            return None
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if asked is None:
            delay = random * min(MAX_DELAY, INITIAL_DELAY * 2 ** min(attempts - 1, 10))
        else:
            delay = min(asked, MAX_RETRY_AFTER)
        return delay if elapsed + delay < self.deadline else None


def poll_delay(looks: int, *, asked: float | None, random: float, age: float = 0.0, longest: float = MAX_POLL) -> float:
    """Return the seconds to wait before the next look at a response that is still running.

    The wait is the one that the server asks for, from a quarter of a second on. Otherwise it is exponential back-off up
    to 8 seconds, half of which is random, and then 2 % of the age. It is never longer than `longest`.

    Args:
        looks: the number of looks after the first one.
        asked: the `retry-after` of the last answer in seconds, or None.
        random: a number from 0 up to 1.
        age: seconds since the first look.
        longest: the longest wait in seconds.
    """
    if asked is not None:
        return min(max(asked, MIN_POLL), longest)  # 0 would be a busy loop
    backoff: float = min(MAX_DELAY, INITIAL_DELAY * 2 ** min(looks, 10))
    delay = min(max(backoff, POLL_SHARE * age), longest)
    # Waits that began together drift apart while they are short. Later, chance would only add requests.
    spread = delay / 2 if delay < MAX_DELAY else LATE_SPREAD
    return delay - (1 - random) * spread


def is_transient(error: OpenAICancelError) -> bool:
    """Return whether the same request may succeed later.

    The server's `x-should-retry` decides, if it is sent. A 409 is final, because here it means "cannot be cancelled".
    So are a 429 for a used-up quota, and a 501, because the server does not implement the call.
    """
    if isinstance(error, APIConnectionError):
        return not error.permanent
    if not isinstance(error, APIStatusError):
        return False
    if error.should_retry is not None:
        return error.should_retry
    if isinstance(error, RateLimitError):
        # Proxies move the code into their message.
        return "insufficient_quota" not in (error.code, error.type) and "insufficient_quota" not in error.message
    return isinstance(error, InternalServerError) or error.status == HTTPStatus.REQUEST_TIMEOUT

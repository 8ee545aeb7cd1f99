"""Whether to try again, and when. Pure: no clock, no I/O, no randomness of its own."""

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
REQUEST_TIMEOUT = 408


@attrs.frozen
class RetryPolicy:
    """How often to retry, and for how long.

    Attributes:
        max_retries: attempts after the first one.
        deadline: seconds that all attempts and the waits between them may take.
    """

    max_retries: int
    deadline: float

    def delay(self, error: OpenAICancelError, *, attempts: int, elapsed: float, random: float) -> float | None:
        """Seconds to wait before the next attempt, or None to give up.

        The wait is what the server asks for, up to a minute; else exponential back-off with full jitter
        (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). A wait that would cross the
        deadline is not begun.

        Args:
            error: what the last attempt failed with.
            attempts: how many were made.
            elapsed: seconds since the first began.
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


def poll_delay(looks: int, *, asked: float | None, random: float) -> float:
    """Seconds to wait before the next look at what is not over yet.

    What the server asks for, from a quarter of a second to a minute; else exponential back-off, of which a half is left
    to chance.

    Args:
        looks: how many there were since the first.
        asked: the last answer's `retry-after` in seconds, or None.
        random: a number from 0 up to 1.
    """
    if asked is not None:
        return min(max(asked, INITIAL_DELAY / 2), MAX_RETRY_AFTER)  # "at once" would be a spin
    delay: float = min(MAX_DELAY, INITIAL_DELAY * 2 ** min(looks, 10))
    return delay * (1 + random) / 2


def is_transient(error: OpenAICancelError) -> bool:
    """Whether the same request may fare better later.

    The server's `x-should-retry` decides where it is sent. A 409 does not change by waiting: here it means "cannot be
    cancelled". Nor does a quota that is used up, although it comes as a 429.
    """
    if isinstance(error, APIConnectionError):
        return not error.permanent
    if not isinstance(error, APIStatusError):
        return False
    if error.should_retry is not None:
        return error.should_retry
    if isinstance(error, RateLimitError):
        # Proxies rewrap the code into their message.
        return "insufficient_quota" not in (error.code, error.type) and "insufficient_quota" not in error.message
    return isinstance(error, InternalServerError) or error.status == REQUEST_TIMEOUT

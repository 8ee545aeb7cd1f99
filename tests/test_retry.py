"""Whether to try again, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_cancel.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    ConflictError,
    InternalServerError,
    OpenAICancelError,
    RateLimitError,
    ResponseDecodeError,
)
from openai_cancel.retry import MAX_DELAY, MAX_RETRY_AFTER, RetryPolicy, is_transient

POLICY = RetryPolicy(max_retries=4, deadline=60.0)


def status(kind: type[APIStatusError] = InternalServerError, number: int = 500, message: str = "No.", **more):
    return kind(message, status=number, headers={}, body=b"", **more)


def permanent() -> APIConnectionError:
    error = APIConnectionError("not trusted")
    error.permanent = True
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (APIConnectionError("reset"), True),
        (permanent(), False),
        (APITimeoutError("late"), True),
        (status(), True),
        (status(number=503), True),
        (status(APIStatusError, 408), True),
        (status(RateLimitError, 429), True),
        (status(RateLimitError, 429, code="insufficient_quota"), False),
        (status(RateLimitError, 429, type="insufficient_quota"), False),
        (status(RateLimitError, 429, 'OpenAIException - {"code": "insufficient_quota"}'), False),
        (status(RateLimitError, 429, should_retry=False), False),
        (status(ConflictError, 409), False),
        (status(ConflictError, 409, should_retry=True), True),
        (status(number=500, should_retry=False), False),
        (status(APIStatusError, 302), False),
        (status(APIStatusError, 400), False),
        (ResponseDecodeError("no JSON", status=200, headers={}, body=b"", request_id=None), False),
        (ConfigurationError("no key"), False),
    ],
)
def test_what_is_tried_again(error: OpenAICancelError, expected: bool) -> None:  # noqa: FBT001
    assert is_transient(error) is expected
    assert (POLICY.delay(error, attempts=1, elapsed=0, random=0.5) is not None) is expected


def test_back_off_doubles_up_to_a_limit() -> None:
    patient = RetryPolicy(max_retries=2000, deadline=1e9)
    delays = [patient.delay(status(), attempts=n, elapsed=0, random=1.0) for n in (1, 2, 3, 4, 5, 6, 1999)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, MAX_DELAY, MAX_DELAY]


def test_jitter_is_full() -> None:
    assert POLICY.delay(status(), attempts=3, elapsed=0, random=0.0) == 0.0
    assert POLICY.delay(status(), attempts=3, elapsed=0, random=0.25) == 0.5


def test_the_server_may_say_how_long_up_to_a_minute() -> None:
    patient = RetryPolicy(max_retries=1, deadline=1e9)
    assert patient.delay(status(retry_after=7.5), attempts=1, elapsed=0, random=0.0) == 7.5
    assert patient.delay(status(retry_after=0.0), attempts=1, elapsed=0, random=1.0) == 0.0
    assert patient.delay(status(retry_after=86400.0), attempts=1, elapsed=0, random=0.0) == MAX_RETRY_AFTER


def test_it_gives_up_after_the_retries() -> None:
    assert POLICY.delay(status(), attempts=4, elapsed=0, random=0.0) == 0.0
    assert POLICY.delay(status(), attempts=5, elapsed=0, random=0.0) is None
    assert RetryPolicy(0, 60).delay(status(), attempts=1, elapsed=0, random=0.0) is None


def test_a_wait_that_would_cross_the_deadline_is_not_begun() -> None:
    assert POLICY.delay(status(retry_after=10.0), attempts=1, elapsed=49.9, random=0.0) == 10.0
    assert POLICY.delay(status(retry_after=10.0), attempts=1, elapsed=50.0, random=0.0) is None
    assert POLICY.delay(status(), attempts=1, elapsed=60.0, random=0.0) is None


@given(
    attempts=st.integers(1, 10**6),
    elapsed=st.floats(0, 1e6),
    random=st.floats(0, 1, exclude_max=True),
    retry_after=st.none() | st.floats(0, 1e12),
)
def test_a_delay_is_never_negative_nor_beyond_the_deadline(attempts, elapsed, random, retry_after) -> None:
    policy = RetryPolicy(max_retries=10**6, deadline=600.0)
    delay = policy.delay(status(retry_after=retry_after), attempts=attempts, elapsed=elapsed, random=random)
    assert delay is None or (delay >= 0 and elapsed + delay < 600.0)

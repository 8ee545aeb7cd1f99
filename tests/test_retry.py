"""`RetryPolicy`: whether a failed attempt is retried, and after how many seconds."""

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
    UnsupportedError,
)
from openai_cancel.retry import INITIAL_DELAY, MAX_DELAY, MAX_RETRY_AFTER, RetryPolicy, is_transient, poll_delay

POLICY = RetryPolicy(max_retries=4, deadline=60.0)


def status_error(kind: type[APIStatusError] = InternalServerError, number: int = 500, message: str = "No.", **more):
    return kind(message, status=number, headers={}, body=b"", **more)


def permanent_error() -> APIConnectionError:
    error = APIConnectionError("not trusted")
    error.permanent = True
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (APIConnectionError("reset"), True),
        (permanent_error(), False),
        (APITimeoutError("late"), True),
        (status_error(), True),
        (status_error(number=503), True),
        (status_error(APIStatusError, 408), True),
        (status_error(RateLimitError, 429), True),
        (status_error(RateLimitError, 429, code="insufficient_quota"), False),
        (status_error(RateLimitError, 429, type="insufficient_quota"), False),
        (status_error(RateLimitError, 429, 'OpenAIException - {"code": "insufficient_quota"}'), False),
        (status_error(RateLimitError, 429, should_retry=False), False),
        (status_error(ConflictError, 409), False),
        (status_error(ConflictError, 409, should_retry=True), True),
        (status_error(number=500, should_retry=False), False),
        (status_error(UnsupportedError, 405), False),
        (status_error(UnsupportedError, 501), False),
        (status_error(APIStatusError, 302), False),
        (status_error(APIStatusError, 400), False),
        (ResponseDecodeError("no JSON", status=200, headers={}, body=b"", request_id=None), False),
        (ConfigurationError("no key"), False),
    ],
)
def test_an_error_is_retried_only_if_it_is_transient(error: OpenAICancelError, *, expected: bool) -> None:
    assert is_transient(error) is expected
    assert (POLICY.delay(error, attempts=1, elapsed=0, random=0.5) is not None) is expected


def test_back_off_doubles_up_to_its_maximum() -> None:
    patient = RetryPolicy(max_retries=2000, deadline=1e9)
    delays = [patient.delay(status_error(), attempts=n, elapsed=0, random=1.0) for n in (1, 2, 3, 4, 5, 6, 1999)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, MAX_DELAY, MAX_DELAY]


def test_jitter_covers_the_whole_range_from_zero() -> None:
    assert POLICY.delay(status_error(), attempts=3, elapsed=0, random=0.0) == 0.0
    assert POLICY.delay(status_error(), attempts=3, elapsed=0, random=0.25) == 0.5


def test_the_wait_that_the_server_asks_for_is_kept_up_to_a_minute() -> None:
    patient = RetryPolicy(max_retries=1, deadline=1e9)
    assert patient.delay(status_error(retry_after=7.5), attempts=1, elapsed=0, random=0.0) == 7.5
    assert patient.delay(status_error(retry_after=0.0), attempts=1, elapsed=0, random=1.0) == 0.0
    assert patient.delay(status_error(retry_after=86400.0), attempts=1, elapsed=0, random=0.0) == MAX_RETRY_AFTER


def test_no_attempt_follows_the_last_retry() -> None:
    assert POLICY.delay(status_error(), attempts=4, elapsed=0, random=0.0) == 0.0
    assert POLICY.delay(status_error(), attempts=5, elapsed=0, random=0.0) is None
    assert RetryPolicy(0, 60).delay(status_error(), attempts=1, elapsed=0, random=0.0) is None


def test_a_wait_beyond_the_deadline_is_not_started() -> None:
    assert POLICY.delay(status_error(retry_after=10.0), attempts=1, elapsed=49.9, random=0.0) == 10.0
    assert POLICY.delay(status_error(retry_after=10.0), attempts=1, elapsed=50.0, random=0.0) is None
    assert POLICY.delay(status_error(), attempts=1, elapsed=60.0, random=0.0) is None


@given(
    attempts=st.integers(1, 10**6),
    elapsed=st.floats(0, 1e6),
    random=st.floats(0, 1, exclude_max=True),
    retry_after=st.none() | st.floats(0, 1e12),
)
def test_a_delay_is_never_negative_and_never_beyond_the_deadline(attempts, elapsed, random, retry_after) -> None:
    policy = RetryPolicy(max_retries=10**6, deadline=600.0)
    delay = policy.delay(status_error(retry_after=retry_after), attempts=attempts, elapsed=elapsed, random=random)
    assert delay is None or (delay >= 0 and elapsed + delay < 600.0)


class TestPollDelay:
    def test_the_delay_grows_to_its_maximum_and_half_of_it_is_random(self) -> None:
        longest = [poll_delay(looks, asked=None, random=1.0) for looks in (0, 1, 2, 3, 4, 5, 999)]
        assert longest == [0.5, 1.0, 2.0, 4.0, 8.0, MAX_DELAY, MAX_DELAY]
        assert poll_delay(3, asked=None, random=0.0) == 2.0

    @pytest.mark.parametrize(("asked", "delay"), [(0.0, INITIAL_DELAY / 2), (5.0, 5.0), (3600.0, MAX_RETRY_AFTER)])
    def test_the_delay_that_the_server_asks_for_is_kept_within_limits(self, asked: float, delay: float) -> None:
        assert poll_delay(9, asked=asked, random=0.5) == delay

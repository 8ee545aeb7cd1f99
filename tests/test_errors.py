"""The exceptions: their tree, their texts, pickling, and errors without frames."""

import copy
import pickle

import pytest

import openai_cancel
from openai_cancel import WaitTimeoutError, errors
from openai_cancel.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    InvalidResponseIdError,
    OpenAICancelError,
    RateLimitError,
    ResponseDecodeError,
    SessionStateError,
    detached,
)

PUBLIC = [
    value
    for name, value in vars(errors).items()
    if isinstance(value, type)
    and issubclass(value, Exception)
    and not issubclass(value, Warning)
    and not name.startswith("_")
] + [WaitTimeoutError]


def example(kind: type[OpenAICancelError]) -> OpenAICancelError:
    answer = {"status": 429, "headers": {"a": "b"}, "body": b"{}", "request_id": "req_1"}
    if issubclass(kind, APIStatusError):
        return kind("Slow down.", **answer, code="c", type="t", param="p", retry_after=1.5, should_retry=True)
    return kind("The body is empty", **answer) if issubclass(kind, ResponseDecodeError) else kind("No.")


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_exception_is_public_and_in_the_documented_tree(kind: type[OpenAICancelError]) -> None:
    assert issubclass(kind, OpenAICancelError)
    assert getattr(openai_cancel, kind.__name__) is kind
    assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(InvalidResponseIdError, ValueError), (APITimeoutError, TimeoutError), (SessionStateError, RuntimeError)],
)
def test_an_exception_is_also_the_builtin_one_that_fits(
    kind: type[OpenAICancelError], builtin: type[Exception]
) -> None:
    assert issubclass(kind, builtin)


def test_a_specific_exception_can_be_caught_as_the_general_one() -> None:
    assert issubclass(InvalidResponseIdError, ConfigurationError)
    assert issubclass(APITimeoutError, APIConnectionError)


@pytest.mark.parametrize("kind", PUBLIC)
@pytest.mark.parametrize("clone", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_exception_keeps_everything_when_it_is_pickled_or_copied(kind: type[OpenAICancelError], clone) -> None:
    error = example(kind)
    error.attempts = 3
    error.add_note("A note.")
    same = clone(error)
    assert type(same) is kind
    assert (same.args, str(same), vars(same)) == (error.args, str(error), vars(error))


def test_the_text_has_the_status_the_message_a_hint_and_the_request_id() -> None:
    assert str(example(RateLimitError)) == (
        "429: Slow down. Wait before the next request. If the quota is exhausted, check your plan and billing details. "
        "(request id req_1)"
    )
    assert str(APIStatusError("41000 tokens", status=410, headers={}, body=b"")) == "410: 41000 tokens."
    assert str(APIStatusError("410 Gone", status=410, headers={}, body=b"")) == "410: Gone."
    assert (
        str(example(ResponseDecodeError)) == "429: The body is empty. Retrieve the response to see what became of it."
    )


class TestDetached:
    def test_an_error_and_its_cause_lose_their_frames(self) -> None:
        try:
            try:
                raise OSError("the cause")
            except OSError as cause:
                raise ConfigurationError("the error") from cause
        except ConfigurationError as error:
            found = detached(error)
        assert found.__traceback__ is None
        assert found.__cause__.__traceback__ is None

    def test_an_error_that_is_its_own_cause_does_not_loop(self) -> None:
        error = OSError("mine")
        with pytest.raises(OSError, match="mine"):
            raise error from error
        assert detached(error).__traceback__ is None

    def test_a_cycle_of_causes_does_not_loop(self) -> None:
        first, second, third = OSError("1"), OSError("2"), OSError("3")
        first.__cause__, second.__context__, third.__cause__ = second, third, first
        for error in (first, second, third):
            with pytest.raises(OSError, match=r"\d"):
                raise error
        detached(first)
        assert [error.__traceback__ for error in (first, second, third)] == [None] * 3

    def test_the_members_of_an_exception_group_lose_their_frames_too(self) -> None:
        with pytest.raises(ValueError, match="mine") as caught:
            raise ValueError("mine")
        detached(ExceptionGroup("several", [caught.value]))
        assert caught.value.__traceback__ is None

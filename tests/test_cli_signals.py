"""Tests of the signals that end the command."""

import os
import signal
from collections.abc import Iterator

import pytest

from openai_cancel.cli.signals import handling_signals


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def ignored(request: pytest.FixtureRequest) -> Iterator[int]:
    before = signal.signal(request.param, signal.SIG_IGN)
    yield request.param
    signal.signal(request.param, before)


async def test_a_signal_that_was_ignored_at_the_start_stays_ignored(ignored: int) -> None:
    received: list[int] = []
    with handling_signals(received.append):
        os.kill(os.getpid(), ignored)
        assert signal.getsignal(ignored) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is not signal.getsignal(signal.SIGTERM)
    assert signal.getsignal(ignored) is signal.SIG_IGN
    assert received == []

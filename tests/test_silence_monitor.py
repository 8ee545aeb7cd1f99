"""`SilenceMonitor`: gives up on a server that does not answer."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from conftest import QuickClock

from openai_cancel import APIConnectionError, APITimeoutError, InternalServerError
from openai_cancel.silence_monitor import SilenceMonitor


class TestFailedRequests:
    @pytest.fixture
    def clock(self) -> QuickClock:
        return QuickClock()

    @pytest.fixture
    def given_up(self) -> list[APIConnectionError]:
        """The errors with which the monitor has given up."""
        return []

    @pytest.fixture
    def monitor(self, clock: QuickClock, given_up: list[APIConnectionError]) -> SilenceMonitor:
        return SilenceMonitor(clock, give_up_after=5, give_up=given_up.append)

    def test_the_monitor_gives_up_when_no_request_was_answered_for_so_long(self, clock, monitor, given_up) -> None:
        error = APIConnectionError("refused")
        for _ in range(5):
            monitor.note(clock.now, error)
            clock.now += 1
        assert given_up == []
        monitor.note(clock.now, error)
        assert given_up == [error]

    def test_the_time_counts_from_the_first_request_that_had_no_answer(self, clock, monitor, given_up) -> None:
        sent = clock.now
        clock.now += 5
        monitor.note(sent, error := APITimeoutError("nothing"))
        assert given_up == [error]

    def test_a_request_that_hangs_while_others_are_answered_counts_from_the_last_answer(
        self, clock, monitor, given_up
    ) -> None:
        sent = clock.now
        for _ in range(9):
            clock.now += 1
            monitor.note(clock.now, None)
        clock.now += 4
        monitor.note(sent, error := APITimeoutError("nothing"))
        assert given_up == []
        clock.now += 1
        monitor.note(clock.now, error)
        assert given_up == [error]

    def test_the_first_answer_can_have_a_limit_of_its_own(self, clock, given_up) -> None:
        def silence(seconds: float) -> None:
            sent = clock.now
            clock.now += seconds
            monitor.note(sent, APITimeoutError("nothing"))

        monitor = SilenceMonitor(clock, first_answer_timeout=5, give_up=given_up.append)
        monitor.note(clock.now, None)
        silence(100)
        assert (monitor.has_answered, given_up) == (True, [])
        monitor = SilenceMonitor(clock, give_up_after=100, first_answer_timeout=5, give_up=given_up.append)
        silence(5)
        assert (monitor.has_answered, len(given_up)) == (False, 1)

    def test_the_monitor_gives_up_once(self, clock, monitor, given_up) -> None:
        sent = clock.now
        clock.now += 5
        for _ in range(3):
            monitor.note(sent, APITimeoutError("nothing"))
        assert len(given_up) == 1

    @pytest.mark.parametrize("answer", [None, InternalServerError("no", status=503, headers={}, body=b"")])
    def test_any_answer_starts_the_time_again(self, clock, monitor, given_up, answer) -> None:
        for error in (APIConnectionError("refused"), answer, APIConnectionError("refused")):
            monitor.note(clock.now, error)
            clock.now += 4
        assert given_up == []

    def test_an_error_that_cannot_pass_is_not_waited_for(self, clock, monitor, given_up) -> None:
        error = APIConnectionError("no such host")
        error.permanent = True
        monitor.note(clock.now, error)
        assert given_up == [error]

    def test_a_monitor_without_a_limit_never_gives_up(self, clock, given_up) -> None:
        monitor = SilenceMonitor(clock, give_up=given_up.append)
        error = APIConnectionError("no such host")
        error.permanent = True
        monitor.note(clock.now, error)
        assert given_up == []


class TestHangingRequests:
    """Requests under way that the server does not answer. Their time is that of the event loop."""

    @pytest.fixture
    async def elapse(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Awaitable[None]]:
        """Let time pass for the event loop, which has no other time."""
        loop = asyncio.get_running_loop()
        now = loop.time()

        async def elapse(seconds: float) -> None:
            nonlocal now
            now += seconds
            for _ in range(3):
                await asyncio.sleep(0)

        monkeypatch.setattr(loop, "time", lambda: now)
        return elapse

    @pytest.fixture
    def given_up(self) -> list[APIConnectionError]:
        """The errors with which the monitor has given up."""
        return []

    @pytest.fixture
    def monitor(self, given_up: list[APIConnectionError]) -> SilenceMonitor:
        return SilenceMonitor(QuickClock(), give_up_after=20, give_up=given_up.append)

    async def test_the_monitor_gives_up_while_they_are_under_way(self, elapse, monitor, given_up) -> None:
        with monitor.sending():
            await elapse(10)
            with monitor.sending():
                await elapse(9)
                assert given_up == []
                await elapse(1)
                assert [str(error) for error in given_up] == ["No answer within 20 s."]
                assert isinstance(given_up[0], APITimeoutError)

    async def test_the_error_is_that_of_the_last_request_that_has_failed(self, elapse, monitor, given_up) -> None:
        with monitor.sending():
            monitor.note(monitor.clock.now, error := APIConnectionError("refused"))
            await elapse(20)
        assert given_up == [error]

    async def test_any_answer_starts_the_time_again(self, elapse, monitor, given_up) -> None:
        with monitor.sending():
            for _ in range(3):
                await elapse(19)
                monitor.note(monitor.clock.now, None)
            await elapse(19)
            assert given_up == []
            await elapse(1)
        assert len(given_up) == 1

    async def test_nothing_is_waited_for_between_requests(self, elapse, monitor, given_up) -> None:
        for _ in range(2):
            with monitor.sending():
                await elapse(1)
            await elapse(25)
        assert given_up == []

    async def test_after_the_first_answer_its_limit_no_longer_counts(self, elapse, given_up) -> None:
        monitor = SilenceMonitor(QuickClock(), first_answer_timeout=10, give_up=given_up.append)
        with monitor.sending():
            monitor.note(monitor.clock.now, None)
            await elapse(15)
        assert given_up == []

"""Test your own code against the emulator, with the fixture `openai_emulator` of the pytest plugin."""

import pytest

from openai_cancel import AsyncSession, Session, Verdict
from openai_cancel.emulator import Emulator, Fault, Script


def test_cleanup_leaves_nothing_running(openai_emulator: Emulator) -> None:
    """OPENAI_BASE_URL points to the emulator, so the session needs no arguments."""
    running = [openai_emulator.add() for _ in range(3)]
    with Session() as session:
        assert all(outcome.stopped for outcome in session.stop_many(running))
    assert all(openai_emulator.responses[response_id].cancelled for response_id in running)


def test_an_outage_is_retried(openai_emulator: Emulator) -> None:
    """Add faults before a request, and look at the requests received after it."""
    openai_emulator.faults += [Fault(status=503, headers={"retry-after-ms": "1"}), Fault(cut="connection")]
    with Session() as session:
        session.cancel(openai_emulator.add())
    assert [request.method for request in openai_emulator.received] == ["POST", "POST", "POST"]


@pytest.mark.openai_emulator(dialect="vllm", script=Script(runs_for=0))
async def test_an_ended_response_on_vllm_is_reported_as_finished(openai_emulator: Emulator) -> None:
    """The marker takes the options of `Emulator`."""
    async with AsyncSession() as session:
        assert (await session.stop(openai_emulator.add())).verdict is Verdict.ALREADY_FINISHED

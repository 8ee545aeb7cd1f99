"""Tests of one's own, against the emulator: nothing to set up but to ask for `openai_emulator`."""

import pytest

from openai_cancel import AsyncSession, Session, Verdict
from openai_cancel.emulator import Emulator, Fault, Script


def test_that_a_clean_up_leaves_nothing_running(openai_emulator: Emulator) -> None:
    """The environment leads to the emulator, and so does a session."""
    running = [openai_emulator.add() for _ in range(3)]
    with Session() as session:
        assert all(outcome.stopped for outcome in session.stop_many(running))
    assert all(openai_emulator.responses[response_id].cancelled for response_id in running)


def test_an_outage(openai_emulator: Emulator) -> None:
    """What goes wrong is said beforehand, and what arrived can be looked at."""
    openai_emulator.faults += [Fault(status=503, headers={"retry-after-ms": "1"}), Fault(cut="connection")]
    with Session() as session:
        session.cancel(openai_emulator.add())
    assert [request.method for request in openai_emulator.received] == ["POST", "POST", "POST"]


@pytest.mark.openai_emulator(dialect="vllm", script=Script(runs_for=0))
async def test_what_is_over_on_another_server(openai_emulator: Emulator) -> None:
    """The marker takes the emulator's options."""
    async with AsyncSession() as session:
        assert (await session.stop(openai_emulator.add())).verdict is Verdict.ALREADY_FINISHED

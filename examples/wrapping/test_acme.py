"""The tests of the library: pure parts with factories, the others with the emulator."""

import asyncio

import openai
import pytest
from acme import Acme, NoAnswerError, advice, text_of

from openai_cancel import WaitTimeoutError
from openai_cancel.emulator import Emulator, Script
from openai_cancel.testing import make_error, make_outcome, make_response


def test_only_a_completed_response_has_a_text() -> None:
    assert text_of(make_response(text="Because.")) == "Because."
    for response in (make_response("failed"), make_response("cancelled")):
        with pytest.raises(NoAnswerError):
            text_of(response)


def test_advice_depends_on_the_outcome() -> None:
    busy = make_outcome("unknown", error=make_error(429, retry_after=2))
    assert [advice(make_outcome("already_finished")), advice(busy), advice(make_outcome("forbidden"))] == [
        "It costs nothing any more.", "Try again in 2 s.", "Ask the operators about resp_123."
    ]  # fmt: skip


@pytest.mark.openai_emulator(runs_for=3600)
def test_the_team_comes_with_each_request_of_the_session(openai_emulator: Emulator) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI() as client, Acme(client, team="search") as acme:
            with pytest.raises(WaitTimeoutError):
                await acme.ask("How?", timeout=0.01)
            openai_emulator.script = Script(runs_for=0, says="Because.")
            return await acme.ask("Why?", timeout=5)

    assert asyncio.run(ask()) == "Because."
    assert [work.cancelled is None for work in openai_emulator.responses.values()] == [False, True]
    assert all(sent.headers["x-team"] == "search" for sent in openai_emulator.received if "responses/" in sent.path)

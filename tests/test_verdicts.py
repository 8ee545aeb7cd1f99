"""`stop` against every server that the emulator plays, in every state. The README says which verdict is expected."""

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import KEY, emulated

from openai_cancel import APIStatusError, AsyncSession, BadRequestError, NotFoundError, Outcome, Verdict
from openai_cancel.emulator import DIALECTS, Dialect, Emulator, Fault, Reply, Script

README = (Path(__file__).parents[1] / "README.md").read_text()


def read_table(heading: str) -> list[list[str]]:
    """Return the cells of the README's table whose first column has this heading, row by row."""
    lines = README[README.index(f"| {heading} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|-")]


def read_verdicts() -> dict[tuple[str, str], str]:
    """Return the verdict by state and server: the usual one of a state, unless the row names another for the server."""
    (no_cancel,) = re.findall(r"^\*No cancel\* stands for (.*)\.$", README, re.MULTILINE)
    verdicts = {}
    for states, usual, exceptions in read_table("state")[1:]:
        for state in states.split("; "):
            verdicts |= {(state, dialect): usual for dialect in DIALECTS}
            for exception in filter(None, exceptions.replace("no cancel", no_cancel).split("; ")):
                dialects, verdict = exception.split(": ")
                verdicts |= {(state, dialect.strip("`")): verdict for dialect in dialects.split(", ")}
    return verdicts


VERDICTS = read_verdicts()
NO_QUOTA = {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}
FAULTS = {
    "rate limited once": [Fault(on="cancel", status=429, headers={"retry-after": "2"})],
    "cancelled, the answer lost": [Fault(on="cancel", act=True, cut="connection")],
    "every cancel fails": [Fault(on="cancel", status=500)] * 100,
    "overloaded": [Fault(status=503, body="Overloaded")] * 100,
    "out of quota": [Fault(status=429, body=NO_QUOTA)] * 100,
}
SCRIPTS: dict[str, dict[str, Any]] = {
    "queued": {"queued_for": math.inf},
    "completed": {"runs_for": 0},
    "failed": {"runs_for": 0, "becomes": "failed"},
    "incomplete": {"runs_for": 0, "becomes": "incomplete"},
    "not in the background": {"runs_for": 0},
    "cancelled, running again after 10 s": {"resumes_after": 10},
    "running on after each cancel": {"resumes_after": 0, "resumes": 1000},
}
REPLICAS = {"guarded, known to one of three replicas": 3}


@pytest.mark.parametrize(("state", "dialect"), VERDICTS, ids=str)
async def test_the_verdict_is_the_one_of_the_readme(state: str, dialect: str) -> None:
    wrong = "sk-this-is-not-the-key"
    key = wrong if state == "stopped with a wrong key" else KEY
    async with emulated(dialect, key=key, replicas=REPLICAS.get(state, 1)) as (server, session):
        script = Script(**{"runs_for": math.inf, **SCRIPTS.get(state, {})})
        identifier = server.add(script, background=state != "not in the background")
        work = server.responses[identifier]
        server.faults += FAULTS.get(state, [])
        match state:
            case "cancelled before":
                work.cancel(server.clock())
                session.clock.now += 60
            case "unknown":
                del server.responses[identifier]
            case "an id of the wrong form":
                identifier = "no id at all/+="
            case "guarded, stored two seconds late":
                server.store_delay = 2
        ended = not state.startswith(("queued", "running", "stopped", "rate", "every", "cancelled, ", "guarded"))
        if state.startswith("guarded"):
            outcome = await stopped_by_a_guard(session, identifier)
        else:
            confirm = 15 if state == "cancelled, running again after 10 s" else None
            outcome = await session.stop(identifier, confirm=confirm)

        assert outcome.verdict.replace("_", " ") == VERDICTS[state, dialect]
        assert outcome.response_id == identifier
        assert outcome.attempts == len(server.received)
        assert outcome.request_id
        assert outcome.elapsed <= 60
        is_over = outcome.verdict in {Verdict.CANCELLED, Verdict.ALREADY_FINISHED}
        known = outcome.response is not None
        assert outcome.stopped is (is_over or (outcome.verdict is Verdict.NOT_BACKGROUND and known))
        assert (outcome.error is None) is is_over or outcome.verdict is Verdict.STILL_RUNNING or known
        # The verdict is true: the response has ended on the server, too. Nobody can ask DevUI.
        if is_over and not ended and (state, dialect) != ("running on after each cancel", "devui"):
            assert work.status(server.clock()) == "cancelled"


async def stopped_by_a_guard(session: AsyncSession, response_id: str) -> Outcome:
    """Return the outcome of a response whose block is left by an exception."""
    with suppress(TimeoutError):
        async with session.guard(response_id, grace=60) as guard:
            raise TimeoutError
    return guard.outcome


def test_the_tables_of_the_readme_name_every_server_state_and_verdict() -> None:
    assert {dialect for _, dialect in VERDICTS} == set(DIALECTS)
    (introduction,) = re.findall(r"^The emulator plays .*?^\| state", README, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", introduction)) == {*DIALECTS, "stop"}
    assert {*SCRIPTS, *FAULTS, *REPLICAS} < {state for state, _ in VERDICTS}
    assert set(VERDICTS.values()) == {verdict.replace("_", " ") for verdict in Verdict}
    assert [row[0].strip("`") for row in read_table("verdict")[1:]] == list(Verdict)


class TestDialects:
    """Behaviour of the emulated servers that the tables do not show."""

    async def test_a_dialect_of_ones_own_can_be_defined(self) -> None:
        teapot = Dialect(cancel={"in_progress": Reply(418, "Short and stout: {id} is {status}.")})
        async with emulated(teapot) as (server, session):
            identifier = server.add()
            with pytest.raises(APIStatusError, match=f"418: Short and stout: {identifier} is in_progress."):
                await session.cancel(identifier)

    async def test_gomodel_refuses_a_cancel_that_announces_a_body(self) -> None:
        async with emulated("gomodel", headers={"content-type": "application/json"}) as (server, session):
            with pytest.raises(BadRequestError, match="A cancel takes no body."):
                await session.cancel(server.add())

    async def test_litellm_answers_with_another_id_each_time(self) -> None:
        async with emulated("litellm") as (server, session):
            identifier = server.add()
            shown = [(await session.retrieve(identifier)).id for _ in range(2)]
            assert len({identifier, *shown}) == 3
            outcome = await session.stop(shown[0])
            assert outcome.verdict is Verdict.CANCELLED
            assert outcome.response_id == shown[0] != outcome.response.id

    @pytest.mark.parametrize("dialect", ["litellm", "litellm_polling"])
    async def test_litellm_answers_a_request_without_a_key_with_a_500(self, dialect: str) -> None:
        async with emulated(dialect, headers={"Authorization": ""}) as (_, session):
            outcome = await session.stop("resp_x")
        assert outcome.verdict is Verdict.UNKNOWN
        assert outcome.error.body == b"Internal Server Error"

    async def test_vllm_reports_a_running_response_as_queued(self) -> None:
        async with emulated("vllm") as (server, session):
            response = await session.retrieve(server.add())
            assert response.status == "queued"
            assert "store" not in response.to_dict()
            assert response.extra == {"kv_transfer_params": None, "input_messages": None, "output_messages": None}
            with pytest.raises(NotFoundError) as caught:
                await session.cancel("x")
            assert caught.value.code == 404

    async def test_azure_takes_half_a_second_to_cancel(self) -> None:
        async with Emulator(dialect="azure") as server, AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            assert (await session.stop(server.add())).elapsed >= 0.5

    async def test_a_response_that_completes_while_azure_cancels_it_is_already_finished(self) -> None:
        async with Emulator(dialect="azure") as server, AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            outcome = await session.stop(server.add(Script(runs_for=0.2)))
        assert (outcome.verdict, outcome.response.status) == (Verdict.ALREADY_FINISHED, "completed")

    def test_an_unknown_name_of_a_dialect_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no such dialect: 'foo'; choose one of openai, azure, vllm"):
            Emulator(dialect="foo")

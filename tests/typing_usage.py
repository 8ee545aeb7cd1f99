"""The types that users see. Nothing here runs: `mypy --strict` and pyright check it.

Each `type: ignore` is a test: both report one on a line without an error.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import Literal, assert_type

import aiohttp
import openai
from openai.types.responses import Response as TheirResponse

from openai_cancel import (
    APIStatusError,
    AsyncSession,
    BlockingWatch,
    Guard,
    Outcome,
    Response,
    ResponseDecodeError,
    Session,
    Verdict,
    WaitTimeoutError,
    Watch,
)
from openai_cancel.ledger import BlockingLedger, Entry, Finding, Ledger, Stats
from openai_cancel.models import FunctionCall, Message, OutputItem, OutputText, Usage
from openai_cancel.testing import make_error, make_outcome, make_response


async def calls_of_the_api(session: AsyncSession, theirs: TheirResponse) -> None:
    response = await session.cancel("resp_123", timeout=5, max_retries=0, headers={"a": "b"})
    assert_type(response, Response)
    assert_type(await session.retrieve(response), Response)
    assert_type(await session.cancel(theirs), Response)
    await session.cancel("x", tiemout=5)  # type: ignore[call-arg]  # a misspelt option
    await session.cancel(5)  # type: ignore[arg-type]  # a wrong type


async def stopping(session: AsyncSession) -> None:
    outcome = await session.stop("resp_123", deadline=5, confirm=1.5, timeout=2)
    assert_type(outcome, Outcome)
    assert_type(outcome.verdict, Verdict)
    assert_type(outcome.response, Response | None)
    assert_type(outcome.stopped, bool)
    await session.stop("x", deadline=None)  # type: ignore[arg-type]  # a deadline is needed
    outcome.verdict = Verdict.UNKNOWN  # type: ignore[misc]  # it is read-only


async def guarding(session: AsyncSession, blocking: Session) -> None:
    async with session.guard("resp_123", "resp_456", grace=5) as guard:
        assert_type(guard, Guard)
        guard.add("resp_789")
    assert_type(guard.outcome, Outcome | None)
    assert_type(guard.outcomes, dict[str, Outcome])
    with blocking.guard("resp_123") as other:
        assert_type(other, Guard)
    assert_type(await session.wait("x", timeout=5, on_abandon="leave"), Response)
    assert_type(blocking.wait("x", grace=1), Response)
    assert_type(await session.wait("x", stream=True), Response)
    assert_type(blocking.wait("x", stream=True), Response)
    blocking.wait("x", stream="yes")  # type: ignore[arg-type]  # it is no mode
    blocking.wait("x", on_abandon="pause")  # type: ignore[arg-type]  # an unknown word
    try:
        await session.wait("x")
    except WaitTimeoutError as error:
        assert_type(error.outcome, Outcome | None)
    session.guard("x", deadline=5)  # type: ignore[call-arg]  # the name is grace


async def clients(
    session: AsyncSession,
    blocking: Session,
    client: openai.AsyncOpenAI,
    other: openai.OpenAI,
    azure: openai.AzureOpenAI,
) -> None:
    async with session.guard(client, "resp_123", other, azure, grace=5) as guard:
        guard.add(openai.DefaultAsyncHttpxClient())
    with blocking.guard(other):
        pass
    watch = session.watch(client, other, grace=5)
    assert_type(watch, Watch)
    assert_type(watch.response_ids, tuple[str, ...])
    watch.add(azure)
    async with session.watch(client) as same:
        assert_type(same, Watch)
    with blocking.watch(other) as third:
        assert_type(third, BlockingWatch)
    session.guard(5)  # type: ignore[arg-type]  # neither an id nor a client
    session.watch("resp_123")  # type: ignore[arg-type]  # no client


async def many(session: AsyncSession, blocking: Session, theirs: list[TheirResponse]) -> None:
    async for outcome in session.stop_many(theirs, concurrency=8):
        assert_type(outcome, Outcome)
    for other in blocking.stop_many({"resp_123": 1}):
        assert_type(other, Outcome)
    async for response in session.running(statuses=["queued"], older_than=60, metadata={"a": "b"}, limit=5):
        assert_type(response, Response)
        assert_type(response.age, float | None)
    for listed in blocking.running(newer_than=60, model="m"):
        assert_type(listed, Response)
    session.running(metadata={"a": 1})  # type: ignore[dict-item]  # values are strings
    session.stop_many(session.running())
    session.stop_many(["x"], concurency=8)  # type: ignore[call-arg]  # a misspelt option


async def ledgers(theirs: TheirResponse) -> None:
    async with Ledger("sqlite:///x", lease=5, labels={"a": "b"}) as ledger, AsyncSession(ledger=ledger) as session:
        assert_type(ledger, Ledger)
        await ledger.track(theirs, session=session, ttl=900)
        assert_type(await ledger.release("x", session=session), bool)
        async for outcome in ledger.sweep(session, confirm=5):
            assert_type(outcome, Outcome)
        async for entry in ledger.entries(include_ended=True):
            assert_type(entry, Entry)
            assert_type(entry.lease_left, float | None)
        async for outcome in ledger.stop(session, labels={"a": "b"}, state="tracked", older_than=60):
            assert_type(outcome, Outcome)
        async for finding in ledger.reconcile(session, unknown="adopt", ttl=900, select=lambda one: one.model == "m"):
            assert_type(finding, Finding)
            assert_type(finding.settled, bool)
            assert_type(finding.outcome, Outcome | None)
        ledger.reconcile(session, unknown="kill")  # type: ignore[arg-type]  # no such fate
        ledger.stop(session, state="cancelled")  # type: ignore[arg-type]  # it has ended
        assert_type(await ledger.track_many(["x", theirs], session=session, ttl=900), int)
        assert_type(await ledger.purge(older_than=60, state="released"), int)
        assert_type(await ledger.stats(include_ended=False), Stats)
        await ledger.track("x", session=session)  # type: ignore[call-arg]  # ttl is needed
    Session(ledger="sqlite:///x")  # type: ignore[arg-type]  # an object is needed


def blocking_ledgers(theirs: TheirResponse) -> None:
    with Session(ledger=Ledger("sqlite:///x"), ledger_required=True, account="a") as session:
        assert_type(session.ledger, BlockingLedger)
        session.ledger.track(theirs, ttl=900)
        assert_type(session.ledger.track_many(["x"], ttl=900, labels={"a": "b"}), int)
        assert_type(session.ledger.release("x"), bool)
        for finding in session.ledger.reconcile(older_than=3600, dry_run=True):
            assert_type(finding, Finding)
        for outcome in session.ledger.sweep():
            assert_type(outcome, Outcome)
        for stopped in session.ledger.stop(labels={"a": "b"}, dry_run=True):
            assert_type(stopped, Outcome)
        assert_type(session.ledger.stats().by_state, dict[str, int])
        for entry in session.ledger.entries(labels={"a": "b"}, overdue=True):
            assert_type(entry, Entry)
        session.ledger.track("x", session=session, ttl=900)  # type: ignore[call-arg]  # its session is known


def blocking(theirs: openai.OpenAI) -> None:
    with Session(api_key="k", deadline=10) as session:
        assert_type(session, Session)
        assert_type(session.cancel("resp_123"), Response)
        assert_type(session.stop("resp_123"), Outcome)
    assert_type(Session.azure("https://h", token_provider=lambda: "t"), Session)
    assert_type(Session.from_openai(theirs), Session)
    Session(client_session=aiohttp.ClientSession())  # type: ignore[call-arg]  # its event loop is another one


async def provider() -> str:
    return "key"


async def count(outcome: Outcome) -> None:
    assert_type(outcome.verdict, Verdict)


async def sessions(client: aiohttp.ClientSession, seen: list[Outcome]) -> None:
    AsyncSession(on_outcome=count)
    Session.azure("https://h", on_outcome=seen.append)
    AsyncSession(on_outcome=lambda: None)  # type: ignore[arg-type,misc]  # it takes the outcome
    AsyncSession(api_key=provider)
    AsyncSession(api_key=lambda: "key", client_session=client)
    async with AsyncSession() as session:
        assert_type(session, AsyncSession)


def model(response: Response) -> None:
    assert_type(response.id, str | None)
    assert_type(response.is_terminal, bool)
    assert_type(response.output_text, str)
    assert_type(response.usage, Usage | None)
    assert_type(response.metadata, dict[str, str] | None)
    for item in response.output or ():
        assert_type(item, OutputItem)
        match item:
            case Message(content=[OutputText(text=text), *_]):
                assert_type(text, str | None)
            case FunctionCall(type=kind):
                assert_type(kind, Literal["function_call"])
            case _:
                pass
    assert_type(response.items(FunctionCall), list[FunctionCall])
    response.status = "queued"  # type: ignore[misc]  # it is read-only


def errors(error: APIStatusError | ResponseDecodeError) -> None:
    assert_type(error.status, int)
    assert_type(error.body, bytes)
    if isinstance(error, APIStatusError):
        assert_type(error.retry_after, float | None)
        assert_type(error.code, str | int | None)


def factories() -> None:
    assert_type(make_response("queued", response_id="resp_1", model="gpt-5"), Response)
    assert_type(make_error(503, retry_after=2), APIStatusError)
    assert_type(make_outcome("not_found", response=None), Outcome)
    assert_type(make_outcome(Verdict.CANCELLED), Outcome)
    make_outcome("canceled")  # type: ignore[arg-type]  # no verdict

"""OpenTelemetry's instrumentation of aiohttp sees the requests of this package, over real sockets, and no secret."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from conftest import KEY, QuickSession
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor, create_trace_config
from opentelemetry.sdk.trace import ReadableSpan, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from openai_cancel import APIConnectionError, AsyncSession, NotFoundError, Session
from openai_cancel.emulator import Emulator, Fault

Create = Callable[..., str]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def tracer(provider: TracerProvider) -> Iterator[Tracer]:
    """Of a service that has aiohttp instrumented, in the one line that it takes."""
    AioHttpClientInstrumentor().instrument(tracer_provider=provider)
    yield provider.get_tracer("service")
    AioHttpClientInstrumentor().uninstrument()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Callable[[], list[ReadableSpan]]:
    """The spans of the requests so far. That none of them holds a secret is looked at in each test."""

    def spans() -> list[ReadableSpan]:
        finished = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]
        assert finished
        assert not any("secret" in span.to_json() for span in finished)
        return finished

    return spans


def code(span: ReadableSpan) -> Any:
    """The status of the answer, by the name of the newer conventions or of the older ones."""
    return span.attributes.get("http.response.status_code", span.attributes.get("http.status_code"))


def url(span: ReadableSpan) -> Any:
    return span.attributes.get("url.full", span.attributes.get("http.url"))


async def test_a_cancel_is_a_span_of_the_callers_trace(tracer: Tracer, server: Emulator, create: Create, spans) -> None:
    identifier = create()
    with tracer.start_as_current_span("run") as run:
        async with AsyncSession(base_url=server.base_url, api_key=KEY, headers={"x-other": "a secret"}) as session:
            await session.cancel(identifier)
    [span] = spans()
    assert (span.name, code(span), span.status.status_code) == ("POST", 200, StatusCode.UNSET)
    assert url(span) == f"{server.base_url}/responses/{identifier}/cancel"
    assert span.parent.span_id == run.get_span_context().span_id
    [received] = server.received
    assert received.headers["traceparent"].split("-")[1:3] == [
        f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}",
    ]  # fmt: skip


@pytest.mark.usefixtures("tracer")
async def test_each_attempt_is_one(server: Emulator, create: Create, spans) -> None:
    server.faults += [Fault(status=503), Fault(status=429)]
    async with QuickSession(base_url=server.base_url, api_key=KEY) as session:
        await session.cancel(create())
    assert [code(span) for span in spans()] == [503, 429, 200]
    assert [span.status.status_code for span in spans()] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]


@pytest.mark.usefixtures("tracer")
async def test_an_error_of_the_server(session: QuickSession, spans) -> None:
    with pytest.raises(NotFoundError):
        await session.cancel("resp_none")
    [span] = spans()
    assert (code(span), span.status.status_code) == (404, StatusCode.ERROR)


@pytest.mark.usefixtures("tracer")
async def test_no_answer(server: Emulator, session: QuickSession, create: Create, spans) -> None:
    server.faults.append(Fault(cut="connection"))
    with pytest.raises(APIConnectionError):
        await session.cancel(create(), max_retries=0)
    [span] = spans()
    assert (code(span), span.status.status_code) == (None, StatusCode.ERROR)
    assert span.events[0].attributes["exception.type"] == "aiohttp.client_exceptions.ServerDisconnectedError"


@pytest.mark.usefixtures("tracer")
async def test_tokens_of_azure(server: Emulator, spans) -> None:
    for how in ({"api_key": KEY}, {"token_provider": lambda: KEY}):
        async with AsyncSession.azure(server.base_url, **how) as session:
            with pytest.raises(NotFoundError):
                await session.retrieve("resp_none")
    assert len(spans()) == 2


async def test_a_blocking_session(tracer: Tracer, server: Emulator, create: Create, spans) -> None:
    """Its requests are made in a thread of its own, and belong to the trace of the thread that calls."""

    def stop() -> int:
        with tracer.start_as_current_span("run") as run, Session(base_url=server.base_url, api_key=KEY) as session:
            session.stop(create())
            list(session.stop_many([create(), create()]))
        return run.get_span_context().span_id

    parent = await asyncio.to_thread(stop)
    assert [span.parent.span_id for span in spans()] == [parent] * 3


async def test_many(tracer: Tracer, session: QuickSession, create: Create, spans) -> None:
    with tracer.start_as_current_span("incident") as incident:
        [_ async for _ in session.stop_many(create() for _ in range(5))]
    assert [span.parent.span_id for span in spans()] == [incident.get_span_context().span_id] * 5


async def test_trace_configs_of_a_clients_own(
    provider: TracerProvider, server: Emulator, create: Create, spans
) -> None:
    """Where not every client of aiohttp is to be traced, one that is can be passed in."""
    async with (
        aiohttp.ClientSession(trace_configs=[create_trace_config(tracer_provider=provider)]) as client,
        AsyncSession(base_url=server.base_url, api_key=KEY, client_session=client) as session,
    ):
        await session.cancel(create())
    assert [code(span) for span in spans()] == [200]

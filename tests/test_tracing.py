"""OpenTelemetry: a span for each request and for each stop, without a secret, over real sockets."""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from conftest import KEY, QuickSession, until
from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor, create_trace_config
from opentelemetry.sdk.trace import ReadableSpan, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from openai_cancel import (
    APIConnectionError,
    AsyncSession,
    InvalidResponseIdError,
    NotFoundError,
    Session,
    SessionStateError,
    __version__,
)
from openai_cancel.emulator import Emulator, Fault

Create = Callable[..., str]
Spans = Callable[[], list[ReadableSpan]]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def set_tracer_provider(monkeypatch: pytest.MonkeyPatch, provider: TracerProvider | None) -> None:
    """Set the tracer provider of the process; None is the state before the first one was set.

    `trace.set_tracer_provider` can be called only once in a process, and OpenTelemetry has no public way to undo it.
    """
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)


@pytest.fixture
def provider(exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """The tracer provider of the process during a test."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    set_tracer_provider(monkeypatch, provider)
    yield provider
    provider.shutdown()


@pytest.fixture
def tracer(provider: TracerProvider) -> Iterator[Tracer]:
    """The tracer of a service whose aiohttp is instrumented."""
    AioHttpClientInstrumentor().instrument(tracer_provider=provider)
    yield provider.get_tracer("service")
    AioHttpClientInstrumentor().uninstrument()


@pytest.fixture
def finished(exporter: InMemorySpanExporter) -> Spans:
    """Return the spans that have ended, in the order of their start, after a check that none contains a secret."""

    def finished() -> list[ReadableSpan]:
        spans = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time)
        assert spans
        assert not any("secret" in span.to_json() for span in spans)
        return [span for span in spans if span.kind is SpanKind.CLIENT]

    return finished


@pytest.fixture
def spans(finished: Spans) -> Spans:
    """Return the spans of the requests."""
    return lambda: [span for span in finished() if span.instrumentation_scope.name != "openai_cancel"]


@pytest.fixture
def stops(finished: Spans) -> Spans:
    """Return the spans of the stops."""
    return lambda: [span for span in finished() if span.instrumentation_scope.name == "openai_cancel"]


def code(span: ReadableSpan) -> Any:
    """Return the status of the answer, by its attribute in the newer conventions or in the older ones."""
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
async def test_each_attempt_is_a_span(server: Emulator, create: Create, spans) -> None:
    server.faults += [Fault(status=503), Fault(status=429)]
    async with QuickSession(base_url=server.base_url, api_key=KEY) as session:
        await session.cancel(create())
    assert [code(span) for span in spans()] == [503, 429, 200]
    assert [span.status.status_code for span in spans()] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]


@pytest.mark.usefixtures("tracer")
async def test_an_error_status_marks_the_span_of_the_request_as_failed(session: QuickSession, spans) -> None:
    with pytest.raises(NotFoundError):
        await session.cancel("resp_none")
    [span] = spans()
    assert (code(span), span.status.status_code) == (404, StatusCode.ERROR)


@pytest.mark.usefixtures("tracer")
async def test_a_lost_connection_marks_the_span_of_the_request_as_failed(
    server: Emulator, session: QuickSession, create: Create, spans
) -> None:
    server.faults.append(Fault(cut="connection"))
    with pytest.raises(APIConnectionError):
        await session.cancel(create(), max_retries=0)
    [span] = spans()
    assert (code(span), span.status.status_code) == (None, StatusCode.ERROR)
    assert span.events[0].attributes["exception.type"] == "aiohttp.client_exceptions.ServerDisconnectedError"


@pytest.mark.usefixtures("tracer")
async def test_keys_and_tokens_for_azure_are_not_in_a_span(server: Emulator, spans) -> None:
    for how in ({"api_key": KEY}, {"token_provider": lambda: KEY}):
        async with AsyncSession.azure(server.base_url, **how) as session:
            with pytest.raises(NotFoundError):
                await session.retrieve("resp_none")
    assert len(spans()) == 2


async def test_calls_of_a_blocking_session_belong_to_the_trace_of_the_calling_thread(
    tracer: Tracer, server: Emulator, create: Create, spans, stops
) -> None:
    def stop() -> int:
        with tracer.start_as_current_span("run") as run, Session(base_url=server.base_url, api_key=KEY) as session:
            session.stop(create())
            list(session.stop_many([create(), create()]))
        return run.get_span_context().span_id

    parent = await asyncio.to_thread(stop)
    assert [span.parent.span_id for span in stops()] == [parent] * 3
    assert {span.parent.span_id for span in spans()} == {span.context.span_id for span in stops()}


async def test_each_stop_of_stop_many_is_a_span_of_the_callers_trace(
    tracer: Tracer, session: QuickSession, create: Create, spans, stops
) -> None:
    with tracer.start_as_current_span("incident") as incident:
        outcomes = [outcome async for outcome in session.stop_many(create() for _ in range(5))]
    assert [span.parent.span_id for span in stops()] == [incident.get_span_context().span_id] * 5
    assert {span.attributes["gen_ai.response.id"] for span in stops()} == {outcome.response_id for outcome in outcomes}
    assert {span.parent.span_id for span in spans()} == {span.context.span_id for span in stops()}
    assert len(spans()) == 5


async def test_a_client_session_with_trace_configs_is_traced(
    provider: TracerProvider, server: Emulator, create: Create, spans
) -> None:
    """A service may trace only some of its clients of aiohttp."""
    async with (
        aiohttp.ClientSession(trace_configs=[create_trace_config(tracer_provider=provider)]) as client,
        AsyncSession(base_url=server.base_url, api_key=KEY, client_session=client) as session,
    ):
        await session.cancel(create())
    assert [code(span) for span in spans()] == [200]


class TestSpanOfAStop:
    async def test_a_stop_is_a_child_of_the_callers_span_and_the_parent_of_its_requests(
        self, tracer: Tracer, server: Emulator, create: Create, spans, stops
    ) -> None:
        identifier = create()
        server.faults.append(Fault(status=503))
        with tracer.start_as_current_span("run") as run:
            async with QuickSession(base_url=server.base_url, api_key=KEY, headers={"x-other": "a secret"}) as session:
                await session.stop(identifier)
        [stop] = stops()
        assert (stop.name, stop.kind, stop.status.status_code) == ("stop_response", SpanKind.CLIENT, StatusCode.UNSET)
        assert dict(stop.attributes) == {
            "gen_ai.operation.name": "stop_response",
            "gen_ai.provider.name": "openai",
            "gen_ai.response.id": identifier,
            "server.address": "127.0.0.1",
            "server.port": int(server.base_url.rpartition(":")[2].removesuffix("/v1")),
            "openai_cancel.verdict": "cancelled",
            "openai_cancel.attempts": 3,
        }
        assert (stop.instrumentation_scope.version, stop.events) == (__version__, ())
        assert stop.parent.span_id == run.get_span_context().span_id
        assert [(span.parent.span_id, code(span)) for span in spans()] == [
            (stop.context.span_id, 503), (stop.context.span_id, 200), (stop.context.span_id, 200),
        ]  # fmt: skip

    @pytest.mark.usefixtures("provider")
    async def test_each_response_that_a_guard_stops_has_a_span(
        self, session: QuickSession, create: Create, stops
    ) -> None:
        first, second = create(), create()
        with pytest.raises(ZeroDivisionError):
            async with session.guard(first) as guard:
                guard.add(second)
                _ = 1 / 0
        assert sorted(span.attributes["gen_ai.response.id"] for span in stops()) == sorted([first, second])

    @pytest.mark.usefixtures("provider")
    async def test_a_wait_that_times_out_has_a_span_for_its_stop(self, server: Emulator, create: Create, stops) -> None:
        async with AsyncSession(base_url=server.base_url, api_key=KEY) as session:
            with pytest.raises(TimeoutError):
                await session.wait(create(), timeout=0.01)
        assert [span.attributes["openai_cancel.verdict"] for span in stops()] == ["cancelled"]

    @pytest.mark.usefixtures("provider")
    async def test_a_response_that_had_already_finished_is_no_error(
        self, session: QuickSession, create: Create, stops
    ) -> None:
        await session.stop(create(runs_for=0))
        await session.stop(create(runs_for=0), dry_run=True)
        assert [span.attributes["openai_cancel.verdict"] for span in stops()] == ["already_finished"] * 2
        assert [span.status.status_code for span in stops()] == [StatusCode.UNSET] * 2

    @pytest.mark.usefixtures("provider")
    async def test_a_dry_run_that_finds_a_running_response_is_no_error(
        self, session: QuickSession, create, stops
    ) -> None:
        await session.stop(create(), dry_run=True)
        [stop] = stops()
        assert (stop.attributes["openai_cancel.verdict"], stop.status.status_code) == (
            "still_running",
            StatusCode.UNSET,
        )
        assert "error.type" not in stop.attributes

    @pytest.mark.usefixtures("provider")
    async def test_a_confirmation_that_fails_is_no_error(
        self, server: Emulator, session: QuickSession, create, stops
    ) -> None:
        server.faults += [Fault(on="retrieve", status=503) for _ in range(5)]
        outcome = await session.stop(create(), confirm=1)
        [stop] = stops()
        assert (type(outcome.error).__name__, stop.status.status_code) == ("InternalServerError", StatusCode.UNSET)
        assert stop.attributes["openai_cancel.verdict"] == "cancelled"
        assert "error.type" not in stop.attributes

    @pytest.mark.usefixtures("provider")
    async def test_an_id_that_is_not_found_is_an_error(self, session: QuickSession, stops) -> None:
        await session.stop("resp_none")
        [stop] = stops()
        assert stop.status.status_code is StatusCode.ERROR
        assert stop.attributes["openai_cancel.verdict"] == "not_found"
        assert stop.attributes["error.type"] == "NotFoundError"

    @pytest.mark.usefixtures("provider")
    async def test_a_response_that_is_still_running_is_an_error(
        self, server: Emulator, session: QuickSession, create: Create, stops
    ) -> None:
        """No call has failed, but the response is not stopped."""
        identifier = create()
        server.faults += [Fault(status=200, body={"id": identifier, "status": "in_progress"}) for _ in range(50)]
        outcome = await session.stop(identifier, deadline=5)
        [stop] = stops()
        assert (outcome.error, stop.status.status_code) == (None, StatusCode.ERROR)
        assert stop.attributes["openai_cancel.verdict"] == stop.attributes["error.type"] == "still_running"
        assert stop.attributes["openai_cancel.attempts"] == outcome.attempts

    @pytest.mark.usefixtures("provider")
    @pytest.mark.parametrize("status", [200, 400, 403, 500])
    async def test_the_span_contains_no_text_of_the_server(
        self, server: Emulator, session: QuickSession, stops, status
    ) -> None:
        """An error of a server may contain the key or the prompt."""
        words = {"error": {"message": f"a secret of yours: {KEY}", "type": "secret", "code": "secret"}}
        server.faults += [Fault(status=status, body=words) for _ in range(50)]
        outcome = await session.stop("resp_1", deadline=5)
        [stop] = stops()
        assert "secret" in str(outcome.error)
        assert stop.status.description is None
        assert stop.attributes["error.type"] == type(outcome.error).__name__

    @pytest.mark.usefixtures("provider")
    async def test_a_stop_that_is_cancelled_ends_its_span_without_a_verdict(
        self, server: Emulator, session: QuickSession, create, stops
    ) -> None:
        server.faults.append(Fault(delay=float("inf")))
        task = asyncio.create_task(session.stop(create()))
        await until(lambda: server.received)
        task.cancel("a secret")
        with pytest.raises(asyncio.CancelledError):
            await task
        [stop] = stops()
        assert (stop.status.status_code, stop.status.description, stop.events) == (StatusCode.ERROR, None, ())
        assert stop.attributes["error.type"] == "CancelledError"
        assert "openai_cancel.verdict" not in stop.attributes

    @pytest.mark.usefixtures("provider")
    async def test_an_exception_is_recorded_by_its_class_alone(self, server: Emulator, stops) -> None:
        def key() -> str:
            raise LookupError("a secret")

        async with AsyncSession(base_url=server.base_url, api_key=key) as session:
            with pytest.raises(LookupError, match="a secret"):
                await session.stop("resp_1")
        with pytest.raises(SessionStateError):
            await session.stop("resp_1")
        for stop, kind in zip(stops(), ("LookupError", "SessionStateError"), strict=True):
            assert (stop.status.status_code, stop.status.description, stop.events) == (StatusCode.ERROR, None, ())
            assert stop.attributes["error.type"] == kind

    async def test_an_id_that_cannot_be_sent_has_no_span(
        self, exporter: InMemorySpanExporter, provider: TracerProvider, session: QuickSession
    ) -> None:
        with pytest.raises(InvalidResponseIdError):
            await session.stop("a\nb")
        assert provider.force_flush()
        assert exporter.get_finished_spans() == ()

    @pytest.mark.usefixtures("provider")
    async def test_the_span_contains_no_query_of_the_base_url(self, server: Emulator, create: Create, stops) -> None:
        """The query may contain a signature, which is a secret."""
        async with AsyncSession(base_url=f"{server.base_url}?signature=secret", api_key=KEY) as session:
            await session.stop(create())
        assert stops()[0].attributes["server.address"] == "127.0.0.1"
        assert server.received[0].path.endswith("?signature=secret")

    async def test_a_tracer_provider_that_is_set_after_the_first_stop_is_used(
        self, provider: TracerProvider, session, create, stops
    ) -> None:
        """A process may import OpenTelemetry first, and configure it later."""
        with pytest.MonkeyPatch.context() as before:
            set_tracer_provider(before, None)
            await session.stop(create())
        identifier = create()
        await session.stop(identifier)
        assert [span.attributes["gen_ai.response.id"] for span in stops()] == [identifier]
        assert provider is trace.get_tracer_provider()


WITHOUT_OPENTELEMETRY = """
import asyncio, sys
import openai_cancel

async def main(base_url, response_id):
    async with openai_cancel.AsyncSession(base_url=base_url, api_key="k") as session:
        print((await session.stop(response_id)).verdict)

asyncio.run(main(*sys.argv[1:]))
assert not [name for name in sys.modules if name.startswith(("opentelemetry", "openai_cancel.metrics"))]
assert "openai_cancel.outcome_hook" not in sys.modules
"""


async def test_a_process_that_does_not_trace_does_not_import_opentelemetry(
    python: str, server: Emulator, create: Create
) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [python, "-c", WITHOUT_OPENTELEMETRY, server.base_url, create()],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("cancelled\n", "")
    assert "traceparent" not in server.received[0].headers

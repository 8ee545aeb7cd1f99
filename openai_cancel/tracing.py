"""A span for each `stop`, if the process uses OpenTelemetry. If not, the cost is a look into a dictionary.

A span contains no text of a server, and so no part of a body or a key. Of an error it contains the class.

See https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from yarl import URL  # aiohttp's own URL type, as in the settings

from openai_cancel.outcome import Outcome
from openai_cancel.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

OPERATION = "stop_response"


class StopSpan:
    """The span of a `stop` that is under way."""

    def __init__(self, span: "Span", *, dry_run: bool) -> None:
        self._span = span
        self._dry_run = dry_run

    def end(self, outcome: Outcome) -> Outcome:
        """Record the outcome, and return it."""
        self._span.set_attribute("openai_cancel.verdict", outcome.verdict.value)
        self._span.set_attribute("openai_cancel.attempts", outcome.attempts)
        if outcome.error is not None and not outcome.stopped:
            self.fail(type(outcome.error).__qualname__)
        elif not outcome.stopped and not self._dry_run:
            self.fail(outcome.verdict.value)
        return outcome

    def fail(self, kind: str) -> None:
        """Mark the span as failed."""
        from opentelemetry.trace import StatusCode  # imported here, as in `stop_span`

        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)


def is_active() -> bool:
    """Return whether the process has imported OpenTelemetry."""
    return "opentelemetry.trace" in sys.modules


def has_metrics() -> bool:
    """Return whether the process has imported the metrics of OpenTelemetry."""
    return "opentelemetry.metrics" in sys.modules


@contextmanager
def stop_span(response_id: str, base_url: str, *, dry_run: bool) -> Generator[StopSpan, None, None]:
    """Run a block in a span: a child of the caller's span, and the parent of the spans of its requests."""
    # Imported here, so that only those who trace pay for it. If another thread is importing it, this waits.
    from opentelemetry import trace

    server = URL(base_url)
    with _tracer(trace.get_tracer_provider()).start_as_current_span(
        OPERATION,
        kind=trace.SpanKind.CLIENT,
        attributes={
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": "openai",  # the provider of the API, not of the server
            "gen_ai.response.id": response_id,
            "server.address": cast("str", server.host),  # the settings make sure of it
            "server.port": cast("int", server.port),
        },
        record_exception=False,  # an exception contains text of the server
        set_status_on_exception=False,
    ) as span:
        stop = StopSpan(span, dry_run=dry_run)
        try:
            yield stop
        except BaseException as error:  # also a cancelled task, whose response may still be running
            stop.fail(type(error).__qualname__)
            raise


@lru_cache(maxsize=1)
def _tracer(provider: "TracerProvider") -> "Tracer":
    """Return the tracer of a provider. The SDK takes its time, and adds a warnings filter for each new one."""
    return provider.get_tracer("openai_cancel", __version__)

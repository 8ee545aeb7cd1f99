"""A span for each `stop`, where a process uses OpenTelemetry. Where it does not, this costs a look into a dictionary.

There are no words of a server in a span, and so no part of a body or of a key: of an error there is its class.

See https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/.
"""

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from yarl import URL  # aiohttp's own URL type, as in the settings

from openai_cancel.outcome import Outcome, Stop
from openai_cancel.settings import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

OPERATION = "stop_response"


async def traced(stop: Stop, base_url: str) -> Outcome:
    """The outcome of a stop, which runs in a span: a child of the caller's, and a parent of those of the requests."""
    if "opentelemetry.trace" not in sys.modules:
        return await stop.run()
    # Only here, so that nobody pays for it who does not use it. Another thread may still be importing it: this waits.
    from opentelemetry import trace

    server = URL(base_url)
    with _tracer(trace.get_tracer_provider()).start_as_current_span(
        OPERATION,
        kind=trace.SpanKind.CLIENT,
        attributes={
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": "openai",  # by which is meant whose API it is
            "gen_ai.response.id": stop.response_id,
            "server.address": cast("str", server.host),  # which settings make sure of
            "server.port": cast("int", server.port),
        },
        record_exception=False,  # with its words, that is
        set_status_on_exception=False,
    ) as span:
        try:
            outcome = await stop.run()
        except BaseException as error:  # a cancelled task, too: what it was to stop may run on
            _fail(span, type(error).__qualname__)
            raise
        span.set_attribute("openai_cancel.verdict", outcome.verdict.value)
        span.set_attribute("openai_cancel.attempts", outcome.attempts)
        if outcome.error is not None and not outcome.stopped:
            _fail(span, type(outcome.error).__qualname__)
        elif not outcome.stopped and not stop.dry_run:
            _fail(span, outcome.verdict.value)
        return outcome


@lru_cache(maxsize=1)
def _tracer(provider: "TracerProvider") -> "Tracer":
    """Kept, since the SDK adds a filter of warnings for each that is asked for, and takes its time."""
    return provider.get_tracer("openai_cancel", __version__)


def _fail(span: "Span", kind: str) -> None:
    from opentelemetry.trace import StatusCode  # see above

    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)

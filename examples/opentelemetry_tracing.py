"""Trace each stop as a span, with a child span for each request: `opentelemetry_tracing.py ID…`.

Needs `pip install opentelemetry-sdk opentelemetry-instrumentation-aiohttp-client`.
"""

import sys

from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from openai_cancel import Session

# Prints the spans. A service would send them to a collector: BatchSpanProcessor(OTLPSpanExporter()).
exporter = ConsoleSpanExporter(formatter=lambda span: f"{span.to_json(indent=None)}\n")
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
AioHttpClientInstrumentor().instrument()  # creates the spans of the requests; call it before the session opens

with Session() as session:
    for response_id in sys.argv[1:]:
        session.stop(response_id)

"""A span for each response that is stopped, and in it one for each request: `opentelemetry_tracing.py ID…`.

After `pip install opentelemetry-sdk opentelemetry-instrumentation-aiohttp-client`.
"""

import sys

from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from openai_cancel import Session

# A service sends them somewhere, with a BatchSpanProcessor and the OTLPSpanExporter.
exporter = ConsoleSpanExporter(formatter=lambda span: f"{span.to_json(indent=None)}\n")
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
AioHttpClientInstrumentor().instrument()  # before the session opens: it makes the spans of the requests

with Session() as session:
    for response_id in sys.argv[1:]:
        session.stop(response_id)

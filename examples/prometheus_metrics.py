"""Count what became of responses, for Prometheus: `prometheus_metrics.py PORT ID…`, then see http://localhost:PORT.

Needs `pip install prometheus-client`. A service with OpenTelemetry has these metrics, and more, without any code.
"""

import asyncio
import sys

from prometheus_client import Counter, Histogram, start_http_server

from openai_cancel import AsyncSession, Outcome

OUTCOMES = Counter("openai_cancel_outcomes", "Outcomes of stops.", ["verdict"])
SECONDS = Histogram("openai_cancel_stop_seconds", "The time that a stop took.", ["stopped"])


def count(outcome: Outcome) -> None:
    """Count an outcome of `stop`, `guard`, `wait` and others. An alert asks for verdicts that mean "still running"."""
    OUTCOMES.labels(outcome.verdict).inc()
    SECONDS.labels(outcome.stopped).observe(outcome.elapsed)


async def main(port: int, *response_ids: str) -> None:
    """Wait for responses at most five seconds, and count those that had to be stopped."""
    start_http_server(port, addr="127.0.0.1")
    async with AsyncSession(on_outcome=count) as session:
        async for result in session.wait_many(response_ids, timeout=5):
            print(result.response_id, result.response and result.response.status)
        print("done", flush=True)
        await asyncio.Event().wait()


try:
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
except KeyboardInterrupt:
    sys.exit(130)

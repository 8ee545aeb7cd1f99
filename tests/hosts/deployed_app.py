"""A service as it is deployed: guards, a ledger, and counted outcomes: `uvicorn deployed_app:app`.

When it has ended, it prints what it has counted: with a function of its own, and with OpenTelemetry.
"""

import json
import os
from collections import Counter
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from polling import poll

from openai_cancel import AsyncSession, Outcome
from openai_cancel.ledger import Ledger

outcomes: Counter[str] = Counter()
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))


async def count(outcome: Outcome) -> None:
    outcomes[outcome.verdict] += 1


def measured() -> dict[str, int]:
    """Return the sums of OpenTelemetry's counters."""
    data = reader.get_metrics_data()
    found = [] if data is None else [s for r in data.resource_metrics for s in r.scope_metrics]
    return {
        metric.name: sum(point.value for point in metric.data.data_points)
        for scope in found
        for metric in scope.metrics
        if metric.name in {"openai_cancel.outcomes", "openai_cancel.guard.responses"}
    }


@asynccontextmanager
async def lifespan(app: FastAPI):
    ledger = Ledger(os.environ["OPENAI_CANCEL_LEDGER"])
    async with AsyncSession(ledger=ledger, account="service", on_outcome=count) as app.state.session:
        yield
    print(json.dumps({"outcomes": outcomes, "measured": measured()}))  # noqa: T201 - the test reads it


app = FastAPI(lifespan=lifespan)


@app.get("/plain/{response_id}")
async def plain(response_id: str, request: Request) -> dict[str, str | None]:
    return await poll(request.app.state.session, response_id)


@app.get("/measured")
async def show_measured() -> dict[str, int]:
    return measured()

"""OpenTelemetry metrics: outcomes, their seconds, and what is held now, without a secret."""

import asyncio
import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import KEY, QuickSession, until
from ledger_database import lapse
from ledgers import open_session
from openai import AsyncOpenAI
from opentelemetry.metrics import _internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from yarl import URL

from openai_cancel import AsyncSession, __version__, metrics, tracing
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger

Read = Callable[[], dict[str, Metric]]


def set_meter_provider(monkeypatch: pytest.MonkeyPatch, provider: MeterProvider | None) -> None:
    """Set the provider of the process; None is the state before the first one was set, as in `test_tracing`."""
    monkeypatch.setattr(_internal, "_METER_PROVIDER", provider)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    set_meter_provider(monkeypatch, provider)
    yield reader
    provider.shutdown()


@pytest.fixture
def read(reader: InMemoryMetricReader) -> Read:
    """Return the metrics by name, after a check that none contains a secret."""

    def read() -> dict[str, Metric]:
        data = reader.get_metrics_data()
        if data is None:
            return {}
        assert "secret" not in data.to_json()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        (scope,) = [one for one in scopes if one.scope.name == "openai_cancel"]
        assert scope.scope.version == __version__
        return {metric.name: metric for metric in scope.metrics}

    return read


def values(metric: Metric, *names: str) -> dict[Any, int]:
    """Return the values of a metric by some attributes."""
    return {tuple(point.attributes.get(name) for name in names): point.value for point in metric.data.data_points}


def held(metric: Metric, server: Emulator) -> int | None:
    """Return how many responses at a server a metric has. Another test may have left a session at another server."""
    url = URL(server.base_url)
    return values(metric, "server.address", "server.port").get((url.host, url.port))


async def test_outcomes_are_counted_by_verdict_and_server(session: QuickSession, server, create, read: Read) -> None:
    for name in (create(), create(), create(runs_for=0), "resp_none"):
        await session.stop(name)
    await session.stop(create(), dry_run=True)
    assert len([outcome async for outcome in session.stop_many([".."])]) == 1
    found = read()
    counter, histogram = found["openai_cancel.outcomes"], found["openai_cancel.stop.duration"]
    assert values(counter, "openai_cancel.verdict", "error.type") == {
        ("cancelled", None): 2,
        ("already_finished", None): 1,
        ("not_found", "NotFoundError"): 1,
        ("unknown", "InvalidResponseIdError"): 1,
    }
    port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
    assert set(values(counter, "server.address", "server.port")) == {("127.0.0.1", port)}
    assert (counter.unit, histogram.unit) == ("{outcome}", "s")
    assert sum(point.count for point in histogram.data.data_points) == 5
    assert histogram.data.data_points[0].explicit_bounds[-1] == 300.0


async def test_an_outcome_without_an_error_that_is_not_stopped_has_its_verdict_as_error_type(
    session: QuickSession, server: Emulator, create, read: Read
) -> None:
    name = create()
    server.faults += [Fault(status=200, body={"id": name, "status": "in_progress"}) for _ in range(50)]
    await session.stop(name, deadline=5)
    assert values(read()["openai_cancel.outcomes"], "error.type") == {("still_running",): 1}


async def test_responses_in_guards_and_waits_are_measured(
    session: AsyncSession, server: Emulator, create, read: Read
) -> None:
    async with session.guard(create(), create()) as guard, session.guard(create()):
        gauge = read()["openai_cancel.guard.responses"]
        assert (held(gauge, server), gauge.unit) == (3, "{response}")
        guard.disarm()
        assert held(read()["openai_cancel.guard.responses"], server) == 1
    assert held(read()["openai_cancel.guard.responses"], server) == 0


async def test_responses_in_watches_are_measured(server: Emulator, tmp_path, read: Read) -> None:
    async with (
        AsyncOpenAI(api_key=KEY, base_url=server.base_url) as client,
        open_session(server, Ledger(f"sqlite:///{tmp_path}/ledger.db")) as session,
    ):
        session.watch(client)
        created = await client.responses.create(model="m", input="x", background=True)
        assert held(read()["openai_cancel.watch.responses"], server) == 1
        await client.responses.cancel(created.id)
        assert held(read()["openai_cancel.watch.responses"], server) == 0


@pytest.mark.slow
async def test_a_session_that_is_gone_is_measured_no_more(server: Emulator, create, read: Read) -> None:
    async with QuickSession(api_key=KEY, base_url=server.base_url) as session, session.guard(create()):
        pass
    assert held(read()["openai_cancel.guard.responses"], server) == 0
    del session

    def gone() -> bool:
        gc.collect()
        gauge = read().get("openai_cancel.guard.responses")
        return gauge is None or held(gauge, server) is None

    await until(gone)


async def test_overdue_responses_that_are_gone_are_zero(read: Read) -> None:
    metrics.set_overdue({("a", "http://one.example/v1"): 3, ("b", "http://one.example/v1"): 1})
    metrics.set_overdue({("b", "http://one.example/v1"): 2})
    gauge = read()["openai_cancel.ledger.overdue"]
    assert values(gauge, "openai_cancel.account", "server.address") == {
        ("a", "one.example"): 0,
        ("b", "one.example"): 2,
    }


async def test_a_provider_that_is_set_after_the_first_outcome_is_used(session, create, read: Read) -> None:
    with pytest.MonkeyPatch.context() as before:
        set_meter_provider(before, None)
        await session.stop(create())
    await session.stop(create())
    assert values(read()["openai_cancel.outcomes"], "openai_cancel.verdict") == {("cancelled",): 1}


async def test_an_api_that_fails_is_logged_once_and_changes_nothing(
    session: AsyncSession, ledger: Ledger, create, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldMeter:
        def create_counter(self, *_: object) -> object:
            return object()

        def create_histogram(self, name: str, unit: str, description: str) -> object:
            raise AssertionError((name, unit, description))  # it is called with an argument that 1.20 does not know

    class OldProvider:
        def get_meter(self, *_: object) -> OldMeter:
            return OldMeter()

    set_meter_provider(monkeypatch, OldProvider())
    monkeypatch.setattr(metrics, "_known", set())
    assert (await session.stop(create())).stopped
    with pytest.raises(LookupError):
        async with session.guard(create()) as guard:
            raise LookupError
    assert guard.outcome.stopped
    assert (await ledger.stats()).groups == ()
    (record,) = [
        record for record in caplog.records if record.name == "openai_cancel" and record.levelname == "WARNING"
    ]
    assert (record.event_name, record.error_type) == ("metrics_failed", "TypeError")
    assert "opentelemetry-api 1.30 or later" in record.getMessage()


async def test_counting_a_ledger_sets_the_number_of_overdue_responses(ledger: Ledger, url: str, read: Read) -> None:
    session = AsyncSession(api_key=KEY, base_url="https://one.example/v1", account="a")
    await ledger.track_many(["resp_1", "resp_2"], session=session, ttl=60)
    await lapse(url, "resp_1")
    await ledger.stats()
    gauge = read()["openai_cancel.ledger.overdue"]
    assert (values(gauge, "openai_cancel.account", "server.address"), gauge.unit) == (
        {("a", "one.example"): 1}, "{response}",
    )  # fmt: skip


async def test_without_the_metrics_of_opentelemetry_nothing_is_measured(
    server: Emulator, tmp_path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "has_metrics", lambda: False)
    async with (
        AsyncOpenAI(api_key=KEY, base_url=server.base_url) as client,
        Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
        open_session(server, ledger) as session,
        session.watch(client),
        session.guard(client, on_exit="stop"),
    ):
        await client.responses.create(model="m", input="x", background=True)
        await ledger.stats()
    assert read() == {}


WITH_A_FORK = """
import os
import opentelemetry.metrics
from openai_cancel import metrics
from openai_cancel.guard import OpenGuards

guards = OpenGuards("http://h/v1")
metrics.observe(guards)
if os.fork() == 0:
    os._exit(len(metrics._holders))
_, status = os.wait()
assert os.waitstatus_to_exitcode(status) == 0 and len(metrics._holders) == 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_forked_child_measures_nothing_of_its_parent(python: str) -> None:
    await asyncio.to_thread(subprocess.run, [python, "-c", WITH_A_FORK], timeout=50, check=True)

"""OpenTelemetry metrics, if the process has imported them. If not, this module is not imported either.

| name | instrument | unit | |
|---|---|---|---|
| `openai_cancel.outcomes` | counter | `{outcome}` | the outcomes of stops |
| `openai_cancel.stop.duration` | histogram | `s` | the duration of the stops |
| `openai_cancel.guard.responses` | observable up-down counter | `{response}` | responses in guards and waits |
| `openai_cancel.watch.responses` | observable up-down counter | `{response}` | responses in watches |
| `openai_cancel.ledger.overdue` | gauge | `{response}` | responses that were overdue at the last `Ledger.stats` |

The first two have the attributes `openai_cancel.verdict`, `server.address` and `server.port`, and `error.type` if the
response was not stopped. The others have the two attributes of the server, and the one of the ledger also has
`openai_cancel.account`. No attribute contains an id, or text from a server.

They need opentelemetry-api 1.30 or later. If the API or its provider fails, this is logged once and changes nothing
else.

Names follow https://opentelemetry.io/docs/specs/semconv/general/naming/.
"""

import logging
import os
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, ParamSpec, Protocol, cast

from yarl import URL  # aiohttp's own URL type, as in the settings

from openai_cancel.log_events import log_fields
from openai_cancel.outcome import Outcome
from openai_cancel.version import __version__

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Counter, Histogram, MeterProvider, Observation
    from opentelemetry.metrics import _Gauge as Gauge  # the name under which the API exports it

_P = ParamSpec("_P")
_Attributes = Mapping[str, str | int]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""The bucket boundaries of the histogram: from a single request to a deadline of some minutes."""


_log = logging.getLogger("openai_cancel")


class Holder(Protocol):
    """An object that holds responses: the guards of a session, or a watch."""

    @property
    def kind(self) -> str:
        """`guard` or `watch`."""
        ...

    @property
    def base_url(self) -> str:
        """The address of the server."""
        ...

    @property
    def held(self) -> int:
        """The number of responses. Any thread may read it."""
        ...


_holders: dict[int, "weakref.ref[Holder]"] = {}
"""The holders of this process, by `id`. A dictionary can be copied while other threads change it."""

_at_fork = getattr(os, "register_at_fork", dict)  # Windows has no fork
_at_fork(after_in_child=_holders.clear)  # a child process does not hold the responses of its parent


def _harmless(measure: Callable[_P, None]) -> Callable[_P, None]:
    """Keep errors of OpenTelemetry away from stops and guards. Many processes have an old API, or another provider."""

    @wraps(measure)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            measure(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything
            _complain(error)

    return call


_known: set[type[Exception]] = set()
"""The classes of errors that were logged."""


def _complain(error: Exception) -> None:
    """Log an error, once for each class."""
    kind = type(error)
    if kind in _known:
        return
    _known.add(kind)
    _log.warning(
        "OpenTelemetry's metrics raised %s, and are incomplete. They need opentelemetry-api 1.30 or later",
        kind.__name__,
        extra=log_fields("metrics_failed", error=error),
    )


@_harmless
def observe(holder: Holder) -> None:
    """Measure a holder until it is garbage-collected."""
    key = id(holder)
    if key not in _holders:
        _holders[key] = weakref.ref(holder, lambda _: _holders.pop(key, None))
    _current()


@_harmless
def count(outcome: Outcome, base_url: str) -> None:
    """Count an outcome of a stop."""
    attributes: dict[str, str | int] = {"openai_cancel.verdict": outcome.verdict.value, **_server(base_url)}
    if not outcome.stopped:
        error = outcome.error
        attributes["error.type"] = outcome.verdict.value if error is None else type(error).__qualname__
    instruments = _current()
    instruments.outcomes.add(1, attributes)
    instruments.duration.record(outcome.elapsed, attributes)


@_harmless
def set_overdue(counts: Mapping[tuple[str, str], int]) -> None:
    """Set the number of overdue responses of each account and server. Others that were set before become 0."""
    _current().set_overdue(counts)


class _Instruments:
    """The instruments of a meter provider."""

    def __init__(self, provider: "MeterProvider") -> None:
        meter = provider.get_meter("openai_cancel", __version__)
        self.outcomes: Counter = meter.create_counter("openai_cancel.outcomes", "{outcome}", "Outcomes of stops.")
        self.duration: Histogram = meter.create_histogram(
            "openai_cancel.stop.duration", "s", "The time that a stop took.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )  # fmt: skip
        self._overdue: Gauge = meter.create_gauge(
            "openai_cancel.ledger.overdue", "{response}", "Responses whose lease in the ledger has expired."
        )
        self._set: dict[tuple[str, str], None] = {}
        for kind, words in (("guard", "guards and waits"), ("watch", "watches")):
            meter.create_observable_up_down_counter(
                f"openai_cancel.{kind}.responses",
                [partial(_measure, kind)],
                "{response}",
                f"Responses in {words}, now.",
            )

    def set_overdue(self, counts: Mapping[tuple[str, str], int]) -> None:
        """See the function of this name."""
        for account, base_url in {**self._set, **dict.fromkeys(counts)}:
            number = counts.get((account, base_url), 0)
            self._overdue.set(number, {"openai_cancel.account": account, **_server(base_url)})
        self._set = dict.fromkeys(counts)


def _measure(kind: str, _: "CallbackOptions") -> "list[Observation]":
    """Return how many responses are held, for each server. This runs in the thread of an exporter."""
    from opentelemetry.metrics import Observation  # not imported unless metrics are used

    found: dict[str, int] = {}
    for reference in [*_holders.values()]:
        holder = reference()
        if holder is not None and holder.kind == kind:
            found[holder.base_url] = found.get(holder.base_url, 0) + holder.held
    return [Observation(number, _server(base_url)) for base_url, number in found.items()]


def _current() -> _Instruments:
    from opentelemetry import metrics  # as above. If another thread is importing it, this waits

    return _instruments(metrics.get_meter_provider())


@lru_cache(maxsize=1)
def _instruments(provider: "MeterProvider") -> _Instruments:
    """Return the instruments of a provider. A process may set its provider after the first outcome."""
    return _Instruments(provider)


@lru_cache(maxsize=64)
def _server(base_url: str) -> _Attributes:
    url = URL(base_url)
    # The settings make sure that both are there.
    return {"server.address": cast("str", url.host), "server.port": cast("int", url.port)}

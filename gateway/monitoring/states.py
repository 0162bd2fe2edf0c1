"""The metrics that are read at every scrape: the state of the lanes, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_BREAKER_STATES = ("closed", "half_open", "open")


class LaneGauges(Struct, frozen=True, kw_only=True):
    """The state of a lane now."""

    ready: bool
    breaker: str
    running: int
    waiting: int
    restarts: int
    has_prefix_cache: bool = False


class StateCollector(Collector):
    """Lanes and memory as `read` found them, so that another thread can write the text."""

    def __init__(self) -> None:
        self.lanes: dict[str, Callable[[], LaneGauges]] = {}
        self.now: dict[str, LaneGauges] = {}
        self._memory_mb: Mapping[str, float] = {}

    def read(self, memory_mb: Mapping[str, float]) -> None:
        """Read all lanes. On the event loop: reading the state of a breaker can change it."""
        self.now = {model: read() for model, read in self.lanes.items()}
        self._memory_mb = memory_mb

    def collect(self) -> Iterator[Metric]:
        now = self.now
        yield _gauge("gateway_model_ready", "1 when the model can answer", {m: g.ready for m, g in now.items()})
        yield _gauge("gateway_requests_running", "Requests that run now", {m: g.running for m, g in now.items()})
        yield _gauge(
            "gateway_requests_waiting", "Requests in the admission queue", {m: g.waiting for m, g in now.items()}
        )
        breaker = GaugeMetricFamily(
            "gateway_breaker_state", "1 for the present state of the circuit breaker", labels=["model", "state"]
        )
        for model, gauges in now.items():
            for state in _BREAKER_STATES:
                breaker.add_metric([model, state], float(gauges.breaker == state))
        yield breaker
        restarts = CounterMetricFamily("gateway_worker_restarts", "Restarts of the worker process", labels=["model"])
        for model, gauges in now.items():
            restarts.add_metric([model], gauges.restarts)
        yield restarts
        what = 'Resident memory of a model\'s worker, and of the rest of the gateway ("(gateway)")'
        memory = GaugeMetricFamily("gateway_memory_bytes", what, labels=["process"])
        for process, megabytes in self._memory_mb.items():
            memory.add_metric([process], 1e6 * megabytes)
        yield memory


def _gauge(name: str, text: str, values: dict[str, bool] | dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], float(value))
    return family

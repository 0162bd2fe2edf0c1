"""Prometheus metrics of the gateway, in a registry of their own: two gateways in one process do not meet.

What happens is counted as it happens; what merely is (queue depth, breaker state) is read when somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from gateway.generation import Meter, Timings

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BREAKER_STATES = ("closed", "half_open", "open")


class LaneGauges(Struct, frozen=True, kw_only=True):
    """What is true of a lane at this moment."""

    ready: bool
    breaker: str
    running: int
    waiting: int
    restarts: int


class _LaneCollector(Collector):
    def __init__(self) -> None:
        self.lanes: dict[str, Callable[[], LaneGauges]] = {}

    def collect(self) -> Iterator[Metric]:
        now = {model: read() for model, read in self.lanes.items()}
        yield _gauge("gateway_model_ready", "1 when the model can answer", {m: g.ready for m, g in now.items()})
        yield _gauge("gateway_requests_running", "Requests in progress", {m: g.running for m, g in now.items()})
        yield _gauge("gateway_requests_waiting", "Requests in the queue", {m: g.waiting for m, g in now.items()})
        breaker = GaugeMetricFamily("gateway_breaker_state", "1 for the breaker's state", labels=["model", "state"])
        for model, gauges in now.items():
            for state in _BREAKER_STATES:
                breaker.add_metric([model, state], float(gauges.breaker == state))
        yield breaker
        restarts = CounterMetricFamily("gateway_worker_restarts", "Workers started again", labels=["model"])
        for model, gauges in now.items():
            restarts.add_metric([model], gauges.restarts)
        yield restarts


def _gauge(name: str, text: str, values: dict[str, bool] | dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], float(value))
    return family


class Metrics:
    """Counts for `/metrics`. A request that moved to its fallback counts at both models, each with its own outcome."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._lanes = _LaneCollector()
        self._registry.register(self._lanes)
        self._requests = self._counter("gateway_requests", "Requests by outcome: ok, cancelled or the error's code")
        self._tokens = self._counter("gateway_tokens", "Tokens by kind: prompt, cached (of the prompt), completion")
        self._breaker_changes = self._counter("gateway_breaker_changes", "Changes of the breaker by the state it took")
        self._queue_s = self._histogram("gateway_queue_seconds", "Wait for a place")
        self._ttft_s = self._histogram("gateway_first_token_seconds", "From acceptance to the first token")
        self._total_s = self._histogram("gateway_request_seconds", "From acceptance to the end")
        self._device_s = self._histogram("gateway_device_seconds", "Time inside device calls")

    def watch(self, model: str, read: Callable[[], LaneGauges]) -> None:
        """Ask `read` for the lane's gauges at every scrape."""
        self._lanes.lanes[model] = read

    def request_refused(self, model: str, outcome: str) -> None:
        self._requests.labels(model, outcome).inc()

    def request_ended(self, model: str, outcome: str, meter: Meter, timings: Timings) -> None:
        """An accepted request is over: `outcome` is ok, cancelled or an error's code; 0 s of ttft: no token came."""
        self._requests.labels(model, outcome).inc()
        self._tokens.labels(model, "prompt").inc(meter.prompt_tokens)
        self._tokens.labels(model, "cached").inc(meter.cached_tokens)
        self._tokens.labels(model, "completion").inc(meter.completion_tokens)
        self._queue_s.labels(model).observe(timings.queue_s)
        self._total_s.labels(model).observe(timings.total_s)
        self._device_s.labels(model).observe(timings.device_s)
        if timings.ttft_s:
            self._ttft_s.labels(model).observe(timings.ttft_s)

    def breaker_changed(self, model: str, state: str) -> None:
        self._breaker_changes.labels(model, state).inc()

    def render(self) -> bytes:
        """The text exposition, to be sent as `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        second = {"gateway_requests": "outcome", "gateway_tokens": "kind"}.get(name, "state")
        return Counter(name, text, ["model", second], registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model"], buckets=_SECONDS, registry=self._registry)

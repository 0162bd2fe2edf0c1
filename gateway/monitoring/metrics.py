"""Prometheus metrics. Each gateway has its own registry, so two gateways in one process do not share counts.

Events are counted when they happen. States (queue length, breaker state) are read at every scrape.
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
    """The state of a lane now."""

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


def _gauge(name: str, text: str, values: dict[str, bool] | dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], float(value))
    return family


class Metrics:
    """The counts of `/metrics`. A request that moves to its fallback counts for both models."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._lanes = _LaneCollector()
        self._registry.register(self._lanes)
        self._requests = self._counter("gateway_requests", "Requests by outcome: ok, cancelled or the error's code")
        self._tokens = self._counter("gateway_tokens", "Tokens by kind: prompt, cached (of the prompt), completion")
        self._breaker_changes = self._counter("gateway_breaker_changes", "Changes of the circuit breaker, by new state")
        self._responses = Counter(
            "gateway_http_responses",
            "Replies by the path of the route and by HTTP status",
            ["path", "status"],
            registry=self._registry,
        )
        self._queue_s = self._histogram("gateway_queue_seconds", "Time in the admission queue")
        self._ttft_s = self._histogram("gateway_first_token_seconds", "Time to first token (TTFT), from acceptance")
        self._total_s = self._histogram("gateway_request_seconds", "Time from acceptance to the end")
        self._device_s = self._histogram("gateway_device_seconds", "Time inside device calls")
        self._loop_delay_s = Histogram(
            "gateway_event_loop_delay_seconds",
            "How late a timer of one second ran on the event loop",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def watch(self, model: str, read: Callable[[], LaneGauges]) -> None:
        """Call `read` at every scrape."""
        self._lanes.lanes[model] = read

    def request_refused(self, model: str, outcome: str) -> None:
        self._requests.labels(model, outcome).inc()

    def request_ended(self, model: str, outcome: str, meter: Meter, timings: Timings) -> None:
        """Count an accepted request at its end. `outcome`: ok, cancelled or an error's code."""
        self._requests.labels(model, outcome).inc()
        self._tokens.labels(model, "prompt").inc(meter.prompt_tokens)
        self._tokens.labels(model, "cached").inc(meter.cached_tokens)
        self._tokens.labels(model, "completion").inc(meter.completion_tokens)
        self._queue_s.labels(model).observe(timings.queue_s)
        self._total_s.labels(model).observe(timings.total_s)
        self._device_s.labels(model).observe(timings.device_s)
        if timings.ttft_s is not None:
            self._ttft_s.labels(model).observe(timings.ttft_s)

    def http_response(self, path: str, status: int) -> None:
        """Count a reply. `path`: of the route, so that clients cannot make labels."""
        self._responses.labels(path, str(status)).inc()

    def event_loop_delayed(self, seconds: float) -> None:
        self._loop_delay_s.observe(max(0.0, seconds))

    def breaker_changed(self, model: str, state: str) -> None:
        self._breaker_changes.labels(model, state).inc()

    def render(self) -> bytes:
        """The text format; its media type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        second = {"gateway_requests": "outcome", "gateway_tokens": "kind"}.get(name, "state")
        return Counter(name, text, ["model", second], registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model"], buckets=_SECONDS, registry=self._registry)

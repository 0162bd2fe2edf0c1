"""Prometheus metrics. Each gateway has its own registry, so two gateways in one process do not share counts.

Events are counted when they happen. States (queue length, breaker state) are read at every scrape. Each measurement is
observed once; vllm_names.py shows it under vLLM's name too. Labels come from the configuration and the routes, never
from a request. docs/metrics.md lists all metrics.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway import __version__
from gateway.generation import Meter, Timings
from gateway.monitoring.observers import AnswerRecord
from gateway.monitoring.states import LaneGauges, StateCollector
from gateway.monitoring.vllm_names import VllmNames

CONTENT_TYPE = CONTENT_TYPE_LATEST
NO_KEY = "(none)"  # the label `key` of a request without one
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_TOKENS = (1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_DRAFT_SOURCES = ("grammar", "prediction", "lookup", "model")
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)

_Kind = TypeVar("_Kind", Counter, Histogram)


class Metrics:
    """The counts of `/metrics`. A request that moves to its fallback counts for both models."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._series: dict[tuple[Counter | Histogram | str, ...], Any] = {}  # `labels` takes four times as long
        self._states = StateCollector()
        self._registry.register(self._states)
        self._requests = self._counter("requests", "Requests by outcome: ok, cancelled or the error's code", "outcome")
        self._tokens = self._counter("tokens", "Tokens by kind: prompt, cached (of the prompt), completion", "kind")
        self._drafted = self._counter("drafted_tokens", "Tokens of drafts by source, see docs/tune.md", "source")
        self._accepted = self._counter("accepted_draft_tokens", "The right ones of them", "source")
        self._breaker_changes = self._counter("breaker_changes", "Changes of the circuit breaker", "state")
        self._endings = self._counter("answers", "By ending: stop, length, tool_calls, cancelled, error", "ending")
        self._slow = self._counter("slow_answers", "Slow answers by cause: prompt, tokens, queue", "cause")
        self._targets = self._counter("target_requests", "Requests by the server that answered", "target")
        self._reasons = self._counter("target_choices", "Why that server: only, affinity, failover, ...", "reason")
        self._attempts = self._counter("target_attempts", "Servers that were tried, by the one that answered", "target")
        self._hedged = self._counter("hedged_requests", "Requests to two servers, by the one that won", "winner")
        self._responses = self._counter("http_responses", "Replies by route and HTTP status", "status", first="path")
        self._key_requests = self._counter("key_requests", "Requests by API key and HTTP status", "status", first="key")
        self._key_tokens = self._counter("key_tokens", "Tokens by API key and kind", "kind", first="key")
        self._queue_s = self._histogram("queue_seconds", "Time in the admission queue")
        self._ttft_s = self._histogram("first_token_seconds", "Time to first token (TTFT), from acceptance")
        self._total_s = self._histogram("request_seconds", "Time from acceptance to the end")
        self._device_s = self._histogram("device_seconds", "Time inside device calls")
        self._token_s = self._histogram("token_seconds", "Time for each token after the first", _TOKEN_SECONDS)
        self._prefill_s = self._histogram("prefill_seconds", "Time from the end of the queue to the first token")
        self._decode_s = self._histogram("decode_seconds", "Time from the first token to the end")
        self._prompt_tokens = self._histogram("prompt_tokens", "Prompt tokens of a request", _TOKENS)
        self._completion_tokens = self._histogram("completion_tokens", "Completion tokens of a request", _TOKENS)
        self._ttft_ratio = self._histogram("first_token_ratio", "Real TTFT divided by the predicted one", _RATIOS)
        self._loop_delay_s = Histogram(
            "gateway_event_loop_delay_seconds",
            "How late a timer of one second ran on the event loop",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._add_constants()
        self._add_vllm_names()

    def watch(self, model: str, read: Callable[[], LaneGauges]) -> None:
        """Call `read` at every scrape."""
        self._states.lanes[model] = read

    def forget(self, model: str, read: Callable[[], LaneGauges]) -> None:
        """End `watch`, unless another `read` is watched by now."""
        if self._states.lanes.get(model) == read:
            del self._states.lanes[model]

    def request_refused(self, model: str, outcome: str) -> None:
        self._of(self._requests, model, outcome).inc()

    def request_ended(self, model: str, outcome: str, meter: Meter, timings: Timings) -> None:
        """Count a request that a lane accepted, at its end. `outcome`: ok, cancelled or an error's code."""
        self._of(self._requests, model, outcome).inc()
        self._of(self._tokens, model, "prompt").inc(meter.prompt_tokens)
        self._of(self._tokens, model, "cached").inc(meter.cached_tokens)
        self._of(self._tokens, model, "completion").inc(meter.completion_tokens)
        for source in _DRAFT_SOURCES:
            drafted, accepted = meter.drafts.get(source, (0, 0))
            self._of(self._drafted, model, source).inc(drafted)
            self._of(self._accepted, model, source).inc(accepted)
        self._of(self._queue_s, model).observe(timings.queue_s)
        self._of(self._total_s, model).observe(timings.total_s)
        self._of(self._device_s, model).observe(timings.device_s)
        if timings.ttft_s is not None:
            self._of(self._ttft_s, model).observe(timings.ttft_s)

    def answered(self, record: AnswerRecord) -> None:
        """Count a request as its client sees it. An observer."""
        key = record.key or NO_KEY
        self._of(self._key_requests, key, str(record.status)).inc()
        if not record.model:
            return
        for kind, count in _token_counts(record):
            self._of(self._key_tokens, key, kind).inc(count)
        is_answer = record.status in (200, 499)
        self._of(self._endings, record.model, record.ending if is_answer else "error").inc()
        if record.target:
            self._routed(record)
        if record.slow_cause:
            self._of(self._slow, record.model, record.slow_cause).inc()
        if record.ttft_ms is not None:
            self._first_token_came(record, record.ttft_ms)

    def _routed(self, record: AnswerRecord) -> None:
        self._of(self._targets, record.model, record.target).inc()
        self._of(self._reasons, record.model, record.target_reason).inc()
        self._of(self._attempts, record.model, record.target).inc(record.attempts)
        winner = "second" if record.target_reason == "hedge" else "first"
        self._of(self._hedged, record.model, winner).inc(record.hedged)

    def _first_token_came(self, record: AnswerRecord, ttft_ms: float) -> None:
        model = record.model
        self._of(self._prompt_tokens, model).observe(record.prompt_tokens)
        self._of(self._completion_tokens, model).observe(record.completion_tokens)
        self._of(self._prefill_s, model).observe((ttft_ms - (record.queue_ms or 0.0)) / 1000)
        self._of(self._decode_s, model).observe(max(0.0, record.total_ms - ttft_ms) / 1000)
        if record.per_token_ms is not None:
            self._of(self._token_s, model).observe(record.per_token_ms / 1000)
        if record.predicted_ttft_ms:
            self._of(self._ttft_ratio, model).observe(ttft_ms / record.predicted_ttft_ms)

    def http_response(self, path: str, status: int) -> None:
        """Count a reply. `path`: of the route, so that clients cannot make labels."""
        self._of(self._responses, path, str(status)).inc()

    def event_loop_delayed(self, seconds: float) -> None:
        self._loop_delay_s.observe(max(0.0, seconds))

    def breaker_changed(self, model: str, state: str) -> None:
        self._of(self._breaker_changes, model, state).inc()

    async def scrape(self, memory_mb: Mapping[str, float]) -> bytes:
        """The text format; its media type is `CONTENT_TYPE`. Call it on the event loop.

        Args:
            memory_mb: of each process by the name of its label.
        """
        self._states.read(memory_mb)
        return await asyncio.to_thread(generate_latest, self._registry)  # 20 ms for ten models

    def render(self) -> bytes:
        """The same at once."""
        self._states.read({})
        return generate_latest(self._registry)

    def _of(self, metric: _Kind, *labels: str) -> _Kind:
        series = self._series.get((metric, *labels))
        if series is None:
            series = self._series[metric, *labels] = metric.labels(*labels)
        return series

    def _add_constants(self) -> None:
        build = Info("gateway_build", "This gateway and its Python", registry=self._registry)
        build.info({"version": __version__, "python": platform.python_version(), "machine": platform.machine()})
        started = Gauge("gateway_start_time_seconds", "When it started, in seconds since 1970", registry=self._registry)
        started.set(time.time())

    def _add_vllm_names(self) -> None:
        histograms = {
            "time_to_first_token_seconds": self._ttft_s,
            "inter_token_latency_seconds": self._token_s,
            "time_per_output_token_seconds": self._token_s,
            "request_time_per_output_token_seconds": self._token_s,
            "e2e_request_latency_seconds": self._total_s,
            "request_queue_time_seconds": self._queue_s,
            "request_prefill_time_seconds": self._prefill_s,
            "request_decode_time_seconds": self._decode_s,
            "request_prompt_tokens": self._prompt_tokens,
            "request_generation_tokens": self._completion_tokens,
        }
        self._registry.register(VllmNames(self._states, histograms, self._tokens, self._endings))

    def _counter(self, name: str, text: str, second: str, first: str = "model") -> Counter:
        return Counter(f"gateway_{name}", text, [first, second], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        return Histogram(f"gateway_{name}", text, ["model"], buckets=buckets, registry=self._registry)


def _token_counts(record: AnswerRecord) -> tuple[tuple[str, int], ...]:
    prompt, cached, completion = record.prompt_tokens, record.cached_tokens, record.completion_tokens
    return ("prompt", prompt), ("cached", cached), ("completion", completion)

"""The gateway's measurements under vLLM's metric names and labels, so that dashboards made for vLLM show this gateway.

The values are copied at a scrape; a request costs nothing more. vLLM observes the time between tokens at each token,
and the gateway its mean at the end of each answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.monitoring.states import StateCollector

_LABELS = ["model_name", "engine"]
_ENGINE = "0"  # vLLM's number of the only engine
_TOKENS = {
    "prompt_tokens": "prompt",
    "generation_tokens": "completion",
    "prefix_cache_queries": "prompt",
    "prefix_cache_hits": "cached",
}
#: vLLM's finish reason of each of our endings.
_REASONS = {"stop": "stop", "tool_calls": "stop", "length": "length", "cancelled": "abort", "error": "error"}


class VllmNames(Collector):
    """Args:
    states: of the lanes, as they were read for this scrape.
    histograms: by vLLM's name.
    tokens: labels model, kind.
    endings: labels model, ending.
    """

    def __init__(
        self,
        states: StateCollector,
        histograms: Mapping[str, Histogram],
        tokens: Counter,
        endings: Counter,
    ) -> None:
        self._states = states
        self._histograms = histograms
        self._tokens = tokens
        self._endings = endings

    def collect(self) -> Iterator[Metric]:
        now = self._states.now
        yield _gauge("num_requests_running", "Requests that run now", {m: g.running for m, g in now.items()})
        yield _gauge("num_requests_waiting", "Requests in the queue", {m: g.waiting for m, g in now.items()})
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "The prefix cache", labels=[*_LABELS, "enable_prefix_caching"]
        )
        for model, gauges in now.items():
            cache.add_metric([model, _ENGINE, str(gauges.has_prefix_cache)], 1.0)
        yield cache
        yield from (_renamed(histogram, f"vllm:{name}") for name, histogram in self._histograms.items())
        yield from self._token_counts()
        yield self._successes()

    def _token_counts(self) -> Iterator[Metric]:
        for name, kind in _TOKENS.items():
            family = CounterMetricFamily(f"vllm:{name}", f"Tokens of kind: {kind}", labels=_LABELS)
            for model, own_kind, value in _values(self._tokens, "kind"):
                if own_kind == kind:
                    family.add_metric([model, _ENGINE], value)
            yield family

    def _successes(self) -> Metric:
        counts: dict[tuple[str, str], float] = {}
        for model, ending, value in _values(self._endings, "ending"):
            reason = _REASONS.get(ending, ending)
            counts[model, reason] = counts.get((model, reason), 0.0) + value
        family = CounterMetricFamily("vllm:request_success", "Ended requests", labels=[*_LABELS, "finished_reason"])
        for (model, reason), value in counts.items():
            family.add_metric([model, _ENGINE, reason], value)
        return family


def _gauge(name: str, text: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
    for model, value in values.items():
        family.add_metric([model, _ENGINE], value)
    return family


def _renamed(histogram: Histogram, name: str) -> Metric:
    """The samples of `histogram` with vLLM's name and labels."""
    [own] = histogram.collect()
    metric = Metric(name, own.documentation, "histogram")
    for sample in own.samples:
        if not sample.name.endswith("_created"):
            others = {label: value for label, value in sample.labels.items() if label != "model"}
            labels = {"model_name": sample.labels["model"], "engine": _ENGINE, **others}
            metric.add_sample(sample.name.replace(own.name, name, 1), labels, sample.value)
    return metric


def _values(counter: Counter, label: str) -> Iterator[tuple[str, str, float]]:
    """(model, value of the label, count) of each series."""
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                yield sample.labels["model"], sample.labels[label], sample.value

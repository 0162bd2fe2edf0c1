"""The samples of a scrape after requests to the scripted engine."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.config.tables import BreakerConfig, Fault, Script, ScriptedModel
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import GatewayError
from gateway.generation import Generation, Meter, Text, Timings
from gateway.lanes.lane import Lane
from gateway.monitoring.metrics import Metrics
from tests.support.virtual_time import in_virtual_time, now

Samples = dict[tuple[str, frozenset[str]], float]


def scrape(metrics: Metrics) -> Samples:
    families = text_string_to_metric_families(metrics.render().decode("utf-8"))
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def at(samples: Samples, name: str, *labels: str) -> float:
    return samples[f"gateway_{name}", frozenset(labels)]


async def ask(lane: Lane) -> None:
    generation = Generation(id="r", model="m", prompt=Text("one two three"))
    async with aclosing(lane.submit(generation)) as events:
        async for _ in events:
            pass


def test_drafts_are_counted_by_source() -> None:
    metrics, meter = Metrics(), Meter()
    for source, tokens, right in (("lookup", 7, 7), ("model", 4, 1), ("model", 3, 2)):
        meter.drafted(source, tokens, right)
    metrics.request_ended("m", "ok", meter, Timings())
    samples = scrape(metrics)
    assert at(samples, "drafted_tokens_total", "m", "model") == 7
    assert at(samples, "accepted_draft_tokens_total", "m", "model") == 3
    assert at(samples, "accepted_draft_tokens_total", "m", "lookup") == 7


@in_virtual_time
async def test_scrape_counts_requests_tokens_times_and_breaker_states() -> None:
    faults = (Fault(requests=(2,), error="EngineFailed"),)
    script = Script(replies=("a b",), ttft_s=0.5, token_s=0.25, cached_tokens=1, faults=faults)
    model = ScriptedModel(max_sequences=1, queue=1, script=script)
    metrics = Metrics()
    breaker = BreakerConfig(latency_ms=1000.0, min_calls=3, rate=0.3, probe_itself=False)
    lane = Lane("m", model, ScriptedEngine("m", model, clock=now), breaker, metrics=metrics, clock=now)
    lane.start()
    assert at(scrape(metrics), "model_ready", "m") == 0
    await lane.tried()
    both = [asyncio.create_task(ask(lane)) for _ in range(2)]
    await asyncio.sleep(0.1)
    samples = scrape(metrics)
    assert at(samples, "model_ready", "m") == 1
    assert (at(samples, "requests_running", "m"), at(samples, "requests_waiting", "m")) == (1, 1)
    assert at(samples, "breaker_state", "m", "closed") == 1
    for _ in range(2):  # refused: the queue is full
        with pytest.raises(GatewayError):
            await ask(lane)
    await asyncio.gather(*both)
    with pytest.raises(GatewayError):  # fails and opens the breaker
        await ask(lane)
    with pytest.raises(GatewayError):  # refused
        await ask(lane)
    await lane.aclose()

    samples = scrape(metrics)
    assert at(samples, "requests_total", "m", "ok") == 2
    assert at(samples, "requests_total", "m", "rate_limit_exceeded") == 2
    assert at(samples, "requests_total", "m", "engine_failed") == 1
    assert at(samples, "requests_total", "m", "latency_breaker_open") == 1
    assert at(samples, "tokens_total", "m", "prompt") == 9
    assert at(samples, "tokens_total", "m", "cached") == 3
    assert at(samples, "tokens_total", "m", "completion") == 6
    assert at(samples, "first_token_seconds_count", "m") == 2
    assert at(samples, "request_seconds_count", "m") == 3
    assert at(samples, "queue_seconds_sum", "m") == pytest.approx(1.0)
    assert at(samples, "breaker_state", "m", "open") == 1
    assert at(samples, "breaker_state", "m", "closed") == 0
    assert at(samples, "breaker_changes_total", "m", "open") == 1
    assert at(samples, "worker_restarts_total", "m") == 0


def test_two_metrics_in_one_process_are_independent() -> None:
    one, other = Metrics(), Metrics()
    one.request_refused("m", "x")
    assert ("gateway_requests_total", frozenset(["m", "x"])) in scrape(one)
    assert ("gateway_requests_total", frozenset(["m", "x"])) not in scrape(other)

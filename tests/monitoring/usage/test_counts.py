"""The numbers of one request, and times from buckets."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from gateway.monitoring.observers import AnswerRecord
from gateway.monitoring.usage.counts import bucket, cell_of, counts_of, known_endings, outcome, quantile


def record(**fields: Any) -> AnswerRecord:
    return AnswerRecord(**{"at": 7200.0, "id": "r", "requested": "m", "model": "m", "ending": "stop", **fields})


def test_numbers_of_an_answer() -> None:
    counts = counts_of(record(prompt_tokens=9, cached_tokens=4, completion_tokens=7, ttft_ms=100.0, per_token_ms=20.0))
    assert counts == {
        "requests": 1,
        "answered": 1,
        "ending stop": 1,
        "prompt_tokens": 9,
        "cached_tokens": 4,
        "completion_tokens": 7,
        f"ttft {bucket(100.0)}": 1,
        f"token {bucket(20.0)}": 1,
    }


@pytest.mark.parametrize(
    ("ending", "status", "expected"),
    [
        ("stop", 200, "answered"),
        ("cancelled", 499, "cancelled"),
        ("latency_breaker_open", 503, "refused"),
        ("rate_limit_exceeded", 429, "refused"),
        ("model_not_ready", 503, "refused"),
        ("model_not_found", 404, "refused"),
        ("engine_failed", 503, "failed"),
        ("upstream_failed", 502, "failed"),
        ("deadline_exceeded", 504, "failed"),
    ],
)
def test_each_request_has_one_outcome(ending: str, status: int, expected: str) -> None:
    assert outcome(record(ending=ending, status=status)) == expected
    assert ending in known_endings()


def test_endings_and_names_of_others_are_bounded() -> None:
    hostile = record(
        ending="x" * 9999, status=502, prompt_tokens=10**40, completion_tokens=-5, key="k" * 999, model="m"
    )
    counts = counts_of(hostile)
    assert counts["ending other"] == 1 and counts["prompt_tokens"] == 2**40 and counts["completion_tokens"] == 0
    assert len(cell_of(hostile).key) < 250


@pytest.mark.parametrize("at", [-1e9, 0.0, 7200.0, 1e18])
def test_hour_of_any_clock_is_a_number_of_the_file(at: float) -> None:
    assert 0 <= cell_of(record(at=at)).hour < 2**31


@pytest.mark.parametrize("ms", [0.0, -1.0, 1.9, 2.0, 2.1, 50.0, 999.0, 60_000.0, 1e12, math.inf, math.nan])
def test_bucket_holds_its_time(ms: float) -> None:
    index = bucket(ms)
    assert 0 <= index <= 60
    if 2 < ms < 1e6:
        assert quantile({f"ttft {index}": 1}, "ttft", 0.5) == pytest.approx(max(ms, 2.0), rel=0.26)


def test_quantiles_are_near_those_of_the_times() -> None:
    counts: Counter[str] = Counter()
    for ms in range(1, 1001):
        counts[f"token {bucket(ms)}"] += 1
    counts["ttft 3"] += 5
    p50, p95 = quantile(counts, "token", 0.5), quantile(counts, "token", 0.95)
    assert p50 is not None and 500 <= p50 <= 500 * 1.25
    assert p95 is not None and 950 <= p95 <= 950 * 1.25
    assert quantile(Counter(), "token", 0.5) is None

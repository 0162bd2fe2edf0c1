"""The report: groups, order, days in local time."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from gateway.monitoring.usage.counts import Cell, bucket
from gateway.monitoring.usage.report import Selection, Usage, first_hour, report_of

NOON = time.mktime((2026, 11, 30, 12, 0, 0, 0, 0, -1))
HOUR = int(NOON // 3600)


def test_report_has_totals_and_groups() -> None:
    rows = {
        Cell(HOUR, "a", "anna"): Counter({"requests": 2, "answered": 2, "completion_tokens": 9, "ending stop": 2}),
        Cell(HOUR - 24, "b", "anna"): Counter({"requests": 3, "refused": 3, "ending latency_breaker_open": 3}),
        Cell(HOUR - 25, "b", ""): Counter({"requests": 4, "answered": 4, f"ttft {bucket(100)}": 4}),
    }
    report = report_of(rows, 7, NOON)
    assert (report.days, report.since) == (7, "2026-11-24")
    assert [(day.name, day.requests) for day in report.by_day] == [("2026-11-30", 2), ("2026-11-29", 7)]
    assert [(model.name, model.requests) for model in report.by_model] == [("b", 7), ("a", 2)]
    assert [(key.name, key.requests) for key in report.by_key] == [("anna", 5), ("", 4)]
    assert (report.total.requests, report.total.refused, report.total.completion_tokens) == (9, 3, 9)
    assert report.total.endings == {"stop": 2, "latency_breaker_open": 3}
    assert report.total.ttft_p50_ms == pytest.approx(100, rel=0.26) and report.total.per_token_p50_ms is None


def test_rows_join_day_model_and_key() -> None:
    rows = {
        Cell(HOUR, "a", "anna"): Counter(requests=2),
        Cell(HOUR - 1, "a", "anna"): Counter(requests=1),
        Cell(HOUR, "a", "ben"): Counter(requests=4),
        Cell(HOUR - 24, "b", "anna"): Counter(requests=9),
    }

    def joined(*by: str, model: str | None = None, key: str | None = None) -> list[tuple[object, ...]]:
        report = report_of(rows, 7, NOON, Selection(by, model, key))
        return [(row.day, row.model, row.key, row.requests) for row in report.rows]

    assert joined("key", "day", "model") == [
        ("2026-11-30", "a", "ben", 4),
        ("2026-11-30", "a", "anna", 3),
        ("2026-11-29", "b", "anna", 9),
    ]
    assert joined("model", "key") == [(None, "b", "anna", 9), (None, "a", "ben", 4), (None, "a", "anna", 3)]
    assert joined("day", model="a", key="anna") == [("2026-11-30", None, None, 3)]
    assert joined() == joined("day", key="unknown") == []
    assert report_of(rows, 7, NOON, Selection(key="anna")).total.requests == 12


def test_report_without_requests_is_empty() -> None:
    report = report_of({}, 1, NOON)
    assert (report.total, report.by_day, report.since) == (Usage(), [], "2026-11-30")


@pytest.mark.parametrize("now", [0.0, 86_400.0, NOON])
def test_first_hour_is_never_before_the_first(now: float) -> None:
    assert 0 <= first_hour(3660, now) <= first_hour(1, now) <= now / 3600

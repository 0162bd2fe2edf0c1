"""`bench --compare A.json B.json`: what changed between two measurements, and by more than their spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from gateway.commands.bench.report import Report, overlap, read
from gateway.commands.bench.show import say
from gateway.commands.tables import Column, write_table

ONCE = "measured once"


class Metric(Struct, frozen=True, kw_only=True):
    """One figure of a measurement, as often as it was measured."""

    name: str
    values: list[float]
    unit: str = "s"
    less_is_better: bool = True


def metrics(report: Report) -> Iterator[Metric]:
    for answers in report.answers:
        totals = [run.total_s for run in answers.runs]
        if totals:
            yield Metric(name=f"{answers.new_tokens} tokens, first run", values=totals[:1])
        if totals[1:]:
            yield Metric(name=f"{answers.new_tokens} tokens, later runs", values=totals[1:])
    runs = [run for answers in report.answers for run in answers.runs]
    if speeds := [run.tokens_per_s for run in runs if run.tokens_per_s and run.tokens >= 16]:
        yield Metric(name="generated", values=speeds, unit="tokens/s", less_is_better=False)
    for prefill in report.prefill:
        if speeds := [run.prefill_tokens_per_s for run in prefill.runs]:
            yield Metric(name=f"prompt of {prefill.length}", values=speeds, unit="tokens/s", less_is_better=False)
        if prefill.again:
            yield Metric(name=f"prompt of {prefill.length}, cached", values=[prefill.again.first_s])
    if report.start_to_ready_s is not None:
        yield Metric(name="start to ready", values=[report.start_to_ready_s])
    if report.memory:
        yield Metric(name="memory", values=[report.memory.peak_bytes / 1e6], unit="MB")


def compare(first: Path, second: Path) -> None:
    """Print the ratios of two files of `--json`. Raises ConfigError."""
    a, b = read(first), read(second)
    for letter, path, report in (("A", first, a), ("B", second, b)):
        say(f"{letter}: {path.name}, {report.model} on {report.device}, {report.taken_at}")
    if (a.model, a.device) != (b.model, b.device):
        say("The two files are of different models or devices.")
    columns = [Column("figure"), *(Column(title, right=True) for title in ("A", "B", "B/A")), Column("meaning")]
    compared = list(rows(a, b))
    write_table(compared, columns)
    if any(row[-1] == ONCE for row in compared):
        say("A figure that was measured once has no spread. Measure with --runs 5 to get it.")


def rows(a: Report, b: Report) -> Iterator[tuple[str, str, str, str, str]]:
    of_b = {metric.name: metric for metric in metrics(b)}
    for of_a in metrics(a):
        if found := of_b.get(of_a.name):
            x, y = statistics.median(of_a.values), statistics.median(found.values)
            ratio = f"{y / x:.2f}" if x else "-"
            yield of_a.name, _shown(of_a), _shown(found), ratio, meaning(of_a, found)


def meaning(a: Metric, b: Metric) -> str:
    if len(a.values) < 2 or len(b.values) < 2:
        return ONCE
    if overlap(a.values, b.values):
        return "within the spread"
    is_less = statistics.median(b.values) < statistics.median(a.values)
    return "B is better" if is_less == a.less_is_better else "B is worse"


def _shown(metric: Metric) -> str:
    """The median, with the lowest and the highest value: "1.20 (1.10-1.35) s"."""
    low, middle, high = min(metric.values), statistics.median(metric.values), max(metric.values)
    spread = "" if low == high else f" ({_number(low)}-{_number(high)})"
    return f"{_number(middle)}{spread} {metric.unit}"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"

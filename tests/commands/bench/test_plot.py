"""The plots are well-formed SVG with a point for each figure."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from gateway.commands.bench.plot import plot
from gateway.commands.bench.report import Report
from tests.support.bench_report import report_of

SVG = "{http://www.w3.org/2000/svg}"


def drawn(report: Report) -> tuple[list[str], int]:
    """(texts, number of points)"""
    root = ElementTree.fromstring(plot(report))
    return [text.text or "" for text in root.iter(f"{SVG}text")], len(list(root.iter(f"{SVG}circle")))


def test_plot_has_labels_limit_and_points() -> None:
    texts, points = drawn(report_of())
    assert texts[0].startswith("small & quick on npu")
    assert {"8", "64", "256", "first run", "later runs", "limit of the breaker", "from the prefix cache"} <= set(texts)
    assert points == 2 * 2 + 2


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e4])
def test_points_are_inside_whatever_the_times(factor: float) -> None:
    root = ElementTree.fromstring(plot(report_of(factor, budget=None)))
    assert all(60 <= float(point.get("cy", "")) <= 255 for point in root.iter(f"{SVG}circle"))


def test_plot_of_nothing_says_so() -> None:
    texts, points = drawn(report_of(answers=[], prefill=[]))
    assert texts.count("nothing was measured") == 2 and points == 0


def test_text_of_a_server_is_no_markup() -> None:
    texts, _ = drawn(report_of(model="a\x1b</text><script>b\0", budget=None))
    assert texts[0].startswith("a\\x1b</text><script>b\\x00")

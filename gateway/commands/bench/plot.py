"""`bench --plot FILE.svg`: the tables as two line plots, on a logarithmic scale of seconds. No library is needed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from gateway.commands.bench.report import Report
from gateway.commands.bench.verdict import limit_s
from gateway.monitoring.output import escape as one_line

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 420, 300, 60, 60, 45  # pixels of one plot
_BLUE, _ORANGE, _RED = "#2b6cb0", "#c05621", "#c53030"
_TEXT, _GRID = "#1a202c", "#cbd5e0"


class Line(NamedTuple):
    """A series: seconds for each position on the x axis, None where nothing was measured."""

    title: str
    colour: str
    values: Sequence[float | None]
    dash: str = ""


def plot(report: Report) -> str:
    """The plots as SVG."""
    answers = [each for each in report.answers if each.runs]
    budget = report.budget
    lines = [
        Line("first run", _ORANGE, [each.runs[0].total_s for each in answers]),
        Line("later runs", _BLUE, [_median([run.total_s for run in each.runs[1:]]) for each in answers]),
        Line(
            "limit of the breaker",
            _RED,
            [limit_s(each.runs[-1], budget) if budget else None for each in answers],
            "6 4",
        ),
    ]
    prompts = [
        Line("new prompt", _ORANGE, [_median([run.first_s for run in each.runs]) for each in report.prefill]),
        Line("from the prefix cache", _BLUE, [each.again.first_s if each.again else None for each in report.prefill]),
    ]
    plots = [
        _plot(0, "Seconds for an answer of N new tokens", [str(each.new_tokens) for each in answers], lines),
        _plot(
            _WIDTH,
            "Seconds to the first token after N prompt tokens",
            [str(each.runs[0].prompt_tokens) for each in report.prefill],
            prompts,
        ),
    ]
    title = one_line(f"{report.model} on {report.device}, {report.taken_at}")  # XML has no control characters
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDTH}" height="{_HEIGHT}" font-family="sans-serif">'
    background = f'<rect width="{2 * _WIDTH}" height="{_HEIGHT}" fill="white"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", background, _label(10, 16, title), *plots, "</svg>\n"])


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _plot(x: int, title: str, labels: Sequence[str], lines: Sequence[Line]) -> str:
    values = [value for line in lines for value in line.values if value]
    drawn = [_label(x + 10, 36, title)]
    if not values:
        return "\n".join([*drawn, _label(x + _LEFT, _HEIGHT / 2, "nothing was measured")])
    ticks = list(_ticks(min(values), max(values)))
    for tick in ticks:
        y = _y(tick, ticks)
        drawn.append(f'<path d="M{x + _LEFT} {y:.1f}H{x + _WIDTH - 10}" stroke="{_GRID}"/>')
        drawn.append(_label(x + _LEFT - 6, y + 4, f"{tick:g}", anchor="end"))
    positions = [x + _LEFT + 20 + (_WIDTH - _LEFT - 60) * i / max(1, len(labels) - 1) for i in range(len(labels))]
    drawn += [
        _label(at, _HEIGHT - _BOTTOM + 18, text, anchor="middle") for at, text in zip(positions, labels, strict=True)
    ]
    shown = [line for line in lines if any(line.values)]
    for index, line in enumerate(shown):
        drawn.append(_label(x + _LEFT + 120 * index, _HEIGHT - 8, line.title, line.colour))
        drawn += _line(line, positions, ticks)
    return "\n".join(drawn)


def _line(line: Line, positions: Sequence[float], ticks: Sequence[float]) -> Iterator[str]:
    points = [(at, _y(value, ticks)) for at, value in zip(positions, line.values, strict=True) if value]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    yield f'<path d="M{path}" fill="none" stroke="{line.colour}" stroke-width="2" stroke-dasharray="{line.dash}"/>'
    if not line.dash:
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"/>' for x, y in points)


def _ticks(low: float, high: float) -> Iterator[float]:
    """1, 2, 5, 10, ... from the last one below `low` to the first one above `high`."""
    exponent = math.floor(math.log10(low))
    steps = [float(f"{factor}e{power}") for power in range(exponent, exponent + 12) for factor in (1, 2, 5)]
    first = max(index for index, step in enumerate(steps) if step <= low)
    last = next(index for index, step in enumerate(steps) if step >= high)
    return iter(steps[first : max(last, first + 1) + 1])


def _y(value: float, ticks: Sequence[float]) -> float:
    share = math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _label(x: float, y: float, text: str, colour: str = _TEXT, anchor: str = "start") -> str:
    position = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
    return f'<text {position} font-size="12" fill="{colour}">{escape(text)}</text>'

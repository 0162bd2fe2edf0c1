"""Write the result of a benchmark into its section of a Markdown page, and draw its plot."""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # import the gateway of this clone

_BAR, _LABEL, _WIDTH = 18, 240, 640  # pixels
_COLOURS = ("#2b6cb0", "#a0aec0", "#cbd5e0", "#718096")
_LINES = ("#a0aec0", "#b7791f", "#805ad5", "#2f855a", "#2b6cb0")


def parser(text: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--quick", action="store_true", help="one short round: shows that the benchmark runs, measures nothing useful"
    )
    made.add_argument("--write", type=Path, metavar="PAGE", help="replace this benchmark's section of a Markdown page")
    return made


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, with the lowest and the highest value."""
    if not values:
        return "-"
    shown = f"{statistics.median(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def publish(name: str, text: str, bars: Mapping[str, Mapping[str, float]] | str, page: Path | None) -> None:
    """Print the section. With a page, replace the text between the section's marks and write the plot.

    Args:
        name: of the section, its marks and its plot.
        bars: label of the plot -> series -> length of the bar; or a finished plot.
    """
    machine = f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    section = f"{text}\n\nRun on {machine}."
    print(section)
    if page is None:
        return
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    if not rest:
        raise SystemExit(f"{page} has no line {begin}")
    plot = page.with_name(f"benchmarks-{name}.svg")
    plot.write_text(bars if isinstance(bars, str) else _svg(bars), encoding="utf-8")
    page.write_text(f"{before}{begin}\n{section}\n\n![{name}]({plot.name})\n{end}{after}", encoding="utf-8")


def _svg(bars: Mapping[str, Mapping[str, float]]) -> str:
    """Horizontal bars. Each label has its own scale, because labels have different units."""
    series = list(dict.fromkeys(name for values in bars.values() for name in values))
    drawn, y = [_text(_LABEL + 150 * i, 14, name, _COLOURS[i % 4]) for i, name in enumerate(series)], 28
    for label, values in bars.items():
        longest = max(values.values()) or 1.0
        drawn.append(_text(0, y + 13, label))
        for name, value in values.items():
            width = value / longest * (_WIDTH - _LABEL - 80)
            colour = _COLOURS[series.index(name) % 4]
            drawn.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR - 3}" fill="{colour}"/>')
            drawn.append(_text(_LABEL + width + 5, y + 13, f"{value:.4g}"))
            y += _BAR
        y += 6
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{y}" fill="white"/>', *drawn, "</svg>\n"])


def line_plot(title: str, points: Sequence[tuple[float, float]], limits: Mapping[str, float]) -> str:
    """One line over seconds, and a horizontal line for each limit, as SVG. Each pixel has its highest point."""
    width, height, left, top = _WIDTH, 240, 60, 28
    last = max((x for x, _ in points), default=1.0)
    highest = 1.1 * max([*limits.values(), *(y for _, y in points)])

    def at_y(value: float) -> float:
        return top + (height - top - 30) * (1 - value / highest)

    columns: dict[int, float] = {}
    for x, y in points:
        column = round(left + (width - left - 10) * x / last)
        columns[column] = max(y, columns.get(column, 0.0))
    path = " ".join(f"{column},{at_y(y):.1f}" for column, y in columns.items())
    drawn = [_text(left, 14, title), f'<polyline points="{path}" fill="none" stroke="{_COLOURS[0]}"/>']
    for name, value in limits.items():
        y = at_y(value)
        drawn.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - 10}" y2="{y:.1f}" stroke="#c53030"/>')
        drawn.append(_text(left + 5, y - 4, f"{name}: {value:.0f}", "#c53030"))
    drawn += [_text(0, at_y(0), "0"), _text(left, height - 8, "0 s"), _text(width - 60, height - 8, f"{last:.0f} s")]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *drawn, "</svg>\n"])


def chart(labels: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Panels with lines above each other, as SVG. Both axes have the same labels; the values have a logarithmic scale.

    Args:
        labels: of the values of each line, from left to right.
        panels: title -> series -> values above 0.
    """
    width, height, left, right = _WIDTH, 220, 50, 130
    drawn = []
    for row, (title, lines) in enumerate(panels.items()):
        top, bottom = height * row + 24, height * (row + 1) - 26
        values = [value for line in lines.values() for value in line]
        lowest, highest = math.floor(math.log10(min(values)) * 2) / 2, math.ceil(math.log10(max(values)) * 2) / 2
        steps = max(1, round(2 * (highest - lowest)))

        def at(
            index: int, value: float, top: int = top, bottom: int = bottom, low: float = lowest, n: int = steps
        ) -> str:
            x = left + (width - left - right) * index / max(1, len(labels) - 1)
            return f"{x:.0f},{bottom - (bottom - top) * 2 * (math.log10(value) - low) / n:.1f}"

        drawn.append(_text(left, top - 10, title))
        for step in range(steps + 1):
            value = 10 ** (lowest + step / 2)
            y = float(at(0, value).split(",")[1])
            drawn.append(f'<line x1="{left}" y1="{y}" x2="{width - right}" y2="{y}" stroke="#e2e8f0"/>')
            drawn.append(_text(0, y + 4, f"{value:.2g}" if value < 100 else f"{value:.0f}"))
        for index, label in enumerate(labels):
            drawn.append(_text(float(at(index, 1.0).split(",")[0]) - 12, bottom + 18, label))
        for number, (name, line) in enumerate(lines.items()):
            colour, points = _LINES[number % len(_LINES)], " ".join(at(i, value) for i, value in enumerate(line))
            drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            drawn.append(_text(width - right + 10, top + 10 + 16 * number, name, colour))
    size = f'width="{width}" height="{height * len(panels)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"><rect {size} fill="white"/>'
    return "\n".join([head, *drawn, "</svg>\n"])


def _text(x: float, y: float, text: str, colour: str = "#1a202c") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="12" fill="{colour}">{escape(text)}</text>'

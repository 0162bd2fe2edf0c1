"""The samples of peers.py: kept in a file of JSON, paired, and shown as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from report import spread, table

CALM = 0.25  # cores that other processes may use
MEMORY = ", MB"  # ends the label of a figure for which it does not matter whether the machine is calm


class Sample(Struct, frozen=True):
    """What one server gave in one pair.

    Args:
        elsewhere: cores that other processes used meanwhile.
    """

    row: str
    pair: int
    peer: str
    elsewhere: float
    figures: dict[str, float]


class Results:
    """All samples of a model. `add` writes the file, so that a run can end at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.samples = msgspec.json.decode(path.read_bytes(), type=list[Sample]) if path.exists() else []

    def drop(self, row: str) -> None:
        self.samples = [sample for sample in self.samples if sample.row != row]

    def next_pair(self, row: str) -> int:
        return 1 + max((sample.pair for sample in self.samples if sample.row == row), default=-1)

    def add(self, samples: Sequence[Sample]) -> None:
        self.samples += samples
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_bytes(msgspec.json.encode(self.samples))


def comparison(samples: Sequence[Sample], order: Sequence[str], first: str) -> tuple[str, dict[str, dict[str, float]]]:
    """The table, and the medians: figure -> peer -> value. Only of pairs in which all samples are calm.

    Args:
        order: of the rows.
        first: the peer that the others are compared with.
    """
    ordered = sorted(samples, key=lambda sample: order.index(sample.row) if sample.row in order else len(order))
    busy = {(sample.row, sample.pair) for sample in samples if sample.elsewhere > CALM}
    names = list(dict.fromkeys([first, *sorted({sample.peer for sample in samples})]))
    lines, bars = [], {}
    for label in dict.fromkeys(label for sample in ordered for label in sample.figures):
        found: dict[str, dict[tuple[str, int], float]] = {name: {} for name in names}
        for sample in ordered:
            if label in sample.figures:
                found[sample.peer][sample.row, sample.pair] = sample.figures[label]
        calm = {
            name: {pair: value for pair, value in values.items() if pair not in busy or label.endswith(MEMORY)}
            for name, values in found.items()
        }
        ratios = [_ratio(label, calm[first], calm[other]) for other in names[1:]]
        shown = [_shown([*values.values()]) for values in calm.values()]
        lines.append([label, *shown, *ratios, f"{len(calm[first])} of {len(found[first])}"])
        bars[label] = {name: statistics.median(values.values()) for name, values in calm.items() if values}
    head = ["", *names, *(f"better than {other} by" for other in names[1:]), "calm pairs"]
    return table(head, lines), {label: values for label, values in bars.items() if values}


def _shown(values: list[float]) -> str:
    return spread(values, 0 if values and min(values) >= 100 else 2 if values and max(values) < 10 else 1)


def _ratio(label: str, ours: Mapping[tuple[str, int], float], theirs: Mapping[tuple[str, int], float]) -> str:
    """Above 1 where ours is better."""
    pairs = [(ours[pair], value) for pair, value in theirs.items() if pair in ours]
    ratios = [a / b if "tokens/s" in label else b / a for a, b in pairs if a and b]
    return f"{spread(ratios, 2)}x" if ratios else "-"

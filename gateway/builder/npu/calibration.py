"""Calibration: the ranges of a part's activations over a text, for 16-bit activations."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from gateway.builder.graphs.static_products import Range, Ranges
from gateway.builder.npu.part_runner import cpu_session, run_part
from gateway.child import run_in_child, serve_request


class CalibrationRequest(Struct, frozen=True):
    """The files of one calibration.

    Args:
        graph: a prompt graph whose outputs include the activations.
        hidden: a .npy file with the part's input, float32 (tokens, hidden); the output overwrites it.
    """

    graph: str
    hidden: str


def calibrate(graph: Path, hidden: Path) -> Ranges:
    """Run a part over the hidden states in `hidden` in a child process; the part's output overwrites them."""
    reply = run_in_child(__name__, CalibrationRequest(str(graph), str(hidden)), graph.name)
    return msgspec.json.decode(reply, type=dict[str, Range])


class _Statistics:
    """The range and the magnitudes of one activation."""

    def __init__(self) -> None:
        self._low, self._high = 0.0, 0.0
        self._sizes: list[float] = []

    def add(self, rows: Any) -> None:
        """rows: float (tokens, columns)"""
        self._low, self._high = min(self._low, float(rows.min())), max(self._high, float(rows.max()))
        self._sizes += np.sqrt((rows * rows).mean(-1)).tolist()

    def range(self) -> Range:
        return Range(self._low, self._high, float(np.median(self._sizes)))


def _calibrate(request: CalibrationRequest) -> Ranges:
    statistics: defaultdict[str, _Statistics] = defaultdict(_Statistics)

    def observe(outputs: dict[str, Any]) -> None:
        for name, rows in outputs.items():
            if "hidden_states" not in name:
                statistics[name].add(rows)

    outputs = run_part([cpu_session(request.graph)], np.load(request.hidden), observe=observe)
    np.save(request.hidden, outputs)
    return {name: gathered.range() for name, gathered in statistics.items()}


if __name__ == "__main__":
    sys.exit(serve_request(CalibrationRequest, _calibrate))

"""The ranges of a part's activations, seen on a text: what 16-bit activations have to cover."""

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
    """`graph`: a prompt graph that gives out what is to be seen. `hidden`: a .npy file with the part's input, float32
    (tokens, hidden), which gets its output. `answer`: the file for the ranges."""

    graph: str
    hidden: str
    answer: str


def calibrate(graph: Path, hidden: Path) -> Ranges:
    """Run a part over the hidden states in `hidden`, which then holds those that come out. In a child process."""
    request = CalibrationRequest(str(graph), str(hidden), str(hidden.with_suffix(".ranges")))
    run_in_child(__name__, request, graph.name)
    return msgspec.json.decode(Path(request.answer).read_bytes(), type=dict[str, Range])


class _Seen:
    """What is gathered of one activation."""

    def __init__(self) -> None:
        self._low, self._high = 0.0, 0.0
        self._sizes: list[float] = []

    def add(self, rows: Any) -> None:
        """rows: (tokens, columns)"""
        self._low, self._high = min(self._low, float(rows.min())), max(self._high, float(rows.max()))
        self._sizes += np.sqrt((rows * rows).mean(-1)).tolist()

    def range(self) -> Range:
        return Range(self._low, self._high, float(np.median(self._sizes)))


def _calibrate(request: CalibrationRequest) -> None:
    seen: defaultdict[str, _Seen] = defaultdict(_Seen)

    def look(outputs: dict[str, Any]) -> None:
        for name, rows in outputs.items():
            if "hidden_states" not in name:
                seen[name].add(rows)

    outputs = run_part([cpu_session(request.graph)], np.load(request.hidden), look=look)
    np.save(request.hidden, outputs)
    ranges = {name: gathered.range() for name, gathered in seen.items()}
    Path(request.answer).write_bytes(msgspec.json.encode(ranges))


if __name__ == "__main__":
    sys.exit(serve_request(CalibrationRequest, _calibrate))

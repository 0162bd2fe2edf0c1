"""Keeps the result of the check of batch invariance in the bundle, so that the next start does not make it again.

The result depends on the kernels, and these on the library, the processor and the shapes. The record holds only if all
of them are the same: another processor, another version or another graph, and the check is made again. It has a result
for each of the last settings, because a bundle can be used on its own and as a draft model. The file is hidden, so the
hashes of the bundle do not include it. A bundle that cannot be written has no record.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort
from msgspec import Struct

from gateway import __version__
from gateway.bundles.bundle import ROWS_FILE
from gateway.bundles.hashes import file_states
from gateway.bundles.json_file import read_record, write_record

#: Increase this number when the check or the calls of the CPU decoder change.
_CHECK = 2
_MOST_SETTINGS = 8
#: The lines of /proc/cpuinfo that do not change while the machine runs.
_PROCESSOR_LINES = ("vendor_id", "cpu family", "model", "stepping", "flags", "features", "cpu ")
#: Variables of the environment that can choose kernels.
_VARIABLES = ("ORT_", "MLAS_")
#: The gateway sets it for its workers, other programs that open a decoder do not. It chooses no kernel.
_NO_KERNEL = "ORT_DISABLE_TELEMETRY"


class Rows(NamedTuple):
    """What the check found: the graph computes a multiple of `multiple` rows, and is batch-invariant with it or not."""

    multiple: int
    is_batch_invariant: bool


class _Record(Struct, frozen=True):
    conditions: list[str]
    rows: dict[str, Rows]  # by the settings, the last ones at the end


class RowRecord:
    """The record of one graph.

    Args:
        graph: the ONNX file.
        settings: of the decoder, which decide what the check computes.
    """

    def __init__(self, graph: Path, settings: Sequence[object]) -> None:
        self._file = graph.with_name(ROWS_FILE)
        self._conditions = [f"check {_CHECK} of {__version__}", *conditions(graph)]
        self._settings = str(list(settings))

    def read(self) -> Rows | None:
        """None: the check has to be made."""
        return self._known().get(self._settings)

    def write(self, rows: Rows) -> None:
        others = [item for item in self._known().items() if item[0] != self._settings]
        known = dict([*others, (self._settings, rows)][-_MOST_SETTINGS:])
        write_record(self._file, _Record(self._conditions, known))

    def _known(self) -> dict[str, Rows]:
        record = read_record(self._file, _Record)
        return record.rows if record is not None and record.conditions == self._conditions else {}


def rows_of(record: RowRecord | None, multiples: Sequence[int], check: Callable[[], Rows]) -> Rows:
    """By the record, or by a check, which is recorded. `multiples`: those that the graph can compute."""
    rows = record.read() if record else None
    if rows is None or rows.multiple not in multiples:
        rows = check()
        if record:
            record.write(rows)
    return rows


def conditions(graph: Path) -> list[str]:
    """What decides which kernels run and with which weights, as text."""
    names = sorted(path.name for path in graph.parent.glob(f"{graph.name}*"))
    return [
        f"onnxruntime {ort.__version__}: {ort.get_build_info()}",
        str(sorted(item for item in os.environ.items() if item[0].startswith(_VARIABLES) and item[0] != _NO_KERNEL)),
        processor(),
        str([names, file_states(graph.parent, names)]),
    ]


def processor() -> str:
    """The kinds of cores of this machine and their features, as text that only another processor changes."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").lower().splitlines()
        except OSError:
            lines = []
        if kinds := sorted({line for line in lines if line.startswith(_PROCESSOR_LINES) and "mhz" not in line}):
            return "\n".join(kinds)
    return f"{platform.machine()} {platform.processor()}"

"""Builds one part of a model for the NPU: writes its graphs, compiles them and compares them with the CPU.

1. The builder checks binaries that hold one graph each, because the emulator does not load binaries that share weights.
   For a real NPU it then compiles the part again into one shared binary.
2. A bundle can lack the graphs for batched steps and for drafts, so a fault of theirs is another error.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from gateway.builder.graphs.static import BATCH, PROMPT, STEP, VERIFY, Part, write_part
from gateway.builder.graphs.static_products import COMPILE_OPTIONS, Precision, Ranges
from gateway.builder.npu.calibration import calibrate
from gateway.builder.npu.check import CheckRequest, Graphs, PartCheck, check_part
from gateway.builder.sources.source import ModelSource
from gateway.child import Progress
from gateway.errors import BundleError
from gateway.qnn.compile import compile_graphs, compiled_name
from gateway.qnn.device import NpuDevice

#: Precisions that quantise activations and so need calibration.
QUANTISED = ("w8a16", "w4a16")
#: The largest relative error of a part against the same graph on the CPU. A larger error is a fault of the NPU.
MAX_NPU_ERROR = 0.05
#: The largest relative error of a part against float32. With a larger error the model is useless.
MAX_ERROR = 1.0
#: graph -> its field of Graphs
_CHECKED = {PROMPT: "prompt", STEP: "step", BATCH: "batch", VERIFY: "verify"}


class GraphRefused(BundleError):
    """The NPU refuses a graph that a bundle can lack, crashes in it, or computes it wrongly.

    `graph`: BATCH or VERIFY.
    """

    def __init__(self, message: str, graph: str) -> None:
        super().__init__(message)
        self.graph = graph


class Texts(Struct, frozen=True):
    """.npy files with hidden states, float32 (tokens, hidden), that pass from part to part.

    Args:
        on_npu, in_float: of the checked tokens, from the NPU and from float32.
        text: of the calibration text.
    """

    on_npu: Path
    in_float: Path
    text: Path


class PartTarget(Protocol):
    """What a part needs from NpuTarget."""

    @property
    def device(self) -> NpuDevice: ...
    @property
    def contexts(self) -> Sequence[int]: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def share_weights(self) -> bool: ...
    @property
    def batch(self) -> int: ...
    @property
    def widths(self) -> Mapping[str, int]: ...


class PartBuilder:
    """Builds the parts of a bundle in their order. `compile_s`: seconds of the compilations so far.

    Args:
        folder: the bundle's folder.
        work: a folder for temporary files.
    """

    def __init__(
        self, target: PartTarget, source: ModelSource, folder: Path, work: Path, texts: Texts, progress: Progress
    ) -> None:
        self._target = target
        self._source = source
        self._folder = folder
        self._work = work
        self._texts = texts
        self._progress = progress
        self._widths = target.widths
        self._optional_graphs = {BATCH} if target.batch > 1 else set()
        self._optional_graphs |= {VERIFY} & self._widths.keys()
        self.compile_s = 0.0

    def build(self, part: Part) -> PartCheck:
        """Write, compile and check one part. Its compiled graphs go to the bundle's folder.

        Raises BundleError, or GraphRefused if only a graph is at fault that a bundle can lack.
        """
        target, name = self._target, f"part {part.index + 1} of {part.count}"
        work = self._work / f"part{part.index}"
        work.mkdir()
        self._progress(f"{name}: writing", 0.0)
        ranges = self._ranges(part, work) if target.precision in QUANTISED else None
        graphs = self._write(work, part, target.precision, ranges, target.batch)
        self._progress(f"{name}: writing", 1.0)
        self._progress(f"{name}: compiling", 0.0)
        started = time.perf_counter()
        compiled = work / "compiled" if target.share_weights else self._folder
        self._compile([path for (name, _), path in graphs.items() if name not in (BATCH, VERIFY)], compiled)
        for optional in (BATCH, VERIFY):
            with self._optional(optional):
                self._compile([path for (name, _), path in graphs.items() if name == optional], compiled)
        self.compile_s += time.perf_counter() - started
        if target.share_weights:
            with self._optional(BATCH, VERIFY):
                self._compile(list(graphs.values()), self._folder, share_weights=True)
        self._progress(f"{name}: compiling", 1.0)
        self._progress(f"{name}: comparing with the CPU", 0.0)
        check = self._check(part, work, graphs, compiled)
        self._progress(f"{name}: comparing with the CPU", 1.0)
        shutil.rmtree(work)
        for optional, error in ((BATCH, check.batch_error), (VERIFY, check.verify_error)):
            if error is not None and error > MAX_NPU_ERROR:
                raise GraphRefused(f"The NPU computes the graph {optional!r} wrongly.", optional)
        return check

    @contextmanager
    def _optional(self, *graphs: str) -> Iterator[None]:
        """Turn every BundleError into GraphRefused for the first of `graphs` that the bundle has: it can lack it."""
        try:
            yield
        except BundleError as error:
            present = [name for name in graphs if name in self._optional_graphs]
            if not present:
                raise
            raise GraphRefused(error.message, present[0]) from error

    def _compile(self, graphs: Sequence[Path], folder: Path, *, share_weights: bool = False) -> None:
        options = COMPILE_OPTIONS.get(self._target.precision, {})
        if graphs:
            compile_graphs(graphs, folder, self._target.device, options=options, share_weights=share_weights)

    def _write(
        self, folder: Path, part: Part, precision: Precision, ranges: Ranges | None = None, sequences: int = 1
    ) -> dict[tuple[str, int], Path]:
        return write_part(
            self._source,
            folder,
            part,
            widths=self._widths,
            contexts=self._target.contexts,
            precision=precision,
            ranges=ranges,
            sequences=sequences,
        )

    def _ranges(self, part: Part, work: Path) -> Ranges:
        folder = work / "calibration"
        folder.mkdir()
        graphs = self._write(folder, part, self._target.precision)
        ranges = calibrate(graphs[PROMPT, max(self._target.contexts)], self._texts.text)
        shutil.rmtree(folder)
        return ranges

    def _check(self, part: Part, work: Path, graphs: dict[tuple[str, int], Path], compiled: Path) -> PartCheck:
        context = min(self._target.contexts)
        own = {name: graphs[name, context] for name in _CHECKED if (name, context) in graphs}
        float_folder = work / "fp32"
        float_folder.mkdir()
        reference = self._write(float_folder, part, "fp32")
        request = CheckRequest(
            compiled=Graphs.of(**{_CHECKED[name]: compiled / compiled_name(graph) for name, graph in own.items()}),
            source=Graphs.of(**{_CHECKED[name]: graph for name, graph in own.items()}),
            reference=Graphs.of(reference[PROMPT, context], reference[STEP, context]),
            on_npu=str(self._texts.on_npu),
            in_float=str(self._texts.in_float),
            device=self._target.device,
        )
        with self._optional(BATCH, VERIFY):
            check = check_part(request)
        if check.npu_error > MAX_NPU_ERROR or check.error > MAX_ERROR:
            raise BundleError(
                f"The NPU accepts part {part.index + 1} of {part.count} but computes it wrongly: the relative error is "
                f"{check.npu_error:.3f} against the same graph on the CPU and {check.error:.3f} against float32 "
                f"(largest number: {check.largest:.0f}). Try another precision or width."
            )
        return check

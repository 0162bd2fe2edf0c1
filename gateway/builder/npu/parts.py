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
from gateway.builder.npu.pieces import FILES
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

    @classmethod
    def of(cls, piece: Path) -> Texts:
        """The files of a piece."""
        return cls(*(piece / f"{name}.npy" for name in cls.__struct_fields__))

    def copy_to(self, piece: Path) -> Texts:
        copies = Texts.of(piece)
        for name in self.__struct_fields__:
            shutil.copyfile(getattr(self, name), getattr(copies, name))
        return copies


class BuiltPart(Struct, frozen=True, kw_only=True):
    """What a finished part leaves for the report. `compile_s`: seconds of its compilations."""

    check: PartCheck
    compile_s: float


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
    """Builds the parts of a bundle, each in a separate folder (`Pieces`)."""

    def __init__(self, target: PartTarget, source: ModelSource, progress: Progress) -> None:
        self._target = target
        self._source = source
        self._progress = progress
        self._widths = target.widths
        self._optional_graphs = {BATCH} if target.batch > 1 else set()
        self._optional_graphs |= {VERIFY} & self._widths.keys()

    def build(self, part: Part, before: Texts, piece: Path) -> BuiltPart:
        """Write, compile and check one part. Its compiled graphs go to `piece`/files.

        Args:
            before: the hidden states of the part before it. They do not change; those for the next part are in `piece`.
        Raises BundleError, or GraphRefused if only a graph is at fault that a bundle can lack.
        """
        target, name = self._target, f"part {part.index + 1} of {part.count}"
        work, folder, texts = piece / "work", piece / FILES, before.copy_to(piece)
        work.mkdir()
        self._progress(f"{name}: writing", 0.0)
        ranges = self._ranges(part, work, texts) if target.precision in QUANTISED else None
        graphs = self._write(work, part, target.precision, ranges, target.batch)
        self._progress(f"{name}: writing", 1.0)
        self._progress(f"{name}: compiling", 0.0)
        started = time.perf_counter()
        compiled = work / "compiled" if target.share_weights else folder
        self._compile([path for (name, _), path in graphs.items() if name not in (BATCH, VERIFY)], compiled)
        for optional in (BATCH, VERIFY):
            with self._optional(optional):
                self._compile([path for (name, _), path in graphs.items() if name == optional], compiled)
        compile_s = time.perf_counter() - started
        if target.share_weights:
            with self._optional(BATCH, VERIFY):
                self._compile(list(graphs.values()), folder, share_weights=True)
        self._progress(f"{name}: compiling", 1.0)
        self._progress(f"{name}: comparing with the CPU", 0.0)
        check = self._check(part, work, graphs, compiled, texts)
        self._progress(f"{name}: comparing with the CPU", 1.0)
        shutil.rmtree(work)
        for optional, error in ((BATCH, check.batch_error), (VERIFY, check.verify_error)):
            if error is not None and error > MAX_NPU_ERROR:
                raise GraphRefused(f"The NPU computes the graph {optional!r} wrongly.", optional)
        return BuiltPart(check=check, compile_s=compile_s)

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

    def _ranges(self, part: Part, work: Path, texts: Texts) -> Ranges:
        folder = work / "calibration"
        folder.mkdir()
        graphs = self._write(folder, part, self._target.precision)
        ranges = calibrate(graphs[PROMPT, max(self._target.contexts)], texts.text)
        shutil.rmtree(folder)
        return ranges

    def _check(
        self, part: Part, work: Path, graphs: dict[tuple[str, int], Path], compiled: Path, texts: Texts
    ) -> PartCheck:
        context = min(self._target.contexts)
        own = {name: graphs[name, context] for name in _CHECKED if (name, context) in graphs}
        float_folder = work / "fp32"
        float_folder.mkdir()
        reference = self._write(float_folder, part, "fp32")
        request = CheckRequest(
            compiled=Graphs.of(**{_CHECKED[name]: compiled / compiled_name(graph) for name, graph in own.items()}),
            source=Graphs.of(**{_CHECKED[name]: graph for name, graph in own.items()}),
            reference=Graphs.of(reference[PROMPT, context], reference[STEP, context]),
            on_npu=str(texts.on_npu),
            in_float=str(texts.in_float),
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

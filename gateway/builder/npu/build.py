"""The NPU target of the builder: static graphs, compiled part by part and compared with the CPU.

1. Only one part is on disk uncompiled at a time, in a temporary folder. So a build needs little more disk space than
   the bundle, and memory for one part.
2. The builder checks binaries that hold one graph each, because the emulator does not load binaries that share weights.
   For a real NPU it then compiles the part again into one shared binary.
3. Folders `batch-*` with their own genai_config.json name the graph for batched steps, because the format has no phase
   for it. If the NPU refuses that graph, the builder makes the bundle without it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from tokenizers import Tokenizer

from gateway.builder.build import Graphs as BundleGraphs
from gateway.builder.build import write_json
from gateway.builder.graphs.genai_writer import genai_config
from gateway.builder.graphs.static import BATCH, PROMPT, STEP, Part, split, write_embeddings_and_head, write_part
from gateway.builder.graphs.static_layout import StaticLayout
from gateway.builder.graphs.static_products import COMPILE_OPTIONS, Precision, Ranges
from gateway.builder.npu.calibration import calibrate
from gateway.builder.npu.check import STEPS, CheckRequest, Graphs, PartCheck, check_part
from gateway.builder.npu.part_runner import cpu_session
from gateway.builder.size import npu_bytes
from gateway.builder.sources.source import ModelSource
from gateway.bundles.disk import require_space
from gateway.child import Progress
from gateway.errors import BundleError
from gateway.qnn.compile import compile_graphs, compiled_name
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import provider_version

REPORT = "npu.json"
#: Precisions that quantise activations and so need calibration.
QUANTISED = ("w8a16", "w4a16")
#: The largest relative error of a part against the same graph on the CPU. A larger error is a fault of the NPU.
MAX_NPU_ERROR = 0.05
#: The largest relative error of a part against float32. With a larger error the model is useless.
MAX_ERROR = 1.0
#: Windows of calibration text in a check.
_CHECKED_WINDOWS = 2


class NpuTarget(Struct, frozen=True, kw_only=True):
    """The shapes and the number format of a model for an NPU.

    Args:
        contexts: cache sizes in tokens; each has its own graphs.
        width: tokens per window of a prompt.
        parts: graphs that the layers are split into; one session holds about 3.5 GB.
        share_weights: the graphs of a part share one binary. A real NPU loads it, the emulator does not.
        batch: sequences per batched step; 1: no graph for batched steps.
    """

    device: NpuDevice
    contexts: tuple[int, ...]
    width: int
    precision: Precision = "fp16"
    parts: int = 1
    share_weights: bool = False
    batch: int = 4
    name: str = "qnn"

    def write(self, source: ModelSource, folder: Path, progress: Progress) -> BundleGraphs:
        """See Target. Limits `contexts` to the model's own context length.

        Raises BundleError for impossible shapes, and for a part that the NPU refuses or computes wrongly.
        """
        longest = source.config.context_length
        target = replace(self, contexts=tuple(sorted({min(context, longest) for context in self.contexts})))
        if not 1 < target.width < min(target.contexts):
            longest_width = min(target.contexts) - 1
            raise BundleError(f"The width must be from 2 to {longest_width} for these contexts, and is {target.width}.")
        if target.batch < 1:
            raise BundleError(f"The batch must be at least 1, and is {target.batch}.")
        if not 1 <= target.parts <= source.config.layers:
            raise BundleError(f"The number of parts must be from 1 to {source.config.layers}, and is {target.parts}.")
        require_space({folder.parent: npu_bytes(source.config, target)}, "The bundle for the NPU")
        try:
            return _Build(target, source, folder, progress).run()
        except _BatchRefused:
            progress("building again, without batched steps", 0.0)
            _empty(folder)
            return _Build(replace(target, batch=1), source, folder, progress).run()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)


class _BatchRefused(BundleError):
    """The NPU refuses the graph for batched steps, crashes in it, or computes it wrongly."""


class NpuReport(Struct, frozen=True, kw_only=True):
    """npu.json: the target, the compiler and the measured errors of a bundle.

    `top1`: share of the checked tokens for which the NPU and float32 predict the same next token.
    """

    provider_version: str
    soc: int | None
    precision: str
    contexts: tuple[int, ...]
    width: int
    batch: int = 1
    parts: list[PartCheck]
    compile_s: float
    top1: float
    tokens: int


class _Build:
    """One build. Files in `_work` pass the hidden states of the checked tokens from part to part."""

    def __init__(self, target: NpuTarget, source: ModelSource, folder: Path, progress: Progress) -> None:
        self._target = target
        self._source = source
        self._folder = folder
        self._work = work = folder / "uncompiled"
        self._progress = progress
        self._widths = {PROMPT: target.width, STEP: 1}
        self._layout = StaticLayout(
            parts=split(source.config.layers, target.parts),
            contexts=target.contexts,
            width=target.width,
            soc=target.device.soc,
        )
        self._compile_s = 0.0
        self._on_npu, self._in_float, self._text = work / "npu.npy", work / "float.npy", work / "text.npy"

    def run(self) -> BundleGraphs:
        """Raises BundleError, or _BatchRefused if only the graph for batched steps is at fault."""
        try:
            return self._run()
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _run(self) -> BundleGraphs:
        target = self._target
        self._work.mkdir()
        self._progress("writing embeddings and head", 0.0)
        write_embeddings_and_head(self._source, self._folder, target.precision)
        self._progress("writing embeddings and head", 1.0)
        self._write_inputs()
        report = NpuReport(
            provider_version=provider_version(),
            soc=target.device.soc,
            precision=target.precision,
            contexts=target.contexts,
            width=target.width,
            batch=target.batch,
            parts=[self._part(part) for part in self._layout.parts],
            compile_s=round(self._compile_s, 1),
            top1=self._top1(),
            tokens=len(np.load(self._on_npu)),
        )
        write_json(self._folder / REPORT, msgspec.to_builtins(report))
        for context in target.contexts:
            self._write_configs(context)
        longest = max(target.contexts)
        return BundleGraphs(decoder=self._layout.decoder(self._widths, longest), context_length=longest)

    def _part(self, part: Part) -> PartCheck:
        """Write, compile and check one part. Its compiled graphs go to the bundle's folder."""
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
        self._compile([path for (name, _), path in graphs.items() if name != BATCH], compiled)
        with self._batch_errors():
            self._compile([path for (name, _), path in graphs.items() if name == BATCH], compiled)
        self._compile_s += time.perf_counter() - started
        if target.share_weights:
            with self._batch_errors():
                self._compile(list(graphs.values()), self._folder, share_weights=True)
        self._progress(f"{name}: compiling", 1.0)
        self._progress(f"{name}: comparing with the CPU", 0.0)
        check = self._check(part, work, graphs, compiled)
        self._progress(f"{name}: comparing with the CPU", 1.0)
        shutil.rmtree(work)
        if check.batch_error is not None and check.batch_error > MAX_NPU_ERROR:
            raise _BatchRefused(f"The NPU computes batched steps of {self._target.batch} sequences wrongly.")
        return check

    @contextmanager
    def _batch_errors(self) -> Iterator[None]:
        """Turn every BundleError into _BatchRefused: the build may succeed without batched steps."""
        try:
            yield
        except BundleError as error:
            if self._target.batch == 1:
                raise
            raise _BatchRefused(error.message) from error

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
        ranges = calibrate(graphs[PROMPT, max(self._target.contexts)], self._text)
        shutil.rmtree(folder)
        return ranges

    def _check(self, part: Part, work: Path, graphs: dict[tuple[str, int], Path], compiled: Path) -> PartCheck:
        context = min(self._target.contexts)
        own = [graphs[name, context] for name in (PROMPT, STEP, BATCH) if (name, context) in graphs]
        float_folder = work / "fp32"
        float_folder.mkdir()
        reference = self._write(float_folder, part, "fp32")
        request = CheckRequest(
            compiled=Graphs.of(*(compiled / compiled_name(graph) for graph in own)),
            source=Graphs.of(*own),
            reference=Graphs.of(reference[PROMPT, context], reference[STEP, context]),
            on_npu=str(self._on_npu),
            in_float=str(self._in_float),
            device=self._target.device,
        )
        with self._batch_errors():
            check = check_part(request)
        if check.npu_error > MAX_NPU_ERROR or check.error > MAX_ERROR:
            raise BundleError(
                f"The NPU accepts part {part.index + 1} of {part.count} but computes it wrongly: the relative error is "
                f"{check.npu_error:.3f} against the same graph on the CPU and {check.error:.3f} against float32 "
                f"(largest number: {check.largest:.0f}). Try another precision or width."
            )
        return check

    def _write_inputs(self) -> None:
        """Write the embedded calibration text: all of it for calibration, the first tokens for the checks."""
        text = Path(__file__).with_name("calibration.txt").read_text(encoding="utf-8")
        ids = Tokenizer.from_str(self._source.tokenizer_json()).encode(text).ids
        (embedded,) = cpu_session(str(self._folder / "embeddings.onnx")).run(None, {"input_ids": np.array([ids])})
        rows = embedded[0].astype(np.float32)
        width = self._target.width
        checked = min(_CHECKED_WINDOWS * width, min(self._target.contexts) - width) + STEPS
        np.save(self._text, rows[: max(self._target.contexts) // width * width])
        for path in (self._on_npu, self._in_float):
            np.save(path, rows[:checked])

    def _top1(self) -> float:
        """Share of tokens for which the head predicts the same token from the NPU's and float32's hidden states."""
        session = cpu_session(str(self._folder / "lm_head.onnx"))
        dtype = np.float32 if session.get_inputs()[0].type == "tensor(float)" else np.float16
        predicted = []
        for path in (self._on_npu, self._in_float):
            (logits,) = session.run(None, {"output_hidden_states": np.load(path)[None].astype(dtype)})
            predicted.append(logits[0].argmax(-1))
        return float((predicted[0] == predicted[1]).mean())

    def _write_configs(self, context: int) -> None:
        if context != max(self._target.contexts):
            self._write_config(f"context-{context}", context, list(self._widths))
        if self._target.batch > 1:
            self._write_config(f"batch-{context}", context, [BATCH])

    def _write_config(self, name: str, context: int, graphs: Sequence[str]) -> None:
        """Write a folder with its own genai_config.json, because one file describes one context length."""
        (self._folder / name).mkdir()
        decoder = self._layout.decoder(graphs, context, up="../")
        config = replace(self._source.config, context_length=context)
        write_json(self._folder / name / "genai_config.json", genai_config(config, self._source.generation, decoder))

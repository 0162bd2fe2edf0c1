"""The NPU target of the builder: static graphs, compiled part by part and compared with the CPU.

1. Only one part is on disk uncompiled at a time, in a temporary folder. So a build needs little more disk space than
   the bundle, and memory for one part.
2. Folders `batch-*` and `verify-*` with their own genai_config.json name the graphs for batched steps and for drafts,
   because the format has no phase for them. If the NPU refuses one of them, the builder makes the bundle without it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from tokenizers import Tokenizer

from gateway.builder.build import Graphs as BundleGraphs
from gateway.builder.build import write_json
from gateway.builder.graphs.genai_writer import genai_config
from gateway.builder.graphs.static import BATCH, PROMPT, STEP, VERIFY, split, write_embeddings_and_head
from gateway.builder.graphs.static_layout import StaticLayout
from gateway.builder.graphs.static_products import Precision
from gateway.builder.npu.check import STEPS, PartCheck
from gateway.builder.npu.head import HeadCheck, build_head
from gateway.builder.npu.part_runner import cpu_session
from gateway.builder.npu.parts import GraphRefused, PartBuilder, Texts
from gateway.builder.size import npu_bytes
from gateway.builder.sources.source import ModelSource
from gateway.bundles.disk import require_space
from gateway.child import Progress
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import provider_version

REPORT = "npu.json"
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
        verify: tokens of a window for drafts, less than `width`; 1: no graph for drafts.
        npu_head: add a head for the NPU. Its logits are float16.
    """

    device: NpuDevice
    contexts: tuple[int, ...]
    width: int
    precision: Precision = "fp16"
    parts: int = 1
    share_weights: bool = False
    batch: int = 4
    verify: int = 8
    npu_head: bool = False
    name: str = "qnn"

    @property
    def widths(self) -> Mapping[str, int]:
        """Name of a graph -> the tokens of one call, for one sequence."""
        return {PROMPT: self.width, STEP: 1} | ({VERIFY: self.verify} if 1 < self.verify < self.width else {})

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
        while True:
            try:
                return _Build(target, source, folder, progress).run()
            except GraphRefused as refused:
                what = "batched steps" if refused.graph == BATCH else "the graph for drafts"
                progress(f"building again, without {what}", 0.0)
                _empty(folder)
                target = replace(target, **({"batch": 1} if refused.graph == BATCH else {"verify": 1}))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)


class NpuReport(Struct, frozen=True, kw_only=True):
    """npu.json: the target, the compiler and the measured errors of a bundle.

    `head`: None if the head runs on the CPU only. `top1`: share of the checked tokens for which the layers on the NPU
    and float32 predict the same next token, with the head on the CPU.
    """

    provider_version: str
    soc: int | None
    precision: str
    contexts: tuple[int, ...]
    width: int
    batch: int = 1
    verify: int = 1
    parts: list[PartCheck]
    head: HeadCheck | None = None
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
        self._layout = StaticLayout(
            parts=split(source.config.layers, target.parts),
            contexts=target.contexts,
            widths=target.widths,
            soc=target.device.soc,
        )
        self._texts = Texts(work / "npu.npy", work / "float.npy", work / "text.npy")
        self._parts = PartBuilder(target, source, folder, work, self._texts, progress)

    def run(self) -> BundleGraphs:
        """Raises BundleError, or GraphRefused if only a graph is at fault that a bundle can lack."""
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
            verify=target.widths.get(VERIFY, 1),
            parts=[self._parts.build(part) for part in self._layout.parts],
            head=self._head() if target.npu_head else None,
            compile_s=round(self._parts.compile_s, 1),
            top1=self._top1(),
            tokens=len(np.load(self._texts.on_npu)),
        )
        write_json(self._folder / REPORT, msgspec.to_builtins(report))
        for context in target.contexts:
            self._write_configs(context)
        longest = max(target.contexts)
        return BundleGraphs(decoder=self._layout.decoder((PROMPT, STEP), longest), context_length=longest)

    def _head(self) -> HeadCheck | None:
        rows = max(self._target.batch, self._target.widths.get(VERIFY, 1))
        hidden, work = self._texts.on_npu, self._work / "head"
        return build_head(self._source, self._folder, work, hidden, self._target.device, rows, self._progress)

    def _write_inputs(self) -> None:
        """Write the embedded calibration text: all of it for calibration, the first tokens for the checks."""
        text = Path(__file__).with_name("calibration.txt").read_text(encoding="utf-8")
        ids = Tokenizer.from_str(self._source.tokenizer_json()).encode(text).ids
        (embedded,) = cpu_session(str(self._folder / "embeddings.onnx")).run(None, {"input_ids": np.array([ids])})
        rows = embedded[0].astype(np.float32)
        width = self._target.width
        checked = min(_CHECKED_WINDOWS * width, min(self._target.contexts) - width) + STEPS
        np.save(self._texts.text, rows[: max(self._target.contexts) // width * width])
        for path in (self._texts.on_npu, self._texts.in_float):
            np.save(path, rows[:checked])

    def _top1(self) -> float:
        """Share of tokens for which the head predicts the same token from the NPU's and float32's hidden states."""
        session = cpu_session(str(self._folder / "lm_head.onnx"))
        dtype = np.float32 if session.get_inputs()[0].type == "tensor(float)" else np.float16
        predicted = []
        for path in (self._texts.on_npu, self._texts.in_float):
            (logits,) = session.run(None, {"output_hidden_states": np.load(path)[None].astype(dtype)})
            predicted.append(logits[0].argmax(-1))
        return float((predicted[0] == predicted[1]).mean())

    def _write_configs(self, context: int) -> None:
        if context != max(self._target.contexts):
            self._write_config(f"context-{context}", context, (PROMPT, STEP))
        if self._target.batch > 1:
            self._write_config(f"batch-{context}", context, [BATCH])
        if VERIFY in self._target.widths:
            self._write_config(f"verify-{context}", context, [VERIFY])

    def _write_config(self, name: str, context: int, graphs: Sequence[str]) -> None:
        """Write a folder with its own genai_config.json, because one file describes one context length."""
        (self._folder / name).mkdir()
        decoder = self._layout.decoder(graphs, context, up="../")
        config = replace(self._source.config, context_length=context)
        write_json(self._folder / name / "genai_config.json", genai_config(config, self._source.generation, decoder))

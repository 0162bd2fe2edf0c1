"""The NPU target of the builder: static graphs, compiled part by part and compared with the CPU.

1. Only one part is on disk uncompiled at a time, in a temporary folder. So a build needs little more disk space than
   the bundle, and memory for one part. What is finished can stay on the disk for a later build (`pieces.py`).
2. Folders `batch-*` and `verify-*` with their own genai_config.json name the graphs for batched steps and for drafts,
   because the format has no phase for them. If the NPU refuses one of them, the builder makes the bundle without it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from tokenizers import Tokenizer

from gateway.builder.build import Graphs as BundleGraphs
from gateway.builder.build import write_json
from gateway.builder.graphs.genai_writer import genai_config
from gateway.builder.graphs.static import BATCH, PROMPT, STEP, VERIFY, Part, split
from gateway.builder.graphs.static_layout import StaticLayout
from gateway.builder.graphs.static_products import Precision
from gateway.builder.graphs.static_tables import write_embeddings_and_head
from gateway.builder.npu.check import STEPS, PartCheck
from gateway.builder.npu.head import HeadCheck, build_head
from gateway.builder.npu.part_runner import cpu_session
from gateway.builder.npu.parts import BuiltPart, GraphRefused, PartBuilder, Texts
from gateway.builder.npu.pieces import FILES, Pieces, Recipe, link_files
from gateway.builder.size import npu_bytes, npu_memory, parts_for, require_memory
from gateway.builder.sources.source import ModelSource, TransformerConfig
from gateway.bundles.disk import folder_bytes, require_space
from gateway.bundles.stamp import BUNDLE_FORMAT
from gateway.child import Progress
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import provider_version

REPORT = "npu.json"
#: Weights of a head that takes 5 ms of CPU time in each step on the CPU: 27.5 ms for 394 million (docs/npu.md).
LARGE_HEAD = 70_000_000
#: Windows of calibration text in a check.
_CHECKED_WINDOWS = 2
_PART_FILE = "part.json"  # in a piece

_Result = TypeVar("_Result")


class NpuTarget(Struct, frozen=True, kw_only=True):
    """The shapes and the number format of a model for an NPU.

    Args:
        contexts: cache sizes in tokens; each has its own graphs.
        width: tokens per window of a prompt.
        parts: graphs that the layers are split into; one session holds about 3.5 GB. 0: by the size of the model.
        share_weights: the graphs of a part share one binary. A real NPU loads it, the emulator does not.
        batch: sequences per batched step; 1: no graph for batched steps.
        verify: tokens of a window for drafts, less than `width`; 1: no graph for drafts.
        npu_head: add a head for the NPU. Its logits are float16. None: if the head is large.
        unfinished: a folder for the finished pieces, with which a later build continues. None: they are temporary.
    """

    device: NpuDevice
    contexts: tuple[int, ...]
    width: int
    precision: Precision = "fp16"
    parts: int = 1
    share_weights: bool = False
    batch: int = 4
    verify: int = 8
    npu_head: bool | None = None
    unfinished: Path | None = None
    name: str = "qnn"

    @property
    def widths(self) -> Mapping[str, int]:
        """Name of a graph -> the tokens of one call, for one sequence."""
        return {PROMPT: self.width, STEP: 1} | ({VERIFY: self.verify} if 1 < self.verify < self.width else {})

    def write(self, source: ModelSource, folder: Path, progress: Progress) -> BundleGraphs:
        """See Target. Limits `contexts` to the model's own context length.

        Raises BundleError for impossible shapes, and for a part that the NPU refuses or computes wrongly.
        """
        target = self._fitted(source.config)
        work = target.unfinished or folder / "uncompiled"
        pieces = target._pieces(source, work)
        graphs = target._tried(source, pieces, progress, lambda build: build.assemble(folder))
        if target.unfinished is None:
            shutil.rmtree(work, ignore_errors=True)
        return graphs

    def advance(self, source: ModelSource, progress: Progress) -> tuple[int, int]:
        """Make the next piece in the folder `unfinished`. Returns the number of its pieces, and of all pieces.

        Raises BundleError as `write` does.
        """
        target = self._fitted(source.config)
        assert target.unfinished is not None
        pieces = target._pieces(source, target.unfinished)
        return target._tried(source, pieces, progress, lambda build: build.advance())

    def _fitted(self, config: TransformerConfig) -> NpuTarget:
        """With the contexts, the parts and the head for a model. Raises BundleError for impossible shapes."""
        contexts = tuple(sorted({min(context, config.context_length) for context in self.contexts}))
        npu_head = config.vocab * config.hidden >= LARGE_HEAD if self.npu_head is None else self.npu_head
        target = replace(self, contexts=contexts, parts=self.parts or parts_for(config), npu_head=npu_head)
        if not 1 < target.width < min(target.contexts):
            longest_width = min(target.contexts) - 1
            raise BundleError(f"The width must be from 2 to {longest_width} for these contexts, and is {target.width}.")
        if target.batch < 1:
            raise BundleError(f"The batch must be at least 1, and is {target.batch}.")
        if not 1 <= target.parts <= config.layers:
            raise BundleError(f"The number of parts must be from 1 to {config.layers}, and is {target.parts}.")
        require_memory(npu_memory(config, target), "The build for the NPU")
        return target

    def _pieces(self, source: ModelSource, folder: Path) -> Pieces:
        """The pieces of this build in `folder`. Raises BundleError if the disk lacks space for the others."""
        key = _key(self, source) if self.unfinished else ""
        pieces = Pieces(folder, key)
        needed = npu_bytes(source.config, self) - folder_bytes(folder)
        require_space({folder.parent: max(needed, 0)}, "The bundle for the NPU")
        return pieces

    def _tried(
        self, source: ModelSource, pieces: Pieces, progress: Progress, work: Callable[[_Build], _Result]
    ) -> _Result:
        """The result of `work`, without the optional graphs that the NPU refuses."""
        while True:
            without = pieces.recipe.without
            target = replace(
                self, batch=1 if BATCH in without else self.batch, verify=1 if VERIFY in without else self.verify
            )
            try:
                return work(_Build(target, source, pieces, progress))
            except GraphRefused as refused:
                what = "batched steps" if refused.graph == BATCH else "the graph for drafts"
                progress(f"building again, without {what}", 0.0)
                pieces.restart(Recipe(key=pieces.recipe.key, without=(*without, refused.graph)))


def _key(target: NpuTarget, source: ModelSource) -> str:
    """Another key: other bytes come out of the build."""
    versions = [BUNDLE_FORMAT, provider_version(), version("onnxruntime")]
    content = [source.digest(), versions, replace(target, unfinished=None)]
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


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
    """One build: the embeddings with the head, then part by part. Each is a piece."""

    def __init__(self, target: NpuTarget, source: ModelSource, pieces: Pieces, progress: Progress) -> None:
        self._target = target
        self._source = source
        self._pieces = pieces
        self._progress = progress
        self._layout = StaticLayout(
            parts=split(source.config.layers, target.parts),
            contexts=target.contexts,
            widths=target.widths,
            soc=target.device.soc,
        )
        self._parts = PartBuilder(target, source, progress)

    def advance(self) -> tuple[int, int]:
        """Make one piece. Returns the number of pieces that are finished, and of all. See `GraphRefused`."""
        count = len(self._layout.parts) + 1
        for done, _ in enumerate(self._made(), start=1):
            if self._pieces.made:
                return done, count
        return count, count

    def assemble(self, folder: Path) -> BundleGraphs:
        """Make the missing pieces, and the bundle of all. See `GraphRefused`."""
        pieces = list(self._made())
        for piece in pieces:
            link_files(piece, folder)
        return self._complete(folder, pieces)

    def _made(self) -> Iterator[Path]:
        """The pieces in their order, each finished."""
        piece = self._pieces.make("tables", self._tables)
        yield piece
        for part in self._layout.parts:
            piece = self._pieces.make(f"part{part.index}", partial(self._part, part, Texts.of(piece)))
            yield piece

    def _tables(self, piece: Path) -> None:
        self._progress("writing embeddings and head", 0.0)
        write_embeddings_and_head(self._source, piece / FILES, self._target.precision)
        self._progress("writing embeddings and head", 1.0)
        self._write_inputs(piece / FILES / "embeddings.onnx", Texts.of(piece))

    def _part(self, part: Part, before: Texts, piece: Path) -> None:
        built = self._parts.build(part, before, piece)
        (piece / _PART_FILE).write_bytes(msgspec.json.encode(built))

    def _complete(self, folder: Path, pieces: Sequence[Path]) -> BundleGraphs:
        target, texts = self._target, Texts.of(pieces[-1])
        parts = [msgspec.json.decode((piece / _PART_FILE).read_bytes(), type=BuiltPart) for piece in pieces[1:]]
        report = NpuReport(
            provider_version=provider_version(),
            soc=target.device.soc,
            precision=target.precision,
            contexts=target.contexts,
            width=target.width,
            batch=target.batch,
            verify=target.widths.get(VERIFY, 1),
            parts=[part.check for part in parts],
            head=self._head(folder, texts.on_npu) if target.npu_head else None,
            compile_s=round(sum(part.compile_s for part in parts), 1),
            top1=_top1(folder, texts),
            tokens=len(np.load(texts.on_npu)),
        )
        write_json(folder / REPORT, msgspec.to_builtins(report))
        for context in target.contexts:
            self._write_configs(folder, context)
        longest = max(target.contexts)
        return BundleGraphs(decoder=self._layout.decoder((PROMPT, STEP), longest), context_length=longest)

    def _head(self, folder: Path, hidden: Path) -> HeadCheck | None:
        rows = max(self._target.batch, self._target.widths.get(VERIFY, 1))
        work = self._pieces.folder / "head.new"
        shutil.rmtree(work, ignore_errors=True)
        return build_head(self._source, folder, work, hidden, self._target.device, rows, self._progress)

    def _write_inputs(self, embeddings: Path, texts: Texts) -> None:
        """Write the embedded calibration text: all of it for calibration, the first tokens for the checks."""
        text = Path(__file__).with_name("calibration.txt").read_text(encoding="utf-8")
        ids = Tokenizer.from_str(self._source.tokenizer_json()).encode(text).ids
        (embedded,) = cpu_session(str(embeddings)).run(None, {"input_ids": np.array([ids])})
        rows = embedded[0].astype(np.float32)
        width = self._target.width
        checked = min(_CHECKED_WINDOWS * width, min(self._target.contexts) - width) + STEPS
        np.save(texts.text, rows[: max(self._target.contexts) // width * width])
        for path in (texts.on_npu, texts.in_float):
            np.save(path, rows[:checked])

    def _write_configs(self, folder: Path, context: int) -> None:
        if context != max(self._target.contexts):
            self._write_config(folder / f"context-{context}", context, (PROMPT, STEP))
        if self._target.batch > 1:
            self._write_config(folder / f"batch-{context}", context, [BATCH])
        if VERIFY in self._target.widths:
            self._write_config(folder / f"verify-{context}", context, [VERIFY])

    def _write_config(self, folder: Path, context: int, graphs: Sequence[str]) -> None:
        """Write a folder with its own genai_config.json, because one file describes one context length."""
        folder.mkdir()
        decoder = self._layout.decoder(graphs, context, up="../")
        config = replace(self._source.config, context_length=context)
        write_json(folder / "genai_config.json", genai_config(config, self._source.generation, decoder))


def _top1(folder: Path, texts: Texts) -> float:
    """Share of tokens for which the head predicts the same token from the NPU's and float32's hidden states."""
    session = cpu_session(str(folder / "lm_head.onnx"))
    dtype = np.float32 if session.get_inputs()[0].type == "tensor(float)" else np.float16
    predicted = []
    for path in (texts.on_npu, texts.in_float):
        (logits,) = session.run(None, {"output_hidden_states": np.load(path)[None].astype(dtype)})
        predicted.append(logits[0].argmax(-1))
    return float((predicted[0] == predicted[1]).mean())

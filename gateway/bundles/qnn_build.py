"""The NPU target of the builder: static graphs, compiled part by part and compared with the CPU before they are kept.

1. One part is on disk uncompiled at a time, in a folder that is thrown away: a model needs little more room than its
   bundle, and memory for one part.
2. What is compared is compiled graph by graph, because the emulator does not load binaries that share weights; for a
   real NPU the part is then compiled once more into one shared binary.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from tokenizers import Tokenizer

from gateway.bundles.build import Graphs as BundleGraphs
from gateway.bundles.build import Progress, write_json
from gateway.bundles.genai_writer import genai_config
from gateway.bundles.qnn_check import STEPS, CheckRequest, Graphs, PartCheck, check_part
from gateway.bundles.qnn_compile import compile_graphs, compiled_name
from gateway.bundles.qnn_provider import NpuDevice, provider_version
from gateway.bundles.qnn_windows import cpu_session
from gateway.bundles.source import ModelSource
from gateway.bundles.static_calibration import calibrate
from gateway.bundles.static_graph import Part, graph_stem, split, write_embeddings_and_head, write_part
from gateway.bundles.static_products import COMPILE_OPTIONS, Precision, Ranges
from gateway.errors import BundleError

REPORT = "npu.json"
#: Precisions that round activations, and have to see their ranges first.
QUANTISED = ("w8a16", "w4a16")
#: A part whose relative error against the same graph on the CPU is larger is wrong, not imprecise.
WRONG = 0.05
#: One whose error against float32 is larger is of no use, however right the NPU computes it.
USELESS = 1.0
#: Windows of calibration text that a part is checked on.
_CHECKED_WINDOWS = 2


class NpuTarget(Struct, frozen=True, kw_only=True):
    """How a model is laid out for an NPU.

    `contexts`: cache sizes, each with its own graphs. `width`: tokens a prompt's window takes. `parts`: graphs the
    layers are cut into; one session holds about 3.5 GB. `share`: prompt and step graphs share their weights in one
    binary; a real NPU loads such, the emulator does not.
    """

    device: NpuDevice
    contexts: tuple[int, ...]
    width: int
    precision: Precision = "fp16"
    parts: int = 1
    share: bool = False
    name: str = "qnn"

    def write(self, source: ModelSource, folder: Path, progress: Progress) -> BundleGraphs:
        """See Target. Contexts beyond the model's own are cut to it.

        Raises BundleError for a layout that makes no sense, and for a part that the NPU refuses or computes wrongly.
        """
        longest = source.config.context_length
        target = replace(self, contexts=tuple(sorted({min(context, longest) for context in self.contexts})))
        if not 1 < target.width < min(target.contexts):
            raise BundleError(f"A width of {target.width} does not go with a context of {min(target.contexts)}.")
        if not 1 <= target.parts <= source.config.layers:
            raise BundleError(f"{source.config.layers} layers cannot make {target.parts} parts.")
        work = folder / "uncompiled"
        try:
            return _Build(target, source, folder, work, progress).run()
        finally:
            shutil.rmtree(work, ignore_errors=True)


class NpuReport(Struct, frozen=True, kw_only=True):
    """npu.json: for what, with what and how well a bundle was compiled."""

    provider_version: str
    soc: int | None
    precision: str
    contexts: tuple[int, ...]
    width: int
    parts: list[PartCheck]
    compile_s: float
    #: share of the checked tokens after which float32 and the NPU would say the same next token
    top1: float
    tokens: int


class _Build:
    """One build. The hidden states of the checked tokens go from part to part as files in `work`."""

    def __init__(self, target: NpuTarget, source: ModelSource, folder: Path, work: Path, progress: Progress) -> None:
        self._target = target
        self._source = source
        self._folder = folder
        self._work = work
        self._progress = progress
        self._widths = {"context": target.width, "iterator": 1}
        self._compile_s = 0.0
        self._on_npu, self._in_float, self._text = work / "npu.npy", work / "float.npy", work / "text.npy"

    def run(self) -> BundleGraphs:
        target = self._target
        self._work.mkdir()
        self._progress("writing embeddings and head", 0.0)
        write_embeddings_and_head(self._source, self._folder, target.precision)
        self._progress("writing embeddings and head", 1.0)
        self._write_inputs()
        parts = split(self._source.config.layers, target.parts)
        report = NpuReport(
            provider_version=provider_version(),
            soc=target.device.soc,
            precision=target.precision,
            contexts=target.contexts,
            width=target.width,
            parts=[self._part(part) for part in parts],
            compile_s=round(self._compile_s, 1),
            top1=self._top1(),
            tokens=len(np.load(self._on_npu)),
        )
        write_json(self._folder / REPORT, msgspec.to_builtins(report))
        for context in sorted(target.contexts)[:-1]:
            self._write_shorter(parts, context)
        longest = max(target.contexts)
        return BundleGraphs(decoder=self._decoder(parts, longest), context_length=longest)

    def _part(self, part: Part) -> PartCheck:
        """Write, compile and check one part; its compiled graphs are in the bundle's folder."""
        target, name = self._target, f"part {part.index + 1} of {part.count}"
        work = self._work / f"part{part.index}"
        work.mkdir()
        self._progress(f"{name}: writing", 0.0)
        ranges = self._ranges(part, work) if target.precision in QUANTISED else None
        graphs = self._write(work, part, target.precision, ranges)
        self._progress(f"{name}: writing", 1.0)
        self._progress(f"{name}: compiling", 0.0)
        started = time.perf_counter()
        compiled = work / "compiled" if target.share else self._folder
        options = COMPILE_OPTIONS.get(target.precision, {})
        compile_graphs(list(graphs.values()), compiled, target.device, options=options)
        self._compile_s += time.perf_counter() - started
        if target.share:
            compile_graphs(list(graphs.values()), self._folder, target.device, options=options, share=True)
        self._progress(f"{name}: compiling", 1.0)
        self._progress(f"{name}: comparing with the CPU", 0.0)
        check = self._check(part, work, graphs, compiled)
        self._progress(f"{name}: comparing with the CPU", 1.0)
        shutil.rmtree(work)
        return check

    def _write(
        self, folder: Path, part: Part, precision: Precision, ranges: Ranges | None = None
    ) -> dict[tuple[str, int], Path]:
        return write_part(
            self._source,
            folder,
            part,
            widths=self._widths,
            contexts=self._target.contexts,
            precision=precision,
            ranges=ranges,
        )

    def _ranges(self, part: Part, work: Path) -> Ranges:
        folder = work / "calibration"
        folder.mkdir()
        graphs = self._write(folder, part, self._target.precision)
        ranges = calibrate(graphs["context", max(self._target.contexts)], self._text)
        shutil.rmtree(folder)
        return ranges

    def _check(self, part: Part, work: Path, graphs: dict[tuple[str, int], Path], compiled: Path) -> PartCheck:
        context = min(self._target.contexts)
        prompt, step = graphs["context", context], graphs["iterator", context]
        float_folder = work / "fp32"
        float_folder.mkdir()
        reference = self._write(float_folder, part, "fp32")
        request = CheckRequest(
            compiled=Graphs.of(compiled / compiled_name(prompt), compiled / compiled_name(step)),
            source=Graphs.of(prompt, step),
            reference=Graphs.of(reference["context", context], reference["iterator", context]),
            on_npu=str(self._on_npu),
            in_float=str(self._in_float),
            device=self._target.device,
        )
        check = check_part(request)
        if check.npu_error > WRONG or check.error > USELESS:
            raise BundleError(
                f"Part {part.index + 1} of {part.count} is accepted by the NPU but wrong: its relative error is "
                f"{check.npu_error:.3f} against the same graph on the CPU and {check.error:.3f} against float32 "
                f"(the largest number in it is {check.largest:.0f})."
            )
        return check

    def _write_inputs(self) -> None:
        """The calibration text, embedded: all of it for the ranges, its beginning for what every part is checked on."""
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
        """How often the head says the same after the last part's hidden states on the NPU and in float32."""
        session = cpu_session(str(self._folder / "lm_head.onnx"))
        dtype = np.float32 if session.get_inputs()[0].type == "tensor(float)" else np.float16
        said = []
        for path in (self._on_npu, self._in_float):
            (logits,) = session.run(None, {"output_hidden_states": np.load(path)[None].astype(dtype)})
            said.append(logits[0].argmax(-1))
        return float((said[0] == said[1]).mean())

    def _write_shorter(self, parts: Sequence[Part], context: int) -> None:
        """A folder of its own for each shorter context: the same graphs and files, over a smaller cache."""
        folder = self._folder / f"context-{context}"
        folder.mkdir()
        config = replace(self._source.config, context_length=context)
        content = genai_config(config, self._source.generation, self._decoder(parts, context, "../"))
        write_json(folder / "genai_config.json", content)

    def _decoder(self, parts: Sequence[Part], context: int, up: str = "") -> dict[str, Any]:
        """The `decoder` section for one context length; `up` leads from its folder to the files."""
        inputs = {
            "input_ids": "input_ids",
            "past_key_names": "past_keys_%d",
            "past_value_names": "past_values_%d",
            "past_sequence_length": "past_seq_len",
            "total_sequence_length": "total_seq_len",
        }
        outputs = {
            "logits": "logits",
            "present_key_names": "present_keys_%d",
            "present_value_names": "present_values_%d",
        }
        window = {
            "window_size": self._target.width,
            "pad_value": 0,
            "alignment": "left",
            "slide_key_value_cache": False,
        }
        return {
            "inputs": inputs,
            "outputs": outputs,
            "sliding_window": window,
            "pipeline": self._pipeline(parts, context, up),
        }

    def _pipeline(self, parts: Sequence[Part], context: int, up: str) -> list[dict[str, Any]]:
        first, last = parts[0].input, parts[-1].output
        stages = [_stage("embeddings", f"{up}embeddings.onnx", ["input_ids"], [first])]
        for name in self._widths:
            for part in parts:
                layers = [f"{kind}_{index}" for index in part.layers for kind in ("keys", "values")]
                stage = _stage(
                    f"{name}{part.suffix}",
                    up + compiled_name(Path(f"{graph_stem(name, part, context, self._target.contexts)}.onnx")),
                    [part.input, "past_seq_len", "total_seq_len", *(f"past_{layer}" for layer in layers)],
                    [part.output, *(f"present_{layer}" for layer in layers)],
                )
                content = next(iter(stage.values()))
                content["run_on_prompt"] = name == "context"
                content["run_on_token_gen"] = name == "iterator"
                content["session_options"] = {"provider_options": [{"qnn": self._options()}]}
                stages.append(stage)
        head = _stage("lm_head", f"{up}lm_head.onnx", [last], ["logits"])
        head["lm_head"]["is_lm_head"] = True
        return [*stages, head]

    def _options(self) -> dict[str, str]:
        soc = self._target.device.soc
        return {"backend_path": "QnnHtp.dll", "htp_performance_mode": "burst"} | (
            {"soc_model": str(soc)} if soc else {}
        )


def _stage(name: str, filename: str, inputs: list[str], outputs: list[str]) -> dict[str, dict[str, Any]]:
    return {name: {"filename": filename, "inputs": inputs, "outputs": outputs}}

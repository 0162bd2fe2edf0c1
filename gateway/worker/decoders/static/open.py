"""Opens a bundle of fixed shape on the NPU or the CPU.

Before a real NPU serves a model, its results are checked and its graphs are timed (checks.py).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from gateway.bundles.genai_config import Stage
from gateway.bundles.preflight.preflight import require_fit
from gateway.bundles.static_pipeline import (
    NPU_HEAD,
    Pipeline,
    read_batch_pipelines,
    read_pipelines,
    read_verify_pipelines,
    runs_on_npu,
)
from gateway.errors import BundleError, EngineFailed
from gateway.qnn.context import read_compiled
from gateway.qnn.device import NpuDevice, machine_of
from gateway.qnn.provider import any_npu, find_npu, placement
from gateway.qnn.sessions import NpuSessions, PerformanceSwitch
from gateway.worker.decoders.base import DecoderSpec
from gateway.worker.decoders.onnx import SessionOptions, open_session
from gateway.worker.decoders.static.batch import BatchStep
from gateway.worker.decoders.static.checks import agree, is_consistent, min_batch, pass_costs
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.dequantiser import find_bare_cast
from gateway.worker.decoders.static.stage import LoadedStage, Pool, has_own_head
from gateway.worker.decoders.static.window import Window
from gateway.worker.frames import Device

_log = logging.getLogger(__name__)
#: Times of a narrow and of a full window in single steps, until they are measured. A narrow one reads the same weights
#: as a step; the source of the other one is the published times of an X Elite.
_NARROW_COST, _WIDE_COST = 1.5, 2.6


def open_static_decoder(
    folder: Path,
    *,
    provider: Literal["auto", "cpu", "qnn"] = "auto",
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    context_length: int = 0,
    sequences: int = 1,
    progress: Callable[[str], None] = lambda stage: None,
) -> StaticDecoder:
    """Open a bundle of fixed shape.

    Args:
        provider: `qnn`: the NPU, else the emulator. `auto`: the NPU, else the CPU.
        options: the user's provider options for the NPU.
        threads: threads of the CPU stages; 0: the default.
        context_length: the fewest rows of a cache; 0: as many as the bundle has, or 4096 if it leaves that open.
        sequences: the most sequences at the same time. With 1, the graphs for batched steps are not loaded.
        progress: called with a description before a slow action.
    Raises BundleError when the bundle does not fit this machine, ConfigError for an unknown option, EngineFailed when
    the NPU computes wrongly.
    """
    if device := select_device(provider, options or {}):
        require_fit(folder, machine_of(device))
    return open_pipelines(
        read_pipelines(folder, context_length),
        read_batch_pipelines(folder) if sequences > 1 else [],
        read_verify_pipelines(folder),
        provider=provider,
        options=options,
        threads=threads,
        context_length=context_length,
        progress=progress,
    )


def open_pipelines(
    pipelines: list[Pipeline],
    batches: Sequence[Pipeline] = (),
    narrow: Sequence[Pipeline] = (),
    *,
    binaries: Mapping[Path, Path] | None = None,
    provider: Literal["auto", "cpu", "qnn"] = "auto",
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    context_length: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> StaticDecoder:
    """Open pipelines, shortest context first. The other arguments are those of `open_static_decoder`.

    Args:
        batches: pipelines for batched steps.
        narrow: pipelines with narrow windows.
        binaries: graph file -> its context binary, for binaries that are not next to the graph file.
    """
    pipelines = _long_enough(pipelines, context_length)
    batches, narrow = (_long_enough(list(found), context_length) for found in (batches, narrow))
    stages = {pipeline.file(stage): stage for pipeline in (*pipelines, *batches, *narrow) for stage in pipeline.stages}
    device = select_device(provider, options or {})
    opened = OpenStages(device.kind if device else "cpu", soc=device.soc if device else None)
    if device:
        opened.open_on_npu(stages, NpuSessions(device, options or {}, progress, binaries))
        if device.kind == "npu" and opened.switch and (options or {}).get("htp_performance_mode", "burst") == "burst":
            opened.mode_refusal = opened.switch.refusal()
    cast = find_bare_cast(pipelines[-1])
    opened.greedy_only = cast is not None and cast.dequantiser is None
    for file in stages.keys() - opened.sessions.keys():
        if runs_on_npu(stages[file]) and read_compiled(file):
            raise BundleError(f"{file.parent.name} is compiled for the NPU, and {why_no_npu(provider)}")
        model = cast.dequantiser if cast and file == cast.file else None
        opened.sessions[file] = open_session(file, SessionOptions(threads=threads), model)
        opened.placed.update(placement(opened.sessions[file]))
    chains = _Chains(pipelines, batches, narrow, context_length)
    if opened.device != "npu":
        return chains.decoder(opened)
    return _checked_decoder(chains, _checked_head(chains, opened, threads))


@dataclass
class OpenStages:
    """The sessions of all stages by file, the placement of their nodes, and the device's memory.

    `soc`, `mode_refusal`, `greedy_only`: see DecoderSpec. `npu_heads`: the graphs that NPU_HEAD replaces.
    """

    device: Device
    sessions: dict[Path, ort.InferenceSession] = field(default_factory=dict)
    placed: Counter[str] = field(default_factory=Counter)
    memory: Any = None
    switch: PerformanceSwitch | None = None
    soc: int | None = None
    mode_refusal: str = ""
    greedy_only: bool = False
    npu_heads: list[Path] = field(default_factory=list)

    def open_on_npu(self, stages: Mapping[Path, Stage], npu: NpuSessions) -> None:
        files = {file: stage.session_options.providers["qnn"] for file, stage in stages.items() if runs_on_npu(stage)}
        self.sessions = npu.open(files)
        for file, stage in stages.items():
            if has_own_head(stage) and self._open_head(file, npu, next(iter(files.values()))):
                self.npu_heads.append(file)
        self.placed, self.memory = npu.placement, npu.memory
        self.switch = PerformanceSwitch(list(self.sessions.values()))

    def _open_head(self, file: Path, npu: NpuSessions, options: Mapping[str, str]) -> bool:
        """Use the head for the NPU in place of `file`. False if there is none, or if the NPU refuses it."""
        head = file.with_name(NPU_HEAD)
        if not head.is_file():
            return False
        try:
            self.sessions[file] = npu.open({head: options})[head]
        except BundleError as error:
            _log.warning("%s: the NPU refuses the head, so it runs on the CPU: %s", head.parent.name, error.message)
            return False
        return True


@dataclass(frozen=True)
class _Chains:
    """The pipelines of a bundle, shortest context first, and the configured context length."""

    pipelines: Sequence[Pipeline]
    batches: Sequence[Pipeline]
    narrow: Sequence[Pipeline]
    context_length: int

    def decoder(
        self, opened: OpenStages, min_batch: int = 2, costs: Mapping[int, float] | None = None
    ) -> StaticDecoder:
        sessions, memory = opened.sessions, opened.memory
        prompts, steps = _windows(self.pipelines, sessions, memory)
        pool: Pool = {}
        narrow = [
            _prompt_window(pipeline, _loaded(pipeline, sessions), memory, step, pool)
            for pipeline, step in zip(self.narrow, steps, strict=False)
        ]
        spec = DecoderSpec(
            vocab_size=self.pipelines[-1].config.vocab_size,
            context_length=min(steps[-1].capacity, self.context_length or steps[-1].capacity),
            prompt_width=self.pipelines[-1].window.window_size,
            device=opened.device,
            placement=dict(opened.placed),
            soc=opened.soc,
            pass_costs=dict(costs or _usual_costs(prompts[-1], narrow)),
            mode_refusal=opened.mode_refusal,
            greedy_only=opened.greedy_only,
        )
        batch_steps = [
            BatchStep(pipeline, list(_loaded(pipeline, sessions).values()), memory) for pipeline in self.batches
        ]
        if len({batch_step.size for batch_step in batch_steps}) > 1:
            raise BundleError(f"{self.pipelines[-1].folder.name}: its context lengths have different batch sizes.")
        return StaticDecoder(
            prompts,
            steps,
            spec,
            narrow=narrow,
            batch_steps=batch_steps,
            min_batch=min_batch,
            memory=memory,
            switch=opened.switch,
        )


def _checked_head(chains: _Chains, opened: OpenStages, threads: int) -> OpenStages:
    """The stages with the head on the CPU if the NPU's computes something else."""
    if not opened.npu_heads:
        return opened
    heads = {file: open_session(file, SessionOptions(threads=threads)) for file in opened.npu_heads}
    on_cpu = replace(opened, sessions=opened.sessions | heads)
    if agree(chains.decoder(opened), chains.decoder(on_cpu)):
        return opened
    _log.warning("this NPU computes the head wrongly: it runs on the CPU")
    return on_cpu


def _checked_decoder(chains: _Chains, opened: OpenStages) -> StaticDecoder:
    """A decoder whose results are checked, if necessary without memory that host and device share.

    Raises EngineFailed when the NPU computes wrongly in both cases.
    """
    decoder = chains.decoder(opened)
    wide = max(3, decoder.narrow_width + 1)
    if not is_consistent(decoder, wide):
        opened.memory = None  # shared memory is the most likely cause
        decoder = chains.decoder(opened)
        if not is_consistent(decoder, wide):
            raise EngineFailed("This NPU computes wrongly: a window of tokens and single steps give different logits.")
    if decoder.narrow_width and not is_consistent(decoder):
        _log.warning("this NPU computes narrow windows wrongly: drafts take full windows")
        chains = replace(chains, narrow=())
        decoder = chains.decoder(opened)
    fewest = min_batch(decoder) if decoder.batch_size > 1 else 2
    return chains.decoder(opened, fewest, pass_costs(decoder))  # a new decoder: the checks used caches of this one


def _usual_costs(prompt: Window, narrow: Sequence[Window]) -> dict[int, float]:
    """`DecoderSpec.pass_costs` without measurements. Windows with the last row's logits only verify no draft."""
    full = {prompt.width: _WIDE_COST} if prompt.max_logit_rows == prompt.width else {}
    return {1: 1.0} | {window.width: _NARROW_COST for window in narrow} | full


def _long_enough(pipelines: list[Pipeline], context_length: int) -> list[Pipeline]:
    """The pipelines up to the first one with `context_length` rows; 0: all pipelines."""
    shorter = [pipeline for pipeline in pipelines if pipeline.config.context_length < context_length]
    return pipelines[: len(shorter) + 1] if context_length else pipelines


def select_device(provider: Literal["auto", "cpu", "qnn"], options: Mapping[str, str]) -> NpuDevice | None:
    """The NPU for a model with this provider; None: the CPU. Option `soc_model` selects the emulator's chip."""
    match provider:
        case "cpu":
            return None
        case "auto":
            return find_npu()
        case "qnn":
            return any_npu(int(soc) if (soc := options.get("soc_model", "")).isdecimal() else None)


def why_no_npu(provider: Literal["auto", "cpu", "qnn"]) -> str:
    """Why `select_device` has found no NPU, and the next step: the end of a sentence."""
    if provider == "cpu":
        return "provider = 'cpu' excludes it. Remove that key, or take a bundle for the CPU."
    return "this machine has none; provider = 'qnn' runs it on the emulator, if there is one."


def _windows(
    pipelines: Sequence[Pipeline], sessions: Mapping[Path, ort.InferenceSession], memory: Any
) -> tuple[list[Window], list[Window]]:
    prompts, steps = [], []
    pool: Pool = {}
    for pipeline in pipelines:
        loaded = _loaded(pipeline, sessions)
        step = [loaded[stage.filename] for stage in pipeline.stages if stage.run_on_token_gen]
        steps.append(Window(pipeline, step, 1, memory, pool=pool))
        prompts.append(_prompt_window(pipeline, loaded, memory, steps[-1], pool))
    return prompts, steps


def _prompt_window(
    pipeline: Pipeline, loaded: Mapping[str, LoadedStage], memory: Any, step: Window, pool: Pool
) -> Window:
    stages = [loaded[stage.filename] for stage in pipeline.stages if stage.run_on_prompt]
    return Window(pipeline, stages, pipeline.window.window_size, memory, step.layout, pool)


def _loaded(pipeline: Pipeline, sessions: Mapping[Path, ort.InferenceSession]) -> dict[str, LoadedStage]:
    """The stages by file name, in order."""
    return {stage.filename: LoadedStage(stage, sessions[pipeline.file(stage)]) for stage in pipeline.stages}

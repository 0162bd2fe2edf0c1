"""Opens a bundle of fixed shape on the NPU or the CPU.

Before a real NPU serves a model, its results are checked: windows against single steps, and single steps against
batched steps. The batched steps are also timed.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from gateway.bundles.genai_config import Stage
from gateway.bundles.preflight.preflight import require_fit
from gateway.bundles.static_pipeline import Pipeline, read_batch_pipelines, read_pipelines, runs_on_npu
from gateway.errors import BundleError, EngineFailed
from gateway.qnn.context import read_compiled
from gateway.qnn.device import NpuDevice, machine_of
from gateway.qnn.provider import any_npu, find_npu, placement
from gateway.qnn.sessions import NpuSessions, PerformanceSwitch
from gateway.worker.decoders.base import DecoderSpec, Logits
from gateway.worker.decoders.onnx import SessionOptions, open_session
from gateway.worker.decoders.self_test import is_close
from gateway.worker.decoders.static.batch import BatchStep
from gateway.worker.decoders.static.cache import StaticCache
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.dequantiser import find_bare_cast
from gateway.worker.decoders.static.stage import LoadedStage, Pool
from gateway.worker.decoders.static.window import Window
from gateway.worker.frames import Device

_log = logging.getLogger(__name__)
_LENGTHS = 4  # different sequence lengths in the check of batched steps


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
        provider=provider,
        options=options,
        threads=threads,
        context_length=context_length,
        progress=progress,
    )


def open_pipelines(
    pipelines: list[Pipeline],
    batches: Sequence[Pipeline] = (),
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
        binaries: graph file -> its context binary, for binaries that are not next to the graph file.
    """
    pipelines = _long_enough(pipelines, context_length)
    batches = _long_enough(list(batches), context_length)
    stages = {pipeline.file(stage): stage for pipeline in (*pipelines, *batches) for stage in pipeline.stages}
    device = select_device(provider, options or {})
    opened = _OpenStages(device.kind if device else "cpu", soc=device.soc if device else None)
    if device:
        opened.open_on_npu(stages, NpuSessions(device, options or {}, progress, binaries))
    cast = find_bare_cast(pipelines[-1])
    opened.greedy_only = cast is not None and cast.dequantiser is None
    for file in stages.keys() - opened.sessions.keys():
        model = cast.dequantiser if cast and file == cast.file else None
        opened.sessions[file] = _cpu_session(file, stages[file], threads, model)
        opened.placed.update(placement(opened.sessions[file]))
    chains = _Chains(pipelines, batches, context_length)
    return _checked_decoder(chains, opened) if opened.device == "npu" else chains.decoder(opened)


@dataclass
class _OpenStages:
    """The sessions of all stages by file, the placement of their nodes, and the device's memory.

    `soc`, `greedy_only`: see DecoderSpec.
    """

    device: Device
    sessions: dict[Path, ort.InferenceSession] = field(default_factory=dict)
    placed: Counter[str] = field(default_factory=Counter)
    memory: Any = None
    switch: PerformanceSwitch | None = None
    soc: int | None = None
    greedy_only: bool = False

    def open_on_npu(self, stages: Mapping[Path, Stage], npu: NpuSessions) -> None:
        files = {file: stage.session_options.providers["qnn"] for file, stage in stages.items() if runs_on_npu(stage)}
        self.sessions = npu.open(files)
        self.placed, self.memory = npu.placement, npu.memory
        self.switch = PerformanceSwitch(list(self.sessions.values()))


@dataclass(frozen=True)
class _Chains:
    """The pipelines of a bundle, shortest context first, and the configured context length."""

    pipelines: Sequence[Pipeline]
    batches: Sequence[Pipeline]
    context_length: int

    def decoder(self, opened: _OpenStages, min_batch: int = 2) -> StaticDecoder:
        sessions, memory = opened.sessions, opened.memory
        prompts, steps = _windows(self.pipelines, sessions, memory)
        spec = DecoderSpec(
            vocab_size=self.pipelines[-1].config.vocab_size,
            context_length=min(steps[-1].capacity, self.context_length or steps[-1].capacity),
            prompt_width=self.pipelines[-1].window.window_size,
            device=opened.device,
            placement=dict(opened.placed),
            soc=opened.soc,
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
            batch_steps=batch_steps,
            min_batch=min_batch,
            memory=memory,
            switch=opened.switch,
        )


def _checked_decoder(chains: _Chains, opened: _OpenStages) -> StaticDecoder:
    """A decoder whose results are checked, if necessary without memory that host and device share.

    Raises EngineFailed when the NPU computes wrongly in both cases.
    """
    decoder = chains.decoder(opened)
    if not _is_consistent(decoder):
        opened.memory = None  # shared memory is the most likely cause
        decoder = chains.decoder(opened)
        if not _is_consistent(decoder):
            raise EngineFailed("This NPU computes wrongly: a window of tokens and single steps give different logits.")
    min_batch = _min_batch(decoder) if decoder.batch_size > 1 else 2
    return chains.decoder(opened, min_batch=min_batch)  # a new decoder: the checks used caches of this one


def _is_consistent(decoder: StaticDecoder) -> bool:
    """True if three tokens have nearly the same logits in one window and one by one.

    The check runs two graphs and reads and writes the cache in place. It finds faults of a driver, mostly in shared
    memory, before a client gets wrong tokens.
    """
    window_cache, step_cache = decoder.new_cache(), decoder.new_cache()
    try:
        window = decoder.verify(window_cache, [1, 2, 3])
        steps = np.stack([decoder.step([step_cache], [token])[0] for token in (1, 2, 3)])
    except EngineFailed:
        return False
    return is_close(window, steps)


def _min_batch(decoder: StaticDecoder, clock: Callable[[], float] = time.perf_counter) -> int:
    """The fewest sequences for which one batched step is faster than single steps, measured on this machine.

    Larger than the batch size if the batched step fails or its logits differ from those of single steps.
    """
    size = decoder.batch_size
    caches = [decoder.new_cache() for _ in range(size)]
    for index, cache in enumerate(caches):
        for token in range(index % _LENGTHS):
            decoder.step([cache], [token])
    ids = list(range(1, size + 1))
    single_s, single = _fastest(caches, lambda: _one_by_one(decoder, caches, ids), clock)
    try:
        batched_s, batched = _fastest(caches, lambda: decoder.step(caches, ids), clock)
    except EngineFailed:
        batched_s, batched = math.inf, np.full_like(single, np.nan)
    if is_close(batched, single):
        return max(2, math.ceil(batched_s / (single_s / size)))
    _log.warning("this NPU fails in batched steps or computes them wrongly: each sequence takes single steps")
    return size + 1


def _one_by_one(decoder: StaticDecoder, caches: Sequence[StaticCache], ids: Sequence[int]) -> Logits:
    return np.concatenate([decoder.step([cache], [token]) for cache, token in zip(caches, ids, strict=True)])


def _fastest(
    caches: Sequence[StaticCache], call: Callable[[], Logits], clock: Callable[[], float], tries: int = 3
) -> tuple[float, Logits]:
    """Seconds of the fastest call, and the logits. Resets the caches after each call."""
    lengths, seconds = [cache.length for cache in caches], []
    for _ in range(tries):
        started = clock()
        logits = call()
        seconds.append(clock() - started)
        for cache, length in zip(caches, lengths, strict=True):
            cache.truncate(length)
    return min(seconds), logits


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


def _cpu_session(file: Path, stage: Stage, threads: int, model: bytes | None) -> ort.InferenceSession:
    if runs_on_npu(stage) and read_compiled(file):
        raise BundleError(
            f"{file.parent.name} is compiled for the NPU, and this machine has none; "
            f"provider = 'qnn' runs it on the emulator, if there is one."
        )
    return open_session(file, SessionOptions(threads=threads), model)


def _windows(
    pipelines: Sequence[Pipeline], sessions: Mapping[Path, ort.InferenceSession], memory: Any
) -> tuple[list[Window], list[Window]]:
    prompts, steps = [], []
    pool: Pool = {}
    for pipeline in pipelines:
        loaded = _loaded(pipeline, sessions)
        prompt = [loaded[stage.filename] for stage in pipeline.stages if stage.run_on_prompt]
        step = [loaded[stage.filename] for stage in pipeline.stages if stage.run_on_token_gen]
        steps.append(Window(pipeline, step, 1, memory, pool=pool))
        prompts.append(Window(pipeline, prompt, pipeline.window.window_size, memory, steps[-1].layout, pool))
    return prompts, steps


def _loaded(pipeline: Pipeline, sessions: Mapping[Path, ort.InferenceSession]) -> dict[str, LoadedStage]:
    """The stages by file name, in order."""
    return {stage.filename: LoadedStage(stage, sessions[pipeline.file(stage)]) for stage in pipeline.stages}

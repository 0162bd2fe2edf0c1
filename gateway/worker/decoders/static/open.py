"""Opens a bundle of fixed shape: its graphs on the NPU or the CPU, and what a driver has to show before it is trusted.

What the NPU computes is compared before a real one serves: windows with single steps, and those with steps of several
sequences, which are timed as well.
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
from gateway.bundles.static_pipeline import Pipeline, read_batches, read_pipelines, runs_on_npu
from gateway.errors import BundleError, EngineFailed
from gateway.qnn.context import read_compiled
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import any_npu, find_npu, placement
from gateway.qnn.sessions import NpuSessions, PerformanceSwitch
from gateway.worker.decoders.base import DecoderSpec, Logits
from gateway.worker.decoders.onnx import SessionOptions, open_session
from gateway.worker.decoders.static.batch import Batch
from gateway.worker.decoders.static.cache import StaticCache
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.stage import LoadedStage
from gateway.worker.decoders.static.window import Window
from gateway.worker.frames import Device

_log = logging.getLogger(__name__)
_SELF_AGREEMENT = 0.3  # relative error; the emulator's is below 0.02, that of noise or zeros 1 and more
_LENGTHS = 4  # so many different lengths have the sequences on which a call for several is tried


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
        provider: `qnn` takes the emulator where there is no NPU; `auto` the NPU or, without one, the CPU.
        options: the user's provider options for the NPU.
        threads: of the CPU stages; 0 is the default.
        context_length: rows a cache must have at least, 0: as many as the bundle offers.
        sequences: how many there can be at once; one alone needs no graphs for several.
        progress: told what is being loaded.
    Raises BundleError, ConfigError, EngineFailed.
    """
    pipelines = _long_enough(read_pipelines(folder), context_length)
    batches = _long_enough(read_batches(folder), context_length) if sequences > 1 else []
    stages = {pipeline.file(stage): stage for pipeline in (*pipelines, *batches) for stage in pipeline.stages}
    device = select_device(provider, options or {})
    opened = _Opened(device.kind if device else "cpu")
    if device:
        opened.take_npu(stages, NpuSessions(device, options or {}, progress))
    for file in stages.keys() - opened.sessions.keys():
        opened.sessions[file] = _cpu_session(file, stages[file], threads)
        opened.placed.update(placement(opened.sessions[file]))
    chains = _Chains(pipelines, batches, context_length)
    return _checked(chains, opened) if opened.device == "npu" else chains.decoder(opened)


@dataclass
class _Opened:
    """The sessions of all stages by file, where their nodes are, and what their device offers."""

    device: Device
    sessions: dict[Path, ort.InferenceSession] = field(default_factory=dict)
    placed: Counter[str] = field(default_factory=Counter)
    memory: Any = None
    switch: PerformanceSwitch | None = None

    def take_npu(self, stages: Mapping[Path, Stage], opener: NpuSessions) -> None:
        meant = {file: stage.session_options.providers["qnn"] for file, stage in stages.items() if runs_on_npu(stage)}
        self.sessions = opener.open(meant)
        self.placed, self.memory = opener.placement, opener.memory
        self.switch = PerformanceSwitch(list(self.sessions.values()))


@dataclass(frozen=True)
class _Chains:
    """What a bundle offers, shortest context first, and the context length that is wanted of it."""

    pipelines: Sequence[Pipeline]
    batches: Sequence[Pipeline]
    context_length: int

    def decoder(self, opened: _Opened, min_batch: int = 2) -> StaticDecoder:
        sessions, memory = opened.sessions, opened.memory
        prompts, steps = _windows(self.pipelines, sessions, memory)
        spec = DecoderSpec(
            vocab_size=self.pipelines[-1].config.vocab_size,
            context_length=min(steps[-1].capacity, self.context_length or steps[-1].capacity),
            prompt_width=self.pipelines[-1].window.window_size,
            device=opened.device,
            placement=dict(opened.placed),
        )
        batches = [Batch(pipeline, list(_loaded(pipeline, sessions).values()), memory) for pipeline in self.batches]
        if len({batch.size for batch in batches}) > 1:
            raise BundleError(f"{self.pipelines[-1].folder.name}: its context lengths disagree on a call's sequences.")
        return StaticDecoder(
            prompts,
            steps,
            spec,
            batches=batches,
            min_batch=min_batch,
            memory=memory,
            switch=opened.switch,
        )


def _checked(chains: _Chains, opened: _Opened) -> StaticDecoder:
    """The decoder, once it has been seen that the driver computes what it should.

    Raises EngineFailed when it does not, not even without memory shared with the host.
    """
    decoder = chains.decoder(opened)
    if not _agrees_with_itself(decoder):
        opened.memory = None  # so far the host's memory, if it was shared, is under suspicion
        decoder = chains.decoder(opened)
        if not _agrees_with_itself(decoder):
            raise EngineFailed("On this NPU a window of tokens and single steps give different answers.")
    min_batch = _min_batch(decoder) if decoder.batch_size > 1 else 2
    return chains.decoder(opened, min_batch=min_batch)  # anew: what was tried on it has taken caches


def _agrees_with_itself(decoder: StaticDecoder) -> bool:
    """Whether three tokens in one window and one by one give nearly the same logits: two graphs, the cache written and
    read in place. A driver's faults, in memory it shares with the host above all, show here and not in answers."""
    together, apart = decoder.new_cache(), decoder.new_cache()
    try:
        window = decoder.verify(together, [1, 2, 3])
        steps = np.stack([decoder.step([apart], [token])[0] for token in (1, 2, 3)])
    except EngineFailed:
        return False
    return _is_close(window, steps)


def _min_batch(decoder: StaticDecoder) -> int:
    """From how many sequences on one call for all is faster than a call for each, as measured here and now.

    More than a call has room for where it fails or gives other logits than single steps.
    """
    size = decoder.batch_size
    caches = [decoder.new_cache() for _ in range(size)]
    for number, cache in enumerate(caches):  # of different lengths
        for token in range(number % _LENGTHS):
            decoder.step([cache], [token])
    ids = list(range(1, size + 1))
    apart_s, apart = _fastest(caches, lambda: _one_by_one(decoder, caches, ids))
    try:
        together_s, together = _fastest(caches, lambda: decoder.step(caches, ids))
    except EngineFailed:
        together_s, together = math.inf, np.full_like(apart, np.nan)
    if _is_close(together, apart):
        return max(2, math.ceil(together_s / (apart_s / size)))
    _log.warning("on this NPU a step of several sequences fails or gives other answers: they take theirs one by one")
    return size + 1


def _is_close(logits: Logits, expected: Logits) -> bool:
    """Row by row; never so where there is a NaN."""
    errors = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return bool(errors.max() < _SELF_AGREEMENT)


def _one_by_one(decoder: StaticDecoder, caches: Sequence[StaticCache], ids: Sequence[int]) -> Logits:
    return np.concatenate([decoder.step([cache], [token]) for cache, token in zip(caches, ids, strict=True)])


def _fastest(caches: Sequence[StaticCache], call: Callable[[], Logits], tries: int = 3) -> tuple[float, Logits]:
    """The seconds of the fastest of some calls, none of which leaves a trace in the caches, and its logits."""
    lengths, seconds = [cache.length for cache in caches], []
    for _ in range(tries):
        started = time.perf_counter()
        logits = call()
        seconds.append(time.perf_counter() - started)
        for cache, length in zip(caches, lengths, strict=True):
            cache.truncate(length)
    return min(seconds), logits


def _long_enough(pipelines: list[Pipeline], context_length: int) -> list[Pipeline]:
    """Up to the first that holds `context_length` rows; 0: all."""
    shorter = [pipeline for pipeline in pipelines if pipeline.config.context_length < context_length]
    return pipelines[: len(shorter) + 1] if context_length else pipelines


def select_device(provider: Literal["auto", "cpu", "qnn"], options: Mapping[str, str]) -> NpuDevice | None:
    """The NPU that a model with this provider runs on; None: the CPU. Option `soc_model` is what the emulator plays."""
    match provider:
        case "cpu":
            return None
        case "auto":
            return find_npu()
        case "qnn":
            return any_npu(int(soc) if (soc := options.get("soc_model", "")).isdecimal() else None)


def _cpu_session(file: Path, stage: Stage, threads: int) -> ort.InferenceSession:
    if runs_on_npu(stage) and read_compiled(file):
        raise BundleError(
            f"{file.parent.name} is compiled for the NPU, and this machine has none; "
            f"provider = 'qnn' runs it on the emulator where there is one."
        )
    return open_session(file, SessionOptions(threads=threads))


def _windows(
    pipelines: Sequence[Pipeline], sessions: Mapping[Path, ort.InferenceSession], memory: Any
) -> tuple[list[Window], list[Window]]:
    prompts, steps = [], []
    for pipeline in pipelines:
        loaded = _loaded(pipeline, sessions)
        prompt = [loaded[stage.filename] for stage in pipeline.stages if stage.run_on_prompt]
        step = [loaded[stage.filename] for stage in pipeline.stages if stage.run_on_token_gen]
        steps.append(Window(pipeline, step, 1, memory))
        prompts.append(Window(pipeline, prompt, pipeline.window.window_size, memory, steps[-1].layout))
    return prompts, steps


def _loaded(pipeline: Pipeline, sessions: Mapping[Path, ort.InferenceSession]) -> dict[str, LoadedStage]:
    """The stages by file name, in order."""
    return {stage.filename: LoadedStage(stage, sessions[pipeline.file(stage)]) for stage in pipeline.stages}

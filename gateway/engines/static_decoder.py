"""The decoder of bundles of fixed shape: a chain of graphs for a prompt's windows and one for single steps.

It runs them on the NPU, and on the CPU provider where they are not compiled, which is how one is compared with the
other.

1. A bundle may hold the chain for several context lengths: the longest at its root, shorter ones in its folders
   `context-*`. A cache starts in the shortest and moves on when it is full, because attention over rows that nobody
   has filled costs as much as over rows that matter.
2. A full window may not fit the end of a context although its ids do; then the ids go one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from gateway.bundles.genai_config import Stage
from gateway.bundles.qnn_context import read_compiled
from gateway.bundles.qnn_provider import NpuDevice, any_npu, find_npu, placement
from gateway.bundles.static_pipeline import Pipeline, read_pipelines, runs_on_npu
from gateway.engines.base import DecoderSpec, Device, KVCache, Logits
from gateway.engines.onnx import SessionOptions, open_session
from gateway.engines.qnn import NpuSessions, PerformanceSwitch
from gateway.engines.static_cache import StaticCache
from gateway.engines.static_stage import LoadedStage
from gateway.engines.static_window import Window
from gateway.errors import BundleError, EngineFailed

_SELF_AGREEMENT = 0.3  # relative error; the emulator's is below 0.02, that of noise or zeros 1 and more


class StaticDecoder:
    """The Decoder over windows of fixed width.

    Args:
        prompts: the windows for prompts, one for each context length, shortest first.
        steps: the windows of width 1, likewise.
        spec: what the token loop must know.
        memory: the device's host-accessible memory for the caches, or None.
        switch: entered around every device call.
    """

    def __init__(
        self,
        prompts: Sequence[Window],
        steps: Sequence[Window],
        spec: DecoderSpec,
        *,
        memory: Any = None,
        switch: PerformanceSwitch | None = None,
    ) -> None:
        self._prompts = list(prompts)
        self._steps = list(steps)
        self._spec = spec
        self._memory = memory
        self._switch = switch
        self._busy: AbstractContextManager[None] = switch or nullcontext()

    @property
    def spec(self) -> DecoderSpec:
        return self._spec

    def new_cache(self) -> StaticCache:
        return StaticCache(self._memory)

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        last: Logits = self._extend(_static(cache), ids, keep=1)[-1]
        return last

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._extend(_static(cache), ids, keep=len(ids))

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        logits = [self._extend(_static(cache), [token], keep=1) for cache, token in zip(caches, ids, strict=True)]
        return np.concatenate(logits)

    def close(self) -> None:
        if self._switch:
            self._switch.close()
        self._prompts.clear()
        self._steps.clear()

    def _extend(self, cache: StaticCache, ids: Sequence[int], keep: int) -> Logits:
        window = self._fitting(self._prompts, cache.length, len(ids)) if len(ids) > 1 else None
        if window is None or keep > window.logit_rows:
            return self._one_by_one(cache, ids)[-keep:]
        with self._busy:
            return window.run(cache, ids, keep)

    def _one_by_one(self, cache: StaticCache, ids: Sequence[int]) -> Logits:
        rows = []
        for token in ids:
            window = self._fitting(self._steps, cache.length, 1)
            assert window is not None, "the caller checks the context's length"
            with self._busy:
                rows.append(window.run(cache, [token], keep=1))
        return np.concatenate(rows)

    def _fitting(self, windows: Sequence[Window], length: int, count: int) -> Window | None:
        """The window of the shortest context that has room."""
        return next((window for window in windows if window.fits(length, count)), None)


def open_static_decoder(
    folder: Path,
    *,
    provider: Literal["auto", "cpu", "qnn"] = "auto",
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    context_length: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> StaticDecoder:
    """Open a bundle of fixed shape.

    Args:
        provider: `qnn` takes the emulator where there is no NPU; `auto` the NPU or, without one, the CPU.
        options: the user's provider options for the NPU.
        threads: of the CPU stages; 0 is the default.
        context_length: rows a cache must have at least, 0: as many as the bundle offers.
        progress: told what is being loaded.
    Raises BundleError, ConfigError, EngineFailed.
    """
    pipelines = _long_enough(read_pipelines(folder), context_length)
    stages = {pipeline.file(stage): stage for pipeline in pipelines for stage in pipeline.stages}
    device = device_for(provider, options or {})
    opened = _Opened(device.kind if device else "cpu")
    if device:
        opened.take_npu(stages, NpuSessions(device, options or {}, progress))
    for file in stages.keys() - opened.sessions.keys():
        opened.sessions[file] = _cpu_session(file, stages[file], threads)
        opened.placed.update(placement(opened.sessions[file]))
    decoder = _decoder(pipelines, opened, context_length)
    if opened.device == "npu" and not _agrees_with_itself(decoder):
        opened.memory = None  # so far the host's memory, if it was shared, is under suspicion
        decoder = _decoder(pipelines, opened, context_length)
        if not _agrees_with_itself(decoder):
            raise EngineFailed(
                f"{folder.name}: on this NPU a window of tokens and single steps give different answers."
            )
    return decoder


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


def _decoder(pipelines: Sequence[Pipeline], opened: _Opened, context_length: int) -> StaticDecoder:
    prompts, steps = _windows(pipelines, opened.sessions, opened.memory)
    spec = DecoderSpec(
        vocab_size=pipelines[-1].config.vocab_size,
        context_length=min(steps[-1].capacity, context_length or steps[-1].capacity),
        prompt_width=pipelines[-1].window.window_size,
        device=opened.device,
        placement=dict(opened.placed),
    )
    return StaticDecoder(prompts, steps, spec, memory=opened.memory, switch=opened.switch)


def _agrees_with_itself(decoder: StaticDecoder) -> bool:
    """Whether three tokens in one window and one by one give nearly the same logits: two graphs, the cache written and
    read in place. A driver's faults, in memory it shares with the host above all, show here and not in answers."""
    together, apart = decoder.new_cache(), decoder.new_cache()
    try:
        window = decoder.verify(together, [1, 2, 3])
        steps = np.stack([decoder.step([apart], [token])[0] for token in (1, 2, 3)])
    except EngineFailed:
        return False
    difference = float(np.linalg.norm(window - steps) / np.linalg.norm(steps))
    return difference < _SELF_AGREEMENT  # false for NaN too


def _long_enough(pipelines: list[Pipeline], context_length: int) -> list[Pipeline]:
    """Up to the first that holds `context_length` rows; 0: all."""
    shorter = [pipeline for pipeline in pipelines if pipeline.config.context_length < context_length]
    return pipelines[: len(shorter) + 1] if context_length else pipelines


def device_for(provider: Literal["auto", "cpu", "qnn"], options: Mapping[str, str]) -> NpuDevice | None:
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
        loaded = [(stage, LoadedStage(stage, sessions[pipeline.file(stage)])) for stage in pipeline.stages]
        prompt = [ready for stage, ready in loaded if stage.run_on_prompt]
        step = [ready for stage, ready in loaded if stage.run_on_token_gen]
        steps.append(Window(pipeline, step, 1, memory))
        prompts.append(Window(pipeline, prompt, pipeline.window.window_size, memory, steps[-1].layout))
    return prompts, steps


def _static(cache: KVCache) -> StaticCache:
    assert isinstance(cache, StaticCache)
    return cache

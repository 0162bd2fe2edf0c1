"""A decoder whose NPU computes nothing, and a stopwatch for the host's work around it. Used by host_cost.py."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime as ort
from weights import USUAL, bundle_of

from gateway.bundles.static_pipeline import NPU_HEAD
from gateway.worker.decoders import onnx as cpu
from gateway.worker.decoders.static import open as opening
from gateway.worker.decoders.static.cache import StaticCache
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.head import HeadStage
from gateway.worker.decoders.static.stage import BoundStage, FreeStage
from gateway.worker.decoders.static.window import Window
from gateway.worker.sequence import GeneratingSequence
from gateway.worker.token_loop import TokenLoop
from tests.support.npu.hollow_bundle import (
    LLAMA_3B,
    write_in_place,
    write_npu_head,
    write_real_tables,
    write_rows_returned,
)

OWN, ON_CPU, HUB = "our build", "our build, head on the CPU", "AI Hub"
DEVICE = "device"


class Stopwatch:
    """Wall and CPU seconds by section, each without the sections inside it. CPU: of all threads of the process."""

    def __init__(self) -> None:
        self._sections = ["other"]
        self._at = (time.perf_counter(), time.process_time())
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)

    def enter(self, section: str) -> None:
        self._charge()
        self._sections.append(section)

    def leave(self) -> None:
        self._charge()
        self._sections.pop()

    def reset(self) -> None:
        self._charge()
        self.wall, self.cpu = defaultdict(float), defaultdict(float)

    def wrap(self, owner: Any, name: str, section: str | Callable[[Any], str]) -> None:
        """Charge each call of a method to a section."""
        method = getattr(owner, name)

        def timed(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.enter(section if isinstance(section, str) else section(this))
            try:
                return method(this, *args, **kwargs)
            finally:
                self.leave()

        setattr(owner, name, timed)

    def _charge(self) -> None:
        now = time.perf_counter(), time.process_time()
        section = self._sections[-1]
        self.wall[section] += now[0] - self._at[0]
        self.cpu[section] += now[1] - self._at[1]
        self._at = now


WATCH = Stopwatch()


def tokenizer_file() -> Path:
    """That of SmolLM2: its 49,152 tokens are part of the vocabulary here."""
    return bundle_of(USUAL) / "tokenizer.json"


class HollowSession(ort.InferenceSession):  # type: ignore[misc]
    """A session in place of one on the NPU. `pause_s`: of a step, which its last graph waits."""

    pause_s = 0.0
    has_npu_head = True

    def __init__(self, path: Path, settings: ort.SessionOptions) -> None:
        super().__init__(path, settings, providers=["CPUExecutionProvider"])
        self._is_last = any(value.name in ("logits", "output_hidden_states") for value in self.get_outputs())
        self._has_logits = any(value.name == "logits" for value in self.get_outputs())

    def get_providers(self) -> Sequence[str]:
        return ["QNNExecutionProvider"]

    def run_with_iobinding(self, *args: Any) -> None:
        WATCH.enter(DEVICE if self._has_logits else "ORT calls")
        super().run_with_iobinding(*args)
        WATCH.leave()
        if self._is_last and HollowSession.pause_s:
            WATCH.enter(DEVICE)
            time.sleep(HollowSession.pause_s)
            WATCH.leave()


def _open_session(path: Path, options: Any, model: bytes | None = None) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    head = path.with_name(NPU_HEAD)
    if path.name == "lm_head.onnx" and HollowSession.has_npu_head:
        return HollowSession(head, settings)
    if path.stem.startswith(("context", "iterator", "prompt", "token")):
        return HollowSession(path, settings)
    return cpu.open_session(path, options, model)


def watch_worker() -> None:
    """Charge the worker's methods to their sections."""
    WATCH.wrap(TokenLoop, "turn", "token loop")
    WATCH.wrap(GeneratingSequence, "advance", "sampling")
    WATCH.wrap(StaticDecoder, "_run", "inputs")
    WATCH.wrap(FreeStage, "run", lambda stage: "head" if stage._only_logit_rows else "inputs")
    WATCH.wrap(HeadStage, "run", "head")
    WATCH.wrap(BoundStage, "run", "inputs")
    WATCH.wrap(Window, "_store", "cache")
    WATCH.wrap(StaticCache, "set_layout", "cache")


class Bundles:
    """The hollow bundles, in a folder."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        rows = {name: random.normal(0, spread, LLAMA_3B.vocab) for name, spread in (("flat", 1), ("peaked", 4))}
        self._own = write_in_place(folder / "own", LLAMA_3B, rows["flat"])
        write_real_tables(self._own, LLAMA_3B)
        write_npu_head(self._own, LLAMA_3B, rows["flat"])
        self._hub = {name: write_rows_returned(folder / f"hub-{name}", LLAMA_3B, row) for name, row in rows.items()}

    def opened(self, layout: str, logits: str = "flat") -> StaticDecoder:
        HollowSession.has_npu_head = layout != ON_CPU
        HollowSession.pause_s = 0.0
        with patch.object(opening, "open_session", _open_session):
            return opening.open_static_decoder(self._hub[logits] if layout == HUB else self._own, provider="cpu")

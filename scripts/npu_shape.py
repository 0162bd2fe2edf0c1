"""Builds and runs one part of a model with the shape of Llama 3.2 3B and random weights.

    python scripts/npu_shape.py FOLDER [--precision int4] [--parts 4] [--context 2048] [--width 128] [--run]
    python scripts/npu_shape.py FOLDER --head

Measures the size of a part's binaries, and the memory and time of its compilation. All parts of a model have the same
shape, so one part is enough. `--run` also compares the part with the CPU on a few tokens; that takes minutes on the
emulator. `--head` measures the head instead: the host's CPU time of a step with the head on the CPU, and without it,
where the host only reads the logits. Prints JSON. Peak memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gateway.builder.graphs.static import Part, split, write_part  # noqa: E402
from gateway.builder.graphs.static_products import Precision  # noqa: E402
from gateway.builder.graphs.static_tables import write_embeddings_and_head, write_npu_head  # noqa: E402
from gateway.builder.npu.check import STEPS, CheckRequest, Graphs, check_part  # noqa: E402
from gateway.builder.npu.part_runner import cpu_session, relative_error  # noqa: E402
from gateway.builder.sources.source import ALL, Blocks, GenerationDefaults, Rope, TransformerConfig  # noqa: E402
from gateway.qnn.compile import compile_graphs  # noqa: E402
from gateway.qnn.detect import try_detect_npu  # noqa: E402
from gateway.qnn.device import NpuDevice  # noqa: E402
from gateway.qnn.provider import open_session  # noqa: E402
from gateway.worker.decoders.static.head import ToFloat32  # noqa: E402

LLAMA_3B = TransformerConfig(
    architecture="llama",
    layers=28,
    hidden=3072,
    heads=24,
    kv_heads=8,
    head_dim=128,
    ffn=8192,
    vocab=128256,
    rms_eps=1e-5,
    ropes=(Rope(dim=128, theta=500000.0),),
    context_length=131072,
    tied_embeddings=True,
    eos_ids=(128001,),
)
_HEAD_ROWS = 8
_PROMPT_TOKENS = 8  # in the compared window, before the single steps


class RandomSource:
    """A ModelSource with random weights. A tensor has the same values in each call."""

    generation = GenerationDefaults()

    def __init__(self, config: TransformerConfig) -> None:
        self.config = config

    def has(self, name: str) -> bool:
        return not name.endswith(".bias") and name != "lm_head.weight"

    def tensor(self, name: str, rows: slice = ALL) -> Any:
        random = np.random.default_rng(zlib.crc32(name.encode()))
        shape = self._shape(name)
        if len(shape) == 1:
            return 1 + random.standard_normal(shape, np.float32) * np.float32(0.1)
        return random.standard_normal(shape, np.float32)[rows] * np.float32(shape[1] ** -0.5)

    def blocks(self, name: str) -> Blocks | None:
        return None

    def tokenizer_json(self) -> str:
        return "{}"

    def tokenizer_config(self) -> dict[str, Any]:
        return {}

    def notes(self) -> tuple[str, ...]:
        return ()

    def digest(self) -> str:
        return repr(self.config)

    def _shape(self, name: str) -> tuple[int, ...]:
        config, kind = self.config, name.split(".")[-2]
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        return {
            "embed_tokens": (config.vocab, config.hidden),
            "q_proj": (queries, config.hidden),
            "k_proj": (keys, config.hidden),
            "v_proj": (keys, config.hidden),
            "o_proj": (config.hidden, queries),
            "gate_proj": (config.ffn, config.hidden),
            "up_proj": (config.ffn, config.hidden),
            "down_proj": (config.hidden, config.ffn),
        }.get(kind, (config.hidden,))


class Shape:
    """The first of `parts` parts of a model. `facts` has the measurements."""

    def __init__(
        self,
        config: TransformerConfig,
        folder: Path,
        device: NpuDevice,
        *,
        precision: Precision = "int4",
        parts: int = 4,
        context: int = 2048,
        width: int = 128,
    ) -> None:
        self._source, self._folder, self._device = RandomSource(config), folder, device
        self._precision, self._context, self._width = precision, context, width
        self._part: Part = split(config.layers, parts)[0]
        self.facts: dict[str, Any] = {"layers": len(self._part.layers), "precision": precision}

    def build(self) -> None:
        """Compile the part twice: one binary per graph for the emulator, and one shared binary for a laptop."""
        with self._timed("write_s"):
            self._graphs = self._write(self._folder / "graphs", self._precision)
        with self._timed("compile_s"):
            self._compiled = compile_graphs(self._graphs, self._folder / "compiled", self._device)
        with self._timed("compile_shared_s"):
            compile_graphs(self._graphs, self._folder / "shared", self._device, share_weights=True)
        for name in ("compiled", "shared"):
            binaries = sorted((self._folder / name).glob("*.bin"))
            self.facts[f"{name}_bytes"] = [binary.stat().st_size for binary in binaries]
        self.facts["cache_bytes"] = self._cache_bytes()
        self.facts["build_peak_bytes"] = peak_bytes()

    def run(self) -> None:
        """Compare the part with the CPU."""
        hidden = (_PROMPT_TOKENS + STEPS, self._source.config.hidden)
        inputs = [self._folder / f"{name}.npy" for name in ("npu", "float")]
        for path in inputs:
            np.save(path, np.random.default_rng(0).standard_normal(hidden, np.float32))
        reference = self._write(self._folder / "fp32", "fp32")
        with self._timed("run_s"):
            check = check_part(
                CheckRequest(
                    compiled=Graphs.of(*self._compiled),
                    source=Graphs.of(*self._graphs),
                    reference=Graphs.of(*reference),
                    on_npu=str(inputs[0]),
                    in_float=str(inputs[1]),
                    device=self._device,
                )
            )
        self.facts |= {"nodes": check.nodes, "npu_error": check.npu_error, "error": check.error}
        self.facts["peak_bytes"] = peak_bytes()

    def _write(self, folder: Path, precision: Precision) -> list[Path]:
        """The prompt graph and the step graph."""
        folder.mkdir(parents=True)
        widths = {"context": self._width, "iterator": 1}
        layout: Any = {"widths": widths, "contexts": [self._context], "precision": precision}
        return list(write_part(self._source, folder, self._part, **layout).values())

    def _cache_bytes(self) -> int:
        """Bytes of the keys and values of a full context, two bytes per value."""
        config = self._source.config
        return len(self._part.layers) * self._context * config.kv_heads * config.head_dim * 2 * 2

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.facts[name] = round(time.perf_counter() - started, 1)


class Head:
    """The head of a model, for the CPU and for the NPU. `facts` has the measurements."""

    def __init__(self, config: TransformerConfig, folder: Path, device: NpuDevice) -> None:
        self._source, self._folder, self._device = RandomSource(config), folder, device
        self._hidden = np.random.default_rng(0).standard_normal((1, _HEAD_ROWS, config.hidden), np.float32)
        self.facts: dict[str, Any] = {"rows": config.vocab, "columns": config.hidden}

    def measure_host(self) -> None:
        """CPU milliseconds of a step: the head on the CPU, and the copy of the NPU's logits."""
        write_embeddings_and_head(self._source, self._folder, "int4")
        session = cpu_session(str(self._folder / "lm_head.onnx"))
        feeds = {"output_hidden_states": self._hidden[:, :1].astype(np.float16)}
        to_float32 = ToFloat32(np.zeros((1, _HEAD_ROWS, self._source.config.vocab), np.float16), {})
        self.facts["cpu_head_ms"] = _cpu_ms(lambda: session.run(None, feeds))
        self.facts["npu_head_ms"] = _cpu_ms(lambda: to_float32(1))

    def build(self) -> None:
        """Compile the head and compare it with the same graph on the CPU."""
        graph = write_npu_head(self._source, self._folder, _HEAD_ROWS)
        before = _child_cpu_s()
        (compiled,) = compile_graphs([graph], self._folder / "compiled", self._device)
        self.facts["compile_cpu_s"] = round(_child_cpu_s() - before, 1)
        self.facts["binary_bytes"] = sum(path.stat().st_size for path in compiled.parent.glob("*.bin"))
        self.facts["peak_bytes"] = peak_bytes()
        feeds = {"output_hidden_states": self._hidden.astype(np.float16)}
        logits = [
            session.run(None, feeds)[0][0].astype(np.float32)
            for session in (open_session(compiled, self._device), cpu_session(str(graph), exact=True))
        ]
        self.facts["npu_error"] = relative_error(*logits)


def _cpu_ms(call: Callable[[], object], tries: int = 20) -> float:
    """CPU milliseconds of all threads for one call, on average. The first call is not counted."""
    call()
    started = time.process_time()
    for _ in range(tries):
        call()
    return round((time.process_time() - started) / tries * 1000, 2)


def _child_cpu_s() -> float:
    """CPU seconds of the child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def peak_bytes() -> int | None:
    """The peak memory of this process or of its largest child; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    return max(resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=("fp16", "int4"), default="int4")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--head", action="store_true")
    arguments = parser.parse_args()
    device = try_detect_npu(emulated=True)
    if device is None:
        sys.exit("This machine has no NPU and no NPU emulator.")
    if arguments.head:
        head = Head(LLAMA_3B, arguments.folder, device)
        head.measure_host()
        print(json.dumps(head.facts), flush=True)
        head.build()
        print(json.dumps(head.facts))
        return
    layout = {name: getattr(arguments, name) for name in ("precision", "parts", "context", "width")}
    shape = Shape(LLAMA_3B, arguments.folder, device, **layout)
    shape.build()
    print(json.dumps(shape.facts), flush=True)
    if arguments.run:
        shape.run()
        print(json.dumps(shape.facts))


if __name__ == "__main__":
    main()

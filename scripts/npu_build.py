"""Builds a whole model with the shape of Llama 3.2 3B and random weights for the NPU, and measures time and memory.

    python scripts/npu_build.py FOLDER [--layers 28] [--parts 7] [--context 2048] [--width 128] [--one-binary]

It is the build that a Snapdragon makes in the background after `pull hf:ORG/REPO`: the same target, part by part. A
model of fewer layers has parts of the same size. Prints a JSON line for each stage: seconds, CPU seconds of all
processes that have ended, and the largest memory (RSS) of the process tree. A command that was killed continues with
the first part that is not finished.

The emulator needs minutes for what the NPU computes in a moment, so without `--emulate` the comparison of a part runs
the graphs on the CPU twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
import zlib
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from msgspec.structs import replace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from npu_shape import LLAMA_3B, RandomSource  # noqa: E402

from gateway.builder.npu import check  # noqa: E402
from gateway.builder.npu import parts as npu_parts  # noqa: E402
from gateway.builder.npu.build import NpuTarget  # noqa: E402
from gateway.builder.npu.check import CheckRequest, PartCheck  # noqa: E402
from gateway.builder.npu.part_runner import cpu_session  # noqa: E402
from gateway.bundles.disk import folder_bytes  # noqa: E402
from gateway.qnn.detect import try_detect_npu  # noqa: E402

_SAMPLE_S = 0.2


class Memory:
    """The largest RSS of this process and its children together, since the last `take`."""

    def __init__(self) -> None:
        self._peak = 0
        self.largest = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def take(self) -> int:
        peak, self._peak = self._peak, 0
        return peak

    def _watch(self) -> None:
        own = psutil.Process()
        while True:
            size = 0
            for process in (own, *own.children(recursive=True)):
                with suppress(psutil.Error):
                    size += process.memory_info().rss
            self._peak = max(self._peak, size)
            self.largest = max(self.largest, size)
            time.sleep(_SAMPLE_S)


class Stages:
    """A `Progress` that prints a line for each stage that has ended."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._started: dict[str, tuple[float, float]] = {}

    def __call__(self, stage: str, fraction: float) -> None:
        if fraction == 0:
            self._memory.take()
            self._started[stage] = time.perf_counter(), _cpu_s()
        elif fraction == 1 and stage in self._started:
            began, cpu = self._started[stage]
            facts: dict[str, Any] = {"stage": stage, "s": round(time.perf_counter() - began, 1)}
            facts |= {"cpu_s": round(_cpu_s() - cpu, 1), "peak_gb": round(self._memory.take() / 1e9, 2)}
            print(json.dumps(facts), flush=True)


class Source(RandomSource):
    """Random weights, made almost as fast as a file is read, with a tokenizer of single bytes."""

    def tensor(self, name: str, rows: slice = slice(0, None)) -> Any:
        shape = self._shape(name)
        if len(shape) == 1:
            return super().tensor(name)
        values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32)
        values -= np.float32(0.5)
        values *= np.float32((12 / shape[1]) ** 0.5)
        return values[rows]

    def tokenizer_json(self) -> str:
        from tokenizers import Tokenizer, models, pre_tokenizers

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return str(tokenizer.to_str())


def compare_on_cpu() -> None:
    """Leave the emulator out of the comparison of a part."""
    pool = get_context("spawn")

    def compared(request: CheckRequest) -> PartCheck:
        with pool.Pool(1) as child:
            return child.apply(_compared, (request,))

    vars(npu_parts)["check_part"] = compared


def _compared(request: CheckRequest) -> PartCheck:
    vars(check)["open_session"] = lambda path, device: cpu_session(str(path))
    return check._check(replace(request, compiled=request.source))


def _cpu_s() -> float:
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=LLAMA_3B.layers)
    parser.add_argument("--parts", type=int, default=7, help="of the model with all layers")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--one-binary", action="store_true", help="compile each part again, for a laptop")
    parser.add_argument("--emulate", action="store_true", help="compare the parts on the emulated NPU")
    arguments = parser.parse_args()
    if not arguments.emulate:
        compare_on_cpu()
    device = try_detect_npu(emulated=True)
    if device is None:
        sys.exit("This machine has no NPU and no NPU emulator.")
    config = replace(LLAMA_3B, layers=arguments.layers)
    parts = max(1, arguments.layers * arguments.parts // LLAMA_3B.layers)
    target = NpuTarget(
        device=device,
        contexts=(arguments.context,),
        width=arguments.width,
        precision="int4",
        parts=parts,
        share_weights=arguments.one_binary,
        unfinished=arguments.folder / "unfinished",
    )
    bundle = arguments.folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    memory, began, cpu = Memory(), time.perf_counter(), _cpu_s()
    target.write(Source(config), bundle, Stages(memory))
    facts = {"layers": arguments.layers, "parts": parts, "s": round(time.perf_counter() - began, 1)}
    facts |= {"cpu_s": round(_cpu_s() - cpu, 1), "peak_gb": round(memory.largest / 1e9, 2)}
    print(json.dumps(facts | {"bundle_gb": round(folder_bytes(bundle) / 1e9, 2)}))


if __name__ == "__main__":
    main()

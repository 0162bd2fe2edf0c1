"""Duration of a device call on the CPU by number of threads: a step of one sequence, a step of four, a prompt chunk.

    python benchmarks/threads.py [--threads 1,2,4] [--rounds 20] [--quick] [--write docs/benchmarks.md]

Each round makes every call once in every session, one session after the other. The result is the median of the rounds.
All sessions of a model are open at the same time, and only one computes. The models are SmolLM2 with int8 activations
and one of random weights with the shape of Llama 3.2 1B (`random_gguf.py`). `--quick` has only the small one of
config.toml.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from random_gguf import random_bundle
from report import parser, publish, table
from weights import EXACT, USUAL, bundle_of

from gateway.bundles.bundle import load_bundle
from gateway.worker.decoders.cpu import PROMPT_WIDTH, CpuDecoder
from gateway.worker.decoders.onnx import SessionOptions

SEQUENCES = 4
ROWS = 64  # in a sequence's cache before each call


class Session:
    """A decoder with `threads` threads, and the calls to measure. Each call leaves the caches as they were."""

    def __init__(self, bundle: Path, threads: int) -> None:
        options = SessionOptions(threads=threads)
        self.decoder = CpuDecoder(load_bundle(bundle), slots=SEQUENCES, context_length=512, options=options)
        self.caches = [self.decoder.new_cache() for _ in range(SEQUENCES)]
        for cache in self.caches:
            self.decoder.prefill(cache, range(1, ROWS + 1))

    @property
    def calls(self) -> dict[str, Callable[[], object]]:
        decoder, caches = self.decoder, self.caches
        return {
            "step": lambda: decoder.step(caches[:1], [1]),
            f"step of {SEQUENCES}": lambda: decoder.step(caches, [1] * SEQUENCES),
            f"{PROMPT_WIDTH} tokens of a prompt": lambda: decoder.prefill(caches[0], [1] * PROMPT_WIDTH),
        }

    def seconds(self, call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        elapsed = time.perf_counter() - began
        for cache in self.caches:
            cache.truncate(ROWS)
        return elapsed


def measure(bundle: Path, threads: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """Median milliseconds: call -> threads -> ms."""
    sessions = {count: Session(bundle, count) for count in threads}
    found: dict[str, dict[int, list[float]]] = {}
    for _ in range(rounds):
        for count, session in sessions.items():
            for what, call in session.calls.items():
                found.setdefault(what, {}).setdefault(count, []).append(1000 * session.seconds(call))
    return {what: {count: statistics.median(times) for count, times in of.items()} for what, of in found.items()}


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    options = parser(__doc__ or "")
    cores = os.cpu_count() or 1
    usual = sorted({count for count in (1, 2, 3, 4, 6, 8, 12, 16) if count <= cores})
    options.add_argument("--threads", type=numbers, default=usual, metavar="N[,N]")
    options.add_argument("--rounds", type=int, default=20)
    arguments = options.parse_args()
    bundles = [bundle_of(EXACT)] if arguments.quick else [bundle_of(USUAL), random_bundle("1b", "q4_0")]
    rows, bars = [], {}
    for bundle in bundles:
        for what, times in measure(bundle, arguments.threads, 2 if arguments.quick else arguments.rounds).items():
            rows.append([bundle.name, what, *(f"{ms:.1f}" for ms in times.values())])
            bars[f"{bundle.name}: {what}, ms"] = {f"{count} threads": ms for count, ms in times.items()}
    head = ["model", "call, ms", *(f"{count} threads" for count in arguments.threads)]
    publish("threads", table(head, rows), bars, arguments.write)


if __name__ == "__main__":
    main()

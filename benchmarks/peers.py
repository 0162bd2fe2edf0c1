"""The gateway, llama.cpp's server and onnxruntime-genai with the same weights on the same machine.

    python benchmarks/peers.py [--rounds 3] [--threads 2] [--peers FOLDER] [--install] [--quick] [--write PAGE]

`--install` makes an environment for the peers in FOLDER (default: build/peers) and compiles llama.cpp's server there,
which takes minutes. A peer that is not installed is left out, with a message.

All servers run at the same time, each with its own threads. They get their requests in turn, so that only one of them
computes. Each round starts with the next server. Every prompt is new, so a prefix cache helps only in the row that
measures it. In one round all servers get the same prompts. llama.cpp reads the GGUF file from which all bundles come.
Both peers round activations to int8. The gateway does so too with the bundle that it builds for other models, which
onnxruntime-genai reads as well; `exact` is the bundle that config.toml names, with float activations. `--quick` uses
only that one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from peer.clients import Peer, start
from peer.install import install
from report import ROOT, parser, publish, spread, table

WORDS = ("sea", "ship", "wind", "rope", "mast", "wave", "tide", "sand", "fish", "gull", "salt", "rock", "sail", "net")
Figures = dict[str, float]


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process and its descendants."""
    used = 0.0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            times = each.cpu_times()
            used += times.user + times.system
    return float(used)


class Texts:
    """The prompts of a round: the same for each peer, because prompt lookup helps more with some texts.

    No prompt occurs twice.
    """

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)

    def fresh(self, words: int) -> str:
        return " ".join(self._random.choices(WORDS, k=words))


def measure(peer: Peer, texts: Texts, tokens: int, prompts: tuple[int, ...], streams: tuple[int, ...]) -> Figures:
    """Measure one peer in one round."""
    before_s = cpu_s(peer.process)
    decoded = peer.chat(texts.fresh(8), tokens)
    found = {
        "decode, tokens/s": decoded.tokens_per_s,
        "CPU s per 1000 tokens": (cpu_s(peer.process) - before_s) * 1000 / tokens,
    }
    for words in prompts:
        reply = peer.chat(texts.fresh(words - 30), 1)
        found[f"prefill {words}, tokens/s"] = reply.computed / reply.first_s
    question, answer = texts.fresh(prompts[-1] // 3), "ok"
    found["first token, cold chat, ms"] = 1000 * peer.chat(question, 1).first_s
    found["first token, second turn, ms"] = 1000 * peer.chat("Why?", 1, turns=(question, answer)).first_s
    for count in streams if peer.is_concurrent else (1,):
        found[f"{count} streams in all, tokens/s"] = together(peer, [texts.fresh(8) for _ in range(count)], tokens)
    return found


def together(peer: Peer, texts: list[str], tokens: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(len(texts)) as pool:
        replies = list(pool.map(lambda text: peer.chat(text, tokens), texts))
    return sum(reply.generated for reply in replies) / (time.perf_counter() - began)


def idle_percent(peers: dict[str, Peer], seconds: float) -> dict[str, float]:
    before = {name: cpu_s(peer.process) for name, peer in peers.items()}
    time.sleep(seconds)
    return {name: 100 * (cpu_s(peer.process) - before[name]) / seconds for name, peer in peers.items()}


def options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--peers", type=Path, default=ROOT / "build" / "peers", metavar="FOLDER")
    made.add_argument("--install", action="store_true")
    return made.parse_args()


def main() -> None:
    arguments = options()
    if arguments.install:
        install(arguments.peers)
    rounds = 1 if arguments.quick else arguments.rounds
    sizes: tuple[Any, ...] = (16, (64,), (1, 2)) if arguments.quick else (128, (128, 512, 1500), (1, 2, 4, 8))
    found: dict[str, dict[str, list[float]]] = {}

    def note(peer: str, figures: Figures) -> None:
        for row, value in figures.items():
            found.setdefault(row, {}).setdefault(peer, []).append(value)

    with ExitStack() as stack:
        peers = start(stack, arguments.peers, arguments.threads, quick=arguments.quick)
        for peer in peers.values():
            peer.chat("What is there to say?", 8)  # not measured: a first request is slower
        for number in range(rounds):
            names = list(peers)[number % len(peers) :] + list(peers)[: number % len(peers)]
            for name in names:
                note(name, measure(peers[name], Texts(number), *sizes))
        for name, percent in idle_percent(peers, 1 if arguments.quick else 10).items():
            note(name, {"CPU while idle, %": percent, "peak memory, MB": peers[name].memory.memory.peak_bytes / 1e6})
            peers[name].memory.stop()
    report(found, list(peers), f"{rounds} rounds, {arguments.threads} threads each", arguments.write)


def _ratios(row: str, ours: list[float], theirs: list[float]) -> str:
    """Above 1 where the gateway is better."""
    pairs = [(a, b) if "tokens/s" in row else (b, a) for a, b in zip(ours, theirs, strict=False)]
    return f"{spread([a / b for a, b in pairs], 2)}x" if pairs and all(b for _, b in pairs) else "-"


def report(found: dict[str, dict[str, list[float]]], peers: list[str], run: str, page: Path | None) -> None:
    ours, *others = peers
    rows = []
    for row, by_peer in found.items():
        ratios = [_ratios(row, by_peer[ours], by_peer.get(other, [])) for other in others]
        rows.append([row, *(spread(by_peer.get(peer, [])) for peer in peers), *ratios])
    how = (
        f"Median and range of {run}; the servers get their requests in turn. A ratio compares figures of the same "
        "round and is above 1 where the gateway is better. onnxruntime-genai has no server and runs one at a time."
    )
    bars = {
        row: {peer: statistics.median(values) for peer, values in by_peer.items()} for row, by_peer in found.items()
    }
    head = ["", *peers, *(f"better than {other} by" for other in others)]
    publish("peers", f"{how}\n\n{table(head, rows)}", bars, page)


if __name__ == "__main__":
    main()

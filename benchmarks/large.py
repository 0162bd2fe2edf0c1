"""A bundle with the shape of a model of a billion weights, to measure its cost. Its weights are random, so is its text.

The layers have the shape of Llama 3.2 1B; vocabulary and tokenizer are SmolLM2's. 845 MB in models/, written once.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from weights import USUAL, bundle_of, gguf_file

from gateway.builder.build import CpuTarget, write_json
from gateway.builder.graphs.genai_writer import genai_config
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import ALL, Blocks, ModelSource
from gateway.bundles.hashes import write_hashes

HIDDEN, FFN = 2048, 8192
SIZES = {"layers": 16, "hidden": HIDDEN, "ffn": FFN, "heads": 32, "kv_heads": 8, "head_dim": 64}
OUTPUTS = {"q_proj": HIDDEN, "k_proj": 512, "v_proj": 512, "o_proj": HIDDEN, "down_proj": HIDDEN}  # others: FFN
BLOCK = 32


def large_bundle() -> Path:
    """The bundle's folder."""
    small = bundle_of(USUAL)
    out = small.with_name("billion")
    if not out.exists():
        with tempfile.TemporaryDirectory(dir=small.parent) as scratch:
            made = shutil.copytree(small, Path(scratch, "made"))
            _write(open_source(gguf_file(Path(scratch))), made)
            made.rename(out)
    return out


def _write(small: ModelSource, folder: Path) -> None:
    """Replace the graphs in a copy of the bundle of `small`."""
    source = _Random(small)
    graphs = CpuTarget().write(source, folder, lambda what, share: None)
    write_json(folder / "genai_config.json", genai_config(source.config, source.generation, graphs.decoder))
    write_hashes(folder)


class _Random:
    """A ModelSource of random numbers with a fixed seed."""

    def __init__(self, small: ModelSource) -> None:
        self.config = replace(small.config, **SIZES)
        self.generation = small.generation
        self.tokenizer_json, self.tokenizer_config = small.tokenizer_json, small.tokenizer_config
        self.digest = small.digest
        self._random = np.random.default_rng(0)

    def has(self, name: str) -> bool:
        return not name.endswith("bias")

    def tensor(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        if "norm" in name:
            return np.ones(HIDDEN, np.float32)
        return self._random.standard_normal((self.config.vocab, HIDDEN), np.float32)[rows]

    def notes(self) -> tuple[str, ...]:
        return ()

    def blocks(self, name: str) -> Blocks | None:
        projection = name.split(".")[-2]
        if not projection.endswith("_proj"):
            return None
        rows, columns = OUTPUTS.get(projection, FFN), FFN if projection == "down_proj" else HIDDEN
        codes = np.frombuffer(self._random.bytes(rows * columns), np.uint8).reshape(rows, -1, BLOCK) & 15
        scale = self._random.uniform(0.001, 0.005, codes.shape[:2]).astype(np.float32)
        return Blocks(bits=4, quants=codes, scale=scale, minimum=np.float32(-7.3) * scale)

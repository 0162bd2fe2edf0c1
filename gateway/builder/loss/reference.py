"""Computes a model in floating point over a text, layer by layer, for the loss and for the importance of inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.builder.graphs.cpu import write_cpu_graph
from gateway.builder.graphs.matrices import Importance, Matrices
from gateway.builder.loss.graph_parts import GraphParts, Ids, Rows
from gateway.builder.sources.source import ALL, EMBEDDING, FINAL_NORM, Blocks, ModelSource, Rope, layer

_VOCABULARY = 32  # of the graph of one layer, whose embedding is not used
_PROJECTION = re.compile(r"[a-z]+_proj")


def compute_reference(
    source: ModelSource, ids: Ids, folder: Path, progress: Callable[[float], None]
) -> tuple[Rows, Importance]:
    """The values behind the last layer, (tokens, hidden), and the importance of the inputs of all matrices.

    Args:
        folder: for the graph of one layer, which is removed.
    """
    hidden = embedded(source, ids)
    importance: dict[str, NDArray[np.float32]] = {}
    for index in range(source.config.layers):
        with TemporaryDirectory(dir=folder, prefix="layer-") as work:
            hidden, found = _run_layer(source, index, hidden, Path(work) / "layer.onnx")
        importance |= found
        progress((index + 1) / source.config.layers)
    return hidden, importance


def embedded(source: ModelSource, ids: Iterable[int]) -> Rows:
    rows = [source.tensor(EMBEDDING, slice(each, each + 1)) for each in map(int, ids)]
    return np.concatenate(rows) * np.float32(source.config.embedding_scale)


def _run_layer(source: ModelSource, index: int, hidden: Rows, path: Path) -> tuple[Rows, Importance]:
    one = _OneLayer(source, index, len(hidden))
    before, after = write_cpu_graph(Matrices(one, "float32"), path, lambda share: None, "float", "float32")
    parts = GraphParts(path, one.config)
    products = {
        node.output[0]: node.input[0]
        for node in parts.nodes
        if node.op_type == "Gemm" and node.output[0].startswith("layers.0.")
    }
    inputs = list(dict.fromkeys(products.values()))
    behind, values = parts.layer(before, after, hidden, inputs)
    squares = {name: np.square(rows).mean(0) for name, rows in zip(inputs, values, strict=True)}
    importance = {}
    for product, name in products.items():
        _, _, block, projections, *_ = product.split(".")
        for projection in _PROJECTION.findall(projections):
            importance[layer(index, f"{block}.{projection}.weight")] = squares[name]
    return behind, importance


class _OneLayer:
    """A ModelSource: one layer of a model, in floating point."""

    def __init__(self, source: ModelSource, index: int, tokens: int) -> None:
        config = source.config
        self.config = replace(
            config,
            layers=1,
            vocab=_VOCABULARY,
            tied_embeddings=True,
            context_length=tokens,
            ropes=tuple(_at(rope, config.context_length) for rope in config.ropes),
            rope_kinds=(config.rope_kind(index),),
            windows=(config.window(index),),
        )
        self._source = source
        self._index = index
        self.generation, self.notes, self.digest = source.generation, source.notes, source.digest
        self.tokenizer_json, self.tokenizer_config = source.tokenizer_json, source.tokenizer_config

    def has(self, name: str) -> bool:
        return self._source.has(self._name(name))

    def tensor(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        if name == EMBEDDING:
            return np.zeros((_VOCABULARY, self.config.hidden), np.float32)[rows]
        return self._source.tensor(self._name(name), rows)

    def blocks(self, name: str) -> Blocks | None:
        return None

    def _name(self, name: str) -> str:
        return name if name == FINAL_NORM else name.replace(layer(0, ""), layer(self._index, ""), 1)


def _at(rope: Rope, context: int) -> Rope:
    """The same positions with the factors for `context` in a shorter one."""
    factors = rope.long_factors if rope.long_factors and context > rope.original_context else rope.factors
    return replace(rope, factors=factors, long_factors=(), original_context=0)

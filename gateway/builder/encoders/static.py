"""Writes the graphs of an encoder for the NPU: one text, one fixed length each, only nodes that the NPU has.

Inputs: input_ids int32 (1, length) · mask float32 (1, 1, 1, length): 0 for a token, -10000 for padding
        weights float32 (1, length): what the pooling gives each token; they add up to 1
        later float32 (length, 1), of a cross-encoder with token types: 1 for the tokens of the second text
Output: vectors float32 (1, dimensions), or scores float32 (1). The NPU computes in float16.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from gateway.builder.encoders.config import Activation, EncoderSource
from gateway.builder.encoders.ends import EndWriter
from gateway.builder.encoders.graph import EncoderGraph
from gateway.builder.encoders.linear import FloatLinear
from gateway.builder.encoders.nodes import EncoderNodes
from gateway.builder.encoders.pooling import SentenceSettings
from gateway.builder.graphs.writer import GraphWriter
from gateway.bundles.encoder.bundle import STATIC_LENGTHS, EncoderInfo, static_file

_FAR = -10000.0


def static_lengths(source: EncoderSource, info: EncoderInfo) -> tuple[int, ...]:
    """The lengths of the graphs for the NPU, shortest first. Empty: this kind of encoder runs on the CPU only."""
    if source.config.causal or info.pooling == "max":
        return ()
    return tuple(sorted({min(length, info.longest) for length in STATIC_LENGTHS}))


def write_static_graphs(
    source: EncoderSource, info: EncoderInfo, settings: SentenceSettings, folder: Path, lengths: tuple[int, ...]
) -> None:
    """Write one graph for each length, with one copy of the weights."""
    with GraphWriter(folder / "static.onnx") as graph:
        for length in lengths:
            graph.restart()
            StaticEncoderGraph(source, info, settings, graph, length).write(lambda share: None)
            graph.save_fixed(folder / static_file(length), f"{info.architecture}-{length}")


class StaticNodes(EncoderNodes):
    def activated(self, kind: Activation, x: str, bias: str) -> str:
        graph, name = self._graph, f"{x}.active"
        x = self.with_bias(x, bias) if bias else x
        match kind:
            case "gelu" | "gelu_tanh":
                return graph.node("Gelu", [x], name, approximate="none" if kind == "gelu" else "tanh")
            case "silu":
                return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{x}.sigmoid")], name)
            case _:
                return graph.node({"relu": "Relu", "tanh": "Tanh"}[kind], [x], name)


class StaticEncoderGraph(EncoderGraph):
    """Args: length: tokens of a text."""

    def __init__(
        self, source: EncoderSource, info: EncoderInfo, settings: SentenceSettings, graph: GraphWriter, length: int
    ) -> None:
        super().__init__(source, info, settings, graph, FloatLinear(graph))
        self._length = length
        self._nodes = StaticNodes(source, graph)
        self._end = EndWriter(source, graph, self._nodes, settings, self._pooling)

    def _declare(self) -> None:
        graph = self._graph
        graph.input("input_ids", TensorProto.INT32, [1, self._length])
        graph.input("mask", TensorProto.FLOAT, [1, 1, 1, self._length])
        graph.input("weights", TensorProto.FLOAT, [1, self._length])
        if self._info.has_types:
            graph.input("later", TensorProto.FLOAT, [self._length, 1])
        if self._config.is_cross_encoder:
            graph.output("scores", TensorProto.FLOAT, [1])
        else:
            graph.output("vectors", TensorProto.FLOAT, [1, self._info.dimensions])

    def _embedded(self) -> str:
        graph, source = self._graph, self._source
        ids = graph.node("Reshape", ["input_ids", self._nodes.ints(self._length)], "ids")
        x = graph.node("Gather", [graph.constant("words.weight", source.tensor("words.weight")), ids], "words")
        added = np.zeros((self._length, self._config.hidden), np.float32)
        if source.has("positions.weight"):
            first = self._config.first_position
            added += source.tensor("positions.weight")[first : first + self._length]
        if source.has("types.weight"):
            added += source.tensor("types.weight")[0]
        if added.any():
            x = graph.node("Add", [x, graph.constant(f"added.{self._length}", added)], "positioned")
        if self._info.has_types:
            types = source.tensor("types.weight")
            step = graph.constant("type_step", types[1:2] - types[:1])
            x = graph.node("Add", [x, graph.node("MatMul", ["later", step], "later_type")], "typed")
        return self._nodes.norm("norm", x) if source.has("norm.weight") else x

    def _attended(self, i: int, x: str) -> str:
        """The attention as single nodes."""
        graph, config, nodes = self._graph, self._config, self._nodes
        q, k, v = (self._heads(i, each, x) for each in "qkv")
        if config.ropes:
            q, k = (self._rotated(each, i) for each in (q, k))
        k = graph.node("Transpose", [k], f"{k}.across", perm=[0, 1, 3, 2])
        scale = graph.constant("scale", np.array(config.head_size**-0.5, np.float32))
        scores = graph.node("Mul", [graph.node("MatMul", [q, k], f"{i}.scores"), scale], f"{i}.scaled")
        scores = graph.node("Add", [scores, "mask"], f"{i}.masked")
        if config.windows and config.windows[i]:
            scores = graph.node("Add", [scores, self._near(config.windows[i])], f"{i}.near")
        shares = graph.node("Softmax", [scores], f"{i}.shares", axis=-1)
        mixed = graph.node("MatMul", [shares, v], f"{i}.mixed")
        by_token = graph.node("Transpose", [mixed], f"{i}.by_token", perm=[0, 2, 1, 3])
        return graph.node("Reshape", [by_token, nodes.ints(self._length, -1)], f"{i}.attended")

    def _heads(self, i: int, part: str, x: str) -> str:
        """(1, heads, length, size)."""
        graph, config, name = self._graph, self._config, f"{i}.{part}"
        rows = self._linear.product(name, x, self._source.tensor(f"{name}.weight"))
        rows = self._nodes.with_bias(rows, f"{name}.bias")
        shape = self._nodes.ints(1, self._length, config.heads, config.head_size)
        by_head = graph.node("Reshape", [rows, shape], f"{name}.by_head")
        return graph.node("Transpose", [by_head], f"{name}.heads", perm=[0, 2, 1, 3])

    def _rotated(self, x: str, i: int) -> str:
        graph = self._graph
        cos, sin = self._nodes.rope_tables(i, self._length, halves=2)
        first, second = graph.nodes("Split", [x], [f"{x}.first", f"{x}.second"], axis=-1, num_outputs=2)
        turned = graph.node("Concat", [graph.node("Neg", [second], f"{x}.minus"), first], f"{x}.turned", axis=-1)
        parts = [graph.node("Mul", [x, cos], f"{x}.cos"), graph.node("Mul", [turned, sin], f"{x}.sin")]
        return graph.node("Add", parts, f"{x}.rotated")

    def _near(self, window: int) -> str:
        index = np.arange(self._length)
        far = np.abs(index[:, None] - index) > window
        return self._graph.constant(f"window.{window}.{self._length}", np.where(far, _FAR, 0).astype(np.float32))

    def _first_rows(self, attended: str, x: str, *, is_last: bool) -> tuple[str, str]:
        return attended, x

    def _finish(self, x: str) -> None:
        self._end.write_pooled(self._graph.node("MatMul", ["weights", x], "pooled"))

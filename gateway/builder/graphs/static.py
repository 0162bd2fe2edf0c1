"""Writes the graphs of a model for the NPU, float or quantised: graphs of fixed shape in the Windows ML layout.

    embeddings.onnx  input_ids int64 (1, rows)                  -> input_hidden_states float16 (1, rows, hidden)    CPU
    context.onnx     input_hidden_states (1, width, hidden), cache -> output_hidden_states (1, width, hidden)       NPU
    iterator.onnx    the same for one token                                                                         NPU
    verify.onnx      the same for a draft of a few tokens                                                           NPU
    lm_head.onnx     output_hidden_states                       -> logits float32 (1, rows, vocab)                  CPU
    npu_head.onnx    the same for a few rows, float16, in place of lm_head.onnx                                     NPU

The cache of a layer: past_keys_%d, past_values_%d float16 (1, kv_heads, context, head_dim). present_keys_%d and
present_values_%d return it with the new rows; input and output may be one buffer. past_seq_len int32 (1, 1) is the
number of valid rows after the call, minus one. total_seq_len int32 (1,) is the size of the context. With several parts,
each of these graphs is a chain of graphs, connected by hidden_states_%d.

    batch.onnx      one token of each of several sequences: hidden states (1, sequences, hidden), caches
                    (sequences, kv_heads, context, head_dim), past_seq_len (sequences, 1)                          NPU

1. There is no fused residual add and norm, because the NPU refuses it. `SimplifiedLayerNormalization` computes RMS norm
   correctly in float16 there. Separate nodes do not: the squares overflow.
2. The embedding runs on the CPU. The head is a separate graph, because it needs only the last row of a
   prompt: for a few rows on the NPU, or for any number on the CPU. It contains the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from onnx import TensorProto

from gateway.builder.graphs.static_attention import Attention
from gateway.builder.graphs.static_products import Precision, Products, Ranges, make_products
from gateway.builder.graphs.static_tables import residual_epsilon, residual_scale
from gateway.builder.graphs.writer import Dimension, GraphWriter
from gateway.builder.sources.source import ModelSource, layer

#: Names of graphs; the first two are Windows ML's names.
PROMPT, STEP, BATCH, VERIFY = "context", "iterator", "batch", "verify"


class Part(Struct, frozen=True, kw_only=True):
    """Consecutive layers that are one NPU graph: number `index` of `count`."""

    index: int
    count: int
    layers: range

    @property
    def input(self) -> str:
        return "input_hidden_states" if self.index == 0 else f"hidden_states_{self.index}"

    @property
    def output(self) -> str:
        return "output_hidden_states" if self.index == self.count - 1 else f"hidden_states_{self.index + 1}"

    @property
    def suffix(self) -> str:
        return "" if self.count == 1 else f"_{self.index + 1}_of_{self.count}"


def split(layers: int, count: int) -> list[Part]:
    """Split the layers into `count` parts that differ by at most one layer."""
    edges = [layers * index // count for index in range(count + 1)]
    return [Part(index=index, count=count, layers=range(edges[index], edges[index + 1])) for index in range(count)]


def write_part(
    source: ModelSource,
    folder: Path,
    part: Part,
    *,
    widths: Mapping[str, int],
    contexts: Sequence[int],
    precision: Precision,
    ranges: Ranges | None = None,
    sequences: int = 1,
) -> dict[tuple[str, int], Path]:
    """Write a part's constants once, and a graph for each name in `widths` and each context length.

    Returns the paths by (name, context length).

    Args:
        widths: name of a graph -> number of tokens of one call.
        ranges: needed by a precision that quantises activations. If None, the graphs are float32, and every activation
            that needs a range is an output.
        sequences: if more than 1, there is also a graph BATCH for one token of each sequence.
    """
    paths = {}

    def save(name: str, **sizes: int) -> None:
        for context in contexts:
            paths[name, context] = folder / f"{graph_stem(name, part, context, contexts)}.onnx"
            graph.save_fixed(paths[name, context], paths[name, context].stem, context=context, **sizes)

    with GraphWriter(folder / f"layers{part.suffix}.onnx") as graph:
        _PartGraph(source, graph, part, max(contexts), make_products(source, graph, precision, ranges)).write()
        for name, width in widths.items():
            save(name, width=width)
        if sequences > 1:
            graph.restart()
            products = make_products(source, graph, precision, ranges)
            _PartGraph(source, graph, part, max(contexts), products, sequences).write()
            save(BATCH)
    return paths


def graph_stem(name: str, part: Part, context: int, contexts: Sequence[int]) -> str:
    """The file name of a graph without its suffix. It contains the context length, except for the longest one."""
    return f"{name}{part.suffix}" + ("" if context == max(contexts) else f"_{context}")


class _PartGraph:
    """Layers for several tokens of one sequence, or for one token of each of several sequences.

    Every value is (1, rows, ...) in the products' float type.
    """

    def __init__(
        self, source: ModelSource, graph: GraphWriter, part: Part, context: int, products: Products, sequences: int = 1
    ) -> None:
        self._sequences = sequences
        self._rows: Dimension = "width" if sequences == 1 else sequences
        self._source = source
        self._config = source.config
        self._graph = graph
        self._part = part
        self._attend = Attention(graph, source.config, products.dtype, context=context, sequences=sequences)
        self._products = products
        self._dtype = products.dtype
        self._float = TensorProto.FLOAT if products.dtype is np.float32 else TensorProto.FLOAT16

    def write(self) -> None:
        """Add the layers to the graph. Dynamic dimensions: "context", and for one sequence "width", its tokens."""
        graph, part = self._graph, self._part
        rows: list[Dimension] = [1, self._rows, self._config.hidden]
        graph.input(part.input, self._float, rows)
        graph.output(part.output, self._float, rows)
        graph.input("past_seq_len", TensorProto.INT32, [self._sequences, 1])
        graph.input("total_seq_len", TensorProto.INT32, [1])
        residual = part.input
        for index in part.layers:
            residual = self._layer(index, residual)
        for name, columns in self._products.observed.items():
            graph.output(name, self._float, [1, self._rows, columns])

    def _layer(self, index: int, residual: str) -> str:
        name = f"layers.{index}"
        x = self._before(f"{name}.attention", layer(index, "input_layernorm.weight"), residual)
        y = self._after(f"{name}.attention", layer(index, "attention_output_norm.weight"), self._attention(index, x))
        residual = self._graph.node("Add", [residual, y], f"{name}.attention.residual")
        x = self._before(f"{name}.mlp", layer(index, "post_attention_layernorm.weight"), residual)
        y = self._after(f"{name}.mlp", layer(index, "mlp_output_norm.weight"), self._mlp(index, x))
        output = self._part.output if index == self._part.layers[-1] else f"{name}.mlp.residual"
        return self._graph.node("Add", [residual, y], output)

    def _before(self, name: str, weight: str, residual: str) -> str:
        """The block's input: the residual, or its norm, if norms are before the blocks."""
        if self._config.norms != "post":
            gain = self._source.tensor(weight)
            return self._norm(f"{name}.norm", weight, gain, residual, residual_epsilon(self._config))
        is_input = residual == self._part.input  # calibration makes a block's input an output
        return self._graph.node("Identity", [residual], f"{name}.input") if is_input else residual

    def _after(self, name: str, weight: str, y: str) -> str:
        """The block's output, or its norm, if norms are after the blocks."""
        if self._config.norms == "pre":
            return y
        gain = self._source.tensor(weight) * np.float32(residual_scale(self._config))
        return self._norm(f"{name}.output_norm", weight, gain, y)

    def _norm(self, name: str, weight: str, gain: NDArray[np.float32], x: str, epsilon: float = 0.0) -> str:
        constant = self._graph.constant(weight, gain.astype(self._dtype))
        epsilon = epsilon or self._config.rms_eps
        return self._graph.node(
            "SimplifiedLayerNormalization", [x, constant], name, axis=-1, epsilon=epsilon, stash_type=1
        )

    def _attention(self, index: int, x: str) -> str:
        config = self._config
        q, k, v = (self._product(index, x, f"self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj"))
        if config.qk_norm:
            q = self._query_or_key_norm(layer(index, "self_attn.q_norm.weight"), q, config.heads)
            k = self._query_or_key_norm(layer(index, "self_attn.k_norm.weight"), k, config.kv_heads)
        return self._product(index, self._attend.write(index, q, k, v), "self_attn.o_proj")

    def _query_or_key_norm(self, weight: str, x: str, heads: int) -> str:
        gain = self._source.tensor(weight)
        if self._config.qk_norm == "all":
            return self._norm(f"{x}.normed", weight, gain, x)
        graph, size = self._graph, self._config.head_dim  # with four dimensions, the NPU computes small heads wrongly
        split = graph.constant("split_in_heads", np.array([1, -1, size]))
        joined = graph.constant(f"joined_{heads}", np.array([1, -1, heads * size]))
        normed = self._norm(f"{x}.norm", weight, gain, graph.node("Reshape", [x, split], f"{x}.split"))
        return graph.node("Reshape", [normed, joined], f"{x}.normed")

    def _mlp(self, index: int, x: str) -> str:
        graph, name = self._graph, f"layers.{index}.mlp"
        gate, up = (self._product(index, x, f"mlp.{projection}") for projection in ("gate_proj", "up_proj"))
        gated = graph.node("Mul", [self._activated(gate, name), up], f"{name}.gated")
        return self._product(index, gated, "mlp.down_proj")

    def _activated(self, gate: str, name: str) -> str:
        if self._config.activation == "gelu_tanh":
            return self._graph.node("Gelu", [gate], f"{name}.gelu", approximate="tanh")  # FastGelu does not compile
        opened = self._graph.node("Sigmoid", [gate], f"{name}.sigmoid")
        return self._graph.node("Mul", [gate, opened], f"{name}.silu")

    def _product(self, index: int, x: str, projection: str) -> str:
        name = f"layers.{index}.{projection}"
        product = self._products.product(x, layer(index, f"{projection}.weight"), name)
        bias = layer(index, f"{projection}.bias")
        if not self._source.has(bias):
            return product
        constant = self._graph.constant(bias, self._source.tensor(bias).astype(self._dtype))
        return self._graph.node("Add", [product, constant], f"{name}.biased")

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
from onnx import TensorProto

from gateway.builder.graphs import quantise
from gateway.builder.graphs.linear import LinearWriter
from gateway.builder.graphs.static_products import Precision, Products, Ranges, make_products
from gateway.builder.graphs.writer import MICROSOFT, Dimension, GraphWriter
from gateway.builder.sources.source import EMBEDDING, FINAL_NORM, HEAD, Blocks, ModelSource, layer

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


def write_embeddings_and_head(source: ModelSource, folder: Path, precision: Precision) -> None:
    """Write embeddings.onnx and lm_head.onnx. If the model ties them, both read one 8-bit table.

    Hidden states are float32 if the precision is fp32, else float16.
    """
    config = source.config
    float_type = TensorProto.FLOAT if precision == "fp32" else TensorProto.FLOAT16
    with GraphWriter(folder / "embeddings.onnx") as graph:
        graph.input("input_ids", TensorProto.INT64, [1, "rows"])
        graph.output("input_hidden_states", float_type, [1, "rows", config.hidden])
        linear = LinearWriter(graph)
        table = linear.pack(EMBEDDING, _eight_bit(source, EMBEDDING))
        found = linear.lookup(table, "input_ids", "embedding")
        graph.node("Cast", [found], "input_hidden_states", to=float_type)
        graph.save("embeddings")
    with GraphWriter(folder / "lm_head.onnx") as head:
        head.input("output_hidden_states", float_type, [1, "rows", config.hidden])
        head.output("logits", TensorProto.FLOAT, [1, "rows", config.vocab])
        linear = LinearWriter(head, finer=(8,) if precision != "fp32" else ())
        if config.tied_embeddings:
            head.borrow(graph, table.quants, table.scales)
        else:
            table = linear.pack(HEAD, _eight_bit(source, HEAD))
        hidden = head.node("Cast", ["output_hidden_states"], "hidden", to=TensorProto.FLOAT)
        gain = head.constant(FINAL_NORM, source.tensor(FINAL_NORM))
        x = head.node("SimplifiedLayerNormalization", [hidden, gain], "normed", axis=-1, epsilon=config.rms_eps)
        linear.packed_product(table, x, "logits")
        head.save("lm_head")


def write_npu_head(source: ModelSource, folder: Path, rows: int) -> Path:
    """Write npu_head.onnx: float16 hidden states (1, rows, hidden) to float16 logits (1, rows, vocab).

    Returns its path.

    The weights are those of lm_head.onnx, the activations are float16.
    """
    config, name = source.config, EMBEDDING if source.config.tied_embeddings else HEAD
    with GraphWriter(folder / "npu_head.onnx") as graph:
        graph.input("output_hidden_states", TensorProto.FLOAT16, [1, rows, config.hidden])
        graph.output("logits", TensorProto.FLOAT16, [1, rows, config.vocab])
        linear = LinearWriter(graph, np.float16)
        gain = graph.constant(FINAL_NORM, source.tensor(FINAL_NORM).astype(np.float16))
        normed = graph.node(
            "SimplifiedLayerNormalization",
            ["output_hidden_states", gain],
            "normed",
            axis=-1,
            epsilon=config.rms_eps,
            stash_type=1,
        )
        linear.packed_product(linear.pack(name, _eight_bit(source, name)), normed, "logits")
        graph.save("npu_head")
    return folder / "npu_head.onnx"


def graph_stem(name: str, part: Part, context: int, contexts: Sequence[int]) -> str:
    """The file name of a graph without its suffix. It contains the context length, except for the longest one."""
    return f"{name}{part.suffix}" + ("" if context == max(contexts) else f"_{context}")


class _PartGraph:
    """Layers for several tokens of one sequence, or for one token of each of several sequences.

    Every value is (1, rows, ...) in the products' float type. For several sequences, attention needs
    (sequences, 1, ...).
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
        self._context = context
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
        graph.node("Reshape", ["past_seq_len", graph.constant("flat", np.array([-1]))], "last_row")
        self._rotary_tables()
        residual = part.input
        for index in part.layers:
            residual = self._layer(index, residual)
        for name, columns in self._products.observed.items():
            graph.output(name, self._float, [1, self._rows, columns])

    def _rotary_tables(self) -> None:
        cos, sin = self._config.ropes[0].tables(self._context, self._context)  # (context, head_dim / 2)
        self._graph.constant("rope.cos", cos.astype(self._dtype))
        self._graph.constant("rope.sin", sin.astype(self._dtype))

    def _layer(self, index: int, residual: str) -> str:
        graph, name = self._graph, f"layers.{index}"
        x = self._norm(f"{name}.attention.norm", layer(index, "input_layernorm.weight"), residual)
        residual = graph.node("Add", [residual, self._attention(index, x)], f"{name}.attention.residual")
        x = self._norm(f"{name}.mlp.norm", layer(index, "post_attention_layernorm.weight"), residual)
        last = index == self._part.layers[-1]
        return graph.node("Add", [residual, self._mlp(index, x)], self._part.output if last else f"{name}.mlp.residual")

    def _norm(self, name: str, weight: str, x: str) -> str:
        gain = self._graph.constant(weight, self._source.tensor(weight).astype(self._dtype))
        return self._graph.node(
            "SimplifiedLayerNormalization", [x, gain], name, axis=-1, epsilon=self._config.rms_eps, stash_type=1
        )

    def _attention(self, index: int, x: str) -> str:
        graph, config = self._graph, self._config
        cache: list[Dimension] = [self._sequences, config.kv_heads, "context", config.head_dim]
        past = [f"past_keys_{index}", f"past_values_{index}"]
        present = [f"present_keys_{index}", f"present_values_{index}"]
        for before, after in zip(past, present, strict=True):
            graph.input(before, self._float, cache)
            graph.output(after, self._float, cache)
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads, "v_proj": config.kv_heads}
        projected = [
            self._by_sequence(self._product(index, x, f"self_attn.{name}"), count * config.head_dim)
            for name, count in heads.items()
        ]
        attended, together = f"layers.{index}.attended", self._sequences > 1
        by_sequence = f"{attended}.by_sequence" if together else attended
        graph.nodes(
            "GroupQueryAttention",
            [*projected, *past, "last_row", "total_seq_len", "rope.cos", "rope.sin"],
            [by_sequence, *present],
            domain=MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
        )
        if together:
            self._reshaped(by_sequence, attended, [1, self._sequences, config.heads * config.head_dim])
        return self._product(index, attended, "self_attn.o_proj")

    def _by_sequence(self, value: str, columns: int) -> str:
        """(1, sequences, columns) -> (sequences, 1, columns). Returns `value` itself for one sequence."""
        if self._sequences == 1:
            return value
        return self._reshaped(value, f"{value}.by_sequence", [self._sequences, 1, columns])

    def _reshaped(self, value: str, name: str, shape: list[int]) -> str:
        target = self._graph.constant("_".join(["shape", *map(str, shape)]), np.array(shape))
        return self._graph.node("Reshape", [value, target], name)

    def _mlp(self, index: int, x: str) -> str:
        graph, name = self._graph, f"layers.{index}.mlp"
        gate, up = (self._product(index, x, f"mlp.{projection}") for projection in ("gate_proj", "up_proj"))
        opened = graph.node("Sigmoid", [gate], f"{name}.sigmoid")
        activated = graph.node("Mul", [gate, opened], f"{name}.silu")
        return self._product(index, graph.node("Mul", [activated, up], f"{name}.gated"), "mlp.down_proj")

    def _product(self, index: int, x: str, projection: str) -> str:
        name = f"layers.{index}.{projection}"
        product = self._products.product(x, layer(index, f"{projection}.weight"), name)
        bias = layer(index, f"{projection}.bias")
        if not self._source.has(bias):
            return product
        constant = self._graph.constant(bias, self._source.tensor(bias).astype(self._dtype))
        return self._graph.node("Add", [product, constant], f"{name}.biased")


def _eight_bit(source: ModelSource, name: str) -> Blocks:
    return quantise.as_eight_bit(source.blocks(name)) or quantise.eight_bit(source.tensor(name))

"""Writes the graph of a model for the CPU: one graph in onnxruntime-genai's form, for every batch size and length.

Inputs:  input_ids int64 (batch, sequence) · attention_mask int64 (batch, total): ones, then padding on the right
         past_key_values.%d.key/value float32 (batch, kv_heads, capacity, head_dim): if present.%d.key/value are
         bound to the same buffers, new rows are written in place; else the inputs hold exactly the past rows
         logits_to_keep int64 (1,), optional: number of last positions to return; 0, the default, returns all
Outputs: logits float32 (batch, kept, vocab) · present.%d.key/value
Metadata: activations, "int8" or "float": see 5

1. 4-bit blocks with a minimum keep the numbers of the file. The kernel is fast only without float zero points. A weight
   is then scale * (quant - 8). A small float product adds the rest: (minimum + 8 * scale) times the sum of the block's
   inputs. Refitting the blocks instead changes 20 % of the top-1 answers.
2. The embedding and a tied head read the same 8-bit tensor.
3. The last layer computes only the positions whose logits are kept, right after its attention.
4. Outside attention, a value is a matrix with one row for each token, so that one node multiplies and adds.
5. With int8 activations, and on x86 with AVX-512, the graph is batch-invariant: a token's numbers are bit-identical for
   any batch size and chunking. Every kernel here computes each row independently, except attention, which has a
   separate code path for a single row. So a single row gets a padding row. Its keys and values are written behind the
   sequence, and the next token overwrites them. If the cache has no free row, there is no padding row, and the last
   bits differ. On other processors, and with float activations, the 4-bit kernel has several code paths too. The
   decoder finds that out and adds padding rows where they help (see worker/decoders/padding.py).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from onnx import TensorProto, numpy_helper

from gateway.builder.graphs import quantise
from gateway.builder.graphs.linear import FLOAT_ACTIVATIONS, INT8_ACTIVATIONS, LinearWriter, Packed
from gateway.builder.graphs.writer import MICROSOFT, GraphWriter
from gateway.builder.sources.source import EMBEDDING, FINAL_NORM, HEAD, Blocks, ModelSource, TransformerConfig, layer
from gateway.bundles.stamp import Activations
from gateway.errors import BundleError


def write_cpu_graph(
    source: ModelSource, path: Path, progress: Callable[[float], None], activations: Activations = "int8"
) -> None:
    """Write `path` and `path`.data. `progress` gets the fraction that is done, 0 to 1."""
    with GraphWriter(path) as graph:
        writer = _CpuGraph(source, graph, activations)
        writer.declare_inputs_and_outputs()
        writer.write(progress)
        graph.note("activations", activations)
        graph.save(source.config.architecture)


class _CpuGraph:
    """x, residual, delta: names of float32 values (batch * sequence, hidden)."""

    def __init__(self, source: ModelSource, graph: GraphWriter, activations: Activations) -> None:
        _check_sizes(source.config)
        self._source = source
        self._config = source.config
        self._graph = graph
        rounding = INT8_ACTIVATIONS if activations == "int8" else FLOAT_ACTIVATIONS
        finer = () if rounding else (8,)  # the 8-bit kernel is slow with float activations
        self._linear = LinearWriter(graph, accuracy_level=rounding, finer=finer, rank=2)
        self._head = LinearWriter(graph, accuracy_level=rounding, finer=(8,))

    def write(self, progress: Callable[[float], None]) -> None:
        """Write the nodes from the inputs to the outputs."""
        layers = self._config.layers
        table = self._linear.pack(EMBEDDING, self._eight_bit(EMBEDDING))
        ids = self._graph.node("Reshape", ["input_ids", self._graph.constant("flat", np.array([-1]))], "ids")
        residual = self._linear.lookup(table, ids, "embedding")
        delta = ""
        for index in range(layers):
            residual, delta = self._layer(index, residual, delta)
            progress((index + 1) / (layers + 1))
        _, x = self._norm("final", FINAL_NORM, residual, delta)
        self._logits(table, x)
        progress(1.0)

    def declare_inputs_and_outputs(self) -> None:
        """Declare inputs and outputs, and write the nodes that depend only on the inputs."""
        graph, config = self._graph, self._config
        graph.input("input_ids", TensorProto.INT64, ["batch", "sequence"])
        graph.input("attention_mask", TensorProto.INT64, ["batch", "total"])
        graph.input("logits_to_keep", TensorProto.INT64, [1])
        graph.constant("logits_to_keep", np.array([0]))  # an input with a default
        graph.output("logits", TensorProto.FLOAT, ["batch", "kept", config.vocab])
        for index, kind in product(range(config.layers), ("key", "value")):
            cache: list[int | str] = ["batch", config.kv_heads, "capacity", config.head_dim]
            graph.input(f"past_key_values.{index}.{kind}", TensorProto.FLOAT, cache)
            graph.output(f"present.{index}.{kind}", TensorProto.FLOAT, cache)
        self._declare_rows()
        graph.node("Neg", ["logits_to_keep"], "kept_from")
        positions = np.arange(config.context_length + 1)  # one more for the padding row
        angles = positions[:, None] * config.inverse_frequencies()
        graph.constant("rope.cos", np.cos(angles).astype(np.float32))  # (context + 1, head_dim / 2)
        graph.constant("rope.sin", np.sin(angles).astype(np.float32))

    def _declare_rows(self) -> None:
        """Row counts for attention. A single row gets a padding row if the cache has a free row."""
        graph, one = self._graph, self._graph.constant("one", np.array([1]))
        batch = graph.node("Shape", ["input_ids"], "batch_size", end=1)
        tokens = graph.node("Shape", ["input_ids"], "sequence_length", start=1)
        capacity = graph.node("Shape", ["past_key_values.0.key"], "capacity_rows", start=2, end=3)
        rest = graph.constant("rest", np.array([-1]))
        graph.node("Concat", [batch, tokens, rest], "by_sequence", axis=0)

        ones = graph.node("ReduceSum", ["attention_mask", one], "ones", keepdims=0)
        longest = graph.node("ReduceMax", [ones, graph.constant("zero", np.array([0]))], "longest")
        alone = graph.node("Equal", [tokens, one], "is_alone")
        padding_row = graph.node(
            "And", [alone, graph.node("Less", [longest, capacity], "has_free_row")], "has_padding_row"
        )
        padding_row = graph.node("Cast", [padding_row], "padding_row", to=TensorProto.INT64)
        self._declare_order(padding_row)

        rows, lengths = (graph.node("Add", [value, padding_row], f"{value}.rows") for value in (tokens, ones))
        width = graph.node("Shape", ["attention_mask"], "width", start=1)
        total = graph.node("Max", [width, graph.node("Add", [longest, padding_row], "needed")], "total")
        graph.node("Cast", [graph.node("Sub", [lengths, one], "last")], "seqlens_k", to=TensorProto.INT32)
        graph.node("Cast", [graph.node("Min", [rows, lengths], "valid")], "query_seqlens", to=TensorProto.INT32)
        graph.node("Cast", [total], "total_sequence_length", to=TensorProto.INT32)

    def _declare_order(self, padding_row: str) -> None:
        """The order of rows: `padded` (batch, rows) maps attention's rows to the tokens' rows, `tokens_in_padded`
        (batch * sequence, 2) maps back. The padding row is a copy of the single row."""
        graph = self._graph
        sizes, count = graph.node("Shape", ["input_ids"], "sizes"), graph.node("Size", ["input_ids"], "count")
        first, step = graph.constant("first", np.array(0)), graph.constant("step", np.array(1))
        rows = graph.node("Reshape", [graph.node("Range", [first, count, step], "numbers"), sizes], "row_numbers")
        none = graph.constant("no_padding_row", np.zeros(3, np.int64))
        one_more = graph.node("Concat", [none, padding_row], "one_more", axis=0)
        graph.node("Pad", [rows, one_more], "padded", mode="edge")
        each = graph.node("ConstantOfShape", [sizes], "each", value=numpy_helper.from_array(np.array([1])))
        graph.node("Transpose", [graph.node("NonZero", [each], "indices")], "tokens_in_padded")

    def _layer(self, index: int, residual: str, delta: str) -> tuple[str, str]:
        """Write one layer. Returns the new residual stream and the value that must still be added to it."""
        name = f"layers.{index}"
        residual, x = self._norm(f"{name}.attention", layer(index, "input_layernorm.weight"), residual, delta)
        attended = self._attention(index, self._product(index, x, "self_attn", "q_proj", "k_proj", "v_proj"))
        if index == self._config.layers - 1:
            residual, attended = self._kept(residual, self._config.hidden), self._kept(attended, self._attention_width)
        delta = self._product(index, attended, "self_attn", "o_proj")
        residual, x = self._norm(f"{name}.mlp", layer(index, "post_attention_layernorm.weight"), residual, delta)
        return residual, self._mlp(index, x)

    def _norm(self, name: str, weight: str, residual: str, delta: str) -> tuple[str, str]:
        """Returns residual + delta, and its RMS norm. `delta` is "" before the first layer."""
        graph, epsilon = self._graph, self._config.rms_eps
        gain = graph.constant(weight, self._source.tensor(weight))
        x, total = f"{name}.norm", f"{name}.residual"
        if not delta:
            return residual, graph.node("SimplifiedLayerNormalization", [residual, gain], x, axis=-1, epsilon=epsilon)
        outputs = [x, "", "", total]
        graph.nodes(
            "SkipSimplifiedLayerNormalization", [residual, delta, gain], outputs, domain=MICROSOFT, epsilon=epsilon
        )
        return total, x

    def _attention(self, index: int, qkv: str) -> str:
        graph, config = self._graph, self._config
        name = f"layers.{index}.attended"
        past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
        present = [f"present.{index}.key", f"present.{index}.value"]
        padded = graph.node("Gather", [qkv, "padded"], f"{qkv}.padded", axis=0)
        lengths = ["seqlens_k", "total_sequence_length"]
        graph.nodes(
            "GroupQueryAttention",
            [padded, "", "", *past, *lengths, "rope.cos", "rope.sin", *[""] * 7, "query_seqlens"],
            [f"{name}.padded", *present],
            domain=MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
        )
        return graph.node("GatherND", [f"{name}.padded", "tokens_in_padded"], name)

    @property
    def _attention_width(self) -> int:
        return self._config.heads * self._config.head_dim

    def _mlp(self, index: int, x: str) -> str:
        graph, name = self._graph, f"layers.{index}.mlp"
        both = self._product(index, x, "mlp", "gate_proj", "up_proj")
        gate, up = graph.nodes("Split", [both], [f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2)
        activated = graph.node("QuickGelu", [gate], f"{name}.silu", domain=MICROSOFT, alpha=1.0)  # alpha 1 is SiLU
        return self._product(index, graph.node("Mul", [activated, up], f"{name}.gated"), "mlp", "down_proj")

    def _kept(self, value: str, columns: int) -> str:
        """The rows of the last `logits_to_keep` positions. A slice from -0 is all rows."""
        graph = self._graph
        end = graph.constant("to_end", np.array([np.iinfo(np.int64).max]))
        kept = graph.node("Slice", [self._by_sequence(value), "kept_from", end, "one"], f"{value}.kept")
        return self._flat(kept, columns)

    def _by_sequence(self, value: str) -> str:
        """(batch * sequence, columns) -> (batch, sequence, columns)"""
        return self._graph.node("Reshape", [value, "by_sequence"], f"{value}.by_sequence")

    def _flat(self, value: str, columns: int) -> str:
        """(batch, sequence, columns) -> (batch * sequence, columns)"""
        shape = self._graph.constant(f"rows_of_{columns}", np.array([-1, columns]))
        return self._graph.node("Reshape", [value, shape], f"{value}.rows")

    def _product(self, index: int, x: str, block: str, *projections: str) -> str:
        names = [layer(index, f"{block}.{projection}") for projection in projections]
        parts = [self._blocks(f"{name}.weight") for name in names]
        biases = [f"{name}.bias" for name in names if self._source.has(f"{name}.bias")]
        bias = np.concatenate([self._source.tensor(name) for name in biases]) if biases else None
        return self._linear.product(f"layers.{index}.{block}.{'_'.join(projections)}", x, parts, bias)

    def _blocks(self, name: str) -> Blocks:
        return self._source.blocks(name) or quantise.four_bit(self._source.tensor(name))

    def _eight_bit(self, name: str) -> Blocks:
        own = quantise.as_eight_bit(self._source.blocks(name))
        return own or quantise.eight_bit(self._source.tensor(name))

    def _logits(self, table: Packed, rows: str) -> None:
        graph, config = self._graph, self._config
        rest, hidden = graph.constant("rest", np.array([-1])), graph.constant("hidden", np.array([config.hidden]))
        shape = graph.node("Concat", ["batch_size", rest, hidden], "by_kept_position", axis=0)
        x = graph.node("Reshape", [rows, shape], f"{rows}.by_position")
        if config.tied_embeddings:
            self._head.packed_product(table, x, "logits")
            return
        blocks = self._source.blocks(HEAD) or quantise.eight_bit(self._source.tensor(HEAD))
        graph.node("Identity", [self._head.product(HEAD, x, [blocks])], "logits")


def _check_sizes(config: TransformerConfig) -> None:
    """Raises BundleError if a matrix cannot be split into blocks, or if the kernel does not support the heads."""
    sizes = {"hidden": config.hidden, "feed-forward": config.ffn, "attention": config.heads * config.head_dim}
    for name, size in sizes.items():
        if size % quantise.BLOCK:
            raise BundleError(f"The model's {name} size, {size}, is not a multiple of {quantise.BLOCK}.")
    if config.head_dim % 16 or config.heads % config.kv_heads:
        raise BundleError(
            f"{config.heads} heads of size {config.head_dim} with {config.kv_heads} key-value heads are not supported: "
            "the size must be a multiple of 16, and the number of heads a multiple of the key-value heads."
        )

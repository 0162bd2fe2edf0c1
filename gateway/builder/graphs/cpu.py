"""Writes the graph of a model for the CPU: one graph in onnxruntime-genai's form, for every batch size and length.

Inputs:  input_ids int64 (batch, sequence) · attention_mask int64 (batch, total): ones, then padding on the right
         past_key_values.%d.key/value float16 or float32, see 6 (batch, kv_heads, capacity, head_dim):
         if present.%d.key/value are bound to the same buffers, new rows are written in place; else the inputs hold
         exactly the past rows
         logits_to_keep int64 (1,), optional: number of last positions to return; 0, the default, returns all
         row_multiple int64 (1,), optional: see 5; the default is 1
Outputs: logits float32 (batch, kept, vocab) · present.%d.key/value
Metadata: activations, "int8" or "float": see 5

1. 4-bit blocks with a minimum keep the numbers of the file. The kernel is fast only with whole zero points. With int8
   activations, the minimum is rounded to a whole zero point. The rest is the weight of two more inputs, each the sum of
   the block's inputs (`quantise.with_sums_as_inputs`). With float activations, the kernel's zero point is 8, and a
   small float product adds the rest. Refitting the blocks instead changes 20 % of the top-1 answers.
2. The embedding and a tied head read the same 8-bit tensor.
3. The last layer computes only the positions whose logits are kept, right after its attention.
4. Outside attention, a value is a matrix with one row for each token, so that one node multiplies and adds.
5. With int8 activations the graph is batch-invariant: a token's numbers are bit-identical for any batch size and
   chunking. Most kernels compute each row independently. Some have other code paths for some rows, so that padding rows
   are necessary. Their results are not used. Their keys and values are written behind the sequence, and the next token
   overwrites them.
   - Attention computes queries in blocks of at most 2 * head_dim, and a row alone in its block in a different way. It
     gets a padding row, unless attention has several rows for each token (see attention.py).
   - On ARM, attention computes the last keys in a different way, beyond the last whole four. The 4-bit kernel does so
     with rows. With a `row_multiple` of 4, padding rows end each sequence and each matrix at a multiple of four.
   - On x86 without AVX-512, the 4-bit kernel computes a row alone in a different way. A `row_multiple` of 2 is enough.
   The host chooses the multiple (see worker/decoders/invariance.py). If a cache has no free rows for them, attention
   has no padding rows, and the last bits differ. With float activations the last bits differ too.
6. On x86-64 the cache and the inputs of attention have half precision, its sums single precision. Compared with single
   precision everywhere, the cache needs half of the memory, a step at 4000 tokens takes 0.63 times the processor time,
   and the perplexity of SmolLM2-135M is the same (docs/log.md). On ARM64 everything has single precision: the kernel
   for half precision also sums in half precision, and the graph is not batch-invariant with it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from onnx import TensorProto

from gateway.builder.graphs.attention import AttentionWriter, rope_tables
from gateway.builder.graphs.limits import check_sizes
from gateway.builder.graphs.linear import FLOAT_ACTIVATIONS, INT8_ACTIVATIONS, LinearWriter, Packed
from gateway.builder.graphs.matrices import Matrices
from gateway.builder.graphs.rows import MAX_PADDING_ROWS, RowPlanner
from gateway.builder.graphs.writer import MICROSOFT, GraphWriter
from gateway.builder.sources.source import EMBEDDING, FINAL_NORM, HEAD, Blocks, ModelSource, layer
from gateway.bundles.stamp import Activations, CacheType

#: The names of two values before a layer, whose sum is its input: the residual stream, and what must be added. "": none
Boundary = tuple[str, str]


def write_cpu_graph(
    source: ModelSource | Matrices,
    path: Path,
    progress: Callable[[float], None],
    activations: Activations = "int8",
    cache: CacheType | None = None,
) -> list[Boundary]:
    """Write `path` and `path`.data. Returns the boundary before each layer, and the one behind the last layer.

    Args:
        source: with or without the number format of its floating-point matrices.
        progress: gets the fraction that is done, 0 to 1.
        cache: the element type of the keys and values; None: what is best on this processor.
    """
    matrices = source if isinstance(source, Matrices) else Matrices(source)
    matrices = replace(matrices, larger_blocks=activations == "int8")
    with GraphWriter(path) as graph:
        writer = _CpuGraph(matrices, graph, activations, cache or _best_cache())
        writer.declare_inputs_and_outputs()
        boundaries = writer.write(progress)
        graph.note("activations", "float" if matrices.stored_as() in ("float16", "float32") else activations)
        graph.save(matrices.source.config.architecture)
    return boundaries


class _CpuGraph:
    """x, residual, delta: names of float32 values (batch * sequence, hidden)."""

    def __init__(self, matrices: Matrices, graph: GraphWriter, activations: Activations, cache: CacheType) -> None:
        self._matrices, self._source, self._config = matrices, matrices.source, matrices.source.config
        check_sizes(self._config)
        self._graph = graph
        self._has_half_cache = cache == "float16"
        self._attention = AttentionWriter(graph, self._config, half=self._has_half_cache)
        rounding = INT8_ACTIVATIONS if activations == "int8" else FLOAT_ACTIVATIONS
        finer = () if rounding else (8,)  # the 8-bit kernel is slow with float activations
        self._linear = LinearWriter(graph, accuracy_level=rounding, finer=finer, rank=2)
        self._head = LinearWriter(graph, accuracy_level=rounding, finer=(8,))

    def write(self, progress: Callable[[float], None]) -> list[Boundary]:
        """Write the nodes from the inputs to the outputs."""
        layers = self._config.layers
        table = self._linear.pack(EMBEDDING, self._matrices.table())
        boundaries = [(self._embedding(table), "")]
        for index in range(layers):
            boundaries.append(self._layer(index, *boundaries[-1]))
            progress((index + 1) / (layers + 1))
        _, x = self._add_and_norm("final", FINAL_NORM, *boundaries[-1])
        self._logits(table, x)
        progress(1.0)
        return boundaries

    def declare_inputs_and_outputs(self) -> None:
        """Declare inputs and outputs, and write the nodes that depend only on the inputs."""
        graph, config = self._graph, self._config
        graph.input("input_ids", TensorProto.INT64, ["batch", "sequence"])
        graph.input("attention_mask", TensorProto.INT64, ["batch", "total"])
        graph.input("logits_to_keep", TensorProto.INT64, [1])
        graph.constant("logits_to_keep", np.array([0]))  # an input with a default
        graph.output("logits", TensorProto.FLOAT, ["batch", "kept", config.vocab])
        element = TensorProto.FLOAT16 if self._has_half_cache else TensorProto.FLOAT
        for index, kind in product(range(config.layers), ("key", "value")):
            cache: list[int | str] = ["batch", config.kv_heads, "capacity", config.head_dim]
            graph.input(f"past_key_values.{index}.{kind}", element, cache)
            graph.output(f"present.{index}.{kind}", element, cache)
        graph.input("row_multiple", TensorProto.INT64, [1])
        graph.constant("row_multiple", np.array([1]))
        RowPlanner(graph, 2 * config.head_dim).write()
        self._attention.write_rows()
        for number, rope in enumerate(config.ropes):
            cos, sin = rope.tables(config.context_length + MAX_PADDING_ROWS, config.context_length)
            for name, values in zip(rope_tables(number), (cos, sin), strict=True):
                graph.constant(
                    name, values.astype(np.float16 if self._has_half_cache else np.float32)
                )  # (positions, dim / 2)

    def _embedding(self, table: Packed) -> str:
        found, scale = self._linear.lookup(table, "ids", "embedding"), self._config.embedding_scale
        if scale == 1:
            return found
        factor = self._graph.constant("embedding_scale", np.array(scale, np.float32))
        return self._graph.node("Mul", [found, factor], "scaled_embedding")

    def _layer(self, index: int, residual: str, delta: str) -> Boundary:
        """Write one layer. Returns the new residual stream and the value that must still be added to it."""
        graph, name = self._graph, f"layers.{index}"
        residual, x = self._before(f"{name}.attention", layer(index, "input_layernorm.weight"), residual, delta)
        qkv = self._product(index, x, "self_attn", "q_proj", "k_proj", "v_proj")
        attended = self._attention.write(
            index, self._norm_queries_and_keys(index, qkv) if self._config.qk_norm else qkv
        )
        if index == self._config.layers - 1:
            residual, attended = (
                graph.node("Gather", [x, "kept_rows"], f"{x}.kept", axis=0) for x in (residual, attended)
            )
        delta = self._product(index, attended, "self_attn", "o_proj")
        delta = self._after(f"{name}.attention", layer(index, "attention_output_norm.weight"), delta)
        residual, x = self._before(f"{name}.mlp", layer(index, "post_attention_layernorm.weight"), residual, delta)
        return residual, self._after(f"{name}.mlp", layer(index, "mlp_output_norm.weight"), self._mlp(index, x))

    def _before(self, name: str, weight: str, residual: str, delta: str) -> tuple[str, str]:
        """Returns residual + delta, and the block's input: its norm, if norms are before the blocks."""
        if self._config.norms != "post":
            return self._add_and_norm(name, weight, residual, delta)
        total = self._graph.node("Add", [residual, delta], f"{name}.residual") if delta else residual
        return total, total

    def _after(self, name: str, weight: str, delta: str) -> str:
        """The block's output, or its norm, if norms are after the blocks."""
        return delta if self._config.norms == "pre" else self._norm(f"{name}.output_norm", weight, delta)

    def _norm(self, name: str, weight: str, x: str) -> str:
        gain = self._graph.constant(weight, self._source.tensor(weight))
        epsilon = self._config.rms_eps
        return self._graph.node("SimplifiedLayerNormalization", [x, gain], name, axis=-1, epsilon=epsilon)

    def _add_and_norm(self, name: str, weight: str, residual: str, delta: str) -> tuple[str, str]:
        """Returns residual + delta, and its RMS norm. `delta` is "" before the first layer."""
        if not delta:
            return residual, self._norm(f"{name}.norm", weight, residual)
        graph, epsilon = self._graph, self._config.rms_eps
        gain = graph.constant(weight, self._source.tensor(weight))
        x, total = f"{name}.norm", f"{name}.residual"
        outputs = [x, "", "", total]
        graph.nodes(
            "SkipSimplifiedLayerNormalization", [residual, delta, gain], outputs, domain=MICROSOFT, epsilon=epsilon
        )
        return total, x

    def _norm_queries_and_keys(self, index: int, qkv: str) -> str:
        graph, config = self._graph, self._config
        sizes = np.array([config.heads, config.kv_heads, config.kv_heads]) * config.head_dim
        parts = [f"layers.{index}.{part}" for part in ("queries", "keys", "values")]
        queries, keys, values = graph.nodes("Split", [qkv, graph.constant("qkv_sizes", sizes)], parts, axis=-1)
        queries = self._query_or_key_norm(layer(index, "self_attn.q_norm.weight"), queries, config.heads)
        keys = self._query_or_key_norm(layer(index, "self_attn.k_norm.weight"), keys, config.kv_heads)
        return graph.node("Concat", [queries, keys, values], f"{qkv}.normed", axis=-1)

    def _query_or_key_norm(self, weight: str, x: str, heads: int) -> str:
        """The kernel of attention has inputs for norms of heads, and refuses them."""
        if self._config.qk_norm == "all":
            return self._norm(f"{x}.norm", weight, x)
        size = self._config.head_dim
        split = self._graph.node("Reshape", [x, self._shape(-1, heads, size)], f"{x}.heads")
        normed = self._norm(f"{x}.norm", weight, split)
        return self._graph.node("Reshape", [normed, self._shape(-1, heads * size)], f"{x}.normed")

    def _mlp(self, index: int, x: str) -> str:
        graph, name = self._graph, f"layers.{index}.mlp"
        both = self._product(index, x, "mlp", "gate_proj", "up_proj")
        gate, up = graph.nodes("Split", [both], [f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2)
        activated = self._activated(gate, name)
        return self._product(index, graph.node("Mul", [activated, up], f"{name}.gated"), "mlp", "down_proj")

    def _activated(self, gate: str, name: str) -> str:
        if self._config.activation == "silu":
            return self._graph.node("QuickGelu", [gate], f"{name}.silu", domain=MICROSOFT, alpha=1.0)  # alpha 1 is SiLU
        return self._graph.node("FastGelu", [gate], f"{name}.gelu", domain=MICROSOFT)

    def _product(self, index: int, x: str, block: str, *projections: str) -> str:
        names = [layer(index, f"{block}.{projection}") for projection in projections]
        parts = [self._matrices.matrix(f"{name}.weight") for name in names]
        biases = [f"{name}.bias" for name in names if self._source.has(f"{name}.bias")]
        bias = np.concatenate([self._source.tensor(name) for name in biases]) if biases else None
        return self._linear.product(f"layers.{index}.{block}.{'_'.join(projections)}", x, parts, bias)

    def _logits(self, table: Packed, rows: str) -> None:
        """Padding rows are removed before the head, or after a 4-bit head, whose kernel needs them."""
        graph, config = self._graph, self._config
        if config.tied_embeddings:
            self._head.packed_product(table, self._by_position(rows, config.hidden), "logits")
            return
        head = self._matrices.head()
        if not isinstance(head, Blocks) or head.bits == 8:
            logits = self._head.product(HEAD, self._by_position(rows, config.hidden), [head])
        else:
            x = graph.node("Reshape", [rows, self._shape(1, -1, config.hidden)], f"{rows}.in_one")
            y = graph.node(
                "Reshape", [self._head.product(HEAD, x, [head]), self._shape(-1, config.vocab)], "all_logits"
            )
            logits = self._by_position(y, config.vocab)
        graph.node("Identity", [logits], "logits")

    def _by_position(self, rows: str, columns: int) -> str:
        """(kept rows, columns) -> (batch, kept, columns), without the padding rows."""
        graph = self._graph
        kept = graph.node("Slice", [rows, self._shape(0), "kept_count", self._shape(0)], f"{rows}.kept")
        shape = graph.node("Concat", ["batch_size", self._shape(-1, columns)], f"{rows}.shape", axis=0)
        return graph.node("Reshape", [kept, shape], f"{rows}.by_position")

    def _shape(self, *sizes: int) -> str:
        return self._graph.constant("_".join(["shape_of", *map(str, sizes)]), np.array(sizes))


def _best_cache() -> CacheType:
    return "float16" if platform.machine().lower() in ("x86_64", "amd64") else "float32"

"""The CPU flavour of a model: one onnxruntime-genai style graph for prompts and single steps, any batch, any length.

Inputs:  input_ids int64 (batch, sequence) · attention_mask int64 (batch, total): ones, then padding on the right
         past_key_values.%d.key/value float32 (batch, kv_heads, capacity, head_dim): bind the same buffers as
         present.%d.key/value and new rows are written in place; other buffers hold just the rows there are
         logits_to_keep int64 (1,), optional: logits of the last so many positions only; 0, the default, is all
Outputs: logits float32 (batch, kept, vocab) · present.%d.key/value

1. Four-bit blocks with a minimum keep the file's own numbers. The kernel is fast only without float zero points, where
   a weight is scale * (quant - 8); what is missing, (minimum + 8 * scale) times the sum of the block's inputs, is added
   by a small float product. Refitting the blocks instead changes a fifth of the top-1 answers.
2. The embedding and a tied head read the same 8-bit tensor.
3. The last layer computes only the positions whose logits are kept, right after its attention.
4. Activations stay floats, in calls of any size: a second way for few tokens made answers depend on which tokens
   happened to share a call (docs/log.md). `int8` activations are another model: see `LinearWriter`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import TensorProto

from gateway.bundles import quantise
from gateway.bundles.graph import MICROSOFT, GraphWriter
from gateway.bundles.linear import INT8_ACTIVATIONS, LinearWriter, Packed
from gateway.bundles.source import EMBEDDING, FINAL_NORM, HEAD, Blocks, ModelSource, TransformerConfig, layer
from gateway.errors import BundleError

Activations = Literal["float", "int8"]


def write_cpu_graph(
    source: ModelSource, path: Path, progress: Callable[[float], None], activations: Activations = "float"
) -> None:
    """Write `path` and `path`.data. `progress` gets the share that is done, 0..1."""
    with GraphWriter(path) as graph:
        writer = _CpuGraph(source, graph)
        writer.declare_inputs_and_outputs()
        writer.write(_linear_writer(graph, activations), progress)
        graph.save(source.config.architecture)


def _linear_writer(graph: GraphWriter, activations: Activations) -> LinearWriter:
    if activations == "int8":
        return LinearWriter(graph, accuracy_level=INT8_ACTIVATIONS)
    return LinearWriter(graph, finer=(8,))


class _CpuGraph:
    """x, residual, delta: names of float32 values (batch, sequence, hidden)."""

    def __init__(self, source: ModelSource, graph: GraphWriter) -> None:
        _check_sizes(source.config)
        self._source = source
        self._config = source.config
        self._graph = graph

    def write(self, linear: LinearWriter, progress: Callable[[float], None]) -> None:
        """The nodes from the inputs to the outputs."""
        layers = self._config.layers
        self._linear = linear
        table = self._linear.pack(EMBEDDING, self._eight_bit(EMBEDDING))
        residual = self._linear.lookup(table, "input_ids", "embedding")
        delta = ""
        for index in range(layers):
            residual, delta = self._layer(index, residual, delta)
            progress((index + 1) / (layers + 1))
        _, x = self._norm("final", FINAL_NORM, residual, delta)
        self._head(table, x)
        progress(1.0)

    def declare_inputs_and_outputs(self) -> None:
        """And what is derived from the inputs alone."""
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
        one = graph.constant("one", np.array([1]))
        lengths = graph.node("ReduceSum", ["attention_mask", one], "lengths", keepdims=0)
        last = graph.node("Sub", [lengths, one], "last_positions")
        graph.node("Cast", [last], "seqlens_k", to=TensorProto.INT32)
        total = graph.node("Shape", ["attention_mask"], "total_length", start=1)
        graph.node("Cast", [total], "total_sequence_length", to=TensorProto.INT32)
        graph.node("Neg", ["logits_to_keep"], "kept_from")
        angles = np.arange(config.context_length)[:, None] * config.inverse_frequencies()
        graph.constant("rope.cos", np.cos(angles).astype(np.float32))  # (context, head_dim / 2)
        graph.constant("rope.sin", np.sin(angles).astype(np.float32))

    def _layer(self, index: int, residual: str, delta: str) -> tuple[str, str]:
        """One layer; the new residual stream and what is still to be added to it."""
        name = f"layers.{index}"
        residual, x = self._norm(f"{name}.attention", layer(index, "input_layernorm.weight"), residual, delta)
        attended = self._attention(index, self._product(index, x, "self_attn", "q_proj", "k_proj", "v_proj"))
        if index == self._config.layers - 1:
            residual, attended = self._keep(residual), self._keep(attended)
        delta = self._product(index, attended, "self_attn", "o_proj")
        residual, x = self._norm(f"{name}.mlp", layer(index, "post_attention_layernorm.weight"), residual, delta)
        return residual, self._mlp(index, x)

    def _norm(self, name: str, weight: str, residual: str, delta: str) -> tuple[str, str]:
        """residual + delta, and its RMS norm. `delta` is empty before the first layer."""
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
        past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
        present = [f"present.{index}.key", f"present.{index}.value"]
        attended = f"layers.{index}.attended"
        lengths = ["seqlens_k", "total_sequence_length"]
        graph.nodes(
            "GroupQueryAttention",
            [qkv, "", "", *past, *lengths, "rope.cos", "rope.sin"],
            [attended, *present],
            domain=MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
        )
        return attended

    def _mlp(self, index: int, x: str) -> str:
        graph, name = self._graph, f"layers.{index}.mlp"
        both = self._product(index, x, "mlp", "gate_proj", "up_proj")
        gate, up = graph.nodes("Split", [both], [f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2)
        activated = graph.node("QuickGelu", [gate], f"{name}.silu", domain=MICROSOFT, alpha=1.0)  # alpha 1 is SiLU
        return self._product(index, graph.node("Mul", [activated, up], f"{name}.gated"), "mlp", "down_proj")

    def _keep(self, value: str) -> str:
        """The last `logits_to_keep` positions; from -0 on is all of them."""
        graph = self._graph
        end, axis = graph.constant("to_end", np.array([np.iinfo(np.int64).max])), graph.constant("one", np.array([1]))
        return graph.node("Slice", [value, "kept_from", end, axis], f"{value}.kept")

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

    def _head(self, table: Packed, x: str) -> None:
        if self._config.tied_embeddings:
            self._linear.packed_product(table, x, "logits")
            return
        blocks = self._source.blocks(HEAD) or quantise.eight_bit(self._source.tensor(HEAD))
        self._graph.node("Identity", [self._linear.product(HEAD, x, [blocks])], "logits")


def _check_sizes(config: TransformerConfig) -> None:
    """Raises BundleError for a model whose matrices cannot be cut into blocks, or whose heads the kernel refuses."""
    sizes = {"hidden": config.hidden, "feed-forward": config.ffn, "attention": config.heads * config.head_dim}
    for name, size in sizes.items():
        if size % quantise.BLOCK:
            raise BundleError(f"The model's {name} size, {size}, is not a multiple of {quantise.BLOCK}.")
    if config.head_dim % 16 or config.heads % config.kv_heads:
        raise BundleError(
            f"{config.heads} heads of {config.head_dim} over {config.kv_heads} cached ones are not supported: a head's "
            "size must be a multiple of 16, and each cached one serve a whole number of others."
        )

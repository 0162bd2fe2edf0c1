"""Writes what is outside the layers of graphs of fixed shape: embeddings.onnx, lm_head.onnx and npu_head.onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from gateway.builder.graphs import quantise
from gateway.builder.graphs.linear import LinearWriter
from gateway.builder.graphs.static_products import Precision
from gateway.builder.graphs.writer import GraphWriter
from gateway.builder.sources.source import EMBEDDING, FINAL_NORM, HEAD, Blocks, ModelSource, TransformerConfig


def residual_scale(config: TransformerConfig) -> float:
    """The factor of the hidden states between blocks: float16 ends at 65504, and Gemma 3 has larger ones.

    With norms before and after each block, a factor of the embedding and of the norms' outputs changes no logit.
    """
    return 1 / 64 if config.norms == "both" else 1.0


def residual_epsilon(config: TransformerConfig) -> float:
    """The epsilon of a norm of the hidden states."""
    return config.rms_eps * residual_scale(config) ** 2


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
        found, scale = linear.lookup(table, "input_ids", "embedding"), config.embedding_scale * residual_scale(config)
        if scale != 1:
            found = graph.node("Mul", [found, graph.constant("scale", np.array(scale, np.float32))], "scaled")
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
        x = head.node(
            "SimplifiedLayerNormalization", [hidden, gain], "normed", axis=-1, epsilon=residual_epsilon(config)
        )
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
            epsilon=residual_epsilon(config),
            stash_type=1,
        )
        linear.packed_product(linear.pack(name, _eight_bit(source, name)), normed, "logits")
        graph.save("npu_head")
    return folder / "npu_head.onnx"


def _eight_bit(source: ModelSource, name: str) -> Blocks:
    return quantise.as_eight_bit(source.blocks(name)) or quantise.eight_bit(source.tensor(name))

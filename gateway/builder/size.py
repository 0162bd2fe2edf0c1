"""Estimates the bytes that a build writes, a bit too high, so that a full disk is found before the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.builder.graphs.static_products import Precision
from gateway.builder.sources.source import ModelSource, TransformerConfig, layer

_OTHER_BYTES = 32 * 1024 * 1024  # tokenizer, graphs, configuration
#: Bytes per weight on the CPU, with scales and minimums, by the bits of the blocks. Floats become blocks of 4 bits
_CPU_BYTES = {4: 0.8, 8: 1.15}
#: Bytes per weight of a layer on the NPU
_NPU_BYTES = {"fp16": 2.0, "fp32": 4.0, "w8a16": 1.1, "w4a16": 0.7, "int4": 0.7}


def cpu_bytes(source: ModelSource) -> int:
    """A bundle for the CPU."""
    config = source.config
    blocks = source.blocks(layer(0, "mlp.up_proj.weight"))
    layers = _layer_weights(config) * _CPU_BYTES[blocks.bits if blocks else 4]
    rotary = 4 * config.context_length * config.head_dim
    return int(layers + _table_weights(config) * _CPU_BYTES[8] + rotary) + _OTHER_BYTES


class NpuShapes(Protocol):
    """What an estimate needs from NpuTarget."""

    @property
    def precision(self) -> Precision: ...
    @property
    def parts(self) -> int: ...
    @property
    def contexts(self) -> Sequence[int]: ...
    @property
    def batch(self) -> int: ...
    @property
    def verify(self) -> int: ...
    @property
    def npu_head(self) -> bool: ...
    @property
    def share_weights(self) -> bool: ...


def npu_bytes(config: TransformerConfig, target: NpuShapes) -> int:
    """A bundle for the NPU, and the temporary files of one part: its graphs, and the same in float32.

    Compiled graphs that share their weights contain them once. A check needs the graphs separately too.
    """
    graphs = len(target.contexts) * (2 + (target.batch > 1) + (target.verify > 1))
    layers = _layer_weights(config) * _NPU_BYTES[target.precision]
    bundle = layers * (1 if target.share_weights else graphs)
    checked = layers * (graphs if target.share_weights else 0)
    part = (layers + checked + _layer_weights(config) * _NPU_BYTES["fp32"]) / target.parts
    tables = _table_weights(config) * 2.0 + (config.vocab * config.hidden * 2 * _CPU_BYTES[8] if target.npu_head else 0)
    return int(bundle + part + tables) + _OTHER_BYTES


def _layer_weights(config: TransformerConfig) -> int:
    attention = 2 * config.hidden * config.head_dim * (config.heads + config.kv_heads)
    return config.layers * (attention + 3 * config.hidden * config.ffn)


def _table_weights(config: TransformerConfig) -> int:
    """The embedding, and the head if it is a separate matrix."""
    return config.vocab * config.hidden * (1 if config.tied_embeddings else 2)

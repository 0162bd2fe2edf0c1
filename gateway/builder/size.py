"""Estimates the disk space and the memory of a build, a bit too high, so that a lack is found before the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import psutil

from gateway.builder.graphs.static_products import Precision
from gateway.builder.sources.source import Blocks, ModelSource, TransformerConfig, layer
from gateway.bundles.disk import megabytes
from gateway.bundles.stamp import Precision as WeightPrecision
from gateway.errors import BundleError

_OTHER_BYTES = 32 * 1024 * 1024  # tokenizer, graphs, configuration
#: Bytes per weight on the CPU of blocks of 32 with 4 bits and a minimum or with 8 bits, and of half floats
_CPU_BYTES: dict[WeightPrecision, float] = {"int4": 0.8, "int8": 1.15, "float16": 2.0}
#: Bytes per weight of a layer on the NPU
_NPU_BYTES = {"fp16": 2.0, "fp32": 4.0, "w8a16": 1.1, "w4a16": 0.7, "int4": 0.7}

#: Memory of a build for the NPU (scripts/npu_build.py): bytes per weight of a part while it becomes one binary, per
#: weight of a table while it is quantised, and of the processes themselves
_PART_MEMORY, _TABLE_MEMORY, _PROCESS_BYTES = 11.0, 7.0, 500_000_000
#: Weights of a part. Larger parts need more memory and take longer to compile, smaller ones are more binaries.
_PART_WEIGHTS, _MAX_PARTS = 450_000_000, 7


def parts_for(config: TransformerConfig) -> int:
    """The number of parts that a model is split into."""
    return max(1, min(-(-layer_weights(config) // _PART_WEIGHTS), _MAX_PARTS, config.layers))


def npu_memory(config: TransformerConfig, target: NpuShapes) -> int:
    """The memory of all processes of a build for the NPU."""
    part = layer_weights(config) / (target.parts or parts_for(config)) * _PART_MEMORY
    return int(max(part, config.vocab * config.hidden * _TABLE_MEMORY)) + _PROCESS_BYTES


def require_memory(size: int, what: str) -> None:
    """Raise BundleError if this machine does not have `size` bytes of memory."""
    memory = psutil.virtual_memory().total
    if size > memory:
        raise BundleError(
            f"{what} needs about {megabytes(size)} of memory, and this machine has {megabytes(memory)}. Split it into "
            "more parts, or choose a smaller model."
        )


def cpu_bytes(source: ModelSource, precision: WeightPrecision = "int4") -> int:
    """A bundle for the CPU. `precision`: of weights in floating point."""
    config = source.config
    blocks = source.blocks(layer(0, "mlp.up_proj.weight"))
    layers = layer_weights(config) * (_bytes_per_weight(blocks) if blocks else _CPU_BYTES[precision])
    table = _CPU_BYTES["int8" if blocks or precision == "int4" else precision]
    rotary = 4 * config.context_length * sum(rope.dim for rope in config.ropes)
    return int(layers + _table_weights(config) * table + rotary) + _OTHER_BYTES


def _bytes_per_weight(blocks: Blocks) -> float:
    """With a float32 scale and minimum for each block. Some matrices of a model have more bits than the others."""
    constants = 8 if blocks.bits == 4 or blocks.minimum.any() else 4
    return 1.06 * (blocks.bits / 8 + constants / blocks.block_size)


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
    def npu_head(self) -> bool | None: ...
    @property
    def share_weights(self) -> bool: ...


def npu_bytes(config: TransformerConfig, target: NpuShapes) -> int:
    """A bundle for the NPU, and the temporary files of one part: its graphs, and the same in float32.

    Compiled graphs that share their weights contain them once. A check needs the graphs separately too.
    """
    graphs = len(target.contexts) * (2 + (target.batch > 1) + (target.verify > 1))
    layers = layer_weights(config) * _NPU_BYTES[target.precision]
    bundle = layers * (1 if target.share_weights else graphs)
    checked = layers * (graphs if target.share_weights else 0)
    part = (layers + checked + layer_weights(config) * _NPU_BYTES["fp32"]) / target.parts
    tables = _table_weights(config) * 2.0 + (
        config.vocab * config.hidden * 2 * _CPU_BYTES["int8"] if target.npu_head else 0
    )
    return int(bundle + part + tables) + _OTHER_BYTES


def layer_weights(config: TransformerConfig) -> int:
    attention = 2 * config.hidden * config.head_dim * (config.heads + config.kv_heads)
    return config.layers * (attention + 3 * config.hidden * config.ffn)


def _table_weights(config: TransformerConfig) -> int:
    """The embedding, and the head if it is a separate matrix."""
    return config.vocab * config.hidden * (1 if config.tied_embeddings else 2)

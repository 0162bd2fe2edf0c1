"""Folds the constants of a model into its tensors, so that the graph has no nodes for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.builder.sources.source import Blocks


class Folding(Struct, frozen=True, kw_only=True):
    """`scales`: see `Family`. `norm_offset` is added to norm weights."""

    scales: Mapping[str, float] = {}
    norm_offset: float = 0.0

    def tensor(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.norm_offset and name.endswith("norm.weight"):
            values = values + np.float32(self.norm_offset)
        factor = self._factor(name)
        return values if factor == 1 else values * np.float32(factor)

    def blocks(self, name: str, blocks: Blocks) -> Blocks:
        """A minimum of whole steps stays one: the kernel multiplies with it faster."""
        factor = np.float32(self._factor(name))
        if factor == 1:
            return blocks
        scale, minimum = blocks.scale * factor, blocks.minimum * factor
        steps = np.rint(blocks.minimum / np.where(blocks.scale == 0, 1, blocks.scale))
        is_whole = steps * blocks.scale == blocks.minimum
        return replace(blocks, scale=scale, minimum=np.where(is_whole, steps * scale, minimum))

    def _factor(self, name: str) -> float:
        part = name.split(".", 3)[-1].rpartition(".")[0] if name.startswith("model.layers.") else name
        return self.scales.get(part, 1.0)

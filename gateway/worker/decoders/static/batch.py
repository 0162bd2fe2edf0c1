"""Batched steps: one device call computes a step for several sequences. Each sequence is a row of the batch.

1. The caches of a batch share tensors; each has one batch row. A cache moves into the shared tensors at its first
   batched step and stays there. Prompts and single steps then use the same memory.
2. A call computes all batch rows. A batch row without a token is a padding row: the graph writes a scratch cache row
   after the valid rows of that sequence. So no cache of the group may be full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from gateway.bundles.static_pipeline import Pipeline
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.onnx import running_failed
from gateway.worker.decoders.static.cache import BatchRow, Buffer, Layout, StaticCache
from gateway.worker.decoders.static.stage import LoadedStage, Values
from gateway.worker.decoders.static.window import bind_stages, read_layout


class BatchStep:
    """A chain of stages that computes one token for each of `size` sequences.

    The caches of a decoder are grouped by index: 0..size-1 is one group, size..2*size-1 the next.

    Args: see Window.
    Raises BundleError when the graphs do not match the bundle's description.
    """

    def __init__(self, pipeline: Pipeline, stages: Sequence[LoadedStage], memory: Any = None) -> None:
        self._pipeline = pipeline
        self._memory = memory
        self._layout = read_layout(pipeline, stages)
        self._stages = bind_stages(pipeline, stages, memory)
        tensor = next(iter(self._layout.values()))
        self.size, self._context = tensor.shape[0], tensor.rows
        self._groups: dict[int, _Group] = {}

    def fits(self, caches: Sequence[StaticCache]) -> bool:
        """True if every cache of the group has a free row. Idle caches need one too, for the scratch row.

        Args:
            caches: caches of one group.
        """
        index = self._group_index(caches[0])
        members = self._groups[index].present if index in self._groups else []
        return all(cache.length < self._context for cache in (*caches, *members))

    def run(self, caches: Sequence[StaticCache], ids: Sequence[int]) -> Logits:
        """Append one id to each cache of a group. Returns: logits, float32 (len(ids), vocab)."""
        group = self._group(self._group_index(caches[0]))
        rows = [cache.index % self.size for cache in caches]
        for row, cache in zip(rows, caches, strict=True):
            group.admit(row, cache)
        values = self._inputs(group, dict(zip(rows, ids, strict=True)))
        try:
            for stage in self._stages:
                stage.run(values, group, self.size, rows)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise running_failed(error) from error
        for cache in caches:
            cache.length += 1
        logits = values[self._pipeline.config.decoder.outputs.logits][0]
        return np.asarray(logits if len(logits) == len(ids) else logits[rows], np.float32)

    def _group(self, index: int) -> _Group:
        if index not in self._groups:
            self._groups[index] = _Group(self._layout, self._memory)
        return self._groups[index]

    def _group_index(self, cache: StaticCache) -> int:
        return cache.index // self.size

    def _inputs(self, group: _Group, ids: dict[int, int]) -> Values:
        """The inputs from the host, for ids by batch row. The past length of a row is the cache row that it writes."""
        names, rows = self._pipeline.config.decoder.inputs, range(self.size)
        return {
            names.input_ids: np.array([[ids.get(row, self._pipeline.pad_id) for row in rows]]),
            names.past_sequence_length: np.array([[group.length(row)] for row in rows]),
            names.total_sequence_length: np.array([self._context]),
        }


class _Group:
    """Caches in shared tensors. The first axis of each tensor is the batch row."""

    def __init__(self, layout: Layout, memory: Any) -> None:
        self.buffers = {name: Buffer(tensor.shape, tensor.dtype, memory) for name, tensor in layout.items()}
        self._layout = {name: replace(tensor, shape=(1, *tensor.shape[1:])) for name, tensor in layout.items()}
        self._members: dict[int, StaticCache] = {}
        self._rows: dict[int, dict[str, BatchRow]] = {}

    @property
    def present(self) -> list[StaticCache]:
        """The caches whose data is in these tensors, and not in the tensors of another context length."""
        return [cache for row, cache in self._members.items() if self._is_present(row)]

    def admit(self, row: int, cache: StaticCache) -> None:
        self._members[row] = cache
        if not self._is_present(row):
            self._rows[row] = {name: BatchRow(buffer, row) for name, buffer in self.buffers.items()}
            cache.move_to(self._layout, dict(self._rows[row]))

    def length(self, row: int) -> int:
        return self._members[row].length if self._is_present(row) else 0

    def _is_present(self, row: int) -> bool:
        name = next(iter(self.buffers))
        buffer = self._members[row].buffers.get(name) if row in self._members else None
        return buffer is not None and buffer is self._rows.get(row, {}).get(name)

"""Steps of several sequences in one call: a chain of graphs with a row for each, over caches that lie side by side.

1. A cache moves into the tensors that it shares when it first steps in company, and stays: prompts and single steps
   read and write it there as well.
2. Every call has all rows. That of a sequence which takes no step is written behind its valid ones, where its next
   token comes to lie; so a full cache does not go along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from gateway.bundles.static_pipeline import Pipeline
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.onnx import running_failed
from gateway.worker.decoders.static.cache import Buffer, Layout, Part, StaticCache
from gateway.worker.decoders.static.stage import LoadedStage, Values
from gateway.worker.decoders.static.window import read_layout, ready_stages


class Batch:
    """A chain of stages for one token each of `size` sequences. The caches numbered 0..size-1 share a call, and so on.

    Args: see Window.
    Raises BundleError when its graphs do not agree with the bundle's own description.
    """

    def __init__(self, pipeline: Pipeline, stages: Sequence[LoadedStage], memory: Any = None) -> None:
        self._pipeline = pipeline
        self._memory = memory
        self._layout = read_layout(pipeline, stages)
        self._stages = ready_stages(pipeline, stages, memory)
        tensor = next(iter(self._layout.values()))
        self.size, self._context = tensor.shape[0], tensor.rows
        self._groups: dict[int, _Group] = {}

    def fits(self, caches: Sequence[StaticCache]) -> bool:
        """Whether these, all of one group, have room for a token, and those beside them for what is written there."""
        beside = self._groups[group].present if (group := self._group_of(caches[0])) in self._groups else []
        return all(cache.length < self._context for cache in (*caches, *beside))

    def step(self, caches: Sequence[StaticCache], ids: Sequence[int]) -> Logits:
        """Append one id to each cache of a group; float32 logits (len(ids), vocab)."""
        group = self._group(self._group_of(caches[0]))
        places = [cache.number % self.size for cache in caches]
        for place, cache in zip(places, caches, strict=True):
            group.admit(place, cache)
        values = self._given(group, dict(zip(places, ids, strict=True)))
        try:
            for stage in self._stages:
                stage.run(values, group, self.size, places)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise running_failed(error) from error
        for cache in caches:
            cache.length += 1
        logits = values[self._pipeline.config.decoder.outputs.logits][0]
        return np.array(logits if len(logits) == len(ids) else logits[places], np.float32)

    def _group(self, number: int) -> _Group:
        if number not in self._groups:
            self._groups[number] = _Group(self._layout, self._memory)
        return self._groups[number]

    def _group_of(self, cache: StaticCache) -> int:
        return cache.number // self.size

    def _given(self, group: _Group, ids: dict[int, int]) -> Values:
        """What the host provides; a graph's past sequence length is the row that it writes."""
        names, places = self._pipeline.config.decoder.inputs, range(self.size)
        return {
            names.input_ids: np.array([[ids.get(place, self._pipeline.pad_id) for place in places]]),
            names.past_sequence_length: np.array([[group.length(place)] for place in places]),
            names.total_sequence_length: np.array([self._context]),
        }


class _Group:
    """The caches of some sequences in the same tensors, each with a place of its own along the first axis."""

    def __init__(self, layout: Layout, memory: Any) -> None:
        self.buffers = {name: Buffer(tensor.shape, tensor.dtype, memory) for name, tensor in layout.items()}
        self._layout = {name: replace(tensor, shape=(1, *tensor.shape[1:])) for name, tensor in layout.items()}
        self._members: dict[int, StaticCache] = {}
        self._parts: dict[int, dict[str, Part]] = {}

    @property
    def present(self) -> list[StaticCache]:
        """The caches whose rows are here, and not meanwhile in the tensors of another context length."""
        return [cache for place, cache in self._members.items() if self._is_here(place)]

    def admit(self, place: int, cache: StaticCache) -> None:
        self._members[place] = cache
        if not self._is_here(place):
            self._parts[place] = {name: Part(buffer, place) for name, buffer in self.buffers.items()}
            cache.move(self._layout, dict(self._parts[place]))

    def length(self, place: int) -> int:
        return self._members[place].length if self._is_here(place) else 0

    def _is_here(self, place: int) -> bool:
        name = next(iter(self.buffers))
        held = self._members[place].buffers.get(name) if place in self._members else None
        return held is not None and held is self._parts.get(place, {}).get(name)

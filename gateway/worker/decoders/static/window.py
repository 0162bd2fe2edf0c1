"""One window of a pipeline: its chain of stages, for a fixed number of tokens at once.

1. A graph that hands back only the new rows reads a cache filled from the left; the current tokens are the mask's last
   columns. So no row is ever moved, and the ids stand at the end of the window with the padding in front of them: where
   a graph gives one row of logits only, it is the last. A graph that writes the cache itself takes the ids at the start
   of the window; the rows of the padding behind them lie past the valid ones and are overwritten by what follows.
2. A window always is full: graphs of fixed shape crash on less.
3. CPU stages behind the NPU see only the rows whose logits are asked for, where their graph leaves the number open: a
   head over a whole prompt would cost more than its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.bundles.static_pipeline import CacheTensor, Pipeline, runs_on_npu
from gateway.errors import BundleError
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.onnx import running_failed
from gateway.worker.decoders.static.cache import Buffer, Layout, StaticCache, TensorLayout
from gateway.worker.decoders.static.stage import BoundStage, FreeStage, LoadedStage, Values, dtype_of


class Window:
    """A chain of stages for up to `width` tokens.

    Args:
        pipeline: what the graphs call things.
        stages: the stages of this phase, in order; those that read the cache must be of fixed shape.
        width: tokens per run.
        memory: the device's host-accessible memory, or None.
        longest: the layout of the single steps, for rows that find no room in this window's own.
    Raises BundleError when a stage wants a value that nothing provides.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        stages: Sequence[LoadedStage],
        width: int,
        memory: Any = None,
        longest: Layout | None = None,
    ) -> None:
        self.width = width
        self._pipeline = pipeline
        self._inputs = pipeline.config.decoder.inputs
        self._logits = pipeline.config.decoder.outputs.logits
        self._in_place = pipeline.in_place
        self.layout = read_layout(pipeline, stages)
        self._longest = longest or self.layout
        rows = next(iter(self.layout.values())).rows
        self.context = rows if self._in_place else rows + width
        self._stages = ready_stages(pipeline, stages, memory)
        self._new_rows = {name: buffer for stage in self._stages for name, buffer in stage.new_rows.items()}
        self._logits_shape = self._check_chain(stages)

    @property
    def capacity(self) -> int:
        """The most rows a cache can have after a run: a cache that the host fills has no place for the last one."""
        return self.context if self._in_place else self.context - 1

    @property
    def logit_rows(self) -> int:
        """How many of a window's rows it can give logits for: all, or the last one."""
        rows = self._logits_shape[1]
        return rows if isinstance(rows, int) else self.width

    def fits(self, length: int, count: int) -> bool:
        """Whether `count` ids can be appended to `length` rows."""
        return length + self.width <= self.context and length + count <= self.capacity

    def run(self, cache: StaticCache, ids: Sequence[int], keep: int) -> Logits:
        """Append 1..width ids to the cache; float32 logits (keep, vocab) of the last `keep` of them."""
        cache.lay_out(self.layout)
        count = len(ids)
        first = 0 if self._in_place else self.width - count
        wanted = slice(first + count - keep, first + count)
        values = self._given(cache.length, ids, first)
        try:
            for stage in self._stages:
                stage.run(values, cache, self.width, wanted)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise running_failed(error) from error
        self._store(cache, slice(first, first + count))
        logits = values[self._logits][0]  # all rows of the window, the wanted ones, or the last
        rows = logits[wanted] if len(logits) == self.width > keep else logits[-keep:]
        return np.array(rows, np.float32)

    def _store(self, cache: StaticCache, rows: slice) -> None:
        """Take over the rows `rows` of the window."""
        count = rows.stop - rows.start
        if not self._in_place and cache.length + count > next(iter(self.layout.values())).rows:
            cache.lay_out(self._longest)
        for name, buffer in self._new_rows.items():
            cache.write(name, buffer.array[self.layout[name].slice(rows.start, rows.stop)], cache.length)
        cache.length += count

    def _given(self, length: int, ids: Sequence[int], first: int) -> Values:
        """What the host provides: `ids` from row `first` of the window on, padding around them."""
        names, count = self._inputs, len(ids)
        window = np.full((1, self.width), self._pipeline.pad_id)
        window[0, first : first + count] = ids
        positions = np.zeros((1, self.width), np.int64)
        positions[0, first:] = np.arange(length, length + self.width - first)
        mask = np.zeros((1, self.context), np.int64)
        mask[0, :length] = 1
        current = length if self._in_place else self.context - count
        mask[0, current : current + count] = 1
        return {
            names.input_ids: window,
            names.position_ids: positions,
            names.attention_mask: mask,
            names.past_sequence_length: np.array([[length + self.width - 1]]),
            names.total_sequence_length: np.array([self.context]),
        }

    def _check_chain(self, stages: Sequence[LoadedStage]) -> Sequence[int | str]:
        """Every stage finds its inputs; the logits' shape (1, rows, vocab)."""
        known, folder = set(self._given(0, [0], 0)), self._pipeline.folder.name
        shape: Sequence[int | str] | None = None
        for loaded, stage in zip(stages, self._stages, strict=True):
            if missing := set(stage.needs) - known:
                raise BundleError(f"{folder}: nothing provides {', '.join(sorted(missing))}.")
            known |= set(stage.gives)
            shape = loaded.shape_of(self._logits) or shape
        if shape is None:
            raise BundleError(f"{folder}: no stage gives {self._logits}.")
        return shape


def ready_stages(pipeline: Pipeline, stages: Sequence[LoadedStage], memory: Any) -> list[BoundStage | FreeStage]:
    buffers: dict[str, Buffer] = {}
    cache = list(pipeline.cache_tensors())
    bound = [stage for stage in stages if _is_bound(stage, cache)]
    last = stages.index(bound[-1])
    return [
        BoundStage(stage, cache, pipeline.in_place, buffers, memory)
        if stage in bound
        else FreeStage(stage, narrow=index > last)
        for index, stage in enumerate(stages)
    ]


def _is_bound(stage: LoadedStage, cache: Sequence[CacheTensor]) -> bool:
    return runs_on_npu(stage.stage) or any(tensor.past in stage.inputs for tensor in cache)


def read_layout(pipeline: Pipeline, stages: Sequence[LoadedStage]) -> Layout:
    """How the graphs want the cache. Raises BundleError when they do not agree with the bundle's own description."""
    folder, cache = pipeline.folder.name, list(pipeline.cache_tensors())
    layout: dict[str, TensorLayout] = {}
    for stage in stages:
        file = stage.stage.filename
        if _is_bound(stage, cache) and not stage.is_fixed:
            raise BundleError(f"{folder}: {file} has open dimensions, and the NPU takes fixed ones only.")
        for tensor in cache:
            if tensor.past in stage.inputs:
                layout[tensor.past] = _tensor_layout(pipeline, stage, tensor)
    if missing := [tensor.past for tensor in cache if tensor.past not in layout]:
        raise BundleError(f"{folder}: no stage reads {', '.join(missing[:3])}.")
    if len({tensor.rows for tensor in layout.values()}) != 1:
        raise BundleError(f"{folder}: its graphs disagree on the cache's size.")
    return layout


def _tensor_layout(pipeline: Pipeline, stage: LoadedStage, tensor: CacheTensor) -> TensorLayout:
    where = f"{pipeline.folder.name}: {stage.stage.filename}"
    if tensor.present not in stage.outputs:
        raise BundleError(f"{where} reads {tensor.past} but gives no {tensor.present}.")
    value = stage.inputs[tensor.past]
    old, new = tuple(value.shape), tuple(stage.outputs[tensor.present].shape)
    same = [
        a == b for axis, (a, b) in enumerate(zip(old, new, strict=False)) if axis != tensor.axis or pipeline.in_place
    ]
    if len(old) != 4 or len(new) != 4 or not all(same):
        raise BundleError(f"{where}: {tensor.present} {list(new)} does not continue {tensor.past} {list(old)}.")
    return TensorLayout(shape=old, dtype=dtype_of(value), axis=tensor.axis, empty=pipeline.window.pad_value)

"""A window: a chain of stages that computes a fixed number of tokens in one run.

1. Some graphs return only the new cache rows. They read a cache that is filled from the left, and the last columns of
   the mask are the current tokens, so no row moves. The ids are at the end of the window, after the padding, because
   a graph with one row of logits returns the last row.
2. Other graphs write the cache themselves. For them the ids are at the start of the window. The padding after them
   writes cache rows past the valid ones, which later tokens overwrite.
3. A window is always full: graphs of fixed shape crash on less.
4. CPU stages after the NPU get only the rows whose logits are needed, if their graph allows it. The head over a whole
   prompt costs more than the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gateway.bundles.static_pipeline import CacheTensor, Pipeline, runs_on_npu
from gateway.errors import BundleError
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.onnx import running_failed
from gateway.worker.decoders.static.cache import Array, Buffer, Layout, StaticCache, TensorLayout
from gateway.worker.decoders.static.head import HeadStage
from gateway.worker.decoders.static.stage import BoundStage, FreeStage, LoadedStage, Pool, Values, dtype_of


class Window:
    """A chain of stages for up to `width` tokens.

    Args:
        pipeline: the description of the graphs.
        stages: the stages of this phase, in order. Stages that read the cache must have fixed shapes.
        width: tokens per run.
        memory: the device memory that the host can access, or None.
        step_layout: the layout of the single steps. It is used when this window's own layout is full, or equal to it.
        pool: see BoundStage; None: the window shares no buffers.
    Raises BundleError when no stage provides a value that another one needs.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        stages: Sequence[LoadedStage],
        width: int,
        memory: Any = None,
        step_layout: Layout | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.width = width
        self._pipeline = pipeline
        self._inputs = pipeline.config.decoder.inputs
        self._logits = pipeline.config.decoder.outputs.logits
        self._in_place = pipeline.in_place
        layout = read_layout(pipeline, stages)
        self._step_layout = step_layout or layout
        self.layout = self._step_layout if layout == self._step_layout else layout  # a cache with it stays as it is
        rows = next(iter(self.layout.values())).rows
        self.context = rows if self._in_place else rows + width
        self._stages = bind_stages(pipeline, stages, memory, pool)
        self._new_rows = {name: buffer for stage in self._stages for name, buffer in stage.new_rows.items()}
        self._written: Mapping[str, Buffer] = {}  # the cache of `_writes`
        self._writes: list[tuple[Array, Array]] = []
        self._values = self._make_inputs()
        self._logits_shape = self._check_chain(stages)

    @property
    def capacity(self) -> int:
        """The most cache rows after a run. A cache that the host fills has no row for the last token."""
        return self.context if self._in_place else self.context - 1

    @property
    def max_logit_rows(self) -> int:
        """The number of rows of a window with logits: all, or only the last one."""
        rows = self._logits_shape[1]
        return rows if isinstance(rows, int) else self.width

    def fits(self, length: int, count: int) -> bool:
        """True if `count` ids can be appended to `length` rows."""
        return length + self.width <= self.context and length + count <= self.capacity

    def release(self) -> None:
        """Forget the cache of the last run, whose memory is otherwise not freed."""
        self._written, self._writes = {}, []
        for stage in self._stages:
            if isinstance(stage, BoundStage):
                stage.release()

    def run(self, cache: StaticCache, ids: Sequence[int], logit_rows: int) -> Logits:
        """Append 1..width ids to the cache.

        Returns: logits of the last ids, float32 (logit_rows, vocab). The next run of any window overwrites them.
        """
        cache.set_layout(self.layout)
        count = len(ids)
        first = 0 if self._in_place else self.width - count
        rows = slice(first + count - logit_rows, first + count)
        values = self._host_inputs(cache.length, ids, first)
        try:
            for stage in self._stages:
                stage.run(values, cache, self.width, rows)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise running_failed(error) from error
        self._store(cache, slice(first, first + count))
        logits = values[self._logits][0]  # all rows of the window, the needed ones, or the last one
        needed = logits[rows] if len(logits) == self.width > logit_rows else logits[-logit_rows:]
        return np.asarray(needed, np.float32)

    def _store(self, cache: StaticCache, rows: slice) -> None:
        """Append the rows `rows` of the window to the cache."""
        start, stop = cache.length, cache.length + rows.stop - rows.start
        if self._new_rows:
            if stop > next(iter(self.layout.values())).rows:
                cache.set_layout(self._step_layout)
            for target, new in self._writes_to(cache):
                target[:, start:stop] = new[:, rows]
        cache.length = stop

    def _writes_to(self, cache: StaticCache) -> list[tuple[Array, Array]]:
        """For each tensor of the cache and the new rows in it, a view (heads, rows, ...)."""
        if self._written is not cache.buffers:
            self._writes = [
                (self.layout[name].by_row(cache.buffers[name].array), self.layout[name].by_row(new.array))
                for name, new in self._new_rows.items()
            ]
            self._written = cache.buffers
        return self._writes

    def _host_inputs(self, length: int, ids: Sequence[int], first: int) -> Values:
        """The inputs from the host: `ids` from row `first` of the window, and padding."""
        count, values = len(ids), self._values
        window, positions, mask, past = (values[name] for name in self._host_names)
        window.fill(self._pipeline.pad_id)
        window[0, first : first + count] = ids
        positions.fill(0)
        positions[0, first:] = np.arange(length, length + self.width - first)
        mask.fill(0)
        mask[0, :length] = 1
        current = length if self._in_place else self.context - count
        mask[0, current : current + count] = 1
        past.fill(length + self.width - 1)
        return dict(values)

    def _make_inputs(self) -> Values:
        names = self._inputs
        self._host_names = names.input_ids, names.position_ids, names.attention_mask, names.past_sequence_length
        sizes = self.width, self.width, self.context, 1
        made = {name: np.zeros((1, size), np.int64) for name, size in zip(self._host_names, sizes, strict=True)}
        return made | {names.total_sequence_length: np.array([self.context])}

    def _check_chain(self, stages: Sequence[LoadedStage]) -> Sequence[int | str]:
        """Check that every stage gets its inputs. Returns: the shape of the logits, (1, rows, vocab)."""
        known, folder = set(self._values), self._pipeline.folder.name
        shape: Sequence[int | str] | None = None
        for loaded, stage in zip(stages, self._stages, strict=True):
            if missing := set(stage.input_names) - known:
                raise BundleError(f"{folder}: no stage provides {', '.join(sorted(missing))}.")
            known |= set(stage.output_names)
            shape = loaded.shape_of(self._logits) or shape
            if loaded.is_npu_head:
                shape = (1, self.width)  # of any rows of the window
        if shape is None:
            raise BundleError(f"{folder}: no stage outputs {self._logits}.")
        return shape


Bound = BoundStage | FreeStage | HeadStage


def bind_stages(
    pipeline: Pipeline, stages: Sequence[LoadedStage], memory: Any, pool: Pool | None = None
) -> list[Bound]:
    buffers: dict[str, Buffer] = {}
    pool = {} if pool is None else pool
    cache = list(pipeline.cache_tensors())
    bound = [stage for stage in stages if _is_bound(stage, cache)]
    last = stages.index(bound[-1])

    def bind(index: int, stage: LoadedStage) -> Bound:
        if stage in bound:
            return BoundStage(stage, cache, pipeline.in_place, buffers, pool, memory)
        return (
            HeadStage(stage, pool, memory)
            if stage.is_npu_head
            else FreeStage(stage, buffers, only_logit_rows=index > last)
        )

    return [bind(index, stage) for index, stage in enumerate(stages)]


def _is_bound(stage: LoadedStage, cache: Sequence[CacheTensor]) -> bool:
    return runs_on_npu(stage.stage) or any(tensor.past in stage.inputs for tensor in cache)


def read_layout(pipeline: Pipeline, stages: Sequence[LoadedStage]) -> Layout:
    """The cache layout that the graphs need. Raises BundleError when it does not match the bundle's description."""
    folder, cache = pipeline.folder.name, list(pipeline.cache_tensors())
    layout: dict[str, TensorLayout] = {}
    for stage in stages:
        if _is_bound(stage, cache):
            _check_sizes(pipeline, stage)
        for tensor in cache:
            if tensor.past in stage.inputs:
                layout[tensor.past] = _tensor_layout(pipeline, stage, tensor)
    if missing := [tensor.past for tensor in cache if tensor.past not in layout]:
        raise BundleError(f"{folder}: no stage reads {', '.join(missing[:3])}.")
    if len({tensor.rows for tensor in layout.values()}) != 1:
        raise BundleError(f"{folder}: its graphs have caches of different sizes.")
    return layout


def _check_sizes(pipeline: Pipeline, stage: LoadedStage) -> None:
    """Raise BundleError for a variable size, except that of the rows of a cache that the graph writes in place."""
    open_rows = {
        (name, tensor.axis)
        for tensor in pipeline.cache_tensors()
        for name in (tensor.past, tensor.present)
        if pipeline.in_place
    }
    for name, axis in stage.variable_sizes():
        if (name, axis) not in open_rows:
            raise BundleError(
                f"{pipeline.folder.name}: {stage.stage.filename}: dimension {axis} of {name} has a variable size; the "
                f"NPU needs fixed sizes. Export the model with a fixed batch size and prompt length."
            )


def _sizes(pipeline: Pipeline, shape: Sequence[int | str]) -> tuple[int, ...]:
    """The shape of a cache tensor with numbers only."""
    return tuple(size if isinstance(size, int) else pipeline.open_rows for size in shape)


def _tensor_layout(pipeline: Pipeline, stage: LoadedStage, tensor: CacheTensor) -> TensorLayout:
    where = f"{pipeline.folder.name}: {stage.stage.filename}"
    if tensor.present not in stage.outputs:
        raise BundleError(f"{where} reads {tensor.past} but does not output {tensor.present}.")
    value = stage.inputs[tensor.past]
    old, new = (_sizes(pipeline, shape) for shape in (value.shape, stage.outputs[tensor.present].shape))
    same = [
        a == b for axis, (a, b) in enumerate(zip(old, new, strict=False)) if axis != tensor.axis or pipeline.in_place
    ]
    if len(old) != 4 or len(new) != 4 or not all(same):
        raise BundleError(f"{where}: {tensor.present} {list(new)} does not match {tensor.past} {list(old)}.")
    return TensorLayout(shape=old, dtype=dtype_of(value), axis=tensor.axis, empty=pipeline.window.pad_value)

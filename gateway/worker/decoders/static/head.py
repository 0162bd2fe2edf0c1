"""The head on the NPU: computes float16 logits for a few rows, which the host converts to float32."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from gateway.worker.decoders.onnx import SessionOptions, open_session
from gateway.worker.decoders.static.cache import Array, Buffer
from gateway.worker.decoders.static.host_graphs import cast_graph
from gateway.worker.decoders.static.stage import HasBuffers, LoadedStage, LogitRows, Pool, Values, dtype_of


class HeadStage:
    """A head on the NPU for a fixed number of rows. It computes only the rows whose logits are needed."""

    def __init__(self, loaded: LoadedStage, pool: Pool, memory: Any) -> None:
        (self._input,), (self._output,) = loaded.inputs.values(), loaded.outputs.values()
        self._rows = self._input.shape[1]
        self._hidden, self._logits = (_pooled(value, pool, memory) for value in (self._input, self._output))
        self._session, self._binding = loaded.session, loaded.session.io_binding()
        self._binding.bind_ortvalue_input(self._input.name, self._hidden.value)
        self._binding.bind_ortvalue_output(self._output.name, self._logits.value)
        self._to_float32 = ToFloat32(self._logits.array, pool)
        self.new_rows: dict[str, Buffer] = {}

    @property
    def input_names(self) -> Iterable[str]:
        return (self._input.name,)

    @property
    def output_names(self) -> Iterable[str]:
        return (self._output.name,)

    def run(self, values: Values, cache: HasBuffers, width: int, logit_rows: LogitRows) -> None:
        hidden = values[self._input.name][0, logit_rows]
        calls = [hidden[start : start + self._rows] for start in range(0, len(hidden), self._rows)]
        if len(calls) == 1:
            values[self._output.name] = self._call(calls[0])[None]
        else:
            values[self._output.name] = np.concatenate([self._call(rows).copy() for rows in calls])[None]

    def _call(self, hidden: Array) -> Array:
        self._hidden.array[0, : len(hidden)] = hidden
        self._session.run_with_iobinding(self._binding)
        return self._to_float32(len(hidden))


class ToFloat32:
    """Converts rows of half floats (1, rows, columns) to float32, with ONNX Runtime.

    Numpy needs 20 times as long: 0.16 ms for a row of 128,256 on x86.
    """

    def __init__(self, halves: Array, pool: Pool) -> None:
        self._halves = halves
        key = ("float32 logits", halves.shape, "tensor(float)")
        pool[key] = pool.get(key) or Buffer(halves.shape, np.float32)
        self._floats = pool[key].array
        self._bindings: dict[int, ort.IOBinding] = {}  # by the number of rows
        if halves.dtype != np.float32:
            self._session = open_session(Path("cast"), SessionOptions(threads=1), cast_graph(halves.dtype))

    def __call__(self, rows: int) -> Array:
        """The first rows, float32 (rows, columns). The next call overwrites them."""
        if self._halves.dtype == np.float32:
            return self._halves[0, :rows]
        if rows not in self._bindings:
            self._bindings[rows] = self._bound(rows)
        self._session.run_with_iobinding(self._bindings[rows])
        return self._floats[0, :rows]

    def _bound(self, rows: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        values = [ort.OrtValue.ortvalue_from_numpy(array[0, :rows]) for array in (self._halves, self._floats)]
        binding.bind_ortvalue_input("halves", values[0])
        binding.bind_ortvalue_output("floats", values[1])
        return binding


def _pooled(value: Any, pool: Pool, memory: Any) -> Buffer:
    """A buffer of the head, which all chains share."""
    key = (f"npu_head.{value.name}", tuple(value.shape), value.type)
    pool[key] = pool.get(key) or Buffer(value.shape, dtype_of(value), memory)
    return pool[key]

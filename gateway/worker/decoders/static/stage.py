"""One stage of a pipeline, ready to run: a graph of fixed shape with bound buffers, or a small CPU graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from gateway.bundles.genai_config import Stage
from gateway.bundles.static_pipeline import CacheTensor, runs_on_npu
from gateway.errors import BundleError
from gateway.worker.decoders.static.cache import Array, Buffer

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}

#: The named values of one run: the inputs from the host, then also the outputs of the stages.
Values = dict[str, Array]
#: Buffers by name, shape and type.
Pool = dict[tuple[str, tuple[int, ...], str], Buffer]
#: The rows of a window, or of a batch, whose logits are needed.
LogitRows = slice | list[int]


class HasBuffers(Protocol):
    """One cache, or the caches of a batch: a buffer for each tensor."""

    @property
    def buffers(self) -> Mapping[str, Buffer]: ...


class LoadedStage:
    """A stage with its session and the session's inputs and outputs by name.

    `is_npu_head`: the session is that of NPU_HEAD in place of the stage's own graph for the CPU.
    """

    def __init__(self, stage: Stage, session: ort.InferenceSession) -> None:
        self.stage = stage
        self.is_npu_head = has_own_head(stage) and "QNNExecutionProvider" in session.get_providers()
        self.session = session
        self.inputs = {value.name: value for value in session.get_inputs()}
        self.outputs = {value.name: value for value in session.get_outputs()}

    def variable_sizes(self) -> Iterator[tuple[str, int]]:
        """The name and the axis of each dimension of an input or output that is not a number."""
        for value in (*self.inputs.values(), *self.outputs.values()):
            yield from ((value.name, axis) for axis, size in enumerate(value.shape) if not isinstance(size, int))

    def shape_of(self, name: str) -> Sequence[int | str] | None:
        """The shape of the output that other stages call `name`; None if there is no output of this name."""
        for output, value in self.outputs.items():
            if self.stage.output_names_forwarder.get(output, output) == name:
                return list(value.shape)
        return None


class BoundStage:
    """A graph of fixed shape. It shares buffers with the stages next to it, and reads and writes the cache in place.

    Args:
        loaded: the stage.
        cache: the tensors of all layers; the stage has some of the layers.
        in_place: the graph writes into the whole cache; otherwise it returns only the new rows.
        buffers: the buffers of the earlier stages, by name. The stage adds its own.
        pool: the buffers of all chains of the decoder. Only one chain runs at a time, so equal ones are shared.
        memory: the device memory that the host can access, or None.
    """

    def __init__(
        self,
        loaded: LoadedStage,
        cache: Sequence[CacheTensor],
        in_place: bool,
        buffers: dict[str, Buffer],
        pool: Pool,
        memory: Any,
    ) -> None:
        def buffer(name: str, value: Any) -> Buffer:
            if name not in buffers:
                key = (name, tuple(value.shape), value.type)
                buffers[name] = pool.get(key) or Buffer(value.shape, dtype_of(value), memory)
                pool[key] = buffers[name]
            return buffers[name]

        self._session = loaded.session
        self._binding = loaded.session.io_binding()
        own = {tensor.past: tensor.present for tensor in cache if tensor.past in loaded.inputs}
        self._past = list(own)
        self._in_place = own if in_place else {}
        self._inputs = {name: buffer(name, value) for name, value in loaded.inputs.items() if name not in own}
        self._outputs: dict[str, Buffer] = {}
        for name, value in loaded.outputs.items():
            if name not in self._in_place.values():
                public_name = loaded.stage.output_names_forwarder.get(name, name)
                self._outputs[public_name] = buffer(public_name, value)
                self._binding.bind_ortvalue_output(name, self._outputs[public_name].value)
        self._bind_inputs()
        #: name of the past tensor -> the buffer for its new rows
        self.new_rows = {} if in_place else {past: self._outputs[present] for past, present in own.items()}
        rows = set(own.values())
        self._results = {name: buffer.array for name, buffer in self._outputs.items() if name not in rows}
        self._bound_cache: Mapping[str, Buffer] = {}

    @property
    def input_names(self) -> Iterable[str]:
        return self._inputs

    @property
    def output_names(self) -> Iterable[str]:
        return self._outputs

    def run(self, values: Values, cache: HasBuffers, width: int, logit_rows: LogitRows) -> None:
        """Read the inputs from `values` and the cache; write the outputs to `values` and the cache."""
        for name, buffer in self._inputs.items():
            if values[name] is not buffer.array:
                np.copyto(buffer.array, values[name].reshape(buffer.array.shape), casting="unsafe")
                values[name] = buffer.array
        if self._bound_cache is not cache.buffers:
            self._bind_cache(cache)
        self._session.run_with_iobinding(self._binding)
        values.update(self._results)

    def release(self) -> None:
        """Forget the cache of the last run. Until then its memory stays in use, also if the cache has a new layout."""
        if self._bound_cache:
            self._binding.clear_binding_inputs()
            self._bind_inputs()
            self._bound_cache = {}

    def _bind_inputs(self) -> None:
        for name, shared in self._inputs.items():
            self._binding.bind_ortvalue_input(name, shared.value)

    def _bind_cache(self, cache: HasBuffers) -> None:
        for name in self._past:
            self._binding.bind_ortvalue_input(name, cache.buffers[name].value)
        for name, present in self._in_place.items():
            self._binding.bind_ortvalue_output(present, cache.buffers[name].value)
        self._bound_cache = cache.buffers


class FreeStage:
    """A CPU graph of any shape. It makes buffers for the outputs of its first call; calls of the same shape reuse them.

    Args:
        loaded: the stage.
        buffers: the buffers of the stages after it, by name. It writes into one of the right shape.
        only_logit_rows: compute only the rows of a window whose logits are needed.
    """

    def __init__(self, loaded: LoadedStage, buffers: Mapping[str, Buffer], *, only_logit_rows: bool) -> None:
        self._session = loaded.session
        self._inputs = loaded.inputs
        self._dtypes = {name: dtype_of(value) for name, value in loaded.inputs.items()}
        self._outputs = {name: loaded.stage.output_names_forwarder.get(name, name) for name in loaded.outputs}
        self._only_logit_rows = only_logit_rows
        self._buffers = buffers
        self._shapes: list[tuple[int, ...]] = []  # of the inputs of the first call
        self._binding: ort.IOBinding | None = None
        self._bound: Values = {}
        self._results: Values = {}
        self.new_rows: dict[str, Buffer] = {}

    @property
    def input_names(self) -> Iterable[str]:
        return self._inputs

    @property
    def output_names(self) -> Iterable[str]:
        return self._outputs.values()

    def run(self, values: Values, cache: HasBuffers, width: int, logit_rows: LogitRows) -> None:
        feeds = {name: self._feed(name, values[name], width, logit_rows) for name in self._inputs}
        shapes = [value.shape for value in feeds.values()]
        if self._binding is not None and shapes == self._shapes:
            for name, value in feeds.items():
                if value is not self._bound.get(name):
                    self._binding.bind_cpu_input(name, value)
                    self._bound[name] = value  # the binding does not keep it
            self._session.run_with_iobinding(self._binding)
            values.update(self._results)
            return
        results = dict(zip(self._outputs.values(), self._session.run(list(self._outputs), feeds), strict=True))
        if self._binding is None:
            self._shapes = shapes
            self._bind(results)
        values.update(results)

    def _bind(self, results: Values) -> None:
        self._binding = self._session.io_binding()
        for name, public_name in self._outputs.items():
            made, buffer = results[public_name], self._buffers.get(public_name)
            is_fit = buffer is not None and (buffer.array.shape, buffer.array.dtype) == (made.shape, made.dtype)
            array = buffer.array if buffer is not None and is_fit else made
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
            self._results[public_name] = array

    def _feed(self, name: str, value: Array, width: int, logit_rows: LogitRows) -> Array:
        shape = self._inputs[name].shape
        is_window = self._only_logit_rows and value.ndim > 1 and value.shape[1] == width > 1
        if is_window and not isinstance(shape[1], int):
            value = value[:, logit_rows]
        if value.shape != tuple(shape) and all(isinstance(size, int) for size in shape):
            value = value.reshape(shape)
        return np.ascontiguousarray(value, self._dtypes[name])


def has_own_head(stage: Stage) -> bool:
    """True for a head on the CPU. In our own bundles NPU_HEAD can replace it."""
    return stage.is_lm_head and not runs_on_npu(stage)


def dtype_of(value: Any) -> np.dtype[Any]:
    """The numpy type of a session's input or output. Raises BundleError for an unsupported type."""
    try:
        return np.dtype(_DTYPES[value.type])
    except KeyError:
        raise BundleError(f"{value.name} is of type {value.type}, which is not supported.") from None

"""ONNX Runtime on the CPU: opens sessions, and converts the library's exceptions to GatewayErrors.

A thread spins for a time while it waits for its next piece of work. Measured with SmolLM2-135M (two threads, two
cores), in milliseconds per token:

    spin time           20 µs   200 µs   1000 µs   5000 µs
    idle, int8           12.8     11.5      10.9
    idle, float          14.8     14.2      15.2      13.3
    two busy, int8         26       25        27
    two busy, float        32       35        35        38

(idle: no other program; two busy: two other busy processes; int8, float: the activations.) The CPU time of a token did
not differ. Threads spin for 1000 µs, longer than any part of a step that runs on one thread, and they stop when the
call returns. A whole server on an idle machine then gives 5 % more tokens per second than with 20 µs. The memory arena,
memory patterns and separate allocation of weights changed neither speed nor size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from msgspec import Struct, field
from numpy.typing import DTypeLike
from onnxruntime.capi import onnxruntime_pybind11_state as native

from gateway.activity import NO_MEMORY
from gateway.errors import BundleError, EngineFailed, GatewayError
from gateway.qnn.driver_errors import explained
from gateway.worker.decoders.threads import default_threads

_SPIN_US = 1000

#: Exceptions of an opening session that are the bundle's fault.
BUNDLE_FAULTS: tuple[type[Exception], ...] = (
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.ModelRequiresCompilation,
    native.NoModel,
    native.NoSuchFile,
    native.NotFound,
    native.NotImplemented,
)
#: All others are the machine's fault.
ENGINE_FAULTS: tuple[type[Exception], ...] = (
    native.DeviceReset,
    native.EngineError,
    native.EPFail,
    native.ModelLoadCanceled,
    native.ModelLoaded,
    native.RuntimeException,
)

#: ONNX Runtime reports a failed allocation in the text of its general exceptions.
_ALLOCATION_FAULTS = ("bad_alloc", "bad allocation", "Failed to allocate memory")

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


class SessionOptions(Struct, frozen=True, kw_only=True):
    threads: int = 0  # 0: `default_threads()`
    entries: dict[str, str] = field(default_factory=dict)  # further session configuration entries
    save_to: Path | None = None  # write the graph as the session runs it


def open_session(path: Path, options: SessionOptions, model: bytes | None = None) -> ort.InferenceSession:
    """Open a graph on the CPU provider. `model`: a serialised graph in place of the one at `path`.

    Raises BundleError if the file is missing or is not a graph that this version can run, EngineFailed if the machine
    has too little memory.
    """
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads or default_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # fatal only: errors are exceptions
    if options.save_to:
        settings.optimized_model_filepath = str(options.save_to)
    for key, value in (_ENTRIES | options.entries).items():
        settings.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(model or path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise opening_failed(path, error) from error


_ENTRIES = {
    "mlas.disable_kleidiai": "1",  # on ARM it has one int8 scale for a whole row; our graphs need one for each block
    "session.intra_op.spin_duration_us": str(_SPIN_US),
    "session.force_spinning_stop": "1",
    "session.record_ep_graph_assignment_info": "1",
}


def opening_failed(path: Path, error: Exception) -> GatewayError:
    """The error to raise when the graph at `path` cannot be opened."""
    if _is_out_of_memory(error):
        return EngineFailed(f"{path.parent.name}/{path.name} cannot be loaded: {NO_MEMORY}")
    kind = BundleError if isinstance(error, BUNDLE_FAULTS) else EngineFailed
    reason = _one_line(error).replace(str(path.parent), path.parent.name)  # no path of the server in a message
    return kind(f"{path.parent.name}/{path.name} cannot be loaded: {reason}")


def running_failed(error: Exception) -> EngineFailed:
    """The error to raise when a device call fails."""
    if _is_out_of_memory(error):
        return EngineFailed(NO_MEMORY)
    return EngineFailed(f"The model failed while it ran: {explained(str(error)) or type(error).__name__}")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in _ALLOCATION_FAULTS)


def _one_line(error: Exception) -> str:
    """ONNX Runtime's message in one line, at most 300 characters of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"


def numpy_dtype(onnx_type: str) -> DTypeLike:
    """The numpy type for a session's tensor type. Raises BundleError for a type that a cache cannot have."""
    try:
        return _DTYPES[onnx_type]
    except KeyError:
        raise BundleError(f"A key/value cache of type {onnx_type} is not supported.") from None

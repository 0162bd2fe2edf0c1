"""ONNX Runtime on the CPU: how sessions are opened, and its exceptions in our words.

How long a thread spins for the next piece of work, measured with SmolLM2-135M (two threads, two cores), milliseconds
per token with 20, 200 and 1000 µs: idle machine, int8 activations 12.8, 11.5, 10.9 and float 14.8, 14.2, 15.2 (13.3
with 5000); two other processes busy, int8 26, 25, 27 and float 32, 35, 35 (38 with 5000). The CPU time of a token is
the same within the noise. So they spin for 1000 µs, longer than any stretch of one thread's work in a step, and not at
all once the call has returned. In a whole server on an idle machine that is 5 % more tokens a second than with 20.
Memory arena and memory patterns on or off, and separate allocation of weights, made no difference to speed or size.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import onnxruntime as ort
from msgspec import Struct, field
from numpy.typing import DTypeLike
from onnxruntime.capi import onnxruntime_pybind11_state as native

from gateway.errors import BundleError, EngineFailed, GatewayError
from gateway.worker.frames import NO_MEMORY

MAX_THREADS = 8  # on 16 cores 1.2 to 1.7 times as fast as 4, and 12 at most 1.3 times as fast as 8: docs/benchmarks.md
_SPIN_US = 1000

#: What a session that cannot be opened says about the bundle; everything else is about the machine.
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
ENGINE_FAULTS: tuple[type[Exception], ...] = (
    native.DeviceReset,
    native.EngineError,
    native.EPFail,
    native.ModelLoadCanceled,
    native.ModelLoaded,
    native.RuntimeException,
)

#: How ONNX Runtime says that the machine has no memory left: in the text of its general exceptions.
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


def open_session(path: Path, options: SessionOptions) -> ort.InferenceSession:
    """Open a graph on the CPU provider.

    Raises BundleError when the file is missing or not a graph that this version can run, EngineFailed when the machine
    cannot hold it.
    """
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads or default_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what matters comes as an exception
    for key, value in (_ENTRIES | options.entries).items():
        settings.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise opening_failed(path, error) from error


_ENTRIES = {
    "mlas.disable_kleidiai": "1",  # on ARM it rounds a whole row to one int8 grid; our graphs count on one per block
    "session.intra_op.spin_duration_us": str(_SPIN_US),
    "session.force_spinning_stop": "1",
    "session.record_ep_graph_assignment_info": "1",
}


def opening_failed(path: Path, error: Exception) -> GatewayError:
    if _is_out_of_memory(error):
        return EngineFailed(f"{path.parent.name}/{path.name} cannot be loaded: {NO_MEMORY}")
    kind = BundleError if isinstance(error, BUNDLE_FAULTS) else EngineFailed
    reason = first_line(error).replace(str(path.parent), path.parent.name)  # users get no paths of the server
    return kind(f"{path.parent.name}/{path.name} cannot be loaded: {reason}")


def running_failed(error: Exception) -> EngineFailed:
    return EngineFailed(
        NO_MEMORY if _is_out_of_memory(error) else f"The model failed while it ran: {first_line(error)}"
    )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in _ALLOCATION_FAULTS)


def first_line(error: Exception) -> str:
    """ONNX Runtime's text without line breaks and without its source locations at length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"


def numpy_dtype(onnx_type: str) -> DTypeLike:
    """numpy's name for a tensor's type as a session states it. Raises BundleError for one that no cache can have."""
    try:
        return _DTYPES[onnx_type]
    except KeyError:
        raise BundleError(f"A key/value cache of type {onnx_type} is not supported.") from None


def default_threads() -> int:
    """One thread per physical core this process may use, at most `MAX_THREADS`."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus // 2 if _has_two_threads_per_core() else cpus, MAX_THREADS))


def _has_two_threads_per_core() -> bool:
    """True where Linux says so; elsewhere an x86 processor is taken to have them, an ARM one not to."""
    try:
        return Path("/sys/devices/system/cpu/smt/active").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return platform.machine().lower() in ("amd64", "x86_64")

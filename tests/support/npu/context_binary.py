"""Writes context binaries with several named graphs, as AI Hub's converter does. Run it in a child process.

ONNX Runtime chooses the names of its compiled graphs, and puts several graphs into one binary only with weight sharing,
which the emulation does not load. So each ONNX graph is compiled to QNN's exchange format (a .dlc file), and the public
QNN C API composes the graphs of several of these files in one context. The structures are from the vendor's public API
pages; the length of the function table is that of the version in requirements-test.lock.

python -m tests.support.npu.context_binary [--share-weights] BINARY NAME=GRAPH.onnx ...
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Mapping
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_char_p, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import onnxruntime
import onnxruntime_qnn

from gateway.qnn.system_api import SystemGraph, Version

_FOLDER = Path(onnxruntime_qnn.LIB_DIR_FULL_PATH)
_EP = "QNNExecutionProvider"
_X_ELITE = 60
_CHIP, _SHARE_WEIGHTS = 0, 1
#: Function -> its index in the tables of the core API and of the System API.
_BACKEND_CREATE, _CONTEXT_CREATE, _BINARY_SIZE, _BINARY = 1, 9, 11, 12
_GRAPH_CREATE, _GRAPH_FINALIZE, _DEVICE_CREATE = 15, 19, 40
_DLC_FROM_FILE, _DLC_COMPOSE = 8, 10
_GRAPH_VERSION = 3

_GraphCreate = CFUNCTYPE(c_uint64, c_void_p, c_char_p, c_void_p, POINTER(c_void_p))


class _Core(Structure):
    _fields_ = [
        ("backend", c_uint32),
        ("name", c_char_p),
        ("core_version", Version),
        ("backend_version", Version),
        ("functions", c_void_p * 75),
    ]


class _System(Structure):
    _fields_ = [("backend", c_uint32), ("name", c_char_p), ("version", Version), ("functions", c_void_p * 16)]


class _Option(Structure):
    """An option of the HTP backend. The second copy of the value is for a table with 8-byte alignment."""

    _fields_ = [("option", c_uint32), ("value", c_uint32), ("value_aligned", c_uint32)]


class _Config(Structure):
    _fields_ = [("option", c_uint32), ("custom", c_void_p)]


def write_binary(path: Path, graphs: Mapping[str, Path], *, share_weights: bool = False) -> None:
    """Compile ONNX graphs into one context binary for the emulated Snapdragon X Elite.

    Args:
        graphs: by name.
        share_weights: one copy of the weights, as in published binaries. The emulation reads it and does not load it.
    """
    core = _interface("libQnnHtp.so", "QnnInterface_getProviders", _Core)
    context = _context(core, share_weights)
    with tempfile.TemporaryDirectory() as folder:
        handles = [
            _compose(core, context, name, _dlc(graph, Path(folder) / str(index)))
            for index, (name, graph) in enumerate(graphs.items())
        ]
    for handle in handles:
        _call(core, _GRAPH_FINALIZE, handle, c_void_p(), c_void_p())
    size = c_uint64()
    _call(core, _BINARY_SIZE, context, byref(size))
    content = ctypes.create_string_buffer(size.value)
    _call(core, _BINARY, context, content, size, byref(size))
    path.write_bytes(content.raw[: size.value])


def _dlc(graph: Path, folder: Path) -> Path:
    """Compile an ONNX graph to a .dlc file in `folder`."""
    folder.mkdir()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "soc_model": str(_X_ELITE),
        "enable_htp_fp16_precision": "1",
        "dump_qnn_ir_dlc": "1",
        "dump_qnn_ir_dlc_dir": str(folder),
        "qnn_ir_backend_path": str(_FOLDER / "libQnnIr.so"),
    }
    device = next(device for device in onnxruntime.get_ep_devices() if device.ep_name == _EP)
    options.add_provider_for_devices([device], provider)
    onnxruntime.InferenceSession(str(graph), options)
    (made,) = folder.glob("*.dlc")
    return made


def _interface(library: str, symbol: str, kind: type[Structure]) -> Any:
    providers, count = POINTER(POINTER(kind))(), c_uint32()
    get_providers = getattr(ctypes.CDLL(str(_FOLDER / library)), symbol)
    get_providers.restype = c_uint64
    assert get_providers(byref(providers), byref(count)) == 0
    return providers[0].contents


def _context(core: _Core, share_weights: bool) -> c_void_p:
    backend, device, context = c_void_p(), c_void_p(), c_void_p()
    _call(core, _BACKEND_CREATE, c_void_p(), c_void_p(), byref(backend))
    chip, sharing = (_Option(*option) for option in ((_CHIP, _X_ELITE, _X_ELITE), (_SHARE_WEIGHTS, 1, 1)))
    _call(core, _DEVICE_CREATE, c_void_p(), _configs(chip), byref(device))
    options = _configs(sharing) if share_weights else c_void_p()
    _call(core, _CONTEXT_CREATE, backend, device, options, byref(context))
    context.backend = backend  # type: ignore[attr-defined]
    return context


def _configs(option: _Option) -> Any:
    """A list of options that ends with a null pointer."""
    config = _Config(0, ctypes.cast(ctypes.pointer(option), c_void_p))
    return (POINTER(_Config) * 2)(ctypes.pointer(config), None)


def _compose(core: _Core, context: c_void_p, name: str, dlc: Path) -> c_void_p:
    """Add the graph of a .dlc file to the context, under the name `name`. Returns: its handle."""
    system = _interface("libQnnSystem.so", "QnnSystemInterface_getProviders", _System)
    file, graphs, count, handle = c_void_p(), POINTER(SystemGraph)(), c_uint32(), c_void_p()
    _call(system, _DLC_FROM_FILE, c_void_p(), c_char_p(str(dlc).encode()), byref(file))
    create = _GraphCreate(core.functions[_GRAPH_CREATE])

    def create_named(context: Any, _: Any, config: Any, made: Any) -> int:
        status: int = create(context, name.encode(), config, made)
        handle.value = made[0]
        return status

    own, named = _Core(), _GraphCreate(create_named)
    ctypes.memmove(byref(own), byref(core), ctypes.sizeof(_Core))
    own.functions[_GRAPH_CREATE] = ctypes.cast(named, c_void_p)
    backend = context.backend  # type: ignore[attr-defined]
    version = c_uint32(_GRAPH_VERSION)
    arguments = (file, c_void_p(), c_uint32(), backend, context, own, version, byref(graphs), byref(count))
    _call(system, _DLC_COMPOSE, *arguments)
    return handle


def _call(table: Any, index: int, *arguments: Any) -> None:
    kinds = [c_void_p if type(argument).__name__ == "CArgObject" else type(argument) for argument in arguments]
    status = CFUNCTYPE(c_uint64, *kinds)(table.functions[index])(*arguments)
    assert status == 0, f"function {index} of {table.name.decode()} failed with {status}"


if __name__ == "__main__":
    onnxruntime.register_execution_provider_library(_EP, onnxruntime_qnn.get_library_path())
    is_shared = sys.argv[1] == "--share-weights"
    binary, *items = sys.argv[1 + is_shared :]
    pairs = (item.split("=") for item in items)
    write_binary(Path(binary), {name: Path(graph) for name, graph in pairs}, share_weights=is_shared)
    sys.stdout.flush()
    os._exit(0)  # the libraries' destructors can crash

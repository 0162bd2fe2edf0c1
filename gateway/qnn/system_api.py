"""The structures and functions of the public QNN System API that read a context binary.

Import `onnxruntime` before the library is loaded, as for every Qualcomm library. The structures are from the vendor's
public API pages. Calls confirm them.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import CFUNCTYPE, POINTER, Structure, Union, byref, c_char_p, c_float, c_int32, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401  # see above

from gateway.errors import BundleError
from gateway.qnn.device import has_library, no_library_error


class Version(Structure):
    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("patch", c_uint32)]


class ScaleOffset(Structure):
    _fields_ = [("scale", c_float), ("offset", c_int32)]


class Encoding(Union):
    _fields_ = [("scale_offset", ScaleOffset), ("largest", c_void_p * 4)]


class Quantisation(Structure):
    _fields_ = [("defined", c_uint32), ("kind", c_uint32), ("encoding", Encoding)]


class TensorFields(Structure):
    """Version 1 of a tensor. Version 2 has more fields after these."""

    _fields_ = [
        ("id", c_uint32),
        ("name", c_char_p),
        ("type", c_uint32),
        ("format", c_uint32),
        ("dtype", c_uint32),
        ("quantisation", Quantisation),
        ("rank", c_uint32),
        ("shape", POINTER(c_uint32)),
        ("memory_kind", c_uint32),
        ("memory", c_void_p * 2),
        ("version_2", c_void_p * 3),
    ]


class SystemTensor(Structure):
    _fields_ = [("version", c_uint32), ("tensor", TensorFields)]


class GraphFields(Structure):
    """Version 3 of a graph. Versions 1 and 2 have the same first fields; all take the same space in an array."""

    _fields_ = [
        ("name", c_char_p),
        ("input_count", c_uint32),
        ("inputs", POINTER(SystemTensor)),
        ("output_count", c_uint32),
        ("outputs", POINTER(SystemTensor)),
        ("update_count", c_uint32),
        ("updates", c_void_p),
        ("blob_size", c_uint32),
        ("blob", c_void_p),
        ("first_op", c_uint32),
        ("last_op", c_uint32),
    ]


class SystemGraph(Structure):
    _fields_ = [("version", c_uint32), ("graph", GraphFields)]


_HEAD: list[Any] = [
    ("backend", c_uint32),
    ("build", c_char_p),
    ("core_version", Version),
    ("backend_version", Version),
    ("soc_version", c_char_p),
]
_CONTENT: list[Any] = [
    ("blob_size", c_uint64),
    ("tensor_count", c_uint32),
    ("tensors", c_void_p),
    ("graph_count", c_uint32),
    ("graphs", POINTER(SystemGraph)),
]


class InfoV1(Structure):
    _fields_ = [
        *_HEAD,
        ("hardware_version", Version),
        ("blob_version", Version),
        ("hardware_size", c_uint32),
        ("hardware", c_void_p),
        *_CONTENT,
    ]


class Metadata(Structure):
    """Written by the HTP backend."""

    _fields_ = [("version", c_uint32), ("architecture", c_uint32)]


class InfoV3(Structure):
    _fields_ = [
        *_HEAD,
        ("blob_version", Version),
        *_CONTENT,
        ("platform", c_void_p),
        ("metadata_size", c_uint32),
        ("metadata", POINTER(Metadata)),
        ("soc", c_uint32),
    ]


class Infos(Union):
    _fields_ = [("v1", InfoV1), ("v3", InfoV3)]


class SystemInfo(Structure):
    _fields_ = [("version", c_uint32), ("info", Infos)]


class SystemFunctions(Structure):
    """The start of the System API's function table."""

    _fields_ = [
        ("create", CFUNCTYPE(c_uint64, POINTER(c_void_p))),
        (
            "get_binary_info",
            CFUNCTYPE(c_uint64, c_void_p, c_void_p, c_uint64, POINTER(POINTER(SystemInfo)), POINTER(c_uint64)),
        ),
        ("get_metadata", c_void_p),
        ("free", CFUNCTYPE(c_uint64, c_void_p)),
    ]


class _Provider(Structure):
    _fields_ = [("id", c_uint32), ("name", c_char_p), ("version", Version), ("functions", SystemFunctions)]


@cache
def system_functions() -> SystemFunctions:
    """Raises BundleError if the library is not installed, or is of another kind."""
    if not has_library():
        raise no_library_error()
    import onnxruntime_qnn

    folder = Path(onnxruntime_qnn.LIB_DIR_FULL_PATH)
    path = folder / ("QnnSystem.dll" if sys.platform == "win32" else "libQnnSystem.so")
    get_providers = ctypes.CDLL(str(path)).QnnSystemInterface_getProviders
    get_providers.restype = c_uint64
    providers, count = POINTER(POINTER(_Provider))(), c_uint32()
    if get_providers(byref(providers), byref(count)) or not count.value:
        raise BundleError("The QNN System library gives no interface. Install npu-gateway again.")
    found: SystemFunctions = providers[0].contents.functions
    return found

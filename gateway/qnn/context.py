"""Compiled NPU graphs on disk: a small ONNX file whose EPContext nodes name the binaries with the compiled network."""

from __future__ import annotations

from pathlib import Path

import onnx
from msgspec import Struct

from gateway.errors import BundleError
from gateway.qnn.provider import NpuDevice

_COMPATIBILITY = "ep_compatibility_info"


class CompiledGraph(Struct, frozen=True, kw_only=True):
    """What an ONNX file says about the compiled networks in it. `soc`, `architecture`: None where it does not say."""

    binaries: tuple[Path, ...]
    other_nodes: int  # nodes beside the compiled networks: these run on the CPU
    soc: int | None = None
    architecture: int | None = None
    sdk: str = ""


def read_compiled(path: Path) -> CompiledGraph | None:
    """Read a stage's file; None when it holds no compiled network. Raises BundleError for a file that is no graph."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise BundleError(f"{path.parent.name}/{path.name} is truncated or not an ONNX file.") from error
    contexts = [node for node in model.graph.node if node.op_type == "EPContext"]
    if not contexts:
        return None
    attributes = [{item.name: onnx.helper.get_attribute_value(item) for item in node.attribute} for node in contexts]
    beside = [item for item in attributes if not item.get("embed_mode", 1)]
    names = {item["ep_cache_context"].decode() for item in beside if "ep_cache_context" in item}
    soc, architecture = _target(model)
    return CompiledGraph(
        binaries=tuple(path.parent / name for name in sorted(names)),
        other_nodes=len(model.graph.node) - len(contexts),
        soc=soc,
        architecture=architecture,
        sdk=next((item["ep_sdk_version"].decode() for item in attributes if "ep_sdk_version" in item), ""),
    )


def check_fits(path: Path, compiled: CompiledGraph, device: NpuDevice) -> None:
    """Raise BundleError when a compiled graph's binary is missing, or made for another chip than `device`."""
    name = f"{path.parent.name}/{path.name}"
    for binary in compiled.binaries:
        if not binary.is_file():
            raise BundleError(f"{name} needs {binary.name}, which is missing.")
    if compiled.architecture and device.architecture and compiled.architecture != device.architecture:
        raise BundleError(
            f"{name} was compiled for Hexagon v{compiled.architecture} and this NPU is v{device.architecture}."
        )
    if compiled.soc and device.soc and compiled.soc != device.soc and device.kind == "npu":
        raise BundleError(f"{name} was compiled for chip {compiled.soc} and this machine has chip {device.soc}.")


def _target(model: onnx.ModelProto) -> tuple[int | None, int | None]:
    """Chip and architecture in "v2:6:2.51.0:5.51.0:73:60:0:0"; files of other writers lack it, and 0 means unknown."""
    for item in model.metadata_props:
        fields = item.value.split(":")
        if item.key.split(".")[0] == _COMPATIBILITY and len(fields) >= 6 and fields[4].isdecimal():
            return int(fields[5]) or None, int(fields[4]) or None
    return None, None

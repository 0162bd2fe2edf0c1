"""Reads compiled NPU graphs: ONNX files whose EPContext nodes name the context binaries."""

from __future__ import annotations

from pathlib import Path

import onnx
from msgspec import Struct

from gateway.bundles.model_package import compiled_target
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice

_COMPATIBILITY = "ep_compatibility_info"


class CompiledGraph(Struct, frozen=True, kw_only=True):
    """The contents of a compiled graph. `soc` and `architecture` are None if the file does not state them."""

    binaries: tuple[Path, ...]
    cpu_nodes: int  # nodes outside the compiled networks
    soc: int | None = None
    architecture: int | None = None
    sdk: str = ""


def read_compiled(path: Path, binary: Path | None = None) -> CompiledGraph | None:
    """Read the ONNX file of a stage.

    Args:
        binary: its context binary; None: the file names it, next to itself.
    Returns: None if the file has no compiled network.
    Raises BundleError if the file is not an ONNX graph.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # the exception class depends on the protobuf implementation
        raise BundleError(f"{path.parent.name}/{path.name} is truncated or not an ONNX file.") from error
    contexts = [node for node in model.graph.node if node.op_type == "EPContext"]
    if not contexts:
        return None
    attributes = [{item.name: onnx.helper.get_attribute_value(item) for item in node.attribute} for node in contexts]
    external = [item for item in attributes if not item.get("embed_mode", 1)]
    names = {item["ep_cache_context"].decode() for item in external if "ep_cache_context" in item}
    soc, architecture = _target(model)
    return CompiledGraph(
        binaries=(binary,) if binary else tuple(path.parent / name for name in sorted(names)),
        cpu_nodes=len(model.graph.node) - len(contexts),
        soc=soc,
        architecture=architecture,
        sdk=next((item["ep_sdk_version"].decode() for item in attributes if "ep_sdk_version" in item), ""),
    )


def check_compatible(path: Path, compiled: CompiledGraph, device: NpuDevice) -> None:
    """Raise BundleError if a binary of the graph is missing, or if the graph is for another chip than `device`."""
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
    stated = (item.value for item in model.metadata_props if item.key.split(".")[0] == _COMPATIBILITY)
    return compiled_target(next(stated, ""))

"""Reads compiled NPU graphs: ONNX files whose EPContext nodes name the context binaries."""

from __future__ import annotations

from pathlib import Path

import onnx
from msgspec import Struct
from msgspec.structs import replace

from gateway.bundles.genie.files import check_binary, is_remote
from gateway.bundles.model_package import compiled_target
from gateway.bundles.preflight.preflight import newer_runtime, wrong_chip
from gateway.bundles.preflight.stated import Stated
from gateway.errors import BundleError, BundleUnfit, quote
from gateway.qnn.binary_info import BinaryInfo, read_binary
from gateway.qnn.device import NpuDevice, machine_of

_COMPATIBILITY = "ep_compatibility_info"


class CompiledGraph(Struct, frozen=True, kw_only=True):
    """The contents of a compiled graph. `soc` and `architecture` are None if the file does not state them."""

    binaries: tuple[Path, ...]
    cpu_nodes: int  # nodes outside the compiled networks
    soc: int | None = None
    architecture: int | None = None
    sdk: str = ""


def load_graph(path: Path) -> onnx.ModelProto:
    """The ONNX file without its external data. Raises BundleError if it is none."""
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # the exception class depends on the protobuf implementation
        raise BundleError(f"{path.parent.name}/{path.name} is truncated or not an ONNX file.") from error


def read_compiled(path: Path, binary: Path | None = None) -> CompiledGraph | None:
    """Read the ONNX file of a stage.

    Args:
        binary: its context binary; None: the file names it, next to itself.
    Returns: None if the file has no compiled network.
    Raises BundleError if the file is not an ONNX graph, or names a file of another machine.
    """
    model = load_graph(path)
    contexts = [node for node in model.graph.node if node.op_type == "EPContext"]
    if not contexts:
        return None
    attributes = [{item.name: onnx.helper.get_attribute_value(item) for item in node.attribute} for node in contexts]
    external = [item for item in attributes if not item.get("embed_mode", 1)]
    names = {item["ep_cache_context"].decode() for item in external if "ep_cache_context" in item}
    if other := next(filter(is_remote, names), None):
        raise BundleError(f"{path.parent.name}/{path.name} names {quote(other)}, a file of another machine.")
    soc, architecture = _target(model)
    return CompiledGraph(
        binaries=(binary,) if binary else tuple(path.parent / name for name in sorted(names)),
        cpu_nodes=len(model.graph.node) - len(contexts),
        soc=soc,
        architecture=architecture,
        sdk=next((item["ep_sdk_version"].decode() for item in attributes if "ep_sdk_version" in item), ""),
    )


def check_compatible(path: Path, compiled: CompiledGraph, device: NpuDevice) -> None:
    """Raise BundleError if a binary of the graph is missing, or if the graph is for another chip than `device` or was
    made with a newer runtime."""
    name = f"{path.parent.name}/{path.name}"
    for binary in compiled.binaries:
        if not binary.is_file():
            raise BundleError(f"{name} needs {binary.name}, which is missing.")
    target = Stated(soc=compiled.soc, architecture=compiled.architecture)
    _require_fit(name, target, compiled.sdk, device)


def require_binary(path: Path, device: NpuDevice) -> BinaryInfo:
    """Read what a context binary states about itself.

    Raises BundleError if the file is incomplete, or made for another chip than `device` or with a newer runtime.
    """
    check_binary(path)
    info = read_binary(path)
    target = Stated(soc=info.soc, architecture=info.architecture)
    _require_fit(f"{path.parent.name}/{path.name}", target, info.build, device)
    return info


def _require_fit(name: str, target: Stated, made_with: str, device: NpuDevice) -> None:
    machine = machine_of(device)
    if device.kind == "emulated":  # which emulates the Hexagon version, and not one chip
        machine = replace(machine, socs=())
    refusal = wrong_chip(name, target, machine) or newer_runtime(name, made_with, machine.qairt)
    if refusal:
        raise BundleUnfit(refusal)


def _target(model: onnx.ModelProto) -> tuple[int | None, int | None]:
    stated = (item.value for item in model.metadata_props if item.key.split(".")[0] == _COMPATIBILITY)
    return compiled_target(next(stated, ""))

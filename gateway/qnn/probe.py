"""Finds the chip of an NPU whose number Windows does not report: what the runtime compiles for it states the chip."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import TensorProto, helper

from gateway.errors import BundleError
from gateway.qnn.binary_info import read_binary
from gateway.qnn.chips import Chip, chip_of
from gateway.qnn.compile import compile_graphs
from gateway.qnn.device import NpuDevice


def probe_chip(device: NpuDevice) -> Chip | None:
    """The chip that the smallest network is compiled for, in a child process. None: no chip that is known."""
    with TemporaryDirectory(prefix="npu-gateway-") as name:
        folder = Path(name)
        graph = folder / "probe.onnx"
        onnx.save(_smallest(), graph)
        try:
            compile_graphs([graph], folder, device)
            info = read_binary(next(folder.glob("*.bin")))
        except (BundleError, StopIteration):
            return None
        return chip_of(info.soc, info.architecture)


def _smallest() -> onnx.ModelProto:
    """One node: (1, 8) float16 in and out."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

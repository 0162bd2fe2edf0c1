"""The QNN provider: devices, sessions that it refuses, and the placement of nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import find_npu, open_session, placement
from tests.support.npu.onnx_graph import write_graph


def test_find_npu_never_returns_emulator(npu: NpuDevice) -> None:
    assert find_npu() == (npu if npu.kind == "npu" else None)


def test_graph_of_variable_shape_is_refused(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "open.onnx", "Sigmoid", 1, [1, "rows", 64])
    with pytest.raises(BundleError, match=r"open\.onnx.*fallback to CPU"):
        open_session(graph, npu)


def test_unknown_chip_is_refused(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "plain.onnx", "Sigmoid", 1, [1, 8, 64])
    with pytest.raises(BundleError):
        open_session(graph, npu, {"soc_model": "999"})


def test_placement_counts_nodes_by_provider(npu: NpuDevice, tmp_path: Path) -> None:
    session = open_session(write_graph(tmp_path / "plain.onnx", "Sigmoid", 1, [1, 8, 64]), npu)
    assert placement(session) == {"QNN": 1}

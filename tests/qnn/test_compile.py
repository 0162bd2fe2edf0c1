"""Compiling graphs for the NPU."""

from __future__ import annotations

from pathlib import Path

from gateway.qnn.binary_info import read_binary
from gateway.qnn.compile import compile_cached, compile_graphs
from gateway.qnn.context import read_compiled
from gateway.qnn.device import NpuDevice
from tests.support.npu.onnx_graph import write_graph


def test_compile_cached_compiles_a_graph_once(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "plain.onnx", "Sigmoid", 1, [1, 8, 64])
    stages: list[str] = []
    first = compile_cached(graph, npu, {}, stages.append)
    assert stages == ["compiling plain.onnx for the NPU"]
    assert compile_cached(graph, npu, {}, stages.append) == first
    assert len(stages) == 1


def test_graphs_share_weights_in_one_binary(npu: NpuDevice, windows_ml_uncompiled: Path, tmp_path: Path) -> None:
    graphs = [windows_ml_uncompiled / "context.onnx", windows_ml_uncompiled / "iterator.onnx"]
    shared = compile_graphs(graphs, tmp_path / "shared", npu, share_weights=True)
    separate = compile_graphs(graphs, tmp_path / "separate", npu)
    compiled = [read_compiled(graph) for graph in shared]
    assert compiled[0] is not None and compiled[1] is not None and compiled[0].binaries == compiled[1].binaries

    names = list(read_binary(compiled[0].binaries[0]).graphs)  # the emulator reads it, but does not load it
    assert len(names) == len(set(names)) == 2

    def size(folder: Path) -> int:
        return sum(binary.stat().st_size for binary in folder.glob("*.bin"))

    assert len(separate) == 2 and size(tmp_path / "shared") < 0.8 * size(tmp_path / "separate")

"""Compiled graphs on disk: the chip they are for, and the nodes outside their networks."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from gateway.errors import BundleError
from gateway.qnn.compile import compile_graphs
from gateway.qnn.context import check_compatible, read_compiled
from gateway.qnn.device import NpuDevice


def test_graph_for_another_chip_is_refused(npu_bundle: Path) -> None:
    graph = next(npu_bundle.glob("context*_ctx.onnx"))
    compiled = read_compiled(graph)
    assert compiled is not None and (compiled.soc, compiled.architecture) == (60, 73)
    check_compatible(graph, compiled, NpuDevice(kind="npu", name="X Elite", soc=60))
    check_compatible(graph, compiled, NpuDevice(kind="npu", name="unknown", soc=None))
    with pytest.raises(BundleError, match="this NPU is v81"):
        check_compatible(graph, compiled, NpuDevice(kind="npu", name="X2", soc=88))


def test_compiled_graph_states_its_chip(npu: NpuDevice, windows_ml_uncompiled: Path, tmp_path: Path) -> None:
    other = NpuDevice(kind="emulated", name="X2", soc=88)
    (graph,) = compile_graphs([windows_ml_uncompiled / "iterator.onnx"], tmp_path, other)
    compiled = read_compiled(graph)
    assert compiled is not None and (compiled.soc, compiled.architecture, compiled.cpu_nodes) == (88, 81, 0)


def test_nodes_outside_networks_are_counted(windows_ml_cpu_attention: Path) -> None:
    compiled = read_compiled(windows_ml_cpu_attention / "context_ctx.onnx")
    assert compiled is not None and compiled.cpu_nodes == 2


def test_uncompiled_graph_is_not_a_compiled_graph(windows_ml_uncompiled: Path) -> None:
    assert read_compiled(windows_ml_uncompiled / "context.onnx") is None


def test_truncated_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "context_ctx.onnx"
    path.write_bytes(b"\x08\x0a nonsense")
    with pytest.raises(BundleError, match=r"context_ctx\.onnx is truncated"):
        read_compiled(path)


@pytest.mark.parametrize("name", ["//host/share/a.bin", r"\\host\share\a.bin"])
def test_binary_of_another_machine_is_refused(tmp_path: Path, name: str) -> None:
    """Windows sends a hash of the user's password to that machine, before it answers."""
    node = onnx.helper.make_node("EPContext", [], ["out"], embed_mode=0, ep_cache_context=name)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])), tmp_path / "a.onnx")
    with pytest.raises(BundleError, match="a file of another machine"):
        read_compiled(tmp_path / "a.onnx")

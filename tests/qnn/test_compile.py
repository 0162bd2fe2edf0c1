"""Compiling graphs for the NPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.qnn.binary_info import read_binary
from gateway.qnn.compile import _folder_for, compile_cached, compile_graphs
from gateway.qnn.context import read_compiled
from gateway.qnn.device import NpuDevice
from tests.support.npu.fixtures import pulled
from tests.support.npu.onnx_graph import write_graph
from tests.support.other_programs import state


def test_compile_cached_compiles_a_graph_once(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(pulled(tmp_path) / "plain.onnx", "Sigmoid", 1, [1, 8, 64])
    stages: list[str] = []
    first = compile_cached(graph, npu, {}, stages.append)
    assert stages == ["compiling plain.onnx for the NPU"] and first.is_relative_to(tmp_path / "compiled")
    assert compile_cached(graph, npu, {}, stages.append) == first
    assert len(stages) == 1


def test_folder_of_another_program_stays_as_it_is(
    npu: NpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    theirs, stages = tmp_path / "theirs", list[str]()
    theirs.mkdir()
    graph = write_graph(theirs / "plain.onnx", "Sigmoid", 1, [1, 8, 64])
    before = state(theirs)
    compiled = compile_cached(graph, npu, {}, stages.append)
    assert compiled.is_relative_to(tmp_path / "cache") and read_compiled(compiled) is not None
    assert state(theirs) == before
    assert compile_cached(graph, npu, {}, stages.append) == compiled and len(stages) == 1
    compiled.write_bytes(b"damaged")
    assert compile_cached(graph, npu, {}, stages.append) == compiled and len(stages) == 2
    assert read_compiled(compiled) is not None and state(theirs) == before


def test_older_bundle_at_the_same_path_has_its_own_compiled_graphs(tmp_path: Path) -> None:
    """Another program unpacks another bundle with the times of its archive."""
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"first")
    os.utime(graph, (2e9, 2e9))
    first, _ = _folder_for(graph)
    assert _folder_for(graph)[0] == first
    graph.write_bytes(b"other")
    os.utime(graph, (1e9, 1e9))
    assert _folder_for(graph)[0] != first


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

"""The provider as it is: what it opens, what it refuses, where nodes went, and switching its performance mode."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from gateway.bundles.genai_config import read_genai_config
from gateway.errors import BundleError, ConfigError
from gateway.qnn.compile import compile_graphs
from gateway.qnn.context import check_compatible, read_compiled
from gateway.qnn.detect import may_have_npu, npu_for, try_detect_npu
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import find_npu, open_session, placement
from gateway.qnn.sessions import NpuSessions, PerformanceSwitch
from gateway.worker.frames import WorkerSpec
from gateway.worker.main import open_decoder
from tests.support.npu_fixtures import OpenDecoder


@pytest.fixture
def copy(npu_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to break."""
    return Path(shutil.copytree(npu_bundle, tmp_path / "broken"))


def write_graph(
    path: Path, kind: str, inputs: int, shape: list[int | str], domain: str = "", **attributes: object
) -> Path:
    """One node over `inputs` float32 tensors of one shape."""
    names = [f"x{index}" for index in range(inputs)]
    node = helper.make_node(kind, names, ["y"], domain=domain, **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


# -- which device --------------------------------------------------------------------------------------------------


def test_auto_never_takes_the_emulator(npu: NpuDevice, npu_bundle: Path) -> None:
    if npu.kind == "npu":
        pytest.skip("this machine has a real NPU")
    assert find_npu() is None
    assert npu_for("auto") is None
    with pytest.raises(BundleError, match=r"compiled for the NPU, and this machine has none; provider = 'qnn'"):
        open_decoder(WorkerSpec(bundle=str(npu_bundle), provider="auto"))


def test_qnn_takes_what_there_is(npu: NpuDevice) -> None:
    assert npu_for("qnn") == npu
    assert npu_for("cpu") is None


def test_only_windows_on_arm_is_searched_for_an_npu() -> None:
    assert may_have_npu("win32", "ARM64")
    assert not may_have_npu("win32", "AMD64")
    assert not may_have_npu("linux", "aarch64")


def test_looking_leaves_this_process_alone(npu: NpuDevice) -> None:
    assert try_detect_npu(emulated=True) == npu


def test_a_bundle_for_the_cpu_does_not_run_on_the_npu(tiny: Path) -> None:
    with pytest.raises(BundleError, match="build --target qnn"):
        open_decoder(WorkerSpec(bundle=str(tiny), provider="qnn"))


# -- what is refused -----------------------------------------------------------------------------------------------


def test_a_graph_that_would_fall_back_to_the_cpu_is_refused(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "open.onnx", "Sigmoid", 1, [1, "rows", 64])
    with pytest.raises(BundleError, match=r"open\.onnx.*fallback to CPU"):
        open_session(graph, npu)


def test_an_unknown_chip_is_refused_and_not_run_on_the_cpu(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "plain.onnx", "Sigmoid", 1, [1, 8, 64])
    with pytest.raises(BundleError):
        open_session(graph, npu, {"soc_model": "999"})


def test_a_bundle_whose_npu_stage_runs_on_the_cpu_is_refused(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "norm.onnx", "Mod", 2, [1, 8, 64], fmod=1)
    with pytest.raises(BundleError, match=r"takes no node of norm\.onnx"):
        NpuSessions(npu, {}, lambda stage: None).open({graph: {}})


def test_a_misspelt_option_is_a_config_error(npu_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'vtcm_mb'"):
        open_decoder(WorkerSpec(bundle=str(npu_bundle), provider="qnn", provider_options={"vtcm_mbs": "8"}))


def test_a_bundle_for_another_chip_is_named(npu: NpuDevice, copy: Path, open_decoder: OpenDecoder) -> None:
    with pytest.raises(BundleError, match="compiled for Hexagon v73 and this NPU is v81"):
        open_decoder(copy, "qnn", options={"soc_model": "88"})


def test_a_real_npu_wants_its_own_chip_and_not_only_its_architecture(npu_bundle: Path) -> None:
    graph = next(npu_bundle.glob("context*_ctx.onnx"))
    compiled = read_compiled(graph)
    assert compiled is not None and (compiled.soc, compiled.architecture) == (60, 73)
    check_compatible(graph, compiled, NpuDevice(kind="npu", name="X Elite", soc=60))
    check_compatible(graph, compiled, NpuDevice(kind="npu", name="unknown", soc=None))
    with pytest.raises(BundleError, match="this NPU is v81"):
        check_compatible(graph, compiled, NpuDevice(kind="npu", name="X2", soc=88))


def test_a_missing_binary_is_named(npu: NpuDevice, copy: Path, open_decoder: OpenDecoder) -> None:
    next(copy.glob("iterator*1_of_2*_qnn.bin")).unlink()
    with pytest.raises(BundleError, match=r"iterator_1_of_2.*missing|lacks iterator_1_of_2"):
        open_decoder(copy, "qnn")


def test_a_truncated_binary_is_named(npu: NpuDevice, copy: Path, open_decoder: OpenDecoder) -> None:
    binary = copy / "context_2_of_2_ctx_qnn.bin"
    binary.write_bytes(binary.read_bytes()[:-5000])
    with pytest.raises(BundleError, match=r"context_2_of_2_ctx\.onnx"):
        open_decoder(copy, "qnn")


def test_a_graph_file_that_is_none_is_named(npu: NpuDevice, copy: Path, open_decoder: OpenDecoder) -> None:
    (copy / "context_2_of_2_ctx.onnx").write_bytes(b"\x08\x0a nonsense")
    with pytest.raises(BundleError, match=r"context_2_of_2_ctx\.onnx"):
        open_decoder(copy, "qnn")


# -- what is compiled ----------------------------------------------------------------------------------------------


def test_what_a_bundle_brings_uncompiled_is_compiled_once(
    npu: NpuDevice, windows_ml_uncompiled: Path, tmp_path: Path, open_decoder: OpenDecoder
) -> None:
    folder = Path(shutil.copytree(windows_ml_uncompiled, tmp_path / "plain", ignore=shutil.ignore_patterns("compiled")))
    stages: list[str] = []
    open_decoder(folder, "qnn", progress=stages.append)
    assert any("compiling context.onnx" in stage for stage in stages)
    stages.clear()
    open_decoder(folder, "qnn", progress=stages.append)
    assert stages == ["loading context_ctx.onnx", "loading iterator_ctx.onnx"]


def test_graphs_can_share_one_binary(npu: NpuDevice, windows_ml_uncompiled: Path, tmp_path: Path) -> None:
    graphs = [windows_ml_uncompiled / "context.onnx", windows_ml_uncompiled / "iterator.onnx"]
    shared = compile_graphs(graphs, tmp_path / "shared", npu, share_weights=True)
    alone = compile_graphs(graphs, tmp_path / "alone", npu)
    named = [read_compiled(graph) for graph in shared]
    assert named[0] is not None and named[1] is not None and named[0].binaries == named[1].binaries

    def size(folder: Path) -> int:
        return sum(binary.stat().st_size for binary in folder.glob("*.bin"))

    assert len(alone) == 2 and size(tmp_path / "shared") < 0.8 * size(tmp_path / "alone")


def test_a_context_for_another_chip_says_so(npu: NpuDevice, windows_ml_uncompiled: Path, tmp_path: Path) -> None:
    other = NpuDevice(kind="emulated", name="X2", soc=88)
    (graph,) = compile_graphs([windows_ml_uncompiled / "iterator.onnx"], tmp_path, other)
    compiled = read_compiled(graph)
    assert compiled is not None and (compiled.soc, compiled.architecture, compiled.cpu_nodes) == (88, 81, 0)


def test_attention_left_to_the_cpu_is_counted(windows_ml_cpu_attention: Path, open_decoder: OpenDecoder) -> None:
    compiled = read_compiled(windows_ml_cpu_attention / "context_ctx.onnx")
    assert compiled is not None and compiled.cpu_nodes == 2
    assert open_decoder(windows_ml_cpu_attention, "qnn").spec.placement["QNN"] == 6


# -- performance ---------------------------------------------------------------------------------------------------


@pytest.fixture
def session(npu: NpuDevice, tmp_path: Path) -> Iterator[onnxruntime.InferenceSession]:
    yield open_session(write_graph(tmp_path / "plain.onnx", "Sigmoid", 1, [1, 8, 64]), npu)


def test_a_session_says_where_its_nodes_are(session: onnxruntime.InferenceSession) -> None:
    assert placement(session) == {"QNN": 1}


def test_the_npu_rests_when_nothing_runs_and_wakes_when_something_does(session: onnxruntime.InferenceSession) -> None:
    now = 0.0
    switch = PerformanceSwitch([session], idle_s=10.0, clock=lambda: now)
    try:
        now = 9.0
        switch.save_power_if_idle()
        assert not switch.is_saving_power
        with switch:
            now = 30.0
            switch.save_power_if_idle()  # a run is under way
            assert not switch.is_saving_power
        now = 40.0
        switch.save_power_if_idle()
        assert switch.is_saving_power
        with switch:
            assert not switch.is_saving_power
            (y,) = session.run(None, {"x0": np.zeros((1, 8, 64), np.float32)})
        assert np.allclose(y, 0.5, atol=1e-3)
    finally:
        switch.close()
    now = 100.0
    switch.save_power_if_idle()
    assert not switch.is_saving_power


def test_our_bundle_asks_for_what_genai_knows(npu_bundle: Path) -> None:
    stages = read_genai_config(npu_bundle).decoder.stages
    assert [stage.name for stage in stages] == [
        "embeddings", "context_1_of_2", "context_2_of_2", "iterator_1_of_2", "iterator_2_of_2", "lm_head",
    ]  # fmt: skip
    assert stages[-1].is_lm_head

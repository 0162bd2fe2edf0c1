"""Opening the NPU stages of a bundle, and switching the performance mode."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from gateway.bundles.genai_config import read_genai_config
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import open_session
from gateway.qnn.sessions import NpuSessions, PerformanceSwitch
from tests.support.npu.fixtures import OpenDecoder, pulled
from tests.support.npu.onnx_graph import write_graph


@pytest.fixture
def broken(npu_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(npu_bundle, tmp_path / "broken"))


def test_stage_without_npu_nodes_is_refused(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(pulled(tmp_path) / "norm.onnx", "Mod", 2, [1, 8, 64], fmod=1)
    with pytest.raises(BundleError, match=r"takes no node of norm\.onnx"):
        NpuSessions(npu, {}, lambda stage: None).open({graph: {}})


def test_options_of_bundle_write_no_files(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(pulled(tmp_path) / "plain.onnx", "Sigmoid", 1, [1, 8, 64])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = {
        "profiling_level": "detailed",
        "profiling_file_path": str(elsewhere / "profile.csv"),
        "dump_json_qnn_graph": "1",
        "json_qnn_graph_dir": str(elsewhere),
    }
    sessions = NpuSessions(npu, {}, lambda stage: None).open({graph: options})
    sessions[graph].run(None, {"x0": np.zeros((1, 8, 64), np.float32)})
    assert not list(elsewhere.iterdir())


def test_bundle_for_another_chip_is_refused(npu: NpuDevice, broken: Path, open_decoder: OpenDecoder) -> None:
    with pytest.raises(BundleError, match="compiled for Hexagon v73 and this NPU is v81"):
        open_decoder(broken, "qnn", options={"soc_model": "88"})


def test_missing_binary_is_named(npu: NpuDevice, broken: Path, open_decoder: OpenDecoder) -> None:
    next(broken.glob("iterator*1_of_2*_qnn.bin")).unlink()
    with pytest.raises(BundleError, match=r"iterator_1_of_2.*missing|lacks iterator_1_of_2"):
        open_decoder(broken, "qnn")


def test_truncated_binary_is_named(npu: NpuDevice, broken: Path, open_decoder: OpenDecoder) -> None:
    binary = broken / "context_2_of_2_ctx_qnn.bin"
    binary.write_bytes(binary.read_bytes()[:-5000])
    with pytest.raises(BundleError, match=r"context_2_of_2_ctx_qnn\.bin has \d+ bytes instead of"):
        open_decoder(broken, "qnn")


def test_invalid_graph_file_is_named(npu: NpuDevice, broken: Path, open_decoder: OpenDecoder) -> None:
    (broken / "context_2_of_2_ctx.onnx").write_bytes(b"\x08\x0a nonsense")
    with pytest.raises(BundleError, match=r"context_2_of_2_ctx\.onnx"):
        open_decoder(broken, "qnn")


def test_uncompiled_bundle_is_compiled_at_first_start(
    npu: NpuDevice, windows_ml_uncompiled: Path, tmp_path: Path, open_decoder: OpenDecoder
) -> None:
    ignored = shutil.ignore_patterns("compiled")
    folder = Path(shutil.copytree(windows_ml_uncompiled, tmp_path / "uncompiled", ignore=ignored))
    stages: list[str] = []
    open_decoder(folder, "qnn", progress=stages.append)
    assert any("compiling context.onnx" in stage for stage in stages)
    stages.clear()
    open_decoder(folder, "qnn", progress=stages.append)
    assert stages == ["loading context_ctx.onnx", "loading iterator_ctx.onnx"]


def test_several_networks_of_a_graph_are_counted(windows_ml_cpu_attention: Path, open_decoder: OpenDecoder) -> None:
    assert open_decoder(windows_ml_cpu_attention, "qnn").spec.placement["QNN"] == 6


def test_built_bundle_has_stages_of_genai_config(npu_bundle: Path) -> None:
    stages = read_genai_config(npu_bundle).decoder.stages
    assert [stage.name for stage in stages] == [
        "embeddings", "context_1_of_2", "context_2_of_2", "iterator_1_of_2", "iterator_2_of_2", "lm_head",
    ]  # fmt: skip
    assert stages[-1].is_lm_head


# -- performance mode ---------------------------------------------------------------------------------------------


@pytest.fixture
def session(npu: NpuDevice, tmp_path: Path) -> Iterator[onnxruntime.InferenceSession]:
    yield open_session(write_graph(tmp_path / "plain.onnx", "Sigmoid", 1, [1, 8, 64]), npu)


def test_idle_npu_saves_power_until_next_call(session: onnxruntime.InferenceSession) -> None:
    now = 0.0
    switch = PerformanceSwitch([session], idle_s=10.0, clock=lambda: now)
    try:
        now = 9.0
        switch.save_power_if_idle()
        assert not switch.is_saving_power
        with switch:
            now = 30.0
            switch.save_power_if_idle()  # returns at once: a call runs
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

"""The load check of `doctor`: NPU graphs of a bundle, opened in a child process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gateway.commands.doctor.finding import Finding
from gateway.commands.doctor.models import npu_graphs
from gateway.config.tables import LocalModel
from gateway.errors import BundleError
from gateway.qnn.sessions import PerformanceSwitch
from gateway.worker.decoders.static.load_check import check_load


def finding(bundle: Path, provider: str = "qnn", **options: str) -> Finding:
    model = LocalModel(path=str(bundle), provider=provider, provider_options=options)  # type: ignore[arg-type]
    (found,) = npu_graphs("tiny", model, has_npu=False)
    return found


def test_bundle_without_cpu_nodes_is_ok(npu_bundle: Path) -> None:
    found = finding(npu_bundle)
    assert found.level == "ok" and "16 nodes on the NPU (emulated), 0 on the CPU" in found.detail


def test_bundle_next_to_that_for_the_cpu_is_loaded(npu_bundle: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(npu_bundle, tmp_path / "m-npu")
    assert finding(tmp_path / "m").detail.startswith("m-npu: 16 nodes on the NPU")  # the only one
    shutil.copytree(tiny, tmp_path / "m")
    assert finding(tmp_path / "m").detail.startswith("m-npu: 16 nodes on the NPU")
    assert not list(npu_graphs("tiny", LocalModel(path=str(tmp_path / "m")), has_npu=False))  # this machine has no NPU
    (tmp_path / "m-npu" / "genai_config.json").write_bytes(b"{")
    assert finding(tmp_path / "m").level == "bad"


def test_genie_bundle_is_loaded_in_our_own_engine(published_bundle: Path) -> None:
    found = finding(published_bundle)
    assert found.level == "ok" and "12 nodes on the NPU (emulated), 0 on the CPU" in found.detail


def test_cpu_fallback_nodes_are_counted(windows_ml_cpu_attention: Path) -> None:
    found = finding(windows_ml_cpu_attention)
    assert found.level == "note" and "4 on the CPU" in found.detail


def test_bundle_for_another_chip_is_bad(npu_bundle: Path) -> None:
    found = finding(npu_bundle, soc_model="88")
    assert found.level == "bad" and "compiled for Hexagon v73 and this NPU is v81" in found.detail


def test_truncated_binary_is_bad(npu_bundle: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(npu_bundle, tmp_path / "broken"))
    binary = broken / "context_1_of_2_ctx_qnn.bin"
    binary.write_bytes(binary.read_bytes()[:1000])
    found = finding(broken)
    assert found.level == "bad" and "context_1_of_2_ctx_qnn.bin has 1000 bytes" in found.detail


def test_auto_provider_without_npu_is_bad(npu_bundle: Path) -> None:
    found = finding(npu_bundle, "auto")
    assert found.level == "bad" and "this machine has none" in found.detail


def test_cpu_bundle_has_no_finding(tiny: Path) -> None:
    assert not list(npu_graphs("tiny", LocalModel(path=str(tiny)), has_npu=False))


def test_bundle_without_pipeline_is_refused(tiny: Path) -> None:
    with pytest.raises(BundleError, match="describes no pipeline"):
        check_load(tiny, "qnn", {})


def test_mode_that_the_driver_refuses_is_reported() -> None:
    class Session:
        def set_ep_dynamic_options(self, options: dict[str, str]) -> None:
            assert options == {"ep.dynamic.qnn_htp_performance_mode": "burst"}
            raise RuntimeError("QNN error code 1000")

    switch = PerformanceSwitch([Session()])  # type: ignore[list-item]
    assert "does not support" in switch.refusal()
    switch.close()
    assert switch.refusal() == ""

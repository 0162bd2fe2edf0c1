"""What `doctor` finds out about a bundle for the NPU, by opening it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gateway.commands.doctor import Finding, npu_graphs
from gateway.config import LocalModel
from gateway.errors import BundleError
from gateway.worker.decoders.static.load_check import check_load


def finding(bundle: Path, provider: str = "qnn", **options: str) -> Finding:
    model = LocalModel(path=str(bundle), provider=provider, provider_options=options)  # type: ignore[arg-type]
    (found,) = npu_graphs("tiny", model)
    return found


def test_a_bundle_that_runs_on_the_npu_whole_is_ok(npu_bundle: Path) -> None:
    found = finding(npu_bundle)
    assert found.level == "ok" and "12 nodes on the NPU (emulated), 0 beside them on the CPU" in found.detail


def test_nodes_that_fell_back_to_the_cpu_are_counted(windows_ml_cpu_attention: Path) -> None:
    found = finding(windows_ml_cpu_attention)
    assert found.level == "note" and "4 beside them on the CPU" in found.detail


def test_a_bundle_for_another_chip_is_bad(npu_bundle: Path) -> None:
    found = finding(npu_bundle, soc_model="88")
    assert found.level == "bad" and "compiled for Hexagon v73 and this NPU is v81" in found.detail


def test_a_truncated_network_is_bad(npu_bundle: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(npu_bundle, tmp_path / "broken"))
    binary = broken / "context_1_of_2_ctx_qnn.bin"
    binary.write_bytes(binary.read_bytes()[:1000])
    found = finding(broken)
    assert found.level == "bad" and "context_1_of_2_ctx.onnx" in found.detail


def test_without_an_npu_auto_cannot_serve_it(npu_bundle: Path) -> None:
    found = finding(npu_bundle, "auto")
    assert found.level == "bad" and "this machine has none" in found.detail


def test_a_bundle_for_the_cpu_has_nothing_to_say(tiny: Path) -> None:
    assert not list(npu_graphs("tiny", LocalModel(path=str(tiny))))


def test_a_folder_that_is_no_pipeline_is_refused(tiny: Path) -> None:
    with pytest.raises(BundleError, match="describes no pipeline"):
        check_load(tiny, "qnn", {})

"""The estimates of `size.py` against bundles that were built: a bit too high, never too low."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.builder.build import build_bundle
from gateway.builder.npu.build import NpuTarget
from gateway.builder.size import _OTHER_BYTES, cpu_bytes, npu_bytes
from gateway.builder.sources.detect import open_source
from gateway.bundles.disk import folder_bytes
from gateway.qnn.device import NpuDevice
from tests.support.tiny import write_tiny_folder


def test_bundle_of_the_default_model_is_estimated(smollm2: Path, smollm2_gguf: Path) -> None:
    estimate = cpu_bytes(open_source(smollm2_gguf)) - _OTHER_BYTES
    weights = (smollm2 / "model.onnx.data").stat().st_size
    assert weights <= estimate <= 1.2 * weights


def test_bundle_of_float_weights_is_estimated(tmp_path: Path) -> None:
    source = write_tiny_folder(tmp_path / "source", intermediate=8192, tied=False)
    out = build_bundle(source, tmp_path / "m", progress=lambda *_: None)
    weights = (out / "model.onnx.data").stat().st_size
    assert weights <= cpu_bytes(open_source(source)) - _OTHER_BYTES <= 1.5 * weights


def test_bundle_for_the_npu_is_estimated(npu: NpuDevice, tmp_path: Path) -> None:
    """Also the files that exist only during the build."""
    source = write_tiny_folder(tmp_path / "source", intermediate=8192)
    target = NpuTarget(device=npu, contexts=(64,), width=16, batch=1)
    largest = 0

    def progress(stage: str, fraction: float) -> None:
        nonlocal largest
        largest = max(largest, *map(folder_bytes, tmp_path.glob(".m.*.building")), 0)

    build_bundle(source, tmp_path / "m", progress=progress, target=target)
    estimate = npu_bytes(open_source(source).config, target)
    assert largest <= estimate
    assert estimate - _OTHER_BYTES <= 3 * largest


@pytest.mark.parametrize("change", [{"batch": 4}, {"contexts": (64, 128)}, {"precision": "fp32"}])
def test_more_graphs_need_more_space(npu: NpuDevice, tmp_path: Path, change: dict[str, object]) -> None:
    config = open_source(write_tiny_folder(tmp_path / "source")).config
    target = NpuTarget(device=npu, contexts=(64,), width=16, batch=1)
    assert npu_bytes(config, replace(target, **change)) > npu_bytes(config, target)

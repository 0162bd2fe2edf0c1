"""Detection of the NPU in a child process."""

from __future__ import annotations

import pytest

from gateway.qnn.detect import chip_here, npu_for, try_detect_npu
from gateway.qnn.device import NpuDevice, may_have_npu


def test_only_windows_on_arm_may_have_npu() -> None:
    assert may_have_npu("win32", "ARM64")
    assert not may_have_npu("win32", "AMD64")
    assert not may_have_npu("linux", "aarch64")


def test_detected_device_is_passed_to_parent(npu: NpuDevice) -> None:
    assert try_detect_npu(emulated=True) == npu


def test_qnn_provider_uses_detected_device(npu: NpuDevice) -> None:
    assert npu_for("qnn") == npu


def test_cpu_provider_uses_no_npu() -> None:
    assert npu_for("cpu") is None


def test_auto_provider_does_not_use_emulator(npu: NpuDevice) -> None:
    if npu.kind == "npu":
        pytest.skip("this machine has a real NPU")
    assert npu_for("auto") is None


def test_chip_is_that_of_the_device(npu: NpuDevice) -> None:
    chip = chip_here()
    assert chip is not None and npu.soc in chip.soc_models

"""The default NPU target: which device a model is built for, and with which shapes."""

from __future__ import annotations

from typing import Literal

from gateway.builder.build import Target
from gateway.builder.npu.build import NpuTarget
from gateway.qnn.detect import may_have_npu, try_detect_npu
from gateway.qnn.provider import NpuDevice, no_npu_error


def npu_target(provider: Literal["auto", "cpu", "qnn"]) -> Target | None:
    """The NPU target if a model with this provider will run on an NPU; None: build for the CPU.

    Raises BundleError when `provider` is `qnn` and there is no NPU and no emulator.
    """
    match provider:
        case "cpu":
            return None
        case "auto":
            device = try_detect_npu() if may_have_npu() else None
            return default_target(device) if device else None
        case "qnn":
            return default_target(required_npu())


def required_npu() -> NpuDevice:
    """The NPU or the emulator. Raises BundleError when there is neither."""
    if device := try_detect_npu(emulated=True):
        return device
    raise no_npu_error()


def default_target(device: NpuDevice) -> NpuTarget:
    """One context length, float16, one part: fits a model of a few hundred million weights."""
    if device.kind == "emulated":
        return NpuTarget(device=device, contexts=(512,), width=32)
    return NpuTarget(device=device, contexts=(2048,), width=128)

"""The default NPU target: the shapes that a model is built with for a device."""

from __future__ import annotations

from gateway.builder.npu.build import NpuTarget
from gateway.qnn.device import NpuDevice


def default_target(device: NpuDevice) -> NpuTarget:
    """One context length, float16, one part: fits a model of a few hundred million weights."""
    if device.kind == "emulated":
        return NpuTarget(device=device, contexts=(512,), width=32)
    return NpuTarget(device=device, contexts=(2048,), width=128)

"""The default NPU targets: the shapes that a model is built with for a device."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from gateway.builder.npu.build import NpuTarget
from gateway.qnn.device import NpuDevice


def default_target(device: NpuDevice) -> NpuTarget:
    """One context length, float16, one part: fits a model of a few hundred million weights."""
    if device.kind == "emulated":
        return NpuTarget(device=device, contexts=(512,), width=32)
    return NpuTarget(device=device, contexts=(2048,), width=128)


def int4_target(device: NpuDevice, unfinished: Path) -> NpuTarget:
    """For weights in floating point of any number: blocks of 4 bits, parts by the size of the model.

    Args:
        unfinished: the folder for the finished pieces.
    """
    is_real = device.kind == "npu"  # the emulator loads no binary with shared weights
    return replace(default_target(device), precision="int4", parts=0, share_weights=is_real, unfinished=unfinished)

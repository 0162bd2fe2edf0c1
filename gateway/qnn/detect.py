"""Detects the NPU in a child process: a broken driver can crash the process that loads it.

This module loads no native library, so the gateway process can import it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.bundles.model_package import npu_variants
from gateway.child import run_in_child, serve_request
from gateway.errors import BundleError, ConfigError
from gateway.qnn.chips import CHIP_NAMES, CHIPS, Chip, chip_of
from gateway.qnn.device import NpuDevice, may_have_npu, no_npu_error

Provider = Literal["auto", "cpu", "qnn"]


class _Request(Struct, frozen=True):
    """`emulated`: accept the emulator."""

    emulated: bool


def npu_for(provider: Provider) -> NpuDevice | None:
    """The NPU that a model with this provider will run on. None means the CPU.

    Raises BundleError if the provider is `qnn` and there is no NPU and no emulator.
    """
    match provider:
        case "cpu":
            return None
        case "auto":
            return try_detect_npu() if may_have_npu() else None
        case "qnn":
            return required_npu()


def required_npu() -> NpuDevice:
    """The NPU or the emulator. Raises BundleError if there is neither."""
    if device := try_detect_npu(emulated=True):
        return device
    raise no_npu_error()


def variant_here(folder: Path, provider: Provider) -> Path:
    """`folder`, or the variant for this machine's chip if `folder` is a model package with several for the NPU.

    Raises BundleError if the package cannot be read, or as `npu_for`.
    """
    variants = npu_variants(folder)
    device = npu_for(provider) if len(variants) > 1 else None
    if device is None or device.architecture is None:
        return folder
    fitting = [
        variant.folder
        for variant in variants
        if variant.architecture == device.architecture and variant.soc in (None, device.soc)
    ]
    return fitting[0] if len(fitting) == 1 else folder


def detect_npu(*, emulated: bool) -> NpuDevice | None:
    """The NPU, or the emulator if `emulated` is True, or None. Raises BundleError if the driver crashes."""
    reply = run_in_child(__name__, _Request(emulated), "the NPU's driver")
    return msgspec.json.decode(reply, type=NpuDevice | None)


def try_detect_npu(*, emulated: bool = False) -> NpuDevice | None:
    """As `detect_npu`, but returns None if the driver crashes."""
    try:
        return detect_npu(emulated=emulated)
    except BundleError:
        return None


def chip_here() -> Chip | None:
    """The chip of this machine's NPU, else that of the emulator. None: neither, or no chip that is known."""
    device = try_detect_npu(emulated=True)
    return _chip_of(device) if device else None


def chip_for_downloads() -> Chip:
    """As `chip_here`; without an NPU X Elite, which most models are published for. Raises ConfigError if the NPU's chip
    is not known: a model for another chip does not load.
    """
    device = try_detect_npu(emulated=True)
    if device is None:
        return CHIPS[0]
    if chip := _chip_of(device):
        return chip
    raise ConfigError(f"The chip of this NPU ({device.name}) is not known. Name it: --chip {', '.join(CHIP_NAMES)}.")


def _chip_of(device: NpuDevice) -> Chip | None:
    if device.soc is not None:
        return chip_of(device.soc, device.architecture)
    from gateway.qnn.probe import probe_chip

    return probe_chip(device)


def _detect(request: _Request) -> NpuDevice | None:
    from gateway.qnn.provider import emulated_npu, find_npu

    return find_npu() or (emulated_npu() if request.emulated else None)


if __name__ == "__main__":
    sys.exit(serve_request(_Request, _detect))

"""Describes an NPU. Needs no native library, so every process can import it."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from pathlib import Path
from typing import Literal

import psutil
from msgspec import Struct
from msgspec.structs import replace

from gateway.bundles.preflight.preflight import Machine
from gateway.errors import BundleError
from gateway.qnn.chips import HTP_ARCHITECTURES, Chip, chip_of


def may_have_npu(system: str = sys.platform, machine: str = platform.machine()) -> bool:
    """True on Windows on ARM. An x64 Python reports AMD64 there, and then needs `provider = "qnn"`."""
    return system == "win32" and machine.upper() == "ARM64"


class NpuDevice(Struct, frozen=True, kw_only=True):
    """A device for sessions: a real NPU, or Qualcomm's emulator on the host CPU.

    `soc` is Qualcomm's chip number; None if the machine does not report it.
    """

    kind: Literal["npu", "emulated"]
    name: str
    soc: int | None

    @property
    def architecture(self) -> int | None:
        """The Hexagon version (73 for v73); None if unknown."""
        return HTP_ARCHITECTURES.get(self.soc) if self.soc is not None else None

    @property
    def chip(self) -> Chip | None:
        """None if the machine does not report its number. X Plus is reported as X Elite."""
        return chip_of(self.soc, self.architecture)

    @property
    def catalog(self) -> str:
        """The command that lists models for this NPU."""
        return catalog_command(self.chip)


def catalog_command(chip: Chip | None) -> str:
    return f"npu-gateway catalog --chip {chip.name}" if chip else "npu-gateway catalog"


def machine_of(device: NpuDevice) -> Machine:
    """What a bundle for `device` must fit."""
    if chip := device.chip:
        return machine_with(chip)
    soc = () if device.soc is None else (device.soc,)
    return with_memory(Machine(socs=soc, architecture=device.architecture, qairt=runtime_version()))


def machine_with(chip: Chip) -> Machine:
    """This machine, as if its NPU had this chip."""
    return with_memory(
        Machine(
            name=chip.title,
            catalog=catalog_command(chip),
            socs=chip.soc_models,
            architecture=chip.architecture,
            qairt=runtime_version(),
        )
    )


def with_memory(machine: Machine) -> Machine:
    memory = psutil.virtual_memory()
    return replace(machine, memory=memory.total, available=memory.available)


def runtime_version() -> str:
    """The version of QAIRT in the installed onnxruntime-qnn: "2.51.0"; "" if it cannot be found. Loads no library."""
    found = importlib.util.find_spec("onnxruntime_qnn")
    if found is None or not found.origin:
        return ""
    try:
        text = Path(found.origin).with_name("build_and_package_info.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    version = re.search(r"""qnn_version\s*=\s*["']v?([\d.]+)""", text)
    return version[1] if version else ""


def has_library() -> bool:
    """True if the package with the NPU's libraries and its emulator is installed."""
    return importlib.util.find_spec("onnxruntime_qnn") is not None


def no_npu_error() -> BundleError:
    if not has_library():
        return no_library_error()
    return BundleError(
        f"This machine ({platform.system()} on {platform.machine()}) has no NPU that the QNN provider can use, "
        "and no NPU emulator; use provider = 'cpu'."
    )


def no_library_error() -> BundleError:
    return BundleError(
        "The NPU's libraries and its emulator are not installed (package onnxruntime-qnn, 245 MB). In a clone, start "
        "with `python scripts/serve.py --provider qnn`; else install 'npu-gateway[emulation]' in place of npu-gateway. "
        "Or use provider = 'cpu'."
    )

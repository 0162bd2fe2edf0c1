"""Describes an NPU. Needs no native library, so every process can import it."""

from __future__ import annotations

import platform
from typing import Literal

from msgspec import Struct

from gateway.errors import BundleError
from gateway.qnn.chips import HTP_ARCHITECTURES


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


def no_npu_error() -> BundleError:
    return BundleError(
        f"This machine ({platform.system()} on {platform.machine()}) has no NPU that the QNN provider can use, "
        "and no NPU emulator; use provider = 'cpu'."
    )

"""Which NPU a model is built for when nobody says.

Looking for an NPU loads its driver, and a broken driver takes the process with it; so a child process looks.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.builder.build import Target
from gateway.builder.npu.build import NpuTarget
from gateway.child import run_in_child, serve_request
from gateway.errors import BundleError
from gateway.qnn.provider import NpuDevice


class _Question(Struct, frozen=True):
    """Whether the emulator would do, and the file that gets the answer."""

    emulated: bool
    answer: str


def npu_target(provider: Literal["auto", "cpu", "qnn"]) -> Target | None:
    """The NPU's target if a model with this provider will run on one; None: the CPU's.

    Raises BundleError when `qnn` is asked for and there is neither an NPU nor its emulation.
    """
    match provider:
        case "cpu":
            return None
        case "auto":
            device = look_for_npu() if may_have_npu() else None
            return default_target(device) if device else None
        case "qnn":
            if device := look_for_npu(emulated=True):
                return default_target(device)
            raise BundleError("This machine has no NPU that the QNN provider can drive, nor its emulation.")


def default_target(device: NpuDevice) -> NpuTarget:
    """One context, float16, one part: right for a model of a few hundred million weights."""
    if device.kind == "emulated":
        return NpuTarget(device=device, contexts=(512,), width=32)
    return NpuTarget(device=device, contexts=(2048,), width=128)


def may_have_npu(system: str = sys.platform, machine: str = platform.machine()) -> bool:
    """Snapdragon laptops run Windows on ARM; an x64 Python there says AMD64, and finds its NPU only when asked to."""
    return system == "win32" and machine.upper() == "ARM64"


def look_for_npu(*, emulated: bool = False) -> NpuDevice | None:
    """The NPU, or with `emulated` what stands in for it; None when there is none or its driver crashes."""
    try:
        return ask_for_npu(emulated=emulated)
    except BundleError:
        return None


def ask_for_npu(*, emulated: bool) -> NpuDevice | None:
    """As `look_for_npu`, but raises BundleError when the process that asks the driver crashes."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        question = _Question(emulated=emulated, answer=str(Path(folder) / "answer.json"))
        run_in_child(__name__, question, "the NPU's driver")
        return msgspec.json.decode(Path(question.answer).read_bytes(), type=NpuDevice | None)


def _look(question: _Question) -> None:
    from gateway.qnn.provider import emulated_npu, find_npu

    device = find_npu() or (emulated_npu() if question.emulated else None)
    Path(question.answer).write_bytes(msgspec.json.encode(device))


if __name__ == "__main__":
    sys.exit(serve_request(_Question, _look))

"""Detects the NPU in a child process: a broken driver can crash the process that loads it."""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.child import run_in_child, serve_request
from gateway.errors import BundleError
from gateway.qnn.provider import NpuDevice, emulated_npu, find_npu


class _Request(Struct, frozen=True):
    """`emulated`: accept the emulator. `answer`: the file for the device, as JSON."""

    emulated: bool
    answer: str


def may_have_npu(system: str = sys.platform, machine: str = platform.machine()) -> bool:
    """True on Windows on ARM. An x64 Python reports AMD64 there, and then needs `provider = "qnn"`."""
    return system == "win32" and machine.upper() == "ARM64"


def detect_npu(*, emulated: bool) -> NpuDevice | None:
    """The real NPU, else with `emulated` the emulator, else None. Raises BundleError when the driver crashes."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        request = _Request(emulated=emulated, answer=str(Path(folder) / "answer.json"))
        run_in_child(__name__, request, "the NPU's driver")
        return msgspec.json.decode(Path(request.answer).read_bytes(), type=NpuDevice | None)


def try_detect_npu(*, emulated: bool = False) -> NpuDevice | None:
    """As `detect_npu`, but None when the driver crashes."""
    try:
        return detect_npu(emulated=emulated)
    except BundleError:
        return None


def _detect(request: _Request) -> None:
    device = find_npu() or (emulated_npu() if request.emulated else None)
    Path(request.answer).write_bytes(msgspec.json.encode(device))


if __name__ == "__main__":
    sys.exit(serve_request(_Request, _detect))

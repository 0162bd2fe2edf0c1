"""Whether this Python is made for the processor of this machine.

Windows on ARM also runs programs for x64, in emulation. An x64 Python works there, but it cannot load the libraries for
the NPU, and each answer is several times slower.
"""

from __future__ import annotations

import platform
import struct
import sys
import sysconfig

from msgspec import Struct

DOWNLOAD = "https://www.python.org/downloads/windows/"
#: IMAGE_FILE_MACHINE_* of the Windows API (winnt.h) -> name
_MACHINES = {0xAA64: "ARM64", 0x8664: "AMD64", 0x014C: "x86"}


class Interpreter(Struct, frozen=True, kw_only=True):
    """Args:
    built_for: `sysconfig.get_platform()`: "win-arm64", "win-amd64", "linux-x86_64".
    host: the machine's own processor architecture, "ARM64" or "AMD64"; "": not known.
    """

    version: str
    bits: int
    built_for: str
    host: str
    path: str

    @property
    def is_emulated(self) -> bool:
        """True if an ARM64 machine emulates another processor for this Python."""
        return self.host == "ARM64" and self.built_for.startswith("win") and self.built_for != "win-arm64"

    @property
    def problem(self) -> str:
        """One sentence and the next step; "" if it is right."""
        if self.is_emulated:
            kind = "x64" if self.built_for == "win-amd64" else self.built_for
            return (
                f"this Python is made for {kind}, and this machine is ARM64, so the NPU cannot be used. Install the "
                f"ARM64 Python from {DOWNLOAD} and make the environment again with it"
            )
        if self.bits != 64:
            return f"this Python has {self.bits} bits, and the gateway needs 64. Install a 64-bit Python"
        return ""


def this_interpreter() -> Interpreter:
    return Interpreter(
        version=platform.python_version(),
        bits=struct.calcsize("P") * 8,
        built_for=sysconfig.get_platform(),
        host=_native_machine() or platform.machine(),
        path=sys.executable,
    )


if sys.platform == "win32":

    def _native_machine() -> str:
        """By IsWow64Process2, which is right in an emulated program too; "" before Windows 10 1709."""
        import ctypes
        from ctypes import wintypes

        kernel = ctypes.WinDLL("kernel32")
        query = getattr(kernel, "IsWow64Process2", None)
        if query is None:
            return ""
        kernel.GetCurrentProcess.restype = wintypes.HANDLE
        query.argtypes = (wintypes.HANDLE, ctypes.POINTER(wintypes.USHORT), ctypes.POINTER(wintypes.USHORT))
        process, native = wintypes.USHORT(), wintypes.USHORT()
        found = query(kernel.GetCurrentProcess(), ctypes.byref(process), ctypes.byref(native))
        return _MACHINES.get(native.value, hex(native.value)) if found else ""

else:

    def _native_machine() -> str:
        return ""

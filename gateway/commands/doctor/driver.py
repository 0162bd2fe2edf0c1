"""The NPU and its driver, from the registry of Windows and from the library that uses it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from msgspec import Struct

from gateway.commands.doctor.finding import Finding
from gateway.errors import BundleError

#: The device class of NPUs: "MCDM devices belong to the ComputeAccelerator class" (learn.microsoft.com,
#: mcdm-implementation-guidelines).
_CLASS = r"SYSTEM\CurrentControlSet\Control\Class\{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}"
_UPDATE = "install the NPU's driver: Windows Update > Advanced options > Optional updates, or the laptop's vendor"


class Driver(Struct, frozen=True, kw_only=True):
    """A device of the class, as Windows shows it in its device manager."""

    name: str
    version: str  # "30.0.220.3000"
    date: str
    vendor: str

    @property
    def is_hexagon(self) -> bool:
        return "hexagon" in self.name.lower() or "qualcomm" in f"{self.name} {self.vendor}".lower()


if sys.platform == "win32":
    import winreg

    def installed_drivers() -> list[Driver] | None:
        """The drivers of NPUs."""
        found = []
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _CLASS) as key:
                for index in range(winreg.QueryInfoKey(key)[0]):
                    name = winreg.EnumKey(key, index)
                    if name.isdecimal():  # "0000"; the others need the rights of the system
                        found.append(_read(key, name))
        except OSError:  # no device of this class was ever installed
            return found
        return found

    def _read(key: winreg.HKEYType, name: str) -> Driver:
        with winreg.OpenKey(key, name) as driver:

            def value(field: str) -> str:
                try:
                    return str(winreg.QueryValueEx(driver, field)[0])
                except OSError:
                    return ""

            return Driver(
                name=value("DriverDesc"),
                version=value("DriverVersion"),
                date=value("DriverDate"),
                vendor=value("ProviderName"),
            )

else:

    def installed_drivers() -> list[Driver] | None:
        """None: this system has no registry."""
        return None


def driver_findings(drivers: Sequence[Driver] | None, is_arm: bool) -> Iterator[Finding]:
    """Args:
    drivers: those of the registry; None: not Windows.
    is_arm: Windows on an ARM64 machine, which should have an NPU.
    """
    if drivers is None:
        return
    hexagon = [driver for driver in drivers if driver.is_hexagon]
    for driver in hexagon:
        yield Finding("ok", "NPU driver", f"{driver.name}, {driver.version} of {driver.date}")
    if not hexagon and is_arm:
        other = f"; Windows has only {drivers[0].name}" if drivers else ""
        because = f"Windows has no driver for a Hexagon NPU{other}"
        yield Finding("bad", "NPU driver", because, "driver", because, _UPDATE, "not on the NPU")
    elif not hexagon:
        yield Finding("note", "NPU driver", "none: this machine has no Hexagon NPU")


def npu(is_arm: bool) -> Iterator[Finding]:
    """The device of `provider = "qnn"`, by the real driver in a child process. Takes a second."""
    from gateway.qnn.detect import detect_npu
    from gateway.qnn.device import runtime_version

    try:
        device = detect_npu(emulated=True)
    except BundleError as error:
        yield Finding("bad", "NPU", error.message, "driver", error.message, _UPDATE, "not on the NPU")
        return
    if device is None and is_arm:
        because = "the NPU library finds no NPU"
        yield Finding("bad", "NPU", because, "driver", because, _UPDATE, "not on the NPU")
    elif device is None:
        yield Finding("note", "NPU", "none; models run on the CPU")
    elif device.kind == "emulated":
        yield Finding("note", "NPU", f"none; provider 'qnn' would use slow {device.name}, 'auto' takes the CPU")
    else:
        version = f"Hexagon v{device.architecture}" if device.architecture else "unknown Hexagon version"
        yield Finding("ok", "NPU", f"{device.name}, {version}, QAIRT {runtime_version() or 'unknown'}")

"""The facts of a machine that a measurement depends on."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from gateway import __version__

_LIBRARIES = ("onnxruntime", "onnxruntime-qnn")


def machine_facts() -> dict[str, str | int | float]:
    import psutil

    facts: dict[str, str | int | float] = {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "free_memory_bytes": psutil.virtual_memory().available,
        "python": f"{platform.python_version()} {sys.implementation.name}",
        "npu_gateway": __version__,
    }
    for library in _LIBRARIES:
        with suppress(PackageNotFoundError):
            facts[library] = version(library)
    with suppress(AttributeError, OSError):  # no battery, or no way to read it
        battery = psutil.sensors_battery()
        facts |= {"power": "mains" if battery.power_plugged else "battery"} if battery else {}
    return facts

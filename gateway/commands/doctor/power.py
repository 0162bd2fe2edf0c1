"""What makes a laptop slower: battery saver, a slow power mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from msgspec import Struct

from gateway.commands.doctor.finding import Finding

#: EFFECTIVE_POWER_MODE of the Windows API (powersetting.h) -> name
_MODES = (
    "battery saver",
    "better battery",
    "balanced",
    "high performance",
    "best performance",
    "game mode",
    "mixed reality",
)
_SLOW_MODES = ("battery saver", "better battery", "low-power", "quiet")


class Power(Struct, frozen=True, kw_only=True):
    """`plugged`: None without a battery. `mode`: as the system names it; "": not known."""

    plugged: bool | None = None
    percent: float | None = None
    mode: str = ""


def power_findings(power: Power) -> Iterator[Finding]:
    if power.plugged is None and not power.mode:
        return
    battery = (
        "" if power.plugged is None else "on mains" if power.plugged else f"on battery, {power.percent or 0:.0f} %"
    )
    detail = ", ".join(filter(None, (battery, power.mode and f"power mode: {power.mode}")))
    if power.mode in _SLOW_MODES:
        step = "choose a faster power mode in the settings of the system, and connect the charger"
        yield Finding("note", "power", detail, "power", f"the power mode is '{power.mode}'", step)
    elif power.plugged is False:
        yield Finding("note", "power", detail, "power", "the laptop runs on battery", "connect the charger")
    else:
        yield Finding("ok", "power", detail)


def read_power() -> Power:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None:
        return Power(mode=_mode())
    return Power(plugged=battery.power_plugged, percent=battery.percent, mode=_mode())


if sys.platform == "win32":

    def _mode() -> str:
        """By PowerRegisterForEffectivePowerModeNotifications, which calls back once at registration."""
        import ctypes
        import threading
        from ctypes import wintypes

        found, came = [-1], threading.Event()

        def receive(mode: int, context: object) -> None:
            found[0] = mode
            came.set()

        callback = ctypes.WINFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)(receive)
        library, handle = ctypes.WinDLL("powrprof"), ctypes.c_void_p()
        register = getattr(library, "PowerRegisterForEffectivePowerModeNotifications", None)
        if register is None:
            return ""
        register.argtypes = (wintypes.ULONG, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
        register.restype = ctypes.c_long
        if register(2, ctypes.cast(callback, ctypes.c_void_p), None, ctypes.byref(handle)):
            return ""
        came.wait(2.0)
        unregister = library.PowerUnregisterFromEffectivePowerModeNotifications
        unregister.argtypes = (ctypes.c_void_p,)
        unregister(handle)  # returns when no callback runs any more
        return _MODES[found[0]] if 0 <= found[0] < len(_MODES) else ""

else:

    def _mode() -> str:
        """The platform profile of Linux; "" if the machine has none."""
        try:
            return Path("/sys/firmware/acpi/platform_profile").read_text(encoding="ascii").strip()
        except OSError:
            return ""

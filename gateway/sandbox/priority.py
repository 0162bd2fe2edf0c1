"""The priority of a thread that works for long next to the threads of the device."""

from __future__ import annotations

import os
import sys
import threading

from gateway.sandbox.child import BACKGROUND

_BELOW_NORMAL = -1  # THREAD_PRIORITY_BELOW_NORMAL


def lower_thread_priority() -> None:
    """The calling thread gives way to others when the machine is busy. Other systems than Windows and Linux keep it."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.WinDLL("kernel32")
        kernel.GetCurrentThread.restype = ctypes.c_void_p
        kernel.SetThreadPriority(ctypes.c_void_p(kernel.GetCurrentThread()), _BELOW_NORMAL)
    elif sys.platform == "linux":
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(own, BACKGROUND))

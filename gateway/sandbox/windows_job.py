"""A Windows Job Object: limits the memory of a process, and ends the process with its parent.

The same protection on POSIX is `resource.setrlimit` in the child.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_EXTENDED_LIMITS = 9  # JobObjectExtendedLimitInformation
_DIE_ON_UNHANDLED_EXCEPTION = 0x400
_PROCESS_MEMORY = 0x100
_KILL_ON_JOB_CLOSE = 0x2000
_SET_QUOTA_AND_TERMINATE = 0x0101


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


def confine(pid: int, max_bytes: int) -> Callable[[], None]:
    """Put a process into a new job. Returns the function that closes the job, which also ends the process.

    Does nothing on other systems. If Windows refuses, the limits that the parent enforces are the only ones.
    """
    if sys.platform != "win32":
        return lambda: None
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    for name in ("CreateJobObjectW", "OpenProcess"):
        getattr(kernel, name).restype = ctypes.c_void_p
    limits = _ExtendedLimits(ProcessMemoryLimit=max_bytes)
    limits.BasicLimitInformation.LimitFlags = _PROCESS_MEMORY | _KILL_ON_JOB_CLOSE | _DIE_ON_UNHANDLED_EXCEPTION
    job = ctypes.c_void_p(kernel.CreateJobObjectW(None, None))
    process = ctypes.c_void_p(kernel.OpenProcess(_SET_QUOTA_AND_TERMINATE, False, pid))
    kernel.SetInformationJobObject(job, _EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits))
    kernel.AssignProcessToJobObject(job, process)
    kernel.CloseHandle(process)

    def close() -> None:
        kernel.CloseHandle(job)

    return close

"""The number of threads of a model on the CPU. Needs no native library."""

from __future__ import annotations

import os
import platform
from pathlib import Path

MAX_THREADS = (
    8  # on 16 cores, 8 are 1.2 to 1.7 times as fast as 4, and 12 at most 1.3 times as fast as 8 (docs/benchmarks.md)
)


def default_threads() -> int:
    """One thread for each physical core that this process can use, at most `MAX_THREADS`."""
    return max(1, min(_physical_cores(), MAX_THREADS))


def default_encoder_threads() -> int:
    """Half of the physical cores, at most `MAX_THREADS`: a chat on the CPU goes on next to many texts."""
    return max(1, min(_physical_cores() // 2, MAX_THREADS))


def _physical_cores() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cpus // 2 if _has_two_threads_per_core() else cpus


def _has_two_threads_per_core() -> bool:
    """Linux reports it. Elsewhere the assumption is: x86 has two, ARM has one."""
    try:
        return Path("/sys/devices/system/cpu/smt/active").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return platform.machine().lower() in ("amd64", "x86_64")

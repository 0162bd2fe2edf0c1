"""SIGTERM for the first process of a container."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ends_at_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program, with exit code 143, if it is process 1, for which Linux ignores a signal without a
    handler. A server that runs has its own handler."""
    if sys.platform == "win32" or os.getpid() != 1:
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(sig: int, frame: FrameType | None) -> None:
    sys.exit(128 + sig)

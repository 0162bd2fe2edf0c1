"""SIGTERM for the first process of a container."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def end_at_sigterm() -> None:
    """Let SIGTERM end the program at once, with exit code 143: Linux ignores it for process 1 without a handler.

    A server that runs has its own handler.
    """
    if sys.platform != "win32" and os.getpid() == 1:
        signal.signal(signal.SIGTERM, _end)


def _end(sig: int, frame: FrameType | None) -> None:
    os._exit(128 + sig)  # an exception could be caught

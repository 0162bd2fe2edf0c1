"""SIGHUP: the terminal is closed, or a request to reload the configuration."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: From SIGHUP to the look at the terminal: Linux can send the signal shortly before it takes the terminal away.
SETTLE_S = 0.5


class Terminal:
    """The terminal that controlled this process when the object was made."""

    def __init__(self) -> None:
        self._was_there = _has_terminal()

    @property
    def is_closed(self) -> bool:
        """True if there was one and it is gone. A service has none from the start."""
        return self._was_there and not _has_terminal()


def _has_terminal() -> bool:
    if sys.platform == "win32":
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


@contextmanager
def on_hangup(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """`handler` for SIGHUP. Not under `nohup`, which ignores the signal."""
    is_main = threading.current_thread() is threading.main_thread()
    if sys.platform == "win32" or not is_main or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def hangup_before_start() -> Iterator[None]:
    """SIGHUP reloads nothing before the gateway runs: it only writes a line. If the terminal is closed, it ends it."""
    terminal = Terminal()

    def hung_up(sig: int, frame: FrameType | None) -> None:
        time.sleep(SETTLE_S)
        if terminal.is_closed:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        with suppress(OSError):  # a print in a signal handler can be inside of another
            os.write(2, b"the gateway is not running yet, so SIGHUP has no effect: send it again when it runs\n")

    with on_hangup(hung_up):
        yield

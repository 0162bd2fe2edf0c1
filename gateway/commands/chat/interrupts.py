"""Lets Ctrl-C end the wait for a key at once, also if it comes just before the wait begins. Not on Windows.

Python's C function for Ctrl-C sets a flag, and a wait that the signal interrupts looks at the flag. A signal between
the last look and the wait interrupts nothing, so `input` with readline goes on until the next one: 6 of 400 on a busy
machine. So a thread sends the main thread a signal without an effect: 0 of 500.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

_PAUSES_S = (0.1, 0.3, 1.0, 3.0)  # after Ctrl-C; a busy machine can begin the wait late


def repeat_interrupts() -> None:
    """Call it once, in the main thread."""
    if sys.platform == "win32":
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGUSR2, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_repeat, args=(reader,), name="interrupts", daemon=True).start()


def _repeat(reader: int) -> None:
    while number := os.read(reader, 1):
        if sys.platform != "win32" and number[0] == signal.SIGINT:
            for pause_s in _PAUSES_S:
                time.sleep(pause_s)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

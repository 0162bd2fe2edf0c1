"""The child process that compares a bundle with its hashes while the gateway serves: `-m gateway.bundles.idle_check`.

It has the lowest priority for processor and disk, so it does not delay the device. A thread cannot have that: it would
hold the interpreter's lock while it waits for a processor. It writes the damages to stdout as JSON, and ends when its
stdin closes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from gateway.bundles.hashes import check_hashes


def lower_priority() -> None:
    process = psutil.Process()
    with suppress(OSError, psutil.Error):
        if sys.platform == "win32":
            process.nice(psutil.IDLE_PRIORITY_CLASS)
            process.ionice(psutil.IOPRIO_VERYLOW)
        else:
            process.nice(19)
            if sys.platform == "linux":
                process.ionice(psutil.IOPRIO_CLASS_IDLE)


def _end_with_gateway() -> None:
    os.read(0, 1)  # not sys.stdin: the interpreter aborts if a thread holds its lock at exit
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group
    lower_priority()
    threading.Thread(target=_end_with_gateway, daemon=True).start()
    sys.stdout.buffer.write(msgspec.json.encode(check_hashes(Path(sys.argv[1]), quick=True) or []))

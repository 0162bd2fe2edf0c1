"""The worker's end of the pipe: receive frames, and report why the worker ends.

The workers of both kinds of bundle use it. It imports no native library.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

from gateway.worker.failures import as_gateway_error, failed_frame
from gateway.worker.frames import Message, Shutdown, ToWorker, decode_to_worker, encode

_ORPHAN_GRACE_S = 5.0  # time for a running device call to return after the gateway has ended


def run_worker(connection: Connection, work: Callable[[Callable[[Message], None]], None]) -> None:
    """Call `work` with the function that sends messages. If it raises, send the error as Failed(id=None)."""
    _ignore_signals()

    def emit(frame: Message) -> None:
        connection.send_bytes(encode(frame))

    with suppress(OSError):  # the gateway has ended: no process reads the pipe
        try:
            work(emit)
        except Exception as error:
            emit(failed_frame(None, as_gateway_error(error)))


def receive(connection: Connection, deliver: Callable[[ToWorker], None]) -> None:
    """Deliver frames until the gateway has ended. Then deliver Shutdown, and exit after a grace period."""
    try:
        while True:
            deliver(decode_to_worker(connection.recv_bytes()))
    except (EOFError, OSError):
        deliver(Shutdown())
        time.sleep(_ORPHAN_GRACE_S)
        os._exit(1)  # a device call that does not return must not keep the model in memory


def _ignore_signals() -> None:
    """A console, a supervisor or a container signals the whole process group. The gateway needs this process to finish
    the running answers. It ends the worker with a Shutdown frame, or kills it."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # SIGBREAK: Ctrl-Break on Windows
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)

"""Tasks for the tests of the sandbox: run in the child process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any


def open_task(setup: Any) -> tuple[bytes, Callable[[bytes], bytes]]:
    if setup == "endless":
        _spin()
    if setup == "exit":
        os._exit(3)
    print("noise on stdout", flush=True)
    return f"ready {setup}".encode(), handle


def handle(message: bytes) -> bytes:
    match message.split():
        case [b"spin"]:
            _spin()
        case [b"sleep"]:
            time.sleep(3600)
        case [b"allocate"]:
            return str(len(bytearray(8 << 30))).encode()
        case [b"touch"]:
            kept = [os.urandom(1 << 20) for _ in range(4096)]
            return str(len(kept)).encode()
        case [b"compare"]:  # in C, with the interpreter lock: no thread of this process can run
            left: list[Any] = [0]
            right: list[Any] = [0]
            for _ in range(60):
                left, right = [left, left], [right, right]
            return str(left == right).encode()
        case [b"exit"]:
            os._exit(3)
        case [b"fail"]:
            raise ValueError("a bug")
        case [b"huge"]:
            os.write(_replies(), b"\xff" * 12)
        case [b"cpu"]:
            end = time.process_time() + 0.2
            while time.process_time() < end:
                pass
        case [b"modules"]:
            return " ".join(sorted(sys.modules)).encode()
    print("more noise", flush=True)
    return message


def _spin() -> None:
    while True:
        pass


def _replies() -> int:
    """The descriptor of the replies: the duplicate of stdout."""
    return next(fd for fd in range(3, 20) if _is_pipe(fd))


def _is_pipe(fd: int) -> bool:
    import stat

    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False

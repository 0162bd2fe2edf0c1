"""The child's side of a `Sandbox`. It runs as a script, not as a module of the package.

Frames on stdin: a length (4 bytes, little-endian), then that number of bytes. Frames on stdout: the byte TAKEN, then a
length, the processor seconds of the process so far (8 bytes), and the bytes. TAKEN is sent when the length of the
request has been read, so if the process ends, the parent knows whether it had begun with the request. The first frame
on stdout is the process id. The first frame on stdin is the `Start`, as JSON; its reply is STARTED and the reply of the
task's setup, or NOT_STARTED and the reason why the task cannot be imported.

The process ends when stdin closes. If the parent is killed during a task, the limit of processor time ends the process
(POSIX), or the job (Windows).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

REQUEST = struct.Struct("<I")
TAKEN = b"\x01"  # the first byte of a reply
REPLY = struct.Struct("<Id")
STARTED, NOT_STARTED = b"+", b"-"  # the first byte of the setup's reply; after NOT_STARTED comes the reason

BACKGROUND = 10  # the nice value: a tenth of the processor time of a process that competes
#: Answers one request.
Handler = Callable[[bytes], bytes]
_STACK_BYTES = 16 * 1024 * 1024
_SPARE_CPU_S = 5  # the parent ends a task first, and knows why


def main() -> None:
    for name in (
        "SIGINT",
        "SIGTERM",
        "SIGHUP",
        "SIGBREAK",
    ):  # the whole process group gets them; the parent ends this process
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    if "background" in sys.argv and sys.platform != "win32":  # on Windows the parent lowers the priority
        own = os.getpriority(os.PRIO_PROCESS, 0)  # inherited from the thread that started this process
        os.setpriority(os.PRIO_PROCESS, 0, max(own, BACKGROUND))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is not a reply
    threading.stack_size(_STACK_BYTES)
    _in_thread(_set_up, sys.stdin.buffer, replies)
    os._exit(0)


def _in_thread(work: Callable[..., None], *arguments: object) -> None:
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    thread.join()


def _set_up(requests: BinaryIO, replies: BinaryIO) -> None:
    replies.write(TAKEN)
    _send(replies, str(os.getpid()).encode())
    if (first := _receive(requests, replies)) is None:
        return
    start = json.loads(first)
    sys.path[:] = start["path"]
    _limit_memory(start["address_bytes"])
    _limit_cpu(start["start_cpu_s"])
    module, _, name = start["task"].partition(":")
    try:
        task = getattr(importlib.import_module(module), name)
    except (ImportError, OSError) as error:  # the packages are gone, as after an upgrade in place
        _send(replies, NOT_STARTED + str(error).encode())
        return
    reply, handle = task(start["setup"])
    _send(replies, STARTED + reply)
    _give_back_memory()
    # A thread has a separate heap on Linux. This one is not fragmented by the setup: tokenizing takes half the time.
    _in_thread(_serve, requests, replies, handle, start["cpu_s"])


def _serve(requests: BinaryIO, replies: BinaryIO, handle: Handler, cpu_s: float) -> None:
    while (request := _receive(requests, replies)) is not None:
        _limit_cpu(cpu_s)
        _send(replies, handle(request))


def _receive(requests: BinaryIO, replies: BinaryIO) -> bytes | None:
    header = requests.read(REQUEST.size)
    if len(header) < REQUEST.size:
        return None
    replies.write(TAKEN)
    replies.flush()
    (size,) = REQUEST.unpack(header)
    body = requests.read(size)
    return body if len(body) == size else None


def _send(replies: BinaryIO, body: bytes) -> None:
    replies.write(REPLY.pack(len(body), time.process_time()))
    replies.write(body)
    replies.flush()


def _give_back_memory() -> None:
    """Give what the setup has freed back to the system: glibc keeps it. A tokenizer frees as much as it keeps."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _limit_memory(address_bytes: int) -> None:
    if sys.platform != "win32":  # on Windows the parent puts the process into a job
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu(cpu_s: float) -> None:
    """End the process some seconds after the task's limit."""
    if sys.platform != "win32":
        import resource

        _, highest = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + cpu_s) + _SPARE_CPU_S, highest))


if __name__ == "__main__":
    main()

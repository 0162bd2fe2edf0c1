"""One process of a `Sandbox`, and the thread that reads its replies.

The operating system limits the memory: RLIMIT_AS, or a Job Object on Windows. This process watches the processor time,
the wall time and the resident memory, because they need a look only if a request takes long.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import psutil

from gateway.sandbox.child import NOT_STARTED, REPLY, REQUEST, STARTED, TAKEN
from gateway.sandbox.windows_job import confine

_SCRIPT = Path(__file__).with_name("child.py")
_READER_S = 1.0  # for the thread of a process that has ended
BUSY_RETRY_S = 10.0  # after SandboxLate
_LOOK_S = 0.05  # a request that takes longer is watched
_HEADER_BYTES = len(TAKEN) + REPLY.size
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # only Windows has it
_BELOW_NORMAL = getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0)  # child.py does it on other systems
_MAX_REPLY = 64 * 1024 * 1024  # bytes


class Limits(NamedTuple):
    """Of one request, and, except for the processor time, of the setup of the process.

    `cpu_s` is processor time, which does not depend on the load of the machine. `wall_s` is for a process that waits.
    `address_bytes` counts all memory that the process reserves, with the code of its libraries.
    """

    cpu_s: float
    wall_s: float
    resident_bytes: int
    address_bytes: int
    start_cpu_s: float = 30.0  # of the setup: it reads files of any size


class SandboxLimit(Exception):
    """A request exceeded a limit, or ended the process. The text completes "it ..."."""


class SandboxLate(SandboxLimit):
    """The wall time passed first: the system gave the process too little processor time, or it waits."""


class NotTaken(Exception):
    """The process has ended, and had not begun with the request."""


class _Reply(NamedTuple):
    body: bytes
    cpu_s: float  # of the process, since it started


class _End(NamedTuple):
    was_taken: bool  # the process had begun with a request


class SandboxProcess:
    """For one thread, except `close`. Raises OSError, RuntimeError or MemoryError if the system gives no process."""

    def __init__(self, address_bytes: int, is_background: bool) -> None:
        self.first = b""  # the reply of the setup
        self.pid: int | None = None
        self._is_over = False
        self._is_set_up = False
        self._address_bytes = address_bytes
        self._cpu_s = 0.0  # at the last reply
        self._replies: SimpleQueue[_Reply | _End] = SimpleQueue()
        self._leave_job: Callable[[], None] = lambda: None
        # -P: do not import this folder's modules in place of others with the same name
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), *(["background"] if is_background else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=_NO_WINDOW | (_BELOW_NORMAL if is_background else 0),
        )
        self._began_at = time.monotonic()
        try:
            self._reader = threading.Thread(target=self._read, name="sandbox reader", daemon=True)
            self._reader.start()
        except RuntimeError:
            self._process.kill()
            self._process.communicate()
            raise

    @property
    def is_over(self) -> bool:
        """Not only `poll`: it returns None while the reader waits for the process."""
        return self._is_over or self._process.poll() is not None

    def wait_for_setup(self, limits: Limits) -> None:
        """Raises SandboxLimit if the setup exceeds a limit or cannot be imported."""
        if not self._is_set_up:
            reply = self._wait(limits._replace(cpu_s=limits.start_cpu_s))
            if reply.startswith(NOT_STARTED):
                raise SandboxLimit(f"reports: {reply.removeprefix(NOT_STARTED).decode(errors='replace')}")
            self.first = reply.removeprefix(STARTED)
            self._is_set_up = True

    def exchange(self, message: bytes, limits: Limits) -> bytes:
        """Send a request and wait for its reply. Raises SandboxLimit, NotTaken."""
        self._began_at = time.monotonic()
        self.send(message)
        return self._wait(limits)

    def close(self) -> None:
        """Kill the process. Returns when it is gone."""
        self._is_over = True
        self._process.kill()
        self._process.wait()
        self._reader.join(_READER_S)

    def send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # the process is gone: the reader reports it
            self._process.stdin.write(REQUEST.pack(len(message)))
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def _wait(self, limits: Limits) -> bytes:
        while True:
            try:
                reply = self._replies.get(timeout=_LOOK_S)
            except Empty:
                self._check(limits)
                continue
            if isinstance(reply, _End):
                if not reply.was_taken:
                    raise NotTaken("ended before the request")
                raise SandboxLimit(f"ended the process, or took more than {limits.address_bytes >> 20} MiB")
            self._cpu_s = reply.cpu_s
            return reply.body

    def _check(self, limits: Limits) -> None:
        cpu_s, resident_bytes = self._usage()
        if cpu_s - self._cpu_s > limits.cpu_s:
            raise SandboxLimit(f"took more than {limits.cpu_s:g} seconds of processor time")
        if resident_bytes > limits.resident_bytes:
            raise SandboxLimit(f"took more than {limits.resident_bytes >> 20} MiB")
        if time.monotonic() - self._began_at > limits.wall_s:
            raise SandboxLate(f"took more than {limits.wall_s:g} seconds")

    def _usage(self) -> tuple[float, int]:
        """Processor seconds and resident bytes. On Windows, Popen.pid can be the launcher of a virtual environment."""
        try:
            process = psutil.Process(self.pid or self._process.pid)
            times = process.cpu_times()
            return times.user + times.system, int(process.memory_info().rss)
        except psutil.Error:
            return 0.0, 0  # it has just ended

    def _read(self) -> None:
        """Queue the replies, then an _End when the process has ended."""
        pipe = self._process.stdout
        assert pipe is not None
        while len(header := pipe.read(_HEADER_BYTES)) == _HEADER_BYTES:
            size, cpu_s = REPLY.unpack_from(header, len(TAKEN))
            body = pipe.read(size) if size <= _MAX_REPLY else b""
            if len(body) != size:
                break
            if self.pid is None:
                self.pid = int(body)
                self._leave_job = confine(self.pid, self._address_bytes)
            else:
                self._replies.put(_Reply(body, cpu_s))
        self._is_over = True
        self._process.kill()
        self._process.wait()
        self._replies.put(_End(was_taken=bool(header)))
        self._leave_job()
        for stream in (pipe, self._process.stdin):
            with suppress(OSError, ValueError):  # a request that was not sent
                assert stream is not None
                stream.close()

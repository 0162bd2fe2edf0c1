"""A child process that answers one request after another, each within limits of time and memory.

For work on untrusted input whose cost has no bound: grammars, chat templates, texts to tokenize. The process stays
between requests, so an ordinary request costs one message each way. A request that exceeds a limit costs the process,
and the next request gets a new one, which starts at once. Something else can kill the process while it is idle, as
systems do when memory is short. The next request does not fail for it: the child reports when it begins with a request,
and one that it had not begun with is sent once more, to a new process. One that may have ended its process is not.

    sandbox = Sandbox("gateway.prompts.encoder:open_task", lambda: {"model": "..."}, Limits(...))
    sandbox.start()
    reply = sandbox.request(b"...")

The operating system limits the memory: RLIMIT_AS, or a Job Object on Windows. This process watches the processor time,
the wall time and the resident memory, because they need a look only if a request takes long.
"""

from __future__ import annotations

import json
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

from gateway.sandbox.child import REPLY, REQUEST, TAKEN
from gateway.sandbox.windows_job import confine

_SCRIPT = Path(__file__).with_name("child.py")
_READER_S = 1.0  # for the thread of a process that has ended
_LOOK_S = 0.05  # a request that takes longer is watched
_HEADER_BYTES = len(TAKEN) + REPLY.size
_CLOSED = "it is closed"
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


class SandboxUnavailable(Exception):
    """The process cannot be started, its setup ended it, or it was closed."""


class _NotTaken(SandboxUnavailable):
    """The process has ended, and had not begun with the request."""


class _Reply(NamedTuple):
    body: bytes
    cpu_s: float  # of the process, since it started


class _End(NamedTuple):
    was_taken: bool  # the process had begun with a request


class Sandbox:
    """Thread-safe: one request at a time, the others wait.

    Args:
        task: "module:function". In the child, the function gets the setup and returns the reply of `start`, and the
            function that answers one request.
        setup: returns the setup, which JSON can express. Called for each process.
        limits: of one request.
        is_background: the process gives way to others when the machine is busy, above all to the device's threads.
    """

    def __init__(self, task: str, setup: Callable[[], object], limits: Limits, *, is_background: bool = False) -> None:
        self._task, self._setup, self._limits = task, setup, limits
        self._is_background = is_background
        self._lock = threading.Lock()  # for one request
        self._starting = threading.Lock()  # `close` does not miss a process that is being started
        self._child: _Child | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The process that answers now. None: there is none, or it has just been started."""
        return self._child.pid if self._child is not None else None

    def start(self) -> bytes:
        """Start the process, if it does not run, and wait for its setup. Returns the reply of the setup.

        Raises SandboxUnavailable.
        """
        with self._lock:
            return self._ready().first

    def request(self, message: bytes, limits: Limits | None = None) -> bytes:
        """Returns the reply. Starts the process if it does not run. `limits`: in place of those of the sandbox.

        Raises SandboxLimit for a request that exceeds a limit, and SandboxUnavailable.
        """
        with self._lock:
            try:
                return self._exchange(message, limits or self._limits)
            except _NotTaken:
                return self._exchange(message, limits or self._limits)

    def close(self) -> None:
        """End the process for good, also during a request. No process is left when this returns."""
        self._is_closed = True
        with self._starting:
            if self._child is not None:
                self._child.close()

    def end(self) -> None:
        """End the process, after the request that runs. The next request starts another."""
        with self._lock:
            if self._child is not None:
                self._child.close()
                self._child = None

    def _exchange(self, message: bytes, limits: Limits) -> bytes:
        child = self._ready()
        try:
            return child.exchange(message, limits)
        except (SandboxLimit, _NotTaken):
            self._require_open()
            child.close()
            with suppress(SandboxUnavailable):  # the next request tries again
                self._spawn()
            raise

    def _ready(self) -> _Child:
        """A process that has been set up."""
        self._require_open()
        child = self._child
        if child is None or child.is_over:  # something else may have killed it
            child = self._spawn()
        try:
            child.wait_for_setup(self._limits)
        except (SandboxLimit, _NotTaken) as error:
            self._require_open()
            child.close()
            raise SandboxUnavailable(f"its start failed: it {error}") from None
        return child

    def _require_open(self) -> None:
        if self._is_closed:
            raise SandboxUnavailable(_CLOSED) from None

    def _spawn(self) -> _Child:
        start = {
            "task": self._task,
            "setup": self._setup(),
            "path": sys.path,
            "address_bytes": self._limits.address_bytes,
            "cpu_s": self._limits.cpu_s,
            "start_cpu_s": self._limits.start_cpu_s,
        }
        try:
            with self._starting:
                self._require_open()
                child = self._child = _Child(self._limits.address_bytes, self._is_background)
        except (OSError, RuntimeError, MemoryError) as error:  # the system gives no process, thread or memory
            raise SandboxUnavailable(f"it cannot be started: {getattr(error, 'strerror', None) or error}") from None
        child.send(json.dumps(start).encode())
        return child


class _Child:
    """One process, and the thread that reads its replies."""

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
        """Raises SandboxLimit if the setup exceeds a limit."""
        if not self._is_set_up:
            self.first = self._wait(limits._replace(cpu_s=limits.start_cpu_s))
            self._is_set_up = True

    def exchange(self, message: bytes, limits: Limits) -> bytes:
        """Send a request and wait for its reply. Raises SandboxLimit, _NotTaken."""
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
                    raise _NotTaken("ended before the request")
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
            raise SandboxLimit(f"took more than {limits.wall_s:g} seconds")

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

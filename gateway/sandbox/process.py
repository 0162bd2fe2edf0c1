"""A child process that answers one request after another, each within limits of time and memory.

For work on untrusted input whose cost has no bound: grammars, chat templates, texts to tokenize. The process stays
between requests, so an ordinary request costs one message each way. A request that exceeds a limit costs the process,
and the next request gets a new one, which starts at once. Something else can kill the process while it is idle, as
systems do when memory is short. The next request does not fail for it: the child reports when it begins with a request,
and one that it had not begun with is sent once more, to a new process. One that may have ended its process is not.

    sandbox = Sandbox("gateway.prompts.encoder:open_task", lambda: {"model": "..."}, Limits(...))
    sandbox.start()
    reply = sandbox.request(b"...")
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from gateway.sandbox.running import Limits, NotTaken, SandboxLimit, SandboxProcess

_CLOSED = "it is closed"


class SandboxUnavailable(Exception):
    """The process cannot be started, its setup ended it, or it was closed."""


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
        self._child: SandboxProcess | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The process that answers now. None: there is none, or it has just been started."""
        return self._child.pid if self._child is not None else None

    def begin(self) -> None:
        """Start the process if it does not run, and do not wait for its setup. Raises SandboxUnavailable."""
        with self._lock:
            if self._child is None:
                self._spawn()

    def start(self) -> bytes:
        """Start the process if it does not run. Returns the reply of its setup. Raises SandboxUnavailable."""
        with self._lock:
            return self._ready().first

    def request(self, message: bytes, limits: Limits | None = None) -> bytes:
        """Returns the reply. Starts the process if it does not run. `limits`: in place of those of the sandbox.

        Raises SandboxLimit for a request that exceeds a limit, and SandboxUnavailable.
        """
        with self._lock:
            try:
                return self._exchange(message, limits or self._limits)
            except NotTaken:
                pass
            try:
                return self._exchange(message, limits or self._limits)
            except NotTaken as error:
                raise SandboxUnavailable(f"it {error}") from None

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
        except (SandboxLimit, NotTaken):
            self._require_open()
            child.close()
            with suppress(SandboxUnavailable):  # the next request tries again
                self._spawn()
            raise

    def _ready(self) -> SandboxProcess:
        """A process that has been set up."""
        self._require_open()
        child = self._child
        if child is None or child.is_over:  # something else may have killed it
            child = self._spawn()
        try:
            child.wait_for_setup(self._limits)
        except (SandboxLimit, NotTaken) as error:
            self._require_open()
            child.close()
            raise SandboxUnavailable(f"its start failed: it {error}") from None
        return child

    def _require_open(self) -> None:
        if self._is_closed:
            raise SandboxUnavailable(_CLOSED) from None

    def _spawn(self) -> SandboxProcess:
        start = self._start_message()
        try:
            with self._starting:
                self._require_open()
                child = self._child = SandboxProcess(self._limits.address_bytes, self._is_background)
        except (OSError, RuntimeError, MemoryError) as error:  # the system gives no process, thread or memory
            raise SandboxUnavailable(f"it cannot be started: {_reason(error)}") from None
        child.send(start)
        return child

    def _start_message(self) -> bytes:
        try:
            setup = self._setup()
        except Exception as error:  # it reads files that can have changed
            raise SandboxUnavailable(f"its setup cannot be read: {_reason(error)}") from error
        start = {"task": self._task, "setup": setup, "path": sys.path, **self._limits._asdict()}
        return json.dumps(start).encode()


def _reason(error: Exception) -> object:
    """Without the path of a file."""
    return getattr(error, "strerror", None) or error

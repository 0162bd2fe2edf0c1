"""A command in a pseudo terminal of a chosen width. Not on Windows."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import PATIENCE_S, environment

#: `python -m gateway` with its standard input as controlling terminal, which sends Ctrl-C as a signal. A `preexec_fn`
#: would do the same between fork and exec, where a process with threads can hang.
_MAIN = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("gateway", run_name="__main__", alter_sys=True)
"""

_AGAIN_S = 60.0  # after a key that had no effect; a busy machine needs less to react, and a second key could do more


class PseudoTerminal:
    """The side of a terminal where a person types and reads."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._seen = 0
        self.output = ""  # everything that was shown

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def type_until(self, key: str, text: str) -> None:
        """Type `key` until `text` is shown: a signal can come just before the process waits for its peer."""
        until = time.monotonic() + PATIENCE_S
        while self.output.find(text, self._seen) < 0:
            assert time.monotonic() < until, f"{text!r} is missing in {self.output[self._seen :]!r}"
            self.type(key)
            pause = time.monotonic() + _AGAIN_S
            while self.output.find(text, self._seen) < 0 and time.monotonic() < pause:
                self._read(pause - time.monotonic())
        self.read_until(text)

    def read_until(self, text: str) -> str:
        """What is shown from the end of the last call up to and with `text`. Fails after PATIENCE_S seconds."""
        until = time.monotonic() + PATIENCE_S
        while (at := self.output.find(text, self._seen)) < 0:
            assert self._read(until - time.monotonic()), f"{text!r} is missing in {self.output[self._seen :]!r}"
        start, self._seen = self._seen, at + len(text)
        return self.output[start : self._seen]

    def wait(self, key: str = "") -> int:
        """Read up to the end of the process. Returns its exit code.

        `key` is typed each minute until then: Python does not see a signal that comes just before readline waits for a
        key, and a person presses it again.
        """
        until = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < until:
            self.type(key)
            pause = time.monotonic() + _AGAIN_S
            while self._read(pause - time.monotonic()):
                pass
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """As a person closes the window."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], max(0.0, timeout_s))
        try:
            data = os.read(self._descriptor, 65536) if ready else b""
        except OSError:  # Linux: the process has closed its side
            data = b""
        self.output += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


@contextmanager
def pseudo_terminal(*arguments: object, cwd: Path, columns: int = 100, **variables: str) -> Iterator[PseudoTerminal]:
    """`npu-gateway ...` with a terminal for its standard streams. Ctrl-C is the character `\\x03`."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    names = {"TERM": "xterm", "COLUMNS": "", "LINES": "", **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", _MAIN, *map(str, arguments)],
        cwd=cwd,
        env=environment(**names),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    terminal = PseudoTerminal(process, ours)
    try:
        yield terminal
    finally:
        process.kill()
        process.wait()
        terminal.close()

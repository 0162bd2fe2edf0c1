"""stdout and stderr of the gateway never block it, also if no program reads them.

A launcher can start the gateway with a pipe and never read it, and a Windows console stops reading while text is
selected. Then a plain write blocks for ever. After `never_block`:

1. `sys.stdout` and `sys.stderr` put their text into a bounded queue. One thread for each writes it. Text is dropped if
   the queue is full; one line with the number of lost lines follows when the reader is back.
2. The descriptors 1 and 2, which child processes inherit, are pipes. One thread for each reads them at once. Text from
   child processes is indented, and its control characters are escaped.
"""

from __future__ import annotations

import atexit
import codecs
import faulthandler
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_WAITING = 2**20  # bytes in a queue
EXIT_S = 1.0  # at the end of the process, for the text that was not written yet
_INDENT = "  "
_END = b"\0"  # of what child processes wrote before the end of this process
_COLLECT_S = 0.02  # lines that come within this time are one write: waking the thread for each took 0.1 ms
_RETRY_S = 0.05  # for a descriptor that is set to non-blocking by another process


def never_block() -> None:
    """Replace stdout and stderr of this process. A stream without its descriptor, or replaced before, stays."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if _owns(stream, descriptor):
            setattr(sys, name, _replace(stream, descriptor))


def escape(text: str) -> str:
    """`text` on one line: control characters, line separators and invisible format characters as `\\x1b`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _notice(lines: int) -> bytes:
    what = "line of output was" if lines == 1 else "lines of output were"
    return f"{time.strftime('%H:%M:%S')} WARNING {lines} {what} lost, because no program read them\n".encode()


class QueuedWriter:
    """Writes to `file` in a thread. `write` returns at once and can be called from a signal handler.

    Args:
        name: of the thread.
        notice: the line about a number of lost lines.
    """

    def __init__(self, file: io.RawIOBase, name: str = "output", notice: Callable[[int], bytes] = _notice) -> None:
        self._file = file
        self._notice = notice
        self._changed = threading.Condition()  # of a reentrant lock
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._dropped_lines = 0
        self._is_idle = True
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def write(self, data: bytes) -> None:
        with self._changed:
            self._is_idle = False
            if self._waiting_bytes + len(data) > MAX_WAITING:
                self._dropped_lines += data.count(b"\n")
            else:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
            self._changed.notify_all()

    def drain(self, limit_s: float) -> bool:
        """Wait until everything is written. False: it took longer than `limit_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_idle, limit_s)

    def _run(self) -> None:
        lost = 0
        while True:
            batch, dropped = self._take()
            lost += dropped + (0 if self._write(batch) else batch.count(b"\n"))
            if lost and self._write(self._notice(lost)):
                lost = 0
            time.sleep(_COLLECT_S)

    def _take(self) -> tuple[bytes, int]:
        """Everything that waits, and the number of lines that were dropped after it."""
        with self._changed:
            self._is_idle = not self._waiting and not self._dropped_lines
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_idle)
            taken = b"".join(self._waiting), self._dropped_lines
            self._waiting, self._waiting_bytes, self._dropped_lines = [], 0, 0
            return taken

    def _write(self, data: bytes) -> bool:
        """False: the reader has gone, or the disk is full."""
        rest = memoryview(data)
        while rest:
            try:
                written = self._file.write(rest)
            except OSError:
                return False
            if not written:
                time.sleep(_RETRY_S)
            rest = rest[written or 0 :]
        return True


class _QueuedStream(io.RawIOBase):
    """What `sys.stdout` and `sys.stderr` write to. The descriptor is the one that child processes inherit."""

    def __init__(self, writer: QueuedWriter, descriptor: int, is_terminal: bool) -> None:
        self._writer, self._descriptor, self._is_terminal = writer, descriptor, is_terminal
        self.name = f"<descriptor {descriptor}>"

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        copy = bytes(data)
        self._writer.write(copy)
        return len(copy)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._is_terminal


def _owns(stream: object, descriptor: int) -> bool:
    """False without a console (pythonw), for a stream of a test, and after `never_block`."""
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream.buffer, _QueuedStream):
        return False
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def _replace(stream: io.TextIOWrapper, descriptor: int) -> io.TextIOWrapper:
    stream.flush()
    file = open(os.dup(descriptor), "wb", buffering=0)  # noqa: SIM115, PTH123 - open until the process ends
    if faulthandler.is_enabled() and descriptor == 2:
        faulthandler.enable(file)  # the pipe's reader is gone when the process crashes
    read_end, write_end = os.pipe()
    os.dup2(write_end, descriptor)
    writer = QueuedWriter(file, f"output {descriptor}")
    ends = threading.Event()
    pump = threading.Thread(target=_pump, args=(read_end, writer, ends), name=f"child output {descriptor}", daemon=True)
    pump.start()

    def finish() -> None:
        os.dup2(file.fileno(), descriptor)
        ends.set()
        os.write(write_end, _END)  # multiprocessing's resource tracker has the pipe until this process is gone
        pump.join(EXIT_S)
        writer.drain(EXIT_S)

    atexit.register(finish)
    queued = _QueuedStream(writer, descriptor, file.isatty())
    return io.TextIOWrapper(queued, stream.encoding, stream.errors, write_through=True)


def _pump(read_end: int, writer: QueuedWriter, ends: threading.Event) -> None:
    """Pass on what child processes, and native libraries of this one, write to the pipe.

    Args:
        ends: set before _END is written, after which nothing is read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    starts_line = True
    is_last = False
    while not is_last and (data := os.read(read_end, 2**16)):
        if is_last := ends.is_set() and data.endswith(_END):
            data = data.removesuffix(_END)
        text = decoder.decode(data)
        lines = [escape(line) for line in text.replace("\r\n", "\n").replace("\t", " ").split("\n")]
        shown = ("\n" + _INDENT).join(lines).removesuffix(_INDENT)
        if text:
            writer.write(((_INDENT if starts_line else "") + shown).encode())
            starts_line = text.endswith("\n")
    os.close(read_end)

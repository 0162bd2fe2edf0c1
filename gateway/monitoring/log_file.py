"""A log file of bounded size. A thread writes it, so that a slow disk delays no request.

1. `gateway.log` is the newest file. When it is full, it becomes `gateway.1.log`, that one `gateway.2.log`, and so on.
   Windows renames no file that another program reads: then the text is copied, and the file starts again from 0 bytes.
2. If the disk is full, or the file cannot be written, one warning goes to the other logs. The lines until it can be
   written again are lost; a line in the file has their number.
3. A second gateway with the same file writes to `gateway-2.log`.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from gateway.monitoring.output import QueuedWriter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MOST_GATEWAYS = 20  # that write their logs to one folder under one name

_log = logging.getLogger(__name__)


class RotatedFile(io.RawIOBase):
    """`write` takes whole lines and never makes the file larger than `max_bytes`, unless one line is.

    Raises OSError if the disk is full or the file cannot be written. The next write opens the file again.

    Args:
        files: the number of files with the older ones.
    """

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._files = files
        self._file: io.FileIO | None = None
        self._is_torn = False  # the last line was not written to its end
        self._has_warned = False

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data).cast("B")
        try:
            written = self._write(view)
        except OSError as error:
            self._close()
            self._warn(error)
            raise
        self._has_warned = False
        return written

    def close(self) -> None:
        self._close()
        super().close()

    def _write(self, view: memoryview) -> int:
        """Write the lines that fit, at least one. Returns the number of bytes."""
        file, size = self._open()
        if size and size + _whole_lines(view, 1) > self._max_bytes:
            self._rotate()
            file, size = self._open()
        part = view[: _whole_lines(view, self._max_bytes - size)]
        if self._is_torn:
            file.write(b"\n")
        written = file.write(part) or 0
        self._is_torn = bytes(part[written - 1 : written]) != b"\n"
        return written

    def _open(self) -> tuple[io.FileIO, int]:
        """The file and its size. It is opened again if it was deleted or moved."""
        if self._file is not None:
            with suppress(FileNotFoundError):
                found = self.path.stat()
                if found.st_ino == os.fstat(self._file.fileno()).st_ino:
                    return self._file, found.st_size
            self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = io.FileIO(self.path, "a", opener=_private)
        return self._file, os.fstat(self._file.fileno()).st_size

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _rotate(self) -> None:
        self._close()
        for number in range(self._files - 1, 0, -1):
            newer = self.path if number == 1 else self._older(number - 1)
            with suppress(OSError):  # none of this number yet, or one that another program reads
                newer.replace(self._older(number))
        if self.path.exists() and self.path.stat().st_size:
            if self._files > 1:
                with suppress(OSError):
                    shutil.copy(self.path, self._older(1))
            os.truncate(self.path, 0)

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("the log file %s cannot be written: %s", self.path, error.strerror or error)


class LogFile:
    """A rotated file with its queue and its thread. `write` returns at once, and never raises.

    Args:
        notice: the line about a number of lost lines.
    """

    def __init__(self, path: Path, max_bytes: int, files: int, notice: Callable[[int], bytes]) -> None:
        self.path, self._lock = _unused(path)
        self._file = RotatedFile(self.path, max_bytes, files)
        self._writer = QueuedWriter(self._file, "log file", notice)
        self.write = self._writer.write
        self.drain = self._writer.drain

    def close(self, limit_s: float) -> None:
        """Write what waits, for at most `limit_s` seconds, and let another gateway use the file."""
        self._writer.drain(limit_s)
        self._lock.release()


def _unused(path: Path) -> tuple[Path, FileLock]:
    """The path, with a number if another gateway writes there. The lock is held until the process ends."""
    for number in range(1, _MOST_GATEWAYS + 1):
        free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        lock = FileLock(path.with_name(f".{free.name}.lock"))
        try:
            free.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:  # an OSError
            continue
        except (OSError, NotImplementedError):  # the first write says why; a file system without locks
            pass
        break
    return free, lock


def _private(path: str, flags: int) -> int:
    """A new file that only this user reads: the log can have prompts."""
    return os.open(path, flags, 0o600)


def _whole_lines(view: memoryview, limit: int) -> int:
    """The bytes of the lines that fit into `limit` bytes; of the first line if it does not."""
    data = bytes(view)
    end = data.rfind(b"\n", 0, max(0, limit)) + 1
    return end or data.find(b"\n") + 1 or len(data)

"""Run files: a running gateway writes where it is, so that the commands of the same user find it.

`DATA/run/PORT.json` is written when the socket listens and removed at the end. A gateway that was killed leaves its
file; readers remove it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from gateway import __version__
from gateway.bundles.disk import data_folder
from gateway.config.file import is_unlisted
from gateway.config.hosts import is_loopback, server_url

_LONGEST = 64 * 1024  # bytes of a run file
_SAME_S = 2.0  # two readings of the time when a process was created differ by less, unless the clock was set

_log = logging.getLogger(__name__)


def _created_at(pid: int | None = None) -> float:
    import psutil  # here: `--help` needs none of it

    return psutil.Process(pid).create_time()


def _since_boot_s(pid: int | None = None) -> float:
    import psutil

    return _created_at(pid) - psutil.boot_time()


class RunFile(Struct, frozen=True, kw_only=True):
    """One running gateway. Only its user can read the file, because of `token`."""

    url: str  # for clients on this machine, without a path: "http://127.0.0.1:8400"
    host: str  # that it listens on
    port: Annotated[int, Meta(ge=1, le=65535)]
    config_file: str = ""
    log_file: str = ""  # "": it writes none
    pid: Annotated[int, Meta(ge=1)] = field(default_factory=os.getpid)
    created_at: float = field(default_factory=_created_at)  # the process, Unix time
    since_boot_s: float = field(default_factory=_since_boot_s)  # the same from the start of the system
    started_at: float = field(default_factory=time.time)  # when it listened, Unix time
    version: str = __version__
    python: str = sys.executable
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))  # POST /gateway/stop takes it


def run_folder() -> Path:
    return data_folder() / "run"


@contextmanager
def announced(run: RunFile) -> Iterator[None]:
    """Keep the run file while the block runs. A folder that cannot be written is only a warning."""
    if is_unlisted():
        yield
        return
    file = run_folder() / f"{run.port}.json"
    content = msgspec.json.format(msgspec.json.encode(run), indent=2)
    try:
        _write(file, content)
    except OSError as error:
        reason = f"{file} cannot be written: {error.strerror or error}"
        _log.warning("other commands will not find this gateway without --url: %s", reason)
    try:
        yield
    finally:
        _remove(file, content)


def running_gateways() -> list[RunFile]:
    """The gateways of this user that run now, by port. Removes the files of those that ended.

    Commands send an API key and prompts to these addresses. So a file counts only if this user wrote it, and if its
    address is of this machine.
    """
    found = []
    with suppress(OSError):
        for file in sorted(run_folder().glob("*.json")):
            # removed meanwhile, written by another version, or not by a gateway
            with suppress(OSError, ValueError, msgspec.MsgspecError):
                content = _read(file)
                run = msgspec.json.decode(content, type=RunFile)
                if not _is_here(run):
                    continue
                if is_alive(run):
                    found.append(run)
                else:
                    _remove(file, content)
    return sorted(found, key=lambda run: run.port)


def _read(file: Path) -> bytes:
    """The content of a run file. Raises OSError, ValueError."""
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LONGEST:
        raise ValueError(f"{file} is not a run file")
    if sys.platform != "win32" and found.st_uid != os.getuid():  # a data folder can be shared
        raise ValueError(f"{file} is of another user")
    return file.read_bytes()


def _is_here(run: RunFile) -> bool:
    """True if the gateway's address is of this machine. Raises OSError, ValueError."""
    if any("\0" in text for text in (run.config_file, run.log_file, run.python)):
        return False
    host = server_url(run.url).hostname or ""
    if is_loopback(host):
        return True
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as test:
        test.bind((host, 0))
    return True


def is_alive(run: RunFile) -> bool:
    """False if the process ended, also if another one has its number now."""
    import psutil

    try:
        is_same = abs(_created_at(run.pid) - run.created_at) < _SAME_S or _is_same_after_clock_change(run)
        return is_same and psutil.Process(run.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_same_after_clock_change(run: RunFile) -> bool:
    """Linux moves the time when a process was created if the clock is set, as it is after the start of many systems."""
    import psutil

    is_same = abs(_since_boot_s(run.pid) - run.since_boot_s) < _SAME_S
    return is_same and "serve" in psutil.Process(run.pid).cmdline()


def _write(file: Path, content: bytes) -> None:
    """Write the whole file at once, readable by this user only. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)  # with mode 600
    os.close(descriptor)
    temporary = Path(name)
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    except BaseException:
        temporary.unlink()
        raise


def _remove(file: Path, content: bytes) -> None:
    """Remove the file if it has this content: another gateway may have the port now."""
    with suppress(OSError):  # Windows: another program reads it; the next reader removes it
        if file.read_bytes() == content:
            file.unlink()

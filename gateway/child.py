"""Runs one task of a module in a child process, because the task may crash or needs gigabytes.

The parent starts `python -m MODULE` and writes the request to stdin as JSON. The child writes frames to stderr:
progress, then a reply or a refusal. A frame is one JSON object between an ASCII record separator and a newline
(RFC 7464). All other text on stderr is noise. Nothing is read from stdout: native libraries print there when they load.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import psutil
from msgspec import Raw, Struct

from gateway.errors import BundleError, GatewayError

#: progress(stage, fraction): `fraction` of `stage` is done, 0 to 1
Progress = Callable[[str, float], None]

_SEPARATOR = b"\x1e"
_REFUSED = 3  # exit codes
_INTERRUPTED = 130
_CLEAN_UP_S = 5.0
_Request = TypeVar("_Request", bound=Struct)
#: Options of Popen: Ctrl-C in the terminal does not reach the child and its own children
_APART: dict[str, Any] = {"start_new_session": True}
if sys.platform == "win32":
    _APART = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}


class _Progressed(Struct, frozen=True, tag="progress"):
    stage: str
    fraction: float


class _Replied(Struct, frozen=True, tag="reply"):
    value: Raw


class _Refused(Struct, frozen=True, tag="refusal"):
    message: str


_Frame = _Progressed | _Replied | _Refused


def run_in_child(
    module: str,
    request: Struct,
    what: str,
    *,
    progress: Progress | None = None,
    clean_up_s: float = 0.0,
    on_start: Callable[[int], None] = lambda pid: None,
    is_apart: bool = False,
) -> Raw:
    """Run `module`'s task on a request in a child process. Returns the task's reply as JSON.

    Args:
        what: names the subject of the work in the message about a crash.
        progress: receives the child's progress. The child's other text then goes to stderr, else it is dropped.
        clean_up_s: seconds that the child has to clean up after an interrupt, before it is killed.
        on_start: gets the id of the child's process.
        is_apart: Ctrl-C in the terminal does not reach the child. It ends with this process at the latest.

    Raises BundleError with the child's message, or with the child's exit code if it crashed.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **(_APART if is_apart else {}),
    ) as child:
        assert child.stdin is not None and child.stderr is not None
        on_start(child.pid)
        try:
            with suppress(OSError), child.stdin:  # a child that crashed at once does not read its request
                child.stdin.write(msgspec.json.encode(request))
            last = _last_frame(child.stderr, progress)
            child.wait()
        except BaseException:
            child.stderr.close()  # ends a child that the interrupt did not reach, at its next frame
            _stop(child, clean_up_s)
            raise
    match last:
        case _Replied() if child.returncode == 0:
            return last.value
        case _Refused() if child.returncode == _REFUSED:
            raise BundleError(last.message)
    raise BundleError(f"The process that worked on {what} crashed (exit code {child.returncode}).")


def serve_request(kind: type[_Request], task: Callable[[_Request], object]) -> int:
    """The child's side: do the task with the request from stdin and write its reply. Returns the exit code.

    The process ends when its parent does, also in the middle of a task.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
        _write(_Replied(Raw(msgspec.json.encode(task(request)))))
    except GatewayError as error:
        with suppress(OSError):  # the parent may be gone
            _write(_Refused(error.message))
        return _REFUSED
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _end_with(parent: int) -> None:
    with suppress(psutil.Error):
        psutil.Process(parent).wait()
    time.sleep(_CLEAN_UP_S)  # a task that reports progress notices it first, and cleans up
    os._exit(_INTERRUPTED)


def report_progress(stage: str, fraction: float) -> None:
    """A `Progress` for a task: sends it to the parent. Raises OSError if the parent is gone."""
    _write(_Progressed(stage, fraction))


def _write(frame: _Frame) -> None:
    sys.stderr.buffer.write(_SEPARATOR + msgspec.json.encode(frame) + b"\n")
    sys.stderr.buffer.flush()


def _last_frame(lines: Iterable[bytes], progress: Progress | None) -> _Frame | None:
    last: _Frame | None = None
    for line in lines:
        noise, separator, frame = line.partition(_SEPARATOR)
        if noise and progress is not None:
            sys.stderr.write(noise.decode("utf-8", "replace"))
        if separator:
            last = msgspec.json.decode(frame, type=_Frame)
            if isinstance(last, _Progressed) and progress is not None:
                progress(last.stage, last.fraction)
    return last


def _stop(child: subprocess.Popen[bytes], clean_up_s: float) -> None:
    """Wait for the child, which receives the interrupt from the terminal too. Kill it when the time is over."""
    try:
        child.wait(clean_up_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        child.kill()

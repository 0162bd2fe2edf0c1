"""Captures the output of native code: libraries print error reasons that they do not return."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class Output:
    text: str = ""  # set at the end of the block


@contextmanager
def captured_output() -> Iterator[Output]:
    """Capture stdout and stderr of this process, including native code, within the block. Then write them to stderr.

    Captures nothing from a stream that the process does not have.
    """
    output = Output()
    with tempfile.TemporaryFile() as file:
        saved = _redirect(file.fileno())
        try:
            yield output
        finally:
            _flush()
            _restore(saved)
            file.seek(0)
            output.text = file.read().decode("utf-8", "replace")
            if output.text and sys.stderr is not None:
                sys.stderr.write(output.text)


def _redirect(target: int) -> dict[int, int]:
    """Returns: descriptor -> a copy of the original descriptor"""
    _flush()
    saved: dict[int, int] = {}
    for descriptor in (1, 2):
        with suppress(OSError):
            saved[descriptor] = os.dup(descriptor)
            os.dup2(target, descriptor)
    return saved


def _restore(saved: dict[int, int]) -> None:
    for descriptor, copy in saved.items():
        os.dup2(copy, descriptor)
        os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if sys.platform == "win32":
        ctypes.CDLL("ucrtbase").fflush(None)
    else:
        ctypes.CDLL(None).fflush(None)

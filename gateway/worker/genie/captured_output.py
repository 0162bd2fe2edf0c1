"""What native code prints, caught: libraries say on stdout and stderr what they do not return."""

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
    text: str = ""  # known when the block has ended


@contextmanager
def captured_output() -> Iterator[Output]:
    """Redirect this process's stdout and stderr, native code's included, within the block; then pass them on to
    stderr. Where the process has neither, nothing is caught."""
    output = Output()
    with tempfile.TemporaryFile() as file:
        kept = _redirect(file.fileno())
        try:
            yield output
        finally:
            _flush()
            _restore(kept)
            file.seek(0)
            output.text = file.read().decode("utf-8", "replace")
            if output.text and sys.stderr is not None:
                sys.stderr.write(output.text)


def _redirect(target: int) -> dict[int, int]:
    """descriptor -> a copy of what it was"""
    _flush()
    kept: dict[int, int] = {}
    for descriptor in (1, 2):
        with suppress(OSError):
            kept[descriptor] = os.dup(descriptor)
            os.dup2(target, descriptor)
    return kept


def _restore(kept: dict[int, int]) -> None:
    for descriptor, copy in kept.items():
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

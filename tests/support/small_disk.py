"""A small file system for tests of full and read-only disks. Needs Linux and the right to mount."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class SmallDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        _run("mount", "-o", f"remount,size={size}", str(self.folder))

    def make_read_only(self) -> None:
        _run("mount", "-o", "remount,ro", str(self.folder))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Mount a file system of `size` bytes at `folder`. Skips the test if that is not permitted."""
    folder.mkdir()
    if sys.platform != "linux":
        pytest.skip("a small file system is mounted with tmpfs")
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount")
    try:
        yield SmallDisk(folder)
    finally:
        _run("umount", "-l", str(folder))

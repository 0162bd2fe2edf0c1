"""Memory of large blocks, in a separate process, because the setting holds for the whole process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.support.processes import environment

PROGRAM = """
import sys
from pathlib import Path
from gateway.server.heap import return_large_blocks

def heap_bytes():
    line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
    start, end = line.split()[0].split("-")
    return int(end, 16) - int(start, 16)

if sys.argv[1] == "set":
    return_large_blocks()
block = bytearray(8 << 20)
del block
before = heap_bytes()
block = bytearray(7 << 20)
print(heap_bytes() - before >= 6 << 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize(("setting", "is_in_heap"), [("set", "False"), ("default", "True")])
def test_large_block_is_outside_the_heap(setting: str, is_in_heap: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, setting], env=environment(), capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == [is_in_heap]
